"""Decoders: outputs for every kind of task in two and three dimensions, initial predictions, losses, and axes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtfed.config import read_config
from mtfed.models.build import assemble
from mtfed.models.decoders import DECODERS
from mtfed.models.decoders.heads import OrdinalDecoder, RegressionDecoder
from mtfed.models.decoders.layers import resize
from mtfed.models.encoders import Encoder
from mtfed.models.symmetry import check_symmetry, derive_axes
from mtfed.models.system import MultiTaskModel
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.tasks.kind import kind_of
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task

CLASSES = ("one", "two", "three")
RANGED = {"regression", "dose"}
ENCODERS = {  # name -> dimensions, side of its image
    "vit_nano_patch8": (2, 40),  # a plain transformer, whose maps all have stride 8
    "pvt_v2_b0": (2, 40),  # a hierarchical one; 32 does not divide 40
    "resnet_mini": (2, 32),
    "vit3d_mini_patch4": (3, 8),
    "resnet3d_mini": (3, 16),
}
PAIRS = [(kind, name) for kind, row in KIND_SPECS.items() for name in row.decoders]


def declare(kind: str, decoder: str = "") -> Task:
    name = f"{kind}_{decoder}" if decoder else kind
    return Task(name=name, kind=kind, classes=CLASSES, decoder=decoder, range=(0, 8) if kind in RANGED else ())


@lru_cache
def encoder(name: str) -> Encoder:
    torch.manual_seed(0)
    dimensions, size = ENCODERS[name]
    return Encoder(name, size, 1, dimensions).eval()


@lru_cache
def features(name: str) -> Any:
    dimensions, size = ENCODERS[name]
    with torch.no_grad():
        return encoder(name)(torch.randn(2, 1, *(size,) * dimensions, generator=torch.Generator().manual_seed(0)))


def expected_shape(kind: str, dimensions: int, size: int) -> tuple[int, ...]:
    whole = (size,) * dimensions
    return {
        "classification": (3,), "multi-label": (3,), "ordinal": (2,), "regression": (3,), "dose": (1, *whole),
        "segmentation": (3, *whole), "multi-label-segmentation": (3, *whole),
        "detection": (3 + 2 * dimensions, *(size // 4,) * dimensions),
    }[kind]  # fmt: skip


def test_every_kind_has_its_declared_decoders() -> None:
    assert {kind: tuple(row) for kind, row in DECODERS.items()} == {
        kind: row.decoders for kind, row in KIND_SPECS.items()
    }


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("kind", "decoder"), PAIRS)
def test_outputs_have_their_shape_and_every_weight_a_gradient(name: str, kind: str, decoder: str) -> None:
    torch.manual_seed(0)
    made = DECODERS[kind][decoder](declare(kind, decoder), encoder(name), 8)
    outputs = made(features(name))
    assert outputs.shape == (2, *expected_shape(kind, *ENCODERS[name]))
    outputs.square().sum().backward()
    for path, weight in made.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), path


@pytest.mark.parametrize("decoder", ["mlp", "unet"])
def test_outputs_have_the_size_of_the_image(decoder: str) -> None:
    made = DECODERS["segmentation"][decoder](declare("segmentation", decoder), encoder("pvt_v2_b0"), 8)
    image = torch.zeros(1, 1, 36, 52)
    assert made(encoder("pvt_v2_b0")(image)).shape == (1, 3, 36, 52)


def test_predictions_start_in_the_middle() -> None:
    torch.manual_seed(0)
    made = RegressionDecoder(declare("regression"), encoder("vit_nano_patch8"), 8)
    outputs = made(features("vit_nano_patch8"))
    assert (outputs - 0.5).abs().max() < 0.5
    task = declare("ordinal")
    ordinal = OrdinalDecoder(task, encoder("vit_nano_patch8"), 8)
    nn.init.zeros_(ordinal.head.weight)
    with torch.no_grad():
        shown = kind_of(task).show(ordinal(features("vit_nano_patch8")), task)
    torch.testing.assert_close(torch.from_numpy(shown), torch.full((2, 3), 1 / 3))


def test_thresholds_of_an_ordinal_task_share_their_weights() -> None:
    made = OrdinalDecoder(declare("ordinal"), encoder("vit_nano_patch8"), 8)
    outputs = made(features("vit_nano_patch8"))
    torch.testing.assert_close(outputs[:, 0] - outputs[:, 1], (made.thresholds[0] - made.thresholds[1]).expand(2))


def test_resizing_interpolates_and_averages_where_it_shrinks_by_half() -> None:
    for dims, mode in ((2, "bilinear"), (3, "trilinear")):
        x = torch.randn(2, 3, *(8,) * dims, generator=torch.Generator().manual_seed(dims))
        assert resize(x, x.shape[2:]) is x
        for side in (5, 7, 16):
            torch.testing.assert_close(resize(x, [side] * dims), F.interpolate(x, [side] * dims, mode=mode))
        means = x
        for axis in range(2, 2 + dims):
            means = means.unflatten(axis, (2, 4)).mean(axis + 1)
        torch.testing.assert_close(resize(x, [2] * dims), means)


# Losses of their outputs.


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_focal_loss_of_a_softmax_has_a_gradient(kind: str, gamma: float) -> None:
    config = read_config({"task.a.kind": kind, "task.a.classes": ", ".join(CLASSES), "focal-gamma": gamma})
    shape = (2, 3) if kind == "classification" else (2, 3, 1, 1)
    logits = torch.tensor([[200.0, -200.0, 0.0], [0.3, -0.2, 1.0]]).view(shape).requires_grad_()
    values = torch.tensor([0, 1]).view(2, *shape[2:])
    loss = kind_of(declare(kind)).losses["focal"](declare(kind), config, logits, values)
    (gradient,) = torch.autograd.grad(loss, logits)
    p = torch.tensor([0.3, -0.2, 1.0]).softmax(0)[1]
    torch.testing.assert_close(loss, (1 - p) ** gamma * -p.log() / 2)
    assert gradient.isfinite().all() and not gradient[0].any() and gradient[1].flatten()[1] < 0


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["multi-label", "multi-label-segmentation"])
def test_the_focal_loss_of_a_certain_prediction_has_a_gradient(kind: str, gamma: float) -> None:
    task = declare(kind)
    config = read_config({"task.a.kind": kind, "task.a.classes": ", ".join(CLASSES), "focal-gamma": gamma})
    results, shape = [], (1, 3) if kind == "multi-label" else (1, 3, 1, 1)
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([200.0, -200.0, -1.5], dtype=dtype).view(shape).requires_grad_()
        loss = kind_of(task).losses["focal"](task, config, logits, torch.tensor([1, 0, 1]).view(shape))
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append(gradient.flatten().double())
        p = torch.tensor(-1.5, dtype=torch.float64).sigmoid()
        torch.testing.assert_close(loss.double(), (1 - p) ** gamma * -p.log() / 3, check_dtype=False)
    torch.testing.assert_close(results[0], results[1])
    assert results[0].isfinite().all() and results[0].tolist()[:2] == [0.0, 0.0] and results[0][2] < 0


# Axes.


def every_task() -> dict[str, Task]:
    """Return one task for each class of decoder."""
    tasks = {DECODERS[kind][name]: declare(kind, name) for kind, name in reversed(PAIRS)}
    return {task.name: task for task in tasks.values()}


def model(name: str) -> MultiTaskModel:
    torch.manual_seed(0)
    dimensions, size = ENCODERS[name]
    return assemble("hard-sharing", every_task(), encoder=name, image_size=size, dimensions=dimensions, decoder_width=8)


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
    assert [known[label].kind for label in streams] == ["perm"]
    assert [graph.axes[label].kind for label in streams] == ["frozen"]
    assert not any(".classification_linear." in label for label in graph.axes)
