"""Axes of decoders are symmetries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.decoders import ENCODERS, PAIRS, declare
from mtfed.config import Form
from mtfed.models.build import assemble
from mtfed.models.decoders import DECODERS
from mtfed.models.encoders import Encoder
from mtfed.models.symmetry import check_symmetry, derive_axes
from mtfed.models.system import MultiTaskModel
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.tasks.task import Task


def every_task() -> dict[str, Task]:
    """Return one task for each class of decoder."""
    tasks = {DECODERS[kind][name]: declare(kind, name) for kind, name in reversed(PAIRS)}
    return {task.name: task for task in tasks.values()}


def model(name: str) -> MultiTaskModel:
    torch.manual_seed(0)
    dimensions, size = ENCODERS[name]
    return assemble("hard-sharing", every_task(), (Form(dimensions, size),), encoder=name, decoder_width=8)


def inputs(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    dimensions, size = ENCODERS[name]
    return torch.randn(2, 1, *(size,) * dimensions), {task: torch.tensor([1]) for task in every_task()}


def decoders_alone(graph: AxisGraph) -> AxisGraph:
    """Return a graph in which all other axes are frozen; axes inside encoders are tested elsewhere."""
    read = {label for name in graph.tensors if name.startswith("decoders.") for label in graph.labels(name)}
    axes = {label: axis if label in read else Axis(axis.size, "frozen") for label, axis in graph.axes.items()}
    return AxisGraph(graph.tensors, axes)


@pytest.mark.parametrize("name", ["vit_nano_patch8", "pvt_v2_b0", "vit3d_mini_patch4", "resnet3d_mini"])
def test_the_axes_of_all_decoders_are_symmetries(name: str) -> None:
    made = model(name)
    graph = derive_axes(made)
    changes = check_symmetry(made, decoders_alone(graph), inputs(name))
    for task in every_task().values():
        results = {label.removeprefix(f"decoders.{task.name}.") for label in changes if f".{task.name}." in label}
        if task.decoder == "unet":
            assert results >= {
                f"{part}.{i}" for part, count in (("stem", 2), ("levels", 4), ("up", 5)) for i in range(count)
            }
            assert len(results) == 2 + 4 + 5 + 5  # including the units between the two convolutions of a step
        elif task.decoder == "mlp":
            assert results >= {"levels", "fuse"}
    labelled = {name for name, (_, labels) in graph.tensors.items() if any(labels)}
    unlabelled = {name for name in made.state_dict() if name.startswith("decoders.")} - labelled
    heads = ("head.bias", "head.weight", "norm.weight", "norm.bias", "thresholds", "centres.1.bias", "boxes.1.bias")
    heads += ("head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "projector.2.bias")
    maps = tuple(f"levels.{i}.0.{kind}" for i in range(4) for kind in ("weight", "bias"))  # these maps are not permuted
    assert all(path.endswith(heads + (maps if name == "pvt_v2_b0" else ())) for path in unlabelled)


class Summit(nn.Module):
    """A decoder without a describer."""

    def __init__(self, task: Task, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(encoder.dim, 2)

    def forward(self, features: Any) -> Tensor:
        return self.head(features.pooled.cumsum(1))


def test_features_that_an_unknown_decoder_reads_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    known = derive_axes(model("vit_nano_patch8")).axes
    monkeypatch.setitem(DECODERS["classification"], "linear", Summit)
    made = model("vit_nano_patch8")
    graph = derive_axes(made)
    streams = [label for label in known if label.endswith("residual")]
    assert [known[label].axis_type for label in streams] == ["perm"]
    assert [graph.axes[label].axis_type for label in streams] == ["frozen"]
    assert not any(".classification_linear." in label for label in graph.axes)
