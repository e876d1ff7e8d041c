"""A table of axes in the making, and the register of who can describe which kind of module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ..strategies.axes import Axis, AxisGraph, Spec

Label = str | None


class Sketch:
    """A table of axes in the making; tensors that a module does not have are passed over."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.tensors: dict[str, Spec] = {}
        self.axes: dict[str, Axis] = {}
        self.readers: dict[str, list[str]] = {}  # axis -> tensors through which all that lies behind it is linear in it

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
        self.read(f"{path}.weight", inputs)

    def read(self, name: str, label: Label) -> None:
        """Note that a tensor reads an axis linearly."""
        if label is not None and name in self.shapes:
            self.readers.setdefault(label, []).append(name)

    def graph(self) -> AxisGraph:
        """Return the finished table: of axes that some tensor carries, with readers where units may be added."""
        used = {part for _, labels in self.tensors.values() for label in labels if label for part in label.split("+")}
        axes = {label: axis for label, axis in self.axes.items() if label in used}
        for label, axis in axes.items():
            if axis.growable:
                axes[label] = replace(axis, readers=tuple(self.readers.get(label, ())))
        return AxisGraph(self.tensors, axes)


Describer = Callable[..., str | None]
DESCRIBERS: dict[type[nn.Module], Describer] = {}


def describes(*types: type[nn.Module]) -> Callable[[Describer], Describer]:
    """Register what a kind of module, and no subclass of it, has to say of its own tensors."""

    def register(describer: Describer) -> Describer:
        DESCRIBERS.update(dict.fromkeys(types, describer))
        return describer

    return register


def describe(sketch: Sketch, path: str, module: nn.Module) -> None:
    """Let a module's describer speak, or else those of its children."""
    if type(module) in DESCRIBERS:
        DESCRIBERS[type(module)](sketch, path, module)
        return
    for name, child in module.named_children():
        describe(sketch, join(path, name), child)


def join(path: str, name: str) -> str:
    """Return the path of a child."""
    return f"{path}.{name}" if path else name
