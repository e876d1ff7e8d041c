"""The axes of chains: linear, convolution, normalisation, activation and pooling layers, one after the other."""

from __future__ import annotations

from torch import nn

from ..strategies.axes import Axis
from .sketch import Label, Sketch, describe, describes, join

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_UNITWISE = (  # treat every unit alike and apart
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample,
)  # fmt: skip


@describes(nn.Sequential)
def sequential(sketch: Sketch, path: str, module: nn.Module) -> None:
    """Label the units between the layers of a sequence; its own inputs and outputs stay."""
    chain(sketch, path, module, None, None)


def chain(sketch: Sketch, path: str, module: nn.Module, inputs: Label, outputs: Label) -> None:
    """Label a layer or a sequence of layers, whose first reads axis ``inputs`` and whose last writes ``outputs``."""
    layers = list(_flatten(path, module))
    writers = [name for name, layer in layers if isinstance(layer, _MAPS) and not _is_depthwise(layer)]
    label, flat = inputs, False
    for name, layer in layers:
        if isinstance(layer, _MAPS) and _is_depthwise(layer):
            sketch.vectors(name, label)
        elif isinstance(layer, _MAPS) and getattr(layer, "groups", 1) == 1:
            size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            written = outputs if name == writers[-1] else sketch.axis(name, Axis(size, growable=True))
            if flat and label and isinstance(layer, nn.Linear):  # channels, then pixels of each
                channels = sketch.axes[label].size
                sketch.mark(f"{name}.weight", written, label, view=(size, channels, layer.in_features // channels))
                sketch.mark(f"{name}.bias", written)
                sketch.read(f"{name}.weight", label)
            else:
                sketch.map(name, layer, label, written)
            label, flat = written, False
        elif isinstance(layer, _NORMS) and _is_over(layer, sketch, label):
            sketch.norm(name, layer, label)
        elif isinstance(layer, nn.PReLU):
            sketch.mark(f"{name}.weight", label if layer.num_parameters > 1 else None)
        elif isinstance(layer, nn.Flatten):
            flat = True
        elif not isinstance(layer, _UNITWISE):
            for axis in (label, outputs):  # an unknown layer may tell the units apart
                sketch.change(axis, kind="frozen")
            describe(sketch, name, layer)
            label = None


def _flatten(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(path, module)]
    return [layer for name, child in module.named_children() for layer in _flatten(join(path, name), child)]


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _is_over(norm: nn.Module, sketch: Sketch, label: Label) -> bool:
    """Say whether a norm's tensors run over an axis; a LayerNorm's may run over pixels."""
    return not isinstance(norm, nn.LayerNorm) or not label or norm.normalized_shape == (sketch.axes[label].size,)
