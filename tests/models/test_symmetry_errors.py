"""Axis graphs that are wrong about a model, which the check of its symmetries finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.small_models import Skip, SplitAttention, WindowModel, convolutions, image, perceptron, tokens, vit
from mtfed.models.symmetry import SymmetryError, check_symmetry, derive_axes
from mtfed.strategies.axes import Axis, AxisError, AxisGraph


def skip_table(up: tuple[str | None, ...]) -> AxisGraph:
    return AxisGraph(
        {
            "down.weight": (None, ("down", None, None, None)), "down.bias": (None, ("down",)),
            "deep.weight": (None, ("deep", "down", None, None)), "deep.bias": (None, ("deep",)),
            "up.weight": (None, (*up, None, None)), "up.bias": (None, ("up",)),
            "join.weight": (None, (None, "up+down", None, None)),
        },
        {"down": Axis(4), "deep": Axis(6), "up": Axis(5)},
    )  # fmt: skip


def test_concatenated_axes_and_transposed_convolutions() -> None:
    model = Skip()
    check_symmetry(model, skip_table(("deep", "up")), (image(8),))
    with pytest.raises(AxisError, match=r"up.weight: axis 'up' has 5 units, the shape \(6, 5, 2, 2\) has 6"):
        check_symmetry(model, skip_table(("up", "deep")), (image(8),))
    square = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = derive_axes(square)
    check_symmetry(square, graph, (image(8),))
    swapped = graph.tensors | {"2.weight": (None, ("2", "0", None, None))}
    with pytest.raises(SymmetryError, match="Axis '0' is not a symmetry"):
        check_symmetry(square, AxisGraph(swapped, graph.axes), (image(8),))


def test_one_permutation_of_query_and_key_across_heads_is_refused() -> None:
    split = SplitAttention()
    labels = {"weight": ("wide", None), "bias": ("wide",)}
    table = {f"{name}.{kind}": (None, label) for name in "qk" for kind, label in labels.items()}
    with pytest.raises(SymmetryError, match=r"Axis 'wide' is not a symmetry of SplitAttention: .* at .* q\.weight"):
        check_symmetry(split, AxisGraph(table, {"wide": Axis(12)}), tokens())
    graph = derive_axes(vit())
    table = {
        "blocks.0.attn.qkv.weight": ((3, 24, 24), (None, "wide", "residual")),
        "blocks.0.attn.qkv.bias": ((3, 24), (None, "wide")),
        "blocks.0.attn.proj.weight": (None, ("residual", "wide")),
    }
    axes = {label: axis for label, axis in graph.axes.items() if label != "blocks.0.attn.heads"}
    with pytest.raises(SymmetryError, match="Axis 'wide' is not a symmetry of VisionTransformer"):
        check_symmetry(vit(), AxisGraph(graph.tensors | table, axes | {"wide": Axis(24)}), (image(16),))


def without(graph: AxisGraph, *names: str) -> AxisGraph:
    return AxisGraph({name: spec for name, spec in graph.tensors.items() if name not in names}, graph.axes)


def relabel(graph: AxisGraph, label: str, axis: Axis) -> AxisGraph:
    return AxisGraph(graph.tensors, graph.axes | {label: axis})


FREE_HEADS = derive_axes(vit()).axes["blocks.0.attn.heads"]
WRONG = {  # model, inputs, change of its graph, axis that breaks
    "free order under GroupNorm(4)": (
        convolutions, lambda: (image(16),), lambda graph: relabel(graph, "4.0", Axis(16)), "4.0",
    ),
    "wrong number of groups": (
        convolutions, lambda: (image(16),), lambda graph: relabel(graph, "4.0", Axis(16, "grouped", groups=2)), "4.0",
    ),
    "norm forgotten": (vit, lambda: (image(16),), lambda graph: without(graph, "blocks.1.norm1.weight"), "residual"),
    "layer scale forgotten": (
        lambda: vit(init_values=1.0), lambda: (image(16),), lambda graph: without(graph, "blocks.0.ls1.gamma"),
        "residual",
    ),
    "running mean forgotten": (
        perceptron, lambda: (torch.randn(5, 3),), lambda graph: without(graph, "3.running_mean"), "2",
    ),
    "position table of heads forgotten": (
        WindowModel, tokens, lambda graph: without(graph, "attn.relative_position_bias_table"), "attn.heads",
    ),
    "free basis under a norm of queries": (
        lambda: vit(qk_norm=True), lambda: (image(16),),
        lambda graph: relabel(graph, "blocks.0.attn.heads", FREE_HEADS), "blocks.0.attn.heads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_axis_is_reported(name: str) -> None:
    build, inputs, corrupt, label = WRONG[name]
    torch.manual_seed(0)
    model = build()
    graph = derive_axes(model)
    check_symmetry(model, graph, inputs())
    with pytest.raises(SymmetryError, match=f"Axis '{label}' is not a symmetry of {type(model).__name__}"):
        check_symmetry(model, corrupt(graph), inputs())
