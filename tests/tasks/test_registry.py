"""A kind of task from outside: it needs a spec, an implementation and a decoder, and then works everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from mtfed.config import read_config
from mtfed.data.shard import Batch, Labels
from mtfed.errors import MtfedError
from mtfed.learning.losses import task_losses
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.learning.strong_augment import augment_strongly
from mtfed.models.decoders import DECODERS, register_decoder
from mtfed.models.decoders.heads import ClassificationDecoder
from mtfed.report.galleries import GALLERIES, PLAIN, Gallery, register_gallery
from mtfed.report.metric_format import full_title
from mtfed.tasks import KIND_SPECS, METRIC_SPECS, Kind, KindSpec, MetricSpec, Task, kind, mean_metric, register_kind

SPEC = KindSpec("a count of cells", losses=("poisson",), metrics=("count-error",), decoders=("linear",), unit="cells")
COUNTS = Kind(
    read=lambda cell, task, source: np.array([int(word) for word in cell.split(";")], np.float32),
    losses={"poisson": lambda task, settings, outputs, values: F.poisson_nll_loss(outputs, values)},
    metrics={"count-error": mean_metric(lambda task, outputs, values: (outputs.exp() - values).abs())},
    curvature_factor=lambda outputs, values, task: (outputs / 2).exp() * torch.randn_like(outputs).sign(),
    show=lambda outputs, task: outputs.exp().numpy(),
)
WORDS = {"count-error": MetricSpec("Count error", "mean absolute error", higher_is_better=False, in_units=True)}
KEYS = {"task.cells.kind": "counts", "task.cells.classes": "red, white, platelet"}


TABLES: tuple[dict, ...] = (KIND_SPECS, METRIC_SPECS, DECODERS, GALLERIES, kind._REGISTERED)


@pytest.fixture
def registered() -> Iterator[None]:
    """A kind that is registered for the duration of a test."""
    before = [{name: dict(row) if isinstance(row, dict) else row for name, row in table.items()} for table in TABLES]
    register_kind("counts", SPEC, COUNTS, WORDS)
    register_decoder("counts", "linear", ClassificationDecoder)
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


def test_a_kind_is_not_known_before_it_is_registered() -> None:
    with pytest.raises(
        MtfedError, match=r"Config key task\.cells\.kind: expected 'classification', .* or 'views', got"
    ):
        read_config(KEYS)


@pytest.mark.usefixtures("registered")
def test_a_registered_kind_is_declared_trained_and_measured() -> None:
    config = read_config(KEYS)
    task = config.tasks["cells"]
    assert task.loss == "poisson" and task.metrics == ("count-error",) and task.decoder == "linear"
    outputs, values = torch.randn(6, 3, requires_grad=True), torch.randint(9, (6, 3)).float()
    task_losses(config)["cells"](outputs, values).backward()
    assert outputs.grad is not None and outputs.grad.any()
    sites = [TaskMetrics(task), TaskMetrics(task)]
    for site, part in zip(sites, (slice(0, 2), slice(2, 6)), strict=True):
        site.update(outputs[part], values[part])
    first, second = (site.sums() for site in sites)
    figures = pool([task], {name: np.add(first[name], second[name]).tolist() for name in first})["cells"].compute()
    expected = (outputs.detach().exp() - values).abs().mean()
    assert figures == {"count-error": pytest.approx(float(expected), rel=1e-6)}
    assert full_title(task, "count-error") == "Count error, cells, lower is better"
    assert task.score(0.5) == 0.75


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("geometry", ["", "map"])
def test_a_registered_kind_is_augmented_and_drawn(geometry: str) -> None:
    KIND_SPECS["counts"] = replace(SPEC, geometry=geometry)  # type: ignore[arg-type]
    task = Task(name="cells", kind="counts", classes=("red",))
    values = torch.arange(128.0).reshape(2, 1, 8, 8)
    torch.manual_seed(0)
    batch = augment_strongly(Batch(torch.rand(2, 1, 8, 8), {"cells": Labels(torch.arange(2), values)}), {"cells": task})
    assert torch.equal(batch.labels["cells"].values, values) == (not geometry)
    drawn, caption, _ = PLAIN.draw(task, np.zeros((1, 8, 8), np.uint8), np.array([3.0]), np.array([2.5]))
    assert "<svg" in drawn and "predicted: [2.5]" in caption and "true: [3.]" in caption
    register_gallery("counts", Gallery(PLAIN.draw, PLAIN.summary, PLAIN.legend, "large"))
    with pytest.raises(MtfedError, match="Expected a new name for a gallery, got 'counts'"):
        register_gallery("counts", PLAIN)


@pytest.mark.usefixtures("registered")
def test_a_decoder_can_be_added_to_a_kind() -> None:
    register_decoder("classification", "wide", ClassificationDecoder)
    assert Task(name="it", kind="classification", classes=("a", "b"), decoder="wide").decoder == "wide"
    with pytest.raises(MtfedError, match="Expected a new name for a decoder of classification tasks, got 'wide'"):
        register_decoder("classification", "wide", ClassificationDecoder)
    with pytest.raises(MtfedError, match="Unknown kind of task 'clasification'; did you mean 'classification'"):
        register_decoder("clasification", "wide", ClassificationDecoder)


BAD = [  # changes of the spec, of the implementation, message
    ({"losses": ("poisson", "mse")}, {}, "'counts' to come with all losses that its spec names, got none of mse"),
    ({"metrics": ("count-error", "auc")}, {}, "all metrics that its spec names, got none of auc"),
    ({"metrics": ("other",)}, {"metrics": {"other": COUNTS.metrics["count-error"]}}, "all metrics .* none of other"),
]


@pytest.mark.parametrize(("spec", "implementation", "message"), BAD)
def test_an_incomplete_kind_is_refused(spec: dict, implementation: dict, message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        register_kind("counts", replace(SPEC, **spec), replace(COUNTS, **implementation), WORDS)
    assert "counts" not in KIND_SPECS
    with pytest.raises(ValidationError):
        Task(name="it", kind="counts", classes=("a",))


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(MtfedError, match="Expected a new name for a kind of task, got 'dose'"):
        register_kind("dose", SPEC, COUNTS, WORDS)
