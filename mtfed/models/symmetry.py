"""Which reorderings of its units leave a torch model's function as it is: derived from the modules, then checked.

What is understood: chains of linear, convolution, transposed convolution, normalisation, activation and pooling layers
(``nn.Sequential``, nested or not); timm's plain vision transformer with its residual stream, heads and MLPs; timm's
residual networks with a stream a stage and the channels inside their blocks; the same two of volumes; and
:class:`MultiTaskModel` with its sharing schemes and decoders. Of other transformers (Swin, PVT, ConvNeXt and the like,
and the Swin of volumes) the inside of attention and MLP modules is; their residual streams change width from stage to
stage and stay undeclared. Whatever no function here describes is left out of the table, which freezes it; a residual
stream that something unknown reads or writes is declared frozen too.

A new kind of module needs one function, registered with ``@describes`` of :mod:`.sketch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MtfedError
from ..strategies.axes import AxisGraph, Gauge
from . import chain_axes, multitask_axes, transformer_axes  # noqa: F401  (each registers its describers)
from .sketch import Sketch, describe


class SymmetryError(MtfedError):
    """A declared axis along which reordering units changes the model's output."""


def derive_axes(model: nn.Module) -> AxisGraph:
    """Return the table of axes of a model, tensors named as in its ``state_dict``."""
    sketch = Sketch(model)
    describe(sketch, "", model)
    return sketch.graph()


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
