"""The axes of chains of linear, convolution, normalisation, activation and pooling layers."""

from __future__ import annotations

from torch import nn

from ...strategies.axes import Axis
from .builder import AxisGraphBuilder, Label, describe, describes, join

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_UNITWISE = (  # apply the same function to every unit on its own
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POOLS = (  # unitwise over channels, but they mix units on the last dimension
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample,
)  # fmt: skip


@describes(nn.Sequential)
def label_sequential(builder: AxisGraphBuilder, path: str, module: nn.Module) -> None:
    """Label the units between the layers of a sequence; its own inputs and outputs get no label."""
    label_chain(builder, path, module, None, None)


def label_chain(builder: AxisGraphBuilder, path: str, module: nn.Module, inputs: Label, outputs: Label) -> None:
    """Label a layer or a sequence of layers whose first reads axis ``inputs`` and whose last writes ``outputs``."""
    layers = list(_flatten(path, module))
    writers = [name for name, layer in layers if isinstance(layer, _MAPS) and not _is_depthwise(layer)]
    # ``last``: whether the units are on the last dimension; None if only the caller knows. ``flat``: after nn.Flatten.
    label, last, flat = inputs, None, False
    for name, layer in layers:
        linear, inner = isinstance(layer, nn.Linear), bool(last or flat)
        # Linear layers read the last dimension, convolutions the channels; only there do they read the units.
        along = label is None or (linear if inner else last is None or not linear)
        if isinstance(layer, _MAPS) and _is_depthwise(layer) and along:
            builder.label_vectors(name, label)
        elif isinstance(layer, _MAPS) and getattr(layer, "groups", 1) == 1 and along:
            size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            written = outputs if name == writers[-1] else builder.add_axis(name, Axis(size, growable=True))
            if flat and label and isinstance(layer, nn.Linear):
                units = _size(builder, label)
                pixels = layer.in_features // units
                labels, view = ((None, label), (pixels, units)) if last else ((label, None), (units, pixels))
                builder.label(f"{name}.weight", written, *labels, view=(size, *view))
                builder.label(f"{name}.bias", written)
                builder.add_reader(f"{name}.weight", label)
            else:
                builder.label_map(name, layer, label, written)
            label, last, flat = written, linear, False
        elif isinstance(layer, _NORMS) and _normalises_units(layer, builder, label, last, flat):
            builder.label_norm(name, layer, label)
        elif isinstance(layer, nn.PReLU) and (not label or layer.num_parameters in (1, _size(builder, label))):
            builder.label(f"{name}.weight", label if layer.num_parameters > 1 else None)
        elif isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
            flat = True
        elif not isinstance(layer, _UNITWISE) and not (isinstance(layer, _POOLS) and not inner):
            for axis in (label, outputs):  # an unknown layer may treat units differently
                builder.restrict(axis, axis_type="frozen")
            describe(builder, name, layer)
            label, last, flat = None, None, False


def _flatten(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(path, module)]
    return [layer for name, child in module.named_children() for layer in _flatten(join(path, name), child)]


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _normalises_units(norm: nn.Module, builder: AxisGraphBuilder, label: Label, last: bool | None, flat: bool) -> bool:
    """Return whether a norm's tensors run over the axis, and not over pixels or over units and pixels together."""
    if label is None:
        return True
    size = _size(builder, label)
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape == (size,) and (flat or last is not False)
    if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d) and last:
        return False
    return size == (norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)


def _size(builder: AxisGraphBuilder, label: str) -> int:
    return sum(builder.axes[part].size for part in label.split("+"))
