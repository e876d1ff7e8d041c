"""Axes of sharing schemes are symmetries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.sharing import ENCODERS, SCHEMES, build, image, rows
from mtfed.config import Form
from mtfed.models.axes.builder import AxisGraphBuilder, describes
from mtfed.models.axes.sharing import label_sharing
from mtfed.models.build import assemble
from mtfed.models.sharing import Sharing
from mtfed.models.specs import MODEL_SPECS
from mtfed.models.symmetry import check_symmetry, derive_axes
from mtfed.models.system import MultiTaskModel
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.strategies.wire import task_of
from mtfed.tasks.task import Task

torch.set_num_threads(1)


class Readers(nn.Module):
    """A scheme, and for each task a linear layer on every map and on the pooled features."""

    def __init__(self, scheme: Sharing) -> None:
        super().__init__()
        self.encoder = scheme
        sizes = [*scheme.encoder.channels, scheme.encoder.dim]
        self.heads = nn.ModuleDict({t: nn.ModuleList(nn.Linear(size, 2) for size in sizes) for t in scheme.tasks})

    def forward(self, x: Tensor, rows: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        return {
            task: [
                head(level.movedim(1, -1))
                for head, level in zip(self.heads[task], [*features.maps, features.pooled], strict=True)
            ]
            for task, features in self.encoder(x, rows).items()
        }


@describes(Readers)
def readers(builder: AxisGraphBuilder, path: str, module: Any) -> None:
    for task, (maps, pooled) in label_sharing(builder, "encoder", module.encoder).items():
        for i, label in enumerate([*maps, pooled]):
            builder.label_map(f"heads.{task}.{i}", module.heads[task][i], label, None)


SCHEME_AXES = {  # scheme -> free axes in addition to those of the body, over the encoders above
    "hard": 0,
    "separate": 0,
    "mtan": 3 * 3 + 3 * 4,  # bottlenecks: two inner and the outer; masks: hidden
    "ctan": 3 * 4 + 3 * 2,  # gated values, heads and MLPs; with few channels there is one head
    "ctan, encoder only": 3 * 4,
    "ctan, bottleneck only": 3 * 2,
}

DESCRIBED = [(scheme, encoder) for scheme in SCHEMES for encoder in ("resnet_nano", "vit_nano_patch8")]

DESCRIBED += [(scheme, encoder) for scheme in ("mtan", "ctan") for encoder in ("pvt_mini", "resnet3d_mini")]


@pytest.mark.parametrize(("scheme", "encoder"), DESCRIBED)
def test_axes_are_symmetries(scheme: str, encoder: str) -> None:
    torch.manual_seed(0)
    model = Readers(build(scheme, encoder))
    graph = derive_axes(model)
    changes = check_symmetry(model, graph, (image(encoder), rows()))
    own = [label for label in changes if ".body" not in label]
    assert len(own) == SCHEME_AXES[scheme]
    assert max(changes.values(), default=0.0) < 1e-10


DECLARED = {
    "lungs": Task(name="lungs", kind="segmentation", classes=("outside", "lung")),  # reads the maps
    "kind": Task(name="kind", kind="classification", classes=("one", "two")),  # reads the pooled features
    "side": Task(name="side", kind="classification", classes=("left", "right")),
}

READ_BY_STREAMS = {  # model -> axes that the streams of all tasks read; a known body adds some
    "ctan": {"codes.0", "codes.1", "codes.2", "codes.3", "tokens"},
    "ctan-encoder": {"codes.0", "codes.1", "codes.2", "codes.3"},
    "ctan-bottleneck": {"tokens"},
}

STREAMS = {  # (model, encoder) -> axes of the body that they read
    ("ctan", "resnet_nano"): {"body.stem", "body.layer2", "body.layer3", "body.layer4"},
    ("ctan-encoder", "resnet_nano"): {"body.stem", "body.layer2", "body.layer3", "body.layer4"},
    ("ctan-bottleneck", "resnet_nano"): {"body.layer4"},
    ("ctan", "vit_nano_patch8"): {"body.residual"},
    ("ctan-encoder", "vit_nano_patch8"): {"body.residual"},
    ("ctan-bottleneck", "vit_nano_patch8"): {"body.residual"},
}


def whole(name: str, encoder: str, tasks: dict[str, Task]) -> tuple[MultiTaskModel, AxisGraph]:
    """Return a model in float64 with noise on all tensors, and its axes."""
    torch.manual_seed(0)
    side, dims = ENCODERS[encoder]
    made = assemble(name, tasks, (Form(dims, side),), encoder=encoder, decoder_width=8)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand(tensor.shape)
    return made.double().eval(), derive_axes(made)


@torch.no_grad()
def changes_of(model: MultiTaskModel, graph: AxisGraph, encoder: str, task: str) -> dict[str, float]:
    """Reorder each axis in the parts that a site with one task returns; return how much its outputs change."""
    generator, x = np.random.default_rng(0), image(encoder).double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for part, tensors in model.parts().items() if task_of(part) in ("", task) for name in tensors]
    own = {name: state[name].numpy() for name in names}
    expected, changes = model(x, rows({task: [0, 2]}))[task], {}
    for label, axis in graph.axes.items():
        if axis.axis_type == "frozen" or not graph.slots(label, own):
            continue
        moved = graph.permute(own, {label: np.roll(axis.random_permutation(generator), 1)})
        moved = graph.regauge(moved, label, graph.random_gauge(moved, label, "gl", generator))
        model.load_state_dict(state | {name: torch.tensor(values) for name, values in moved.items()})
        outputs = model(x, rows({task: [0, 2]}))[task]
        changes[label] = float((outputs - expected).abs().max() / expected.abs().max())
    model.load_state_dict(state)
    return changes


NAMES = [name for name, spec in MODEL_SPECS.items() if spec.scheme.startswith("mtfed.")]  # not those of other tests
WANTED = [(name, "vit_nano_patch8") for name in NAMES]

PLAIN = {"medformer"}  # models whose encoder is a plain transformer

WANTED += [(name, "resnet_nano") for name in NAMES if not MODEL_SPECS[name].requires_transformer and name not in PLAIN]

WANTED += [("ctan", "pvt_mini"), ("ctan", "resnet3d_mini"), ("mtan", "pvt_mini"), ("medformer", "vit3d_mini_patch8")]


@pytest.mark.parametrize("task", ["lungs", "kind"])
@pytest.mark.parametrize(("name", "encoder"), WANTED)
def test_units_in_the_parts_of_a_site_may_be_reordered(name: str, encoder: str, task: str) -> None:
    changes = changes_of(*whole(name, encoder, DECLARED), encoder, task)
    assert changes and max(changes.values()) < 1e-10
    assert any(label.startswith("encoder.") for label in changes)
    assert any(f".{task}." in label for label in changes) or task == "kind"


@pytest.mark.parametrize(("name", "encoder"), STREAMS)
def test_axes_that_the_streams_of_all_tasks_read_are_frozen(name: str, encoder: str) -> None:
    model, graph = whole(name, encoder, DECLARED)
    expected = {f"encoder.{label}" for label in STREAMS[name, encoder] | READ_BY_STREAMS[name]}
    assert {label for label, axis in graph.axes.items() if axis.axis_type == "frozen"} == expected
    freed = AxisGraph(graph.tensors, graph.axes | {label: Axis(graph.axes[label].size) for label in expected})
    changes = changes_of(model, freed, encoder, "lungs")
    assert {label for label, change in changes.items() if change > 1e-6} == expected
    alone, table = whole(name, encoder, {"lungs": DECLARED["lungs"]})
    assert not any(axis.axis_type == "frozen" for axis in table.axes.values())
    assert max(changes_of(alone, table, encoder, "lungs").values()) < 1e-10
