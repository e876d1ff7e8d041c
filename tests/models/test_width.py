"""Widths: inferred from shapes, submodels, and models resized to a grown network's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.growing import CHAIN, multitask, numbers, perceptron, samples
from helpers.planted import RNG, TASKS, Network
from mtfed.config import Form
from mtfed.errors import MtfedError
from mtfed.models.build import assemble
from mtfed.models.symmetry import check_symmetry, derive_axes
from mtfed.models.system import MultiTaskModel
from mtfed.models.timm_library import timm
from mtfed.models.width import resize
from mtfed.strategies.axes import Axis, AxisError, AxisGraph
from mtfed.strategies.growth import Growth, expand
from mtfed.strategies.widths import infer_sizes, submodel, widen

TABLE = AxisGraph(
    {
        "a.weight": (None, ("a", None)), "a.bias": (None, ("a",)),
        "qkv": ((3, 2, 4, 5), (None, "h", None, "r")), "out": ((5, 2, 4), ("r", "h", None)), "norm": (None, ("r",)),
        "b": (None, ("b", None)), "join": (None, (None, "a+b")), "flat": ((7, 3, 6), (None, "a", None)),
    },
    {"a": Axis(3), "b": Axis(2), "h": Axis(2, "heads"), "r": Axis(5)},
)  # fmt: skip
SHAPES = {"a.weight": (3, 4), "a.bias": (3,), "qkv": (24, 5), "out": (5, 8), "norm": (5,), "b": (2, 9), "join": (4, 5),
          "flat": (7, 18), "other": (6,)}  # fmt: skip


def test_sizes_are_inferred_from_shapes_through_views_and_sums() -> None:
    wide = TABLE.resize({"a": 6, "h": 3, "b": 4})
    shapes = SHAPES | {"a.weight": (6, 4), "a.bias": (6,), "qkv": (36, 5), "out": (5, 12), "b": (4, 9), "join": (4, 10),
                       "flat": (7, 36)}  # fmt: skip
    net = {name: np.zeros(shape) for name, shape in shapes.items()}
    wide.validate(net)
    assert infer_sizes(TABLE, net) == {"a": 6, "b": 4, "h": 3, "r": 5}
    assert infer_sizes(TABLE, {name: net[name] for name in ("join", "a.bias")}) == {"a": 6, "b": 4}
    assert infer_sizes(TABLE, {"qkv": net["qkv"], "norm": net["norm"]}) == {"h": 3, "r": 5}
    assert infer_sizes(wide, {"other": net["other"]}) == {}
    with pytest.raises(AxisError, match="axis 'a' has"):
        infer_sizes(TABLE, net | {"a.bias": np.zeros(5)})


def test_a_submodel_of_a_widened_network_is_the_network() -> None:
    wide = TABLE.resize({"a": 6, "h": 3, "b": 4})
    small = {name: RNG(0).standard_normal(shape) for name, shape in SHAPES.items()}
    units = {"a": np.array([4, 0, 2]), "h": np.array([2, 0]), "b": np.array([3, 1])}
    big = {name: widen(wide, name, values, units) if name in wide.tensors else values for name, values in small.items()}
    wide.validate(big)
    np.testing.assert_array_equal(big["a.weight"][[4, 0, 2]], small["a.weight"])
    assert not big["a.weight"][[1, 3, 5]].any()
    np.testing.assert_array_equal(big["join"][:, [4, 0, 2, 9, 7]], small["join"])
    np.testing.assert_array_equal(
        big["qkv"].reshape(3, 3, 4, 5)[:, [2, 0]], small["qkv"].reshape(3, 2, 4, 5)
    )  # fmt: skip
    back = submodel(wide, big, units)
    for name in small:
        np.testing.assert_array_equal(back[name], small[name])
    assert back["other"] is big["other"]


# Models.


def with_unread_units(graph: AxisGraph, network: Network, share: float = 0.5) -> tuple[AxisGraph, Network]:
    """Return a network with more random units on every axis that may grow; all readers give them weight 0."""
    sizes = {label: axis.size for label, axis in graph.axes.items() if axis.growable and axis.axis_type != "grouped"}
    wide = graph.resize({label: size + max(int(share * size), 1) for label, size in sizes.items()})
    grown = Growth(wide, [{label: np.arange(size) for label, size in sizes.items()}])
    values, precision = expand(grown, 0, network)
    generator = RNG(3)
    for name, sure in precision.items():
        if np.ndim(sure):  # tensors of a new unit have precision 0, its readers do not
            values[name] = np.where(sure > 0, values[name], abs(generator.standard_normal(values[name].shape)))
    return wide, values


WIDENED = {
    "perceptron": (lambda: perceptron(5, 8, 9, 3), lambda: (torch.randn(4, 5).double(),)),
    "chain": (lambda: CHAIN, lambda: (torch.randn(2, 2, 12, 12).double(),)),
    "upsampling": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2), nn.GroupNorm(5, 5)
        ),
        lambda: (torch.randn(2, 2, 6, 6).double(),),
    ),
    "vit": (
        lambda: timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, qk_norm=True, init_values=0.5
        ),
        lambda: (torch.randn(2, 3, 16, 16).double(),),
    ),
    "multi-task": (multitask, samples),
    "multi-task on pvt": (
        lambda: assemble("mtmedformer", TASKS, (Form(2, 32),), encoder="pvt_v2_b0", decoder_width=8), samples
    ),
    "swin": (
        lambda: timm.models.SwinTransformer(
            img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), num_classes=3
        ),
        lambda: (torch.randn(2, 3, 16, 16).double(),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDENED)
@torch.no_grad()
def test_unread_units_change_nothing(name: str) -> None:
    build, inputs = WIDENED[name]
    torch.manual_seed(0)
    model = build().double().eval()
    graph, before = derive_axes(model), numbers(model)
    wide, values = with_unread_units(graph, before)
    grown, x = resize(model, values), inputs()
    expected, actual = (flat(net.eval()(*x)) for net in (model, grown))
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert all(np.array_equal(before[key], value) for key, value in numbers(model).items())
    again = derive_axes(grown)
    assert {label: axis.size for label, axis in again.axes.items()} == {k: axis.size for k, axis in wide.axes.items()}
    assert again.tensors == wide.tensors
    check_symmetry(grown, again, x)
    if isinstance(grown, MultiTaskModel):
        parts = {key: tensor for part in grown.parts().values() for key, tensor in part.items()}
        assert all(parts[key].shape == value.shape for key, value in values.items())


def flat(outputs: Any) -> Tensor:
    return torch.cat([part.ravel() for part in outputs.values()]) if isinstance(outputs, dict) else outputs


def test_a_grown_model_trains() -> None:
    model = multitask()
    grown = resize(
        model, {key: values for key, values in with_unread_units(derive_axes(model), numbers(model))[1].items()}
    )
    image, rows = samples()
    flat(grown(image.float(), rows)).square().sum().backward()
    assert all(p.grad is not None for name, p in grown.named_parameters() if "balance" not in name)
    assert {p.dtype for p in grown.parameters()} == {torch.float32}


UNFIT: list[tuple[Any, Any, str]] = [
    (lambda: nn.Sequential(nn.LayerNorm(3)), lambda n: {k: np.ones(4) for k in n}, "0: LayerNorm cannot take tensors"),
    (lambda: nn.Sequential(nn.Linear(3, 2)), lambda n: {"0.weight": n["0.weight"]}, "see '0.bias'"),
    (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)),
        lambda n: {"0.weight": np.ones((6, 2, 1, 1)), "0.bias": np.ones(6)},
        "0: a convolution of 2 groups cannot be widen",
    ),
    (
        lambda: timm.layers.Attention(8, num_heads=2), lambda n: n | {"proj.weight": np.ones((8, 11))},
        "Attention cannot take heads of 4 channels that are 11 wide together",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("build", "change", "message"), UNFIT)
def test_modules_that_cannot_be_widened_are_refused(build: Any, change: Any, message: str) -> None:
    model = build()
    with pytest.raises(MtfedError, match=message):
        resize(model, change(numbers(model)))
