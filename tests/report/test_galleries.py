"""Examples on the page: every kind of task is drawn, with the same figures as the metrics."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.pictured import KINDS as EVERY_KIND
from helpers.pictured import pictured
from helpers.reports import SEEN, Json, make_run, plain, read
from mtfed.learning.metrics import TaskMetrics
from mtfed.record.examples import save_examples
from mtfed.record.run import Run
from mtfed.report.html import escape
from mtfed.report.overlays import count_hits, dice
from mtfed.report.pictures import BRIGHT, PREDICTED, TRUE, outline
from mtfed.tasks.average_precision import match
from mtfed.tasks.specs import METRIC_SPECS
from mtfed.tasks.task import Task


def test_dice_is_the_metrics(tmp_path: Path) -> None:
    task = Task(name="t", kind="segmentation", classes=("none", "left", "right"))
    generator = torch.Generator().manual_seed(0)
    for classes in (3, 2, 1):  # of those that are there
        true, predicted = (torch.randint(0, classes, (1, 8, 8), generator=generator) for _ in range(2))
        metrics = TaskMetrics(task)
        metrics.update(torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float(), true)
        assert dice(predicted[0].numpy(), true[0].numpy(), 3) == pytest.approx(metrics.compute()["dice"], nan_ok=True)


def test_outlines_are_closed_around_each_structure() -> None:
    labels = np.zeros((5, 6), int)
    assert outline(labels, 3) == ""
    labels[1:3, 1:3], labels[4, 5] = 1, 2
    path = outline(labels, 3)
    assert path.count("M") == path.count("Z") == 2
    points = np.array([[float(x) for x in point.split(",")] for point in re.findall(r"[\d.]+,[\d.]+", path)])
    assert points[:, 0].max() == 6 and points[:, 1].max() == 5  # the image's edge, and no further


def test_found_boxes_are_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        corner, size = (torch.rand(10, 2, generator=generator) * side for side in (4, 6))
        boxes = torch.cat([corner, size, torch.randint(2, (10, 1), generator=generator)], 1)
        true, scores = boxes[:4], torch.rand(6, generator=generator).sort(descending=True).values
        hits = match(boxes[None, 4:, :4], scores[None], boxes[None, 4:, 4].long(), true[None], [0.5])
        predicted = torch.cat([boxes[4:], scores[:, None]], 1)
        assert count_hits(predicted.numpy(), true.numpy()) == int(hits.sum())
        assert count_hits(predicted.numpy(), true[:0].numpy()) == 0


@pytest.mark.parametrize(("dimensions", "size"), [(2, 64), (3, 24)])
def test_every_kind_is_drawn(tmp_path: Path, dimensions: int, size: int) -> None:
    given: Json = {"dimensions": dimensions, "image_size": size}
    every = dict.fromkeys(SEEN, 0.5)
    run = make_run(tmp_path / "a", tasks=EVERY_KIND, test=every, validation=every, examples=False, **given)
    settings = Run(run).config()
    shard, seer = pictured(settings, 12)
    save_examples(Run(run), seer, shard, settings)  # type: ignore[arg-type]
    page = read(run)
    text = plain(page)
    for metric in {metric for task in settings.tasks.values() for metric in task.metrics}:
        spec = METRIC_SPECS[metric]
        assert f"{spec.title}: {escape(spec.description)}" in text, metric
    shown = page[page.index("Predictions on test images") : page.index("Hospitals and their images")]
    assert shown.count("<figure>") == len(SEEN) * (8 if dimensions == 2 else 4)
    assert (f"of {size}</div>" in shown) == (dimensions == 3)
    if dimensions == 2:
        assert not [words for words in SEEN.values() if words not in plain(shown)]
    assert "0.50 Gy Dose score, lower is better, FedAvg" in text and "Dose score ↓Gy" in text


def test_what_is_true_is_dashed(tmp_path: Path) -> None:
    """One convention for masks, structures and boxes; the colours of structures mean nothing else."""
    looks = {TRUE[2], PREDICTED[2]}
    assert looks == {"5 4", "none"} and not {TRUE[0], PREDICTED[0]} & set(BRIGHT)
    every = dict.fromkeys(SEEN, 0.5)
    page = read(make_run(tmp_path / "a", tasks=EVERY_KIND, test=every, validation=every))
    for task, what in (("Lesion", "outline"), ("Organs", "outline"), ("Spots", "box")):
        legend = re.findall(rf"<h3>{task}:.*?</ul>", page)[0]
        for look, name in ((TRUE, f"true {what}"), (PREDICTED, f"predicted {what}")):
            assert re.search(rf'stroke-dasharray="{look[2]}"></line></svg>{name}', legend), (task, name)
