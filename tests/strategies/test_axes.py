"""Axis graphs: tables that contradict themselves, exact reordering, and symmetry claims put to the test on models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mtfed.strategies.axes import Axis, AxisError, AxisGraph, Circuit, Piece
from torch import Tensor, nn

from mtfed.models.build import assemble
from mtfed.models.symmetry import SymmetryError, check_symmetry, derive_axes
from mtfed.startup import import_timm
from mtfed.tasks.task import Task

timm = import_timm()
RNG = np.random.default_rng

GRAPH = AxisGraph(
    {
        "a.weight": (None, ("a", None)),
        "b.weight": (None, ("b", None)),
        "join.weight": (None, (None, "a+b")),
        "heads.weight": ((2, 3, 2, 4), (None, "h", None, "a")),
        "heads.out": ((4, 3, 2), ("a", "h", None)),
        "norm": (None, ("g",)),
    },
    {
        "a": Axis(4), "b": Axis(5), "g": Axis(6, "grouped", groups=3),
        "h": Axis(3, "heads", circuits=(Circuit((Piece("heads.weight", 0),), (Piece("heads.weight", 1),)),)),
    },
)  # fmt: skip
SHAPES = {"a.weight": (4, 2), "b.weight": (5, 2), "join.weight": (3, 9), "heads.weight": (12, 4), "heads.out": (4, 6),
          "norm": (6,), "other": (7,)}  # fmt: skip


def network(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: RNG(seed).standard_normal(shape) for name, shape in SHAPES.items()}


TABLES = [  # tensors, axes, message
    ({"w": (None, ("x",))}, {}, "axis 'x' is not declared"),
    ({"w": (None, ("x", "x"))}, {"x": Axis(2)}, "axis 'x' appears twice on one tensor"),
    ({"w": (None, ("x+y+x",))}, {"x": Axis(2), "y": Axis(2)}, "axis 'x' appears twice"),
    ({"w": ((3, 2), ("x", None))}, {"x": Axis(2)}, r"axis 'x' has 2 units, the shape \(3, 2\) has 3"),
    ({"w": ((3, 2), ("x",))}, {"x": Axis(3)}, r"1 axes are declared, the shape \(3, 2\) has 2"),
    ({"w": (None, ("x",))}, {"x": Axis(7, "grouped", groups=2)}, "7 units do not divide into 2 groups"),
    ({"w": (None, ("x", None))}, {"x": Axis(2, circuits=(Circuit((Piece("w"),), ()),))}, "circuits belong to heads"),
    ({"w": (None, ("x",))}, {"x": Axis(2, "heads", circuits=(Circuit((Piece("w"),), ()),))}, "after the head axis"),
]


@pytest.mark.parametrize(("tensors", "axes", "message"), TABLES)
def test_a_table_that_contradicts_itself_is_refused(tensors: Any, axes: Any, message: str) -> None:
    with pytest.raises(AxisError, match=message):
        AxisGraph(tensors, axes)


MISFITS = [
    ("a.weight", (5, 2), "axis 'a' has 4 units"),
    ("a.weight", (4, 2, 1), "2 axes are declared"),
    ("join.weight", (3, 8), "axis 'a\\+b' has 9 units"),
    ("heads.weight", (12, 5), "cannot be viewed as"),
]


@pytest.mark.parametrize(("name", "shape", "message"), MISFITS)
def test_tensors_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    GRAPH.validate(network())
    GRAPH.validate({"a.weight": np.zeros((4, 2))})  # a part of the network
    with pytest.raises(AxisError, match=message):
        GRAPH.validate(network() | {name: np.zeros(shape)})


ORDERS = [
    ({"z": np.arange(3)}, "'z' is not declared"),
    ({"a": np.array([0, 1, 2])}, "expected a permutation of 4 units, got 3"),
    ({"a": np.array([0, 1, 2, 2])}, "expected a permutation"),
    ({"g": np.array([0, 2, 1, 3, 4, 5])}, "mixes units of different groups"),
]


@pytest.mark.parametrize(("orders", "message"), ORDERS)
def test_an_order_outside_the_group_is_refused(orders: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(AxisError, match=message):
        GRAPH.permute(network(), orders)


def test_a_frozen_axis_stays() -> None:
    graph = AxisGraph({"w": (None, ("x",))}, {"x": Axis(3, "frozen")})
    assert graph.axes["x"].random_permutation(RNG(0)).tolist() == [0, 1, 2]
    with pytest.raises(AxisError, match="it is frozen"):
        graph.permute({"w": np.zeros(3)}, {"x": np.array([1, 0, 2])})


def test_permute_is_exact_and_its_inverse_undoes_it() -> None:
    net = network()
    orders = {label: axis.random_permutation(RNG(1)) for label, axis in GRAPH.axes.items()}
    moved = GRAPH.permute(net, orders)
    a, b, h = orders["a"], orders["b"], orders["h"]
    np.testing.assert_array_equal(moved["join.weight"], net["join.weight"][:, np.concatenate([a, 4 + b])])
    heads = net["heads.weight"].reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(moved["heads.weight"], heads[:, h][..., a].reshape(12, 4))
    np.testing.assert_array_equal(moved["heads.out"], net["heads.out"][a].reshape(4, 3, 2)[:, h].reshape(4, 6))
    assert moved["other"] is net["other"]
    back = GRAPH.permute(moved, {label: np.argsort(order) for label, order in orders.items()})
    for name in net:
        np.testing.assert_array_equal(back[name], net[name])


def test_random_orders_are_permutations_of_the_group() -> None:
    seen = {tuple(GRAPH.axes["g"].random_permutation(RNG(seed))) for seed in range(600)}
    assert len(seen) == 6 * 2**3  # all of S_3 x S_2^3
    assert all(GRAPH.axes["g"].check(np.array(order)) is None for order in seen)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
def test_a_gauge_keeps_the_product_of_a_circuit(gauge: Any) -> None:
    net = network()
    matrices = GRAPH.random_gauge(net, "h", gauge, RNG(3))
    turned = GRAPH.regauge(net, "h", matrices)
    left, right = net["heads.weight"].reshape(2, 3, 2, 4)
    new_left, new_right = turned["heads.weight"].reshape(2, 3, 2, 4)
    for head in range(3):
        np.testing.assert_allclose(new_left[head].T @ new_right[head], left[head].T @ right[head], atol=1e-12)
        np.testing.assert_allclose(new_left[head], matrices[0][head] @ left[head], atol=1e-12)
    assert (gauge == "none") == np.allclose(turned["heads.weight"], net["heads.weight"])
    assert turned["heads.out"] is net["heads.out"]


# Models.

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
TASKS = {
    "kind": Task(name="kind", kind="classification", classes=("x", "y", "z")),
    "lungs": Task(name="lungs", kind="segmentation", classes=("background", "lung")),
}


def vit(**settings: Any) -> nn.Module:
    return timm.models.VisionTransformer(**(VIT | settings))


def gated(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        block.attn = timm.layers.Attention(24, num_heads=3, qkv_bias=True, gated=True)
    return model


def mtmedformer(encoder: str, size: int) -> nn.Module:
    return assemble("mtmedformer", TASKS, encoder=encoder, image_size=size, channels=1, decoder_width=8)


def convolutions(groups: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(groups, 16), nn.GELU()),
        nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 6, 2, 2), nn.PReLU(6), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2))


CHAINS = {  # layers, shape of the input, axis -> its kind
    "flattened, units last": (
        lambda: [nn.Linear(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)], (2, 8, 8), {"0": "perm"},
    ),
    "partly flattened": (
        lambda: [nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(36, 5), nn.Flatten(), nn.Linear(20, 3)], (2, 1, 8, 8),
        {"0": "frozen", "2": "perm"},
    ),
    "a norm of pixels": (
        lambda: [nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 3)], (2, 1, 8, 8),
        {"0": "frozen"},
    ),
    "slopes of pixels": (
        lambda: [nn.Conv2d(1, 4, 3), nn.Flatten(), nn.PReLU(144), nn.Linear(144, 3)], (2, 1, 8, 8), {"0": "frozen"},
    ),
    "a norm of one pixel": (
        lambda: [nn.Conv2d(1, 4, 8), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)], (2, 1, 8, 8), {"0": "perm"},
    ),
    "a norm along rows": (
        lambda: [nn.Conv2d(1, 8, 3, padding=1), nn.LayerNorm(8), nn.Conv2d(8, 3, 1)], (2, 1, 8, 8), {"0": "frozen"},
    ),
    "a linear layer along rows": (
        lambda: [nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(320, 3)],
        (2, 1, 8, 8), {"0": "frozen"},
    ),
    "pooled units": (lambda: [nn.Linear(8, 6), nn.MaxPool1d(2), nn.Linear(3, 2)], (2, 8), {"0": "frozen"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_where_the_units_of_a_chain_lie(name: str) -> None:
    layers, shape, kinds = CHAINS[name]
    model = nn.Sequential(*layers())
    graph = derive_axes(model)
    assert {label: axis.kind for label, axis in graph.axes.items()} == kinds
    check_symmetry(model, graph, (torch.randn(shape),))


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def rows_of_tasks(size: int) -> tuple[Tensor, dict[str, Tensor]]:
    return image(size, 1), {"kind": torch.arange(2), "lungs": torch.tensor([1])}


BLOCKS = timm.models.vision_transformer
MODELS = {  # model, inputs, free axes, whether the residual stream is one of them
    "perceptron": (perceptron, lambda: (torch.randn(5, 3),), 2, None),
    "convolutions": (convolutions, lambda: (image(16),), 4, None),
    "vit": (vit, lambda: (image(16),), 5, True),
    "vit, layer scale, registers": (
        lambda: vit(init_values=1e-5, reg_tokens=2, pre_norm=True, global_pool="avg"), lambda: (image(16),), 5, True,
    ),
    "vit, query and key norms": (lambda: vit(qk_norm=True), lambda: (image(16),), 5, True),
    "vit, norm over heads": (lambda: vit(scale_attn_norm=True), lambda: (image(16),), 5, True),
    "vit, no biases": (lambda: vit(qkv_bias=False, proj_bias=False), lambda: (image(16),), 5, True),
    "vit, gated heads": (lambda: gated(vit()), lambda: (image(16),), 5, True),
    "vit, gated MLP": (lambda: vit(mlp_layer=timm.layers.SwiGLU), lambda: (image(16),), 5, True),
    "vit, fused gated MLP": (lambda: vit(mlp_layer=timm.layers.GluMlp), lambda: (image(16),), 5, True),
    "vit, post-norm": (lambda: vit(block_fn=BLOCKS.ResPostBlock), lambda: (image(16),), 5, True),
    "vit without a head": (lambda: vit(num_classes=0), lambda: (image(16),), 4, False),
    "vit, attention pooling": (
        lambda: vit(global_pool="map", class_token=False), lambda: (image(16),), 4, False,
    ),
    "vit, unknown blocks": (lambda: vit(block_fn=BLOCKS.ParallelScalingBlock), lambda: (image(16),), 0, False),
    "mtmedformer": (lambda: mtmedformer("vit_mini_patch8", 32), lambda: rows_of_tasks(32), 13, True),
    "mtmedformer on pvt": (lambda: mtmedformer("pvt_v2_b0", 32), lambda: rows_of_tasks(32), 19, None),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_derived_axes_are_symmetries(name: str) -> None:
    build, inputs, count, residual = MODELS[name]
    torch.manual_seed(0)
    model = build()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    graph = derive_axes(model)
    changes = check_symmetry(model, graph, inputs())
    assert len(changes) == count
    assert max(changes.values(), default=0.0) < 1e-12
    streams = [axis.kind for label, axis in graph.axes.items() if label.endswith("residual")]
    assert streams == ([] if residual is None else ["perm" if residual else "frozen"])
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_what_may_grow() -> None:
    kinds = {label: axis.growable for label, axis in derive_axes(vit(scale_attn_norm=True)).axes.items()}
    assert kinds["blocks.0.mlp.hidden"] and not kinds["residual"] and not kinds["blocks.0.attn.heads"]
    assert derive_axes(vit()).axes["blocks.0.attn.heads"].growable
    axes = derive_axes(convolutions()).axes
    assert {label: axis.growable for label, axis in axes.items()} == {"0": True, "4.0": True, "6": True, "10": False}
    assert axes["4.0"].kind == "grouped"
    assert not derive_axes(mtmedformer("vit_mini_patch8", 32)).axes["decoders.lungs.fuse"].growable


READERS = {  # model, axis, who reads it; whatever else carries it is the unit's own
    "chain": (convolutions, "0", ("4.0.weight",)),
    "through a depthwise convolution": (convolutions, "4.0", ("6.weight",)),
    "flattened": (convolutions, "6", ("10.weight",)),
    "not growable": (convolutions, "10", ()),
    "perceptron": (perceptron, "2", ("5.weight",)),
    "MLP": (vit, "blocks.1.mlp.hidden", ("blocks.1.mlp.fc2.weight",)),
    "gated MLP": (lambda: vit(mlp_layer=timm.layers.SwiGLU), "blocks.0.mlp.hidden", ("blocks.0.mlp.fc2.weight",)),
    "heads": (vit, "blocks.0.attn.heads", ("blocks.0.attn.proj.weight",)),
    "gated heads": (lambda: gated(vit()), "blocks.0.attn.heads", ("blocks.0.attn.proj.weight",)),
    "residual stream": (vit, "residual", ()),
    "heads that have to fill the stream": (
        lambda: mtmedformer("pvt_v2_b0", 32), "encoder.body.stages.0.blocks.0.attn.heads", (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_who_reads_a_growable_axis(name: str) -> None:
    build, label, readers = READERS[name]
    axis = derive_axes(build()).axes[label]
    assert (axis.readers, axis.growable) == (readers, bool(readers))


class WindowModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = timm.models.swin_transformer.WindowAttention(12, num_heads=3, window_size=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


class SplitAttention(nn.Module):
    """Self-attention with maps of its own for query, key and value."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Skip(nn.Module):
    """A U-Net's joint: what went down and what came up, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2)
        self.up, self.join = nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x).relu()
        return self.join(torch.cat([self.up(self.deep(down).relu()).relu(), down], dim=1))


def tokens() -> tuple[Tensor]:
    return (torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)),)


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


def test_concatenated_axes_are_symmetries_and_transposed_convolutions_read_first() -> None:
    model = Skip()
    check_symmetry(model, skip_table(("deep", "up")), (image(8),))
    with pytest.raises(AxisError, match=r"up.weight: axis 'up' has 5 units, the shape \(6, 5, 2, 2\) has 6"):
        check_symmetry(model, skip_table(("up", "deep")), (image(8),))
    square = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    graph = derive_axes(square)
    check_symmetry(square, graph, (image(8),))
    swapped = graph.tensors | {"2.weight": (None, ("2", "0", None, None))}
    with pytest.raises(SymmetryError, match="Axis '0' is no symmetry"):
        check_symmetry(square, AxisGraph(swapped, graph.axes), (image(8),))


def test_one_order_of_query_and_key_across_heads_is_caught() -> None:
    split = SplitAttention()
    labels = {"weight": ("wide", None), "bias": ("wide",)}
    table = {f"{name}.{kind}": (None, label) for name in "qk" for kind, label in labels.items()}
    with pytest.raises(SymmetryError, match=r"Axis 'wide' is no symmetry of SplitAttention: .* look at .* q\.weight"):
        check_symmetry(split, AxisGraph(table, {"wide": Axis(12)}), tokens())
    graph = derive_axes(vit())
    table = {
        "blocks.0.attn.qkv.weight": ((3, 24, 24), (None, "wide", "residual")),
        "blocks.0.attn.qkv.bias": ((3, 24), (None, "wide")),
        "blocks.0.attn.proj.weight": (None, ("residual", "wide")),
    }
    axes = {label: axis for label, axis in graph.axes.items() if label != "blocks.0.attn.heads"}
    with pytest.raises(SymmetryError, match="Axis 'wide' is no symmetry of VisionTransformer"):
        check_symmetry(vit(), AxisGraph(graph.tensors | table, axes | {"wide": Axis(24)}), (image(16),))


def without(graph: AxisGraph, *names: str) -> AxisGraph:
    return AxisGraph({name: spec for name, spec in graph.tensors.items() if name not in names}, graph.axes)


def relabel(graph: AxisGraph, label: str, axis: Axis) -> AxisGraph:
    return AxisGraph(graph.tensors, graph.axes | {label: axis})


FREE_HEADS = derive_axes(vit()).axes["blocks.0.attn.heads"]
WRONG = {  # model, inputs, what is done to its table, axis that breaks
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
def test_a_wrong_table_is_caught_by_the_axis_it_is_wrong_about(name: str) -> None:
    build, inputs, spoil, label = WRONG[name]
    torch.manual_seed(0)
    model = build()
    graph = derive_axes(model)
    check_symmetry(model, graph, inputs())
    with pytest.raises(SymmetryError, match=f"Axis '{label}' is no symmetry of {type(model).__name__}"):
        check_symmetry(model, spoil(graph), inputs())
