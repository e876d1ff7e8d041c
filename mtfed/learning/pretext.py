"""Training without labels: the inputs of pretext tasks are made from the images of a batch.

A pretext task is a task whose kind needs no labels (``KindSpec.every_image``). Its kind changes copies of images and
returns with them what is predicted (``Kind.pretext``). From there on, the copies are images with labels as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ..data.shard import Batch, Labels
from ..tasks.kind import kind_of
from ..tasks.task import Task

SEED = 0  # of the copies on which a model is evaluated


def add_pretext(batch: Batch, tasks: Mapping[str, Task]) -> Batch:
    """Return a batch with the inputs of its pretext tasks appended to its images, and their values as labels.

    Images without a label of any other task are left out, because only their copies are used. Everything random comes
    from torch's default generators.
    """
    pretext = {name: tasks[name] for name in batch.labels if tasks[name].spec.every_image}
    if not pretext:
        return batch
    used = torch.zeros(len(batch.images), dtype=torch.bool, device=batch.images.device)
    for name, labels in batch.labels.items():
        if name not in pretext:
            used[labels.rows] = True
    position, sources = used.cumsum(0) - 1, [used.nonzero().squeeze(1)]  # sources: the image of each new image
    images, labels_of = [batch.images[sources[0]]], {}
    for name, labels in batch.labels.items():
        if name not in pretext:
            labels_of[name] = Labels(position[labels.rows], labels.values)
            continue
        make = kind_of(pretext[name]).pretext
        assert make is not None
        copies, values = make(batch.images[labels.rows], pretext[name])
        start = sum(map(len, images))
        labels_of[name] = Labels(torch.arange(start, start + len(copies), device=copies.device), values)
        images.append(copies)
        sources.append(labels.rows.repeat_interleave(len(copies) // len(labels.rows)))
    words = None if batch.words is None else batch.words[torch.cat(sources)]
    return Batch(torch.cat(images), labels_of, words)


@contextmanager
def same_copies(tasks: Mapping[str, Task], device: torch.device) -> Iterator[None]:
    """Let pretext tasks make the same copies every time, without an effect on later random numbers."""
    if not any(task.spec.every_image for task in tasks.values()):
        yield
        return
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(SEED)
        if on_gpu:
            torch.cuda.manual_seed(SEED)
        yield
