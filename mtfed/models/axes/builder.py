"""Builds a model's :class:`AxisGraph`, and registers which function describes which type of module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from ...strategies.axes import Axis, AxisGraph, Spec

Label = str | None


class AxisGraphBuilder:
    """Collects the axes of a model's tensors. Tensors that the model does not have are skipped."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.tensors: dict[str, Spec] = {}
        self.axes: dict[str, Axis] = {}
        self.readers: dict[str, list[str]] = {}  # axis -> the tensors that read it, all of them linearly

    def add_axis(self, label: str, axis: Axis) -> str:
        """Declare an axis and return its label."""
        self.axes[label] = axis
        return label

    def restrict(self, label: Label, **changes: Any) -> None:
        """Restrict an axis. Two different groupings leave nothing to permute, so they freeze it."""
        if label is None:
            return
        old = self.axes[label]
        if "groups" in changes and old.axis_type != "perm" and changes["groups"] != old.groups:
            changes = {"axis_type": "frozen"}
        if old.axis_type != "frozen":
            self.axes[label] = replace(old, **changes)

    def label(self, name: str, *labels: Label, view: tuple[int, ...] | None = None) -> None:
        """Label the leading axes of a tensor or of its view; the remaining axes get no label."""
        if name in self.shapes:
            shape = view or self.shapes[name]
            self.tensors[name] = (view, labels + (None,) * (len(shape) - len(labels)))

    def label_vectors(self, path: str, label: Label) -> None:
        """Label the per-unit tensors of a norm, a scale, or a depthwise convolution."""
        for name in ("weight", "bias", "gamma", "running_mean", "running_var"):
            self.label(f"{path}.{name}", label)

    def label_norm(self, path: str, module: nn.Module, label: Label) -> None:
        """Label a normalisation layer and restrict its axis to what the layer's statistics allow."""
        self.label_vectors(path, label)
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            self.restrict(label, axis_type="grouped", groups=module.num_groups)
        elif not isinstance(module, nn.Identity | nn.modules.batchnorm._BatchNorm):
            self.restrict(label, growable=False)  # its statistics run over the units

    def label_map(self, path: str, module: nn.Module, inputs: Label, outputs: Label) -> None:
        """Label a linear layer or a convolution. The weight of a transposed convolution has its input axis first."""
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        self.label(f"{path}.weight", *((inputs, outputs) if transposed else (outputs, inputs)))
        self.label(f"{path}.bias", outputs)
        self.add_reader(f"{path}.weight", inputs)

    def add_reader(self, name: str, label: Label) -> None:
        """Record that a tensor reads an axis linearly."""
        if label is not None and name in self.shapes:
            self.readers.setdefault(label, []).append(name)

    def freeze(self, names: Iterable[str]) -> None:
        """Remove tensors that never change, and freeze their axes, the order of whose units they fix."""
        for name in names:
            if name in self.tensors:
                _, labels = self.tensors.pop(name)
                for label in {part for joined in labels if joined for part in joined.split("+")}:
                    self.restrict(label, axis_type="frozen")

    def build(self) -> AxisGraph:
        """Return the graph of all axes that some tensor has; growable axes also get their readers."""
        used = {part for _, labels in self.tensors.values() for label in labels if label for part in label.split("+")}
        axes = {label: axis for label, axis in self.axes.items() if label in used}
        for label, axis in axes.items():
            if axis.growable:
                axes[label] = replace(axis, readers=tuple(self.readers.get(label, ())))
        return AxisGraph(self.tensors, axes)


Describer = Callable[..., Any]  # takes the builder, the path of a module, and the module
DESCRIBERS: dict[type[nn.Module], Describer] = {}


def describes(*types: type[nn.Module]) -> Callable[[Describer], Describer]:
    """Register the function that labels the tensors of these types of modules; subclasses are not included."""

    def register(describer: Describer) -> Describer:
        DESCRIBERS.update(dict.fromkeys(types, describer))
        return describer

    return register


def describe(builder: AxisGraphBuilder, path: str, module: nn.Module) -> None:
    """Call the describer of a module or, if it has none, those of its children."""
    if type(module) in DESCRIBERS:
        DESCRIBERS[type(module)](builder, path, module)
        return
    for name, child in module.named_children():
        describe(builder, join(path, name), child)


def join(path: str, name: str) -> str:
    """Return the path of a child module or a tensor."""
    return f"{path}.{name}" if path else name
