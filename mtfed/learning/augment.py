"""Augmentation: random changes of training images, and of their labels with them."""

from __future__ import annotations

from ..config import Augment
from ..data.shard import Batch
from ..tasks.task import Task
from .affine_augment import augment_affinely


def augment(batch: Batch, tasks: dict[str, Task], mode: Augment) -> Batch:
    """Return a batch with images and labels changed at random, by torch's default generator.

    Args:
        batch: a batch on the CPU; it is not modified.
        tasks: tasks by name; a task's kind defines how its labels move with the image.
        mode: ``none``, ``shift`` (and zoom), ``mirror`` (additionally left and right), or ``strong`` (much more).
    """
    if mode == "none":
        return batch
    if mode == "strong":
        from .strong_augment import augment_strongly  # needs libraries that the other modes do not need

        return augment_strongly(batch, tasks)
    return augment_affinely(batch, tasks, mirror=mode == "mirror")
