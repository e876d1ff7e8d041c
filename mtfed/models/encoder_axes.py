"""The axes of encoders: what a body leaves to those who read its maps and its pooled features.

A plain transformer has one residual stream, a residual network one a stage, which its blocks add to and the next
stage's first block reads: ``read`` says whether everyone else who reads them is understood, too; only then, and if all
of the body is, their units can be permuted. Hierarchical transformers show the inside of attention and MLPs, and maps
whose units stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..startup import import_timm
from ..strategies.axes import Axis
from .chain_axes import chain
from .encoders import Encoder
from .sketch import Label, Sketch, describe, describes, join
from .transformer_axes import ATTENTIONS, FUSED, MLPS, attention, plain_transformer
from .volumes import VolumeResNet, VolumeSwin, VolumeTransformer

timm = import_timm()
Read = tuple[list[Label], Label]  # the labels of an encoder's maps and of its pooled features
# The layers between the two ends of a residual block, in order, by its class: MONAI's may not be imported yet.
BRANCHES = {
    "timm.models.resnet.BasicBlock": ("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2"),
    "timm.models.resnet.Bottleneck": (
        "conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3",
    ),
    "monai.networks.nets.resnet.ResNetBlock": ("conv1", "bn1", "act", "conv2", "bn2"),
    "monai.networks.nets.resnet.ResNetBottleneck": ("conv1", "bn1", "act", "conv2", "bn2", "act", "conv3", "bn3"),
}  # fmt: skip
# What keeps to itself whatever body it is in.
INSIDES: tuple[type[nn.Module], ...] = (*MLPS, *ATTENTIONS, VolumeSwin)


def body_axes(sketch: Sketch, path: str, encoder: Encoder, read: bool) -> Read:
    """Label an encoder's body, and return the labels of its maps and of its pooled features.

    The labels hold for maps before the last block of a stage, too: they are of the same residual stream.

    Args:
        sketch: to write to.
        path: of the body in the model.
        encoder: whose body it is.
        read: whether whoever reads the maps, or the pooled features, labels what it reads them with.
    """
    return BODIES.get(type(encoder.body), _unread)(sketch, path, encoder, read)


def _plain_transformer(sketch: Sketch, path: str, encoder: Encoder, read: bool) -> Read:
    label = plain_transformer(sketch, path, encoder.body, read)
    return [label] * len(encoder.channels), label


def _residual_network(sketch: Sketch, path: str, encoder: Encoder, read: bool) -> Read:
    streams = residual_network(sketch, path, encoder.body, read)
    labels: list[Label] = [streams[name] for name in encoder.stage_names]
    return labels, labels[-1]


def _unread(sketch: Sketch, path: str, encoder: Encoder, read: bool) -> Read:
    # What else looks like a chain may not be one: maps may be read from the middle of it, as they are of VGG.
    for name, module in encoder.body.named_modules():
        if type(module) in INSIDES:
            describe(sketch, join(path, name) if name else path, module)
    return [None] * len(encoder.channels), None


BODIES: dict[type[nn.Module], Callable[[Sketch, str, Encoder, bool], Read]] = {
    timm.models.VisionTransformer: _plain_transformer,
    VolumeTransformer: _plain_transformer,
    timm.models.ResNet: _residual_network,
    VolumeResNet: _residual_network,
}


@describes(timm.models.ResNet, VolumeResNet)
def lone_network(sketch: Sketch, path: str, module: Any) -> None:
    """Label a residual network that is a model of its own, or a part of something that is not understood."""
    residual_network(sketch, path, module, read=False)


def residual_network(sketch: Sketch, path: str, module: Any, read: bool) -> dict[str, str]:
    """Label a residual network and return the labels of its stages' streams."""
    labels = [sketch.axis(join(path, "stem"), Axis(_width(module.conv1)))]
    for name in ("conv1", "bn1"):
        chain(sketch, join(path, name), getattr(module, name), None if name == "conv1" else labels[0], labels[0])
    if any(isinstance(part, nn.modules.conv._ConvNd) for part in module.maxpool.modules()):
        labels.append(sketch.axis(join(path, "pool"), Axis(_width(module.maxpool))))
    chain(sketch, join(path, "maxpool"), module.maxpool, labels[0], labels[-1])
    streams = {}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(module, stage)):
            at, inputs = join(path, f"{stage}.{index}"), labels[-1]
            if isinstance(block.downsample, nn.Module):
                labels.append(sketch.axis(join(path, stage), Axis(_width(block.downsample))))
                chain(sketch, f"{at}.downsample", block.downsample, inputs, labels[-1])
            _branch(sketch, at, block, inputs, labels[-1])
        streams[stage] = labels[-1]
    head = getattr(module, "fc", None)
    sketch.map(join(path, "fc"), module, labels[-1], None)
    whole = all(name in sketch.tensors for name in sketch.shapes if name.startswith(path) and "num_batches" not in name)
    if not whole or not (read or (isinstance(head, nn.Linear) and not path)):
        for label in labels:
            sketch.change(label, kind="frozen")
    return streams


def _branch(sketch: Sketch, path: str, block: Any, inputs: str, outputs: str) -> None:
    """Label the layers of a residual block, which read one stream and write to one."""
    kind = type(block)
    layers = BRANCHES.get(f"{kind.__module__}.{kind.__qualname__}", ())
    convolutions = [name for name in layers if name.startswith("conv")]
    label: Label = inputs
    for name in layers:
        layer = getattr(block, name)
        if name not in convolutions:
            chain(sketch, f"{path}.{name}", layer, label, None)
            continue
        last = name == convolutions[-1]
        written = outputs if last else sketch.axis(f"{path}.{name}", Axis(layer.out_channels, growable=True))
        if layer.groups > 1:  # which channels meet is fixed on both sides
            for axis in (label, written):
                sketch.change(axis, kind="frozen")
        sketch.map(f"{path}.{name}", layer, None if layer.groups > 1 else label, written)
        label = written
    stranger = block if not layers else getattr(block, "se", None)
    if stranger is not None:  # it may tell the channels apart
        for axis in (inputs, outputs):
            sketch.change(axis, kind="frozen")
        describe(sketch, f"{path}.se" if layers else path, stranger)


def _width(module: nn.Module) -> int:
    """Return the channels that the last convolution of a module writes."""
    return [m.out_channels for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)][-1]


@describes(VolumeSwin)
def volume_swin(sketch: Sketch, path: str, module: Any) -> None:
    """Label the heads and the hidden units of MONAI's Swin transformer."""
    for stage, blocks in enumerate(part.blocks for part in module.stages):
        for index, block in enumerate(blocks):
            at = join(path, f"stages.{stage}.blocks.{index}")
            attention(sketch, f"{at}.attn", block.attn, places=FUSED)
            hidden = sketch.axis(f"{at}.mlp.hidden", Axis(block.mlp.linear1.out_features, growable=True))
            sketch.map(f"{at}.mlp.linear1", block.mlp.linear1, None, hidden)
            sketch.map(f"{at}.mlp.linear2", block.mlp.linear2, hidden, None)
