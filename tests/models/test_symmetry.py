"""Axes derived from models: they are symmetries of the models' functions, and the right ones may grow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.small_models import convolutions, gated, image, mtmedformer, perceptron, rows_of_tasks, vit
from mtfed.models.symmetry import check_symmetry, derive_axes
from mtfed.models.timm_library import timm

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
def test_kinds_of_the_axes_of_a_chain(name: str) -> None:
    layers, shape, kinds = CHAINS[name]
    model = nn.Sequential(*layers())
    graph = derive_axes(model)
    assert {label: axis.axis_type for label, axis in graph.axes.items()} == kinds
    check_symmetry(model, graph, (torch.randn(shape),))


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
    streams = [axis.axis_type for label, axis in graph.axes.items() if label.endswith("residual")]
    assert streams == ([] if residual is None else ["perm" if residual else "frozen"])
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_growable_axes() -> None:
    kinds = {label: axis.growable for label, axis in derive_axes(vit(scale_attn_norm=True)).axes.items()}
    assert kinds["blocks.0.mlp.hidden"] and not kinds["residual"] and not kinds["blocks.0.attn.heads"]
    assert derive_axes(vit()).axes["blocks.0.attn.heads"].growable
    axes = derive_axes(convolutions()).axes
    assert {label: axis.growable for label, axis in axes.items()} == {"0": True, "4.0": True, "6": True, "10": False}
    assert axes["4.0"].axis_type == "grouped"
    assert not derive_axes(mtmedformer("vit_mini_patch8", 32)).axes["decoders.lungs.fuse"].growable


READERS = {  # model, axis, its readers; all other tensors on the axis belong to the units
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
def test_readers_of_a_growable_axis(name: str) -> None:
    build, label, readers = READERS[name]
    axis = derive_axes(build()).axes[label]
    assert (axis.readers, axis.growable) == (readers, bool(readers))
