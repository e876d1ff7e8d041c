"""Which reorderings of its units leave a torch model's function as it is: derived from the modules, then checked.

What is understood: chains of linear, convolution, transposed convolution, normalisation, activation and pooling layers
(``nn.Sequential``, nested or not); timm's plain vision transformer with its residual stream, heads and MLPs; and
:class:`MTMedFormer` with its decoders. Of other timm transformers (Swin, PVT, ConvNeXt and the like) the inside of
attention and MLP modules is; their residual streams change width from stage to stage and stay undeclared. Whatever no
function here describes is left out of the table, which freezes it; a residual stream that something unknown reads or
writes is declared frozen too.

A new kind of module needs one function, registered with ``@describes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MtfedError
from ..startup import import_timm
from ..strategies.axes import Axis, AxisGraph, Circuit, Gauge, Piece, Spec
from .decoders import ClassificationDecoder, SegmentationDecoder
from .mtmedformer import MTMedFormer

timm = import_timm()
Label = str | None
_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_UNITWISE = (  # treat every unit alike and apart
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample,
)  # fmt: skip


class SymmetryError(MtfedError):
    """A declared axis along which reordering units changes the model's output."""


class Sketch:
    """A table of axes in the making; tensors that a module does not have are passed over."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.tensors: dict[str, Spec] = {}
        self.axes: dict[str, Axis] = {}

    def axis(self, label: str, axis: Axis) -> str:
        self.axes[label] = axis
        return label

    def change(self, label: Label, **changes: Any) -> None:
        """Restrict an axis; a grouping that meets another one leaves nothing to permute."""
        if label is None:
            return
        old = self.axes[label]
        if "groups" in changes and old.kind != "perm" and changes["groups"] != old.groups:
            changes = {"kind": "frozen"}
        if old.kind != "frozen":
            self.axes[label] = replace(old, **changes)

    def mark(self, name: str, *labels: Label, view: tuple[int, ...] | None = None) -> None:
        """Label a tensor's leading axes, or those of its view; the axes behind stay."""
        if name in self.shapes:
            shape = view or self.shapes[name]
            self.tensors[name] = (view, labels + (None,) * (len(shape) - len(labels)))

    def vectors(self, path: str, label: Label) -> None:
        """Label the per-unit tensors of a norm, a scale, or a depthwise convolution."""
        for name in ("weight", "bias", "gamma", "running_mean", "running_var"):
            self.mark(f"{path}.{name}", label)

    def norm(self, path: str, module: nn.Module, label: Label) -> None:
        """Label a normalisation, and restrict its axis to what the statistics allow."""
        self.vectors(path, label)
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            self.change(label, kind="grouped", groups=module.num_groups)
        elif not isinstance(module, nn.Identity | nn.modules.batchnorm._BatchNorm):
            self.change(label, growable=False)  # its statistics run over the units

    def map(self, path: str, module: nn.Module, inputs: Label, outputs: Label) -> None:
        """Label a linear map or a convolution; a transposed one has its inputs first."""
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        self.mark(f"{path}.weight", *((inputs, outputs) if transposed else (outputs, inputs)))
        self.mark(f"{path}.bias", outputs)


Describer = Callable[..., str | None]
DESCRIBERS: dict[type[nn.Module], Describer] = {}


def describes(*types: type[nn.Module]) -> Callable[[Describer], Describer]:
    """Register what a kind of module, and no subclass of it, has to say of its own tensors."""

    def register(describer: Describer) -> Describer:
        DESCRIBERS.update(dict.fromkeys(types, describer))
        return describer

    return register


def derive_axes(model: nn.Module) -> AxisGraph:
    """Return the table of axes of a model, tensors named as in its ``state_dict``."""
    sketch = Sketch(model)
    _describe(sketch, "", model)
    used = {part for _, labels in sketch.tensors.values() for label in labels if label for part in label.split("+")}
    return AxisGraph(sketch.tensors, {label: axis for label, axis in sketch.axes.items() if label in used})


def _describe(sketch: Sketch, path: str, module: nn.Module) -> None:
    if type(module) in DESCRIBERS:
        DESCRIBERS[type(module)](sketch, path, module)
        return
    for name, child in module.named_children():
        _describe(sketch, _join(path, name), child)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# Chains of layers.


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
            _describe(sketch, name, layer)
            label = None


def _flatten(path: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if type(module) is not nn.Sequential:
        return [(path, module)]
    return [layer for name, child in module.named_children() for layer in _flatten(_join(path, name), child)]


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _is_over(norm: nn.Module, sketch: Sketch, label: Label) -> bool:
    """Say whether a norm's tensors run over an axis; a LayerNorm's may run over pixels."""
    return not isinstance(norm, nn.LayerNorm) or not label or norm.normalized_shape == (sketch.axes[label].size,)


# Transformers. ``residual`` is the label of the stream that a module reads and adds to.

# Where attention keeps query, key and value: the map's name, and the index in it of one that is fused.
ATTENTIONS: dict[type[nn.Module], tuple[tuple[str, int | None], ...]] = {
    timm.layers.Attention: (("qkv", 0), ("qkv", 1), ("qkv", 2)),
    timm.models.swin_transformer.WindowAttention: (("qkv", 0), ("qkv", 1), ("qkv", 2)),
    timm.models.pvt_v2.Attention: (("q", None), ("kv", 0), ("kv", 1)),
}
# MLPs whose hidden layer is ``fold`` maps in one tensor, the parts of which are multiplied with each other.
MLPS: dict[type[nn.Module], int] = {
    timm.layers.Mlp: 1, timm.layers.ConvMlp: 1, timm.layers.GlobalResponseNormMlp: 1, timm.layers.SwiGLU: 1,
    timm.models.pvt_v2.MlpWithDepthwiseConv: 1, timm.layers.GluMlp: 2,
}  # fmt: skip


@describes(*MLPS)
def mlp(sketch: Sketch, path: str, module: Any, residual: Label = None) -> None:
    """Label the hidden units of an MLP."""
    size = sketch.shapes[f"{path}.fc2.weight"][1]
    hidden = sketch.axis(f"{path}.hidden", Axis(size, growable=True))
    if (fold := MLPS[type(module)]) > 1:
        inputs = sketch.shapes[f"{path}.fc1.weight"][1:]
        sketch.mark(f"{path}.fc1.weight", None, hidden, residual, view=(fold, size, *inputs))
        sketch.mark(f"{path}.fc1.bias", None, hidden, view=(fold, size))
    else:
        for name in ("fc1", "fc1_g", "fc1_x"):
            sketch.map(f"{path}.{name}", module, residual, hidden)
    sketch.vectors(f"{path}.dwconv", hidden)
    for name in ("norm", "grn"):
        if hasattr(module, name):
            sketch.norm(f"{path}.{name}", getattr(module, name), hidden)
    sketch.map(f"{path}.fc2", module, hidden, residual)


@describes(*ATTENTIONS)
def attention(sketch: Sketch, path: str, module: Any, residual: Label = None) -> None:
    """Label the heads of self-attention, and the inner axes that have no basis of their own."""
    outputs, width = sketch.shapes[f"{path}.proj.weight"]
    heads, label, places = module.num_heads, f"{path}.heads", ATTENTIONS[type(module)]
    head = (heads, width // heads)
    for name, index in dict(places).items():
        lead = () if index is None else (sketch.shapes[f"{path}.{name}.weight"][0] // width,)
        labels = (*(None for _ in lead), label, None)
        sketch.mark(f"{path}.{name}.weight", *labels, residual, view=(*lead, *head, outputs))
        sketch.mark(f"{path}.{name}.bias", *labels, view=(*lead, *head))
    sketch.mark(f"{path}.proj.weight", residual, label, view=(outputs, *head))
    sketch.mark(f"{path}.proj.bias", residual)
    sketch.mark(f"{path}.relative_position_bias_table", None, label)
    circuits = {
        "query and key": Circuit(*(_pieces(sketch, path, *place) for place in places[:2])),
        "value and output": Circuit(_pieces(sketch, path, *places[2]), (Piece(f"{path}.proj.weight"),)),
    }
    growable = True
    if type(module) is timm.layers.Attention:  # its options, each of which gives an inner axis a basis
        if not isinstance(module.q_norm, nn.Identity):  # the same inside every head
            for name in ("q_norm", "k_norm"):
                sketch.vectors(f"{path}.{name}", None)
            del circuits["query and key"]
        if not isinstance(module.norm, nn.Identity) or getattr(module, "gate", None) is not None:
            for kind in ("weight", "bias"):
                sketch.mark(f"{path}.norm.{kind}", label, view=head)
            sketch.mark(f"{path}.gate.weight", label, None, residual, view=(*head, outputs))
            sketch.mark(f"{path}.gate.bias", label, view=head)
            growable = isinstance(module.norm, nn.Identity)  # else it runs over all heads at once
            del circuits["value and output"]
    sketch.axis(label, Axis(heads, "heads", circuits=tuple(circuits.values()), growable=growable))


def _pieces(sketch: Sketch, path: str, name: str, part: int | None) -> tuple[Piece, ...]:
    return tuple(Piece(at, part) for at in (f"{path}.{name}.weight", f"{path}.{name}.bias") if at in sketch.tensors)


@describes(timm.models.vision_transformer.VisionTransformer)
def plain_transformer(sketch: Sketch, path: str, module: Any, read: bool = False) -> str:
    """Label a plain vision transformer and return its residual stream's label.

    The stream can be permuted if all of the transformer is understood, and everyone who reads it is: its own head,
    or, with ``read``, whoever asked.
    """
    residual = sketch.axis(_join(path, "residual"), Axis(module.embed_dim))
    for name in ("cls_token", "reg_token", "pos_embed"):
        sketch.mark(_join(path, name), None, None, residual)
    sketch.map(_join(path, "patch_embed.proj"), module, None, residual)
    for name in ("patch_embed.norm", "norm_pre", "norm", "fc_norm"):
        sketch.vectors(_join(path, name), residual)
    for index, block in enumerate(module.blocks):
        at = _join(path, f"blocks.{index}")
        for name in ("norm1", "norm2", "ls1", "ls2"):
            sketch.vectors(f"{at}.{name}", residual)
        for name, describe, known in (("attn", attention, ATTENTIONS), ("mlp", mlp, MLPS)):
            part = getattr(block, name, None)
            if type(part) in known:
                describe(sketch, f"{at}.{name}", part, residual)
    sketch.map(_join(path, "head"), module, residual, None)
    whole = all(name in sketch.tensors for name in sketch.shapes if name.startswith(path))
    if not whole or not (read or (isinstance(module.head, nn.Linear) and not path)):
        sketch.change(residual, kind="frozen")
    return residual


@describes(MTMedFormer)
def mtmedformer(sketch: Sketch, path: str, module: Any) -> None:
    """Label the encoder and every decoder; a residual stream that some decoder reads unexplained is frozen."""
    body, at = module.encoder.body, _join(path, "encoder.body")
    if type(body) is timm.models.vision_transformer.VisionTransformer:
        read = all(type(decoder) in DECODERS for decoder in module.decoders.values())
        pooled = plain_transformer(sketch, at, body, read)
        maps: list[Label] = [pooled] * len(module.encoder.channels)
    else:
        _describe(sketch, at, body)
        pooled, maps = None, [None] * len(module.encoder.channels)
    for task, decoder in module.decoders.items():
        name = _join(path, f"decoders.{task}")
        if type(decoder) in DECODERS:
            DECODERS[type(decoder)](sketch, name, decoder, maps, pooled)
        else:
            _describe(sketch, name, decoder)


def classification_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label a norm and a linear head on the pooled features; classes stay."""
    sketch.vectors(f"{path}.norm", pooled)
    sketch.map(f"{path}.head", module, pooled, None)


def segmentation_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label the all-MLP decoder: the levels write one sum, and the last step up and the detail write another."""
    width = module.head.in_channels
    label: Label = sketch.axis(f"{path}.levels", Axis(width))
    for index, level in enumerate(module.levels):
        chain(sketch, f"{path}.levels.{index}", level, maps[index], label)
    for index, step in enumerate(module.up):
        written = sketch.axis(f"{path}.up.{index}", Axis(width))
        chain(sketch, f"{path}.up.{index}", step, label, written)
        label = written
    chain(sketch, f"{path}.detail", module.detail, None, label)
    written = sketch.axis(f"{path}.fuse", Axis(width))
    chain(sketch, f"{path}.fuse", module.fuse, label, written)
    sketch.map(f"{path}.head", module.head, written, None)


DECODERS = {ClassificationDecoder: classification_decoder, SegmentationDecoder: segmentation_decoder}


# The check.


@torch.no_grad()
def check_symmetry(
    model: nn.Module,
    graph: AxisGraph,
    example_inputs: Sequence[Any],
    *,
    gauge: Gauge = "gl",
    seed: int = 0,
    tolerance: float = 1e-8,
) -> dict[str, float]:
    """Apply a random element of every axis' group, one axis at a time, and require the same output.

    The copy that is checked runs in float64, in evaluation mode, with noise on every tensor: what is zero or one at
    initialisation would hide a wrong label.

    Args:
        model: left as it is.
        graph: its table of axes.
        example_inputs: positional arguments of a forward pass.
        gauge: change of basis inside heads, where the table declares circuits.
        seed: of the noise and the elements.
        tolerance: largest change of an output, relative to the largest output.

    Returns:
        Axis -> relative change of the output.

    Raises:
        SymmetryError: naming the first axis that changes the output.
    """
    generator = np.random.default_rng(seed)
    model = deepcopy(model).double().eval()
    given = {name: np.asarray(tensor) for name, tensor in model.cpu().state_dict().items()}
    graph.validate(given)
    network = {name: _disturb(name, values, generator) for name, values in given.items()}
    inputs = _apply(lambda x: x.cpu().double() if x.is_floating_point() else x.cpu(), example_inputs)

    def outputs(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        model.load_state_dict({name: torch.as_tensor(values) for name, values in tensors.items()})
        found: list[Tensor] = []
        _apply(found.append, model(*inputs))
        return torch.cat([tensor.double().ravel() for tensor in found]).numpy()

    expected = outputs(network)
    changes = {}
    for label, axis in graph.axes.items():
        if axis.kind == "frozen":
            continue
        moved = graph.permute(network, {label: axis.random_order(generator)})
        moved = graph.regauge(moved, label, graph.random_gauge(moved, label, gauge, generator))
        changes[label] = float(abs(outputs(moved) - expected).max() / abs(expected).max())
        if not changes[label] <= tolerance:
            carriers = ", ".join(name for name in graph.tensors if label in graph.labels(name))
            raise SymmetryError(
                f"Axis {label!r} is no symmetry of {type(model).__name__}: reordering its units changes the output by "
                f"{changes[label]:.1e} of its size; look at the labels of {carriers}."
            )
    return changes


def _disturb(name: str, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noisy = np.asarray(values + generator.normal(0, 0.1, values.shape))
    return values if values.dtype.kind != "f" else abs(noisy) + 0.1 if name.endswith("running_var") else noisy


def _apply(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor of nested lists, mappings and dataclasses; return them as lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _apply(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_apply(function, item) for item in value]
    if is_dataclass(value):
        return {field.name: _apply(function, getattr(value, field.name)) for field in fields(value)}
    return value
