"""The axes of chains: linear, convolution, normalisation, activation and pooling layers, one after the other."""

from __future__ import annotations

from torch import nn

from ..strategies.axes import Axis
from .sketch import Label, Sketch, describe, describes, join

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_UNITWISE = (  # treat every unit alike and apart
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POOLS = (  # do so with channels, while those that lie last are pixels to them
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample,
)  # fmt: skip


@describes(nn.Sequential)
def sequential(sketch: Sketch, path: str, module: nn.Module) -> None:
    """Label the units between the layers of a sequence; its own inputs and outputs stay."""
    chain(sketch, path, module, None, None)


def chain(sketch: Sketch, path: str, module: nn.Module, inputs: Label, outputs: Label) -> None:
    """Label a layer or a sequence of layers, whose first reads axis ``inputs`` and whose last writes ``outputs``."""
    layers = list(_flatten(path, module))
    writers = [name for name, layer in layers if isinstance(layer, _MAPS) and not _is_depthwise(layer)]
    label, last, flat = inputs, None, False  # whether its units lie last, None if only the caller knows; and flattened
    for name, layer in layers:
        linear, inner = isinstance(layer, nn.Linear), bool(last or flat)
        # Linear layers read what lies last, convolutions the channels; along another dimension, neither reads units.
        along = label is None or (linear if inner else last is None or not linear)
        if isinstance(layer, _MAPS) and _is_depthwise(layer) and along:
            sketch.vectors(name, label)
        elif isinstance(layer, _MAPS) and getattr(layer, "groups", 1) == 1 and along:
            size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            written = outputs if name == writers[-1] else sketch.axis(name, Axis(size, growable=True))
            if flat and label and isinstance(layer, nn.Linear):
                units = _size(sketch, label)
                pixels = layer.in_features // units
                labels, view = ((None, label), (pixels, units)) if last else ((label, None), (units, pixels))
                sketch.mark(f"{name}.weight", written, *labels, view=(size, *view))
                sketch.mark(f"{name}.bias", written)
                sketch.read(f"{name}.weight", label)
            else:
                sketch.map(name, layer, label, written)
            label, last, flat = written, linear, False
        elif isinstance(layer, _NORMS) and _is_over(layer, sketch, label, last, flat):
            sketch.norm(name, layer, label)
        elif isinstance(layer, nn.PReLU) and (not label or layer.num_parameters in (1, _size(sketch, label))):
            sketch.mark(f"{name}.weight", label if layer.num_parameters > 1 else None)
        elif isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
            flat = True
        elif not isinstance(layer, _UNITWISE) and not (isinstance(layer, _POOLS) and not inner):
            for axis in (label, outputs):  # an unknown layer may tell the units apart
                sketch.change(axis, kind="frozen")
            describe(sketch, name, layer)
            label, last, flat = None, None, False


def _flatten(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(path, module)]
    return [layer for name, child in module.named_children() for layer in _flatten(join(path, name), child)]


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _is_over(norm: nn.Module, sketch: Sketch, label: Label, last: bool | None, flat: bool) -> bool:
    """Say whether a norm's tensors run over an axis; they may run over pixels, or over units and pixels at once."""
    if label is None:
        return True
    size = _size(sketch, label)
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape == (size,) and (flat or last is not False)
    if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and last:
        return False
    return size == (norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)


def _size(sketch: Sketch, label: str) -> int:
    return sum(sketch.axes[part].size for part in label.split("+"))
