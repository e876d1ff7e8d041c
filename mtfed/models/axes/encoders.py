"""The axes of encoders: labels of their feature maps and of their pooled features.

A plain transformer has one residual stream. A residual network has one per stage: the blocks of the stage add to it,
and the first block of the next stage reads it. Such a stream can be permuted only if every module of the body is known
and all readers outside the body are labelled too (``readers_known``). Hierarchical transformers contribute only the
inner axes of their attention and MLP modules; the units of their feature maps are not permuted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...strategies.axes import Axis
from ..encoders import Encoder
from ..timm_library import timm
from ..volumes import VolumeResNet, VolumeSwin
from .builder import AxisGraphBuilder, Label, describe, describes, join
from .chains import label_chain
from .transformers import ATTENTIONS, FUSED, MLPS, PLAIN_TRANSFORMERS, label_attention, label_transformer

FeatureLabels = tuple[Sequence[Label], Label]  # labels of an encoder's feature maps and of its pooled features
RESIDUAL_NETWORKS: tuple[type[nn.Module], ...] = (timm.models.ResNet, VolumeResNet)
# The layers on the residual branch of a block, in order. Keys are class names because MONAI may not be imported yet.
BRANCHES = {
    "timm.models.resnet.BasicBlock": ("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2"),
    "timm.models.resnet.Bottleneck": (
        "conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3", "bn3",
    ),
    "monai.networks.nets.resnet.ResNetBlock": ("conv1", "bn1", "act", "conv2", "bn2"),
    "monai.networks.nets.resnet.ResNetBottleneck": ("conv1", "bn1", "act", "conv2", "bn2", "act", "conv3", "bn3"),
}  # fmt: skip
# Modules whose inner axes are independent of the body that contains them.
SELF_CONTAINED: tuple[type[nn.Module], ...] = (*MLPS, *ATTENTIONS, VolumeSwin)


def label_body(builder: AxisGraphBuilder, path: str, encoder: Encoder, readers_known: bool) -> FeatureLabels:
    """Label an encoder's body and return the labels of its feature maps and of its pooled features.

    The labels are also valid for the maps before the last block of a stage, which belong to the same residual stream.
    ``readers_known``: whether the caller labels every tensor that reads the maps or the pooled features.
    """
    body, count = encoder.body, len(encoder.channels)
    if type(body) in PLAIN_TRANSFORMERS:
        label = label_transformer(builder, path, body, readers_known)
        return [label] * count, label
    if type(body) in RESIDUAL_NETWORKS:
        streams = label_residual_network(builder, path, body, readers_known)
        labels = [streams[name] for name in encoder.stage_names]
        return labels, labels[-1]
    # Chains are left out: feature maps may be taken from the middle of one, as in VGG.
    for name, module in body.named_modules():
        if type(module) in SELF_CONTAINED:
            describe(builder, join(path, name) if name else path, module)
    return [None] * count, None


@describes(*RESIDUAL_NETWORKS)
def label_residual_network(
    builder: AxisGraphBuilder, path: str, module: Any, readers_known: bool = False
) -> dict[str, str]:
    """Label a residual network and return the label of the stream of each stage."""
    labels = [builder.add_axis(join(path, "stem"), Axis(_width(module.conv1)))]
    label_chain(builder, join(path, "conv1"), module.conv1, None, labels[0])
    label_chain(builder, join(path, "bn1"), module.bn1, labels[0], labels[0])
    if any(isinstance(part, nn.modules.conv._ConvNd) for part in module.maxpool.modules()):
        labels.append(builder.add_axis(join(path, "pool"), Axis(_width(module.maxpool))))
    label_chain(builder, join(path, "maxpool"), module.maxpool, labels[0], labels[-1])
    streams = {}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(module, stage)):
            block_path, inputs = join(path, f"{stage}.{index}"), labels[-1]
            if isinstance(block.downsample, nn.Module):
                labels.append(builder.add_axis(join(path, stage), Axis(_width(block.downsample))))
                label_chain(builder, f"{block_path}.downsample", block.downsample, inputs, labels[-1])
            _label_branch(builder, block_path, block, inputs, labels[-1])
        streams[stage] = labels[-1]
    builder.label_map(join(path, "fc"), module, labels[-1], None)
    own = [name for name in builder.shapes if name.startswith(path) and "num_batches" not in name]
    has_own_head = isinstance(getattr(module, "fc", None), nn.Linear) and not path
    if not all(name in builder.tensors for name in own) or not (readers_known or has_own_head):
        for label in labels:
            builder.restrict(label, axis_type="frozen")
    return streams


def _label_branch(builder: AxisGraphBuilder, path: str, block: Any, inputs: str, outputs: str) -> None:
    """Label the layers of a residual block, which reads one stream and writes to one."""
    block_type = type(block)
    layers = BRANCHES.get(f"{block_type.__module__}.{block_type.__qualname__}", ())
    convolutions = [name for name in layers if name.startswith("conv")]
    label: Label = inputs
    for name in layers:
        layer = getattr(block, name)
        if name not in convolutions:
            label_chain(builder, f"{path}.{name}", layer, label, None)
            continue
        last = name == convolutions[-1]
        written = outputs if last else builder.add_axis(f"{path}.{name}", Axis(layer.out_channels, growable=True))
        if layer.groups > 1:  # a grouped convolution fixes which input channels feed which output channels
            for axis in (label, written):
                builder.restrict(axis, axis_type="frozen")
        builder.label_map(f"{path}.{name}", layer, None if layer.groups > 1 else label, written)
        label = written
    unknown = block if not layers else getattr(block, "se", None)
    if unknown is not None:  # it may treat channels differently
        for axis in (inputs, outputs):
            builder.restrict(axis, axis_type="frozen")
        describe(builder, f"{path}.se" if layers else path, unknown)


def _width(module: nn.Module) -> int:
    """Return the number of channels that the last convolution of a module writes."""
    return [m.out_channels for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)][-1]


@describes(VolumeSwin)
def label_volume_swin(builder: AxisGraphBuilder, path: str, module: Any) -> None:
    """Label the heads and the hidden units of MONAI's Swin transformer."""
    for stage, blocks in enumerate(part.blocks for part in module.stages):
        for index, block in enumerate(blocks):
            block_path = join(path, f"stages.{stage}.blocks.{index}")
            label_attention(builder, f"{block_path}.attn", block.attn, maps=FUSED)
            hidden = builder.add_axis(f"{block_path}.mlp.hidden", Axis(block.mlp.linear1.out_features, growable=True))
            builder.label_map(f"{block_path}.mlp.linear1", block.mlp.linear1, None, hidden)
            builder.label_map(f"{block_path}.mlp.linear2", block.mlp.linear2, hidden, None)
