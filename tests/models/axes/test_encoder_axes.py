"""Axes of encoders are symmetries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.encoders import encoder, image
from mtfed.models.axes.builder import AxisGraphBuilder, Label
from mtfed.models.axes.encoders import label_body
from mtfed.models.encoders import Encoder
from mtfed.models.symmetry import SymmetryError, check_symmetry, derive_axes
from mtfed.models.timm_library import timm
from mtfed.strategies.axes import AxisGraph

torch.set_num_threads(1)


class Reader(nn.Module):
    """An encoder, and linear layers that read all its outputs before and after the last blocks."""

    def __init__(self, made: Encoder) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[made.dims]
        self.encoder = made
        self.levels = nn.ModuleList(conv(width, 2, 1) for width in made.channels)
        self.head = nn.Linear(made.dim, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        features, stages = self.encoder(x), self.encoder.stages(x)
        read = [level(side) for level, pair in zip(self.levels, stages, strict=True) for side in pair]
        again = self.encoder.features(x, features.maps)
        return [*read, self.head(features.pooled), self.head(again.pooled)]


def reader_axes(model: Reader, read: bool = True) -> tuple[AxisGraph, list[Label]]:
    builder = AxisGraphBuilder(model)
    maps, pooled = label_body(builder, "encoder.body", model.encoder, read)
    for index, label in enumerate(maps):
        builder.label_map(f"levels.{index}", model, label, None)
    builder.label_map("head", model, pooled, None)
    return builder.build(), [*maps, pooled]


AXES = {  # image size, free axes, kinds of the streams of the maps and of the pooled features
    "vit_nano_patch8": (32, 9, ["perm"]),
    "vit3d_mini_patch8": (16, 9, ["perm"]),
    "resnet_nano": (32, 10, ["perm"] * 4),
    "resnet_mini": (32, 14, ["perm"] * 4),
    "resnet3d_mini": (32, 8, ["perm"] * 4),
    "swin_mini": (32, 16, []),
    "pvt_mini": (32, 16, []),
    "swin3d_mini": (16, 16, []),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_of_bodies_are_symmetries(name: str) -> None:
    size, count, kinds = AXES[name]
    model = Reader(encoder(name, size=size))
    graph, read = reader_axes(model)
    streams = list(dict.fromkeys(label for label in read if label))
    assert [graph.axes[label].axis_type for label in streams] == kinds
    x = image(model.encoder.dims, size, batch=1)
    changes = check_symmetry(model, graph, (x,))
    assert len(changes) == count and set(streams) <= set(changes)
    unread = reader_axes(model, read=False)[0]
    assert {unread.axes[label].axis_type for label in streams} <= {"frozen"}
    assert {label for label, axis in unread.axes.items() if axis.axis_type != "frozen"} <= set(changes) - set(streams)


ALONE: dict[str, tuple[dict[str, Any], int, list[str]]] = {  # settings, free axes, kinds of the streams
    "bottlenecks": ({}, 15, ["perm"] * 5),
    "basic blocks": ({"block": timm.models.resnet.BasicBlock, "stem_width": 2, "stem_type": "deep"}, 11, ["perm"] * 4),
    "deep stem, pooled shortcuts": ({"stem_type": "deep_tiered", "stem_width": 8, "avg_down": True}, 16, ["perm"] * 4),
    "groups of channels": ({"cardinality": 2, "base_width": 64}, 5, ["perm"] * 5),
    "norms of groups": ({"norm_layer": lambda width, **_: nn.GroupNorm(2, width)}, 15, ["grouped"] * 5),
    "weighted channels": ({"block_args": {"attn_layer": "se"}}, 10, ["frozen"] * 5),
    "weighted neighbours": ({"block_args": {"attn_layer": "eca"}}, 10, ["frozen"] * 5),
    "learned slopes": ({"act_layer": lambda inplace: nn.PReLU()}, 10, ["frozen"] * 5),
    "replaced pooling": ({"replace_stem_pool": True}, 16, ["perm"] * 6),
    "smoothed strides": ({"aa_layer": timm.layers.BlurPool2d}, 11, ["frozen"] + ["perm"] * 4),
    "no classifier": ({"num_classes": 0}, 10, ["frozen"] * 5),
}


@pytest.mark.parametrize("name", ALONE)
def test_axes_of_a_residual_network_alone_are_symmetries(name: str) -> None:
    settings, count, kinds = ALONE[name]
    torch.manual_seed(0)
    defaults = {"block": timm.models.resnet.Bottleneck, "layers": (1, 2, 1, 1), "channels": (4, 8, 8, 12)}
    model = timm.models.ResNet(**(defaults | {"num_classes": 3, "in_chans": 1} | settings))
    graph = derive_axes(model)
    changes = check_symmetry(model, graph, (image(2, 32, batch=1),))
    streams = [axis.axis_type for label, axis in graph.axes.items() if "." not in label]
    assert (len(changes), streams) == (count, kinds)


@pytest.mark.parametrize(("name", "count"), [("vgg", 0), ("convnext_atto", 12)])
def test_of_an_unknown_body_only_the_axes_inside_mlps_are_labelled(name: str, count: int) -> None:
    if name == "vgg":  # one long sequence, whose maps are read in its middle
        body = timm.models.VGG([4, 4, "M", 8, "M", 8, "M", 8, "M"], num_classes=0, in_chans=1, mlp_ratio=0.001)
    else:
        body = Encoder(name, 32, 1).body
    builder = AxisGraphBuilder(body)
    stub = SimpleNamespace(body=body, channels=[4] * 4)
    assert label_body(builder, "", stub, readers_known=True) == ([None] * 4, None)
    assert [label.rpartition(".")[2] for label in builder.build().axes] == ["hidden"] * count


def test_inner_channels_may_grow_and_streams_may_not() -> None:
    axes = reader_axes(Reader(encoder("resnet_nano")))[0].axes
    growable = {label for label, axis in axes.items() if axis.growable}
    assert growable == {f"encoder.body.layer{i}.0.conv1" for i in (1, 2, 3, 4)} | {
        "encoder.body.conv1.0",
        "encoder.body.conv1.3",
    }
    assert axes["encoder.body.layer2.0.conv1"].readers == ("encoder.body.layer2.0.conv2.weight",)


def test_a_label_on_the_wrong_stream_is_caught() -> None:
    model = Reader(encoder("resnet_nano"))
    graph = reader_axes(model)[0]
    name = "encoder.body.layer2.0.downsample.0.weight"  # reads the stem's stream
    spoiled = AxisGraph({key: spec for key, spec in graph.tensors.items() if key != name}, graph.axes)
    with pytest.raises(SymmetryError, match=r"Axis 'encoder\.body\.stem' is not a symmetry"):
        check_symmetry(model, spoiled, (image(2, 32),))
