"""Derive which permutations of units leave a torch model's function unchanged, and check them.

It supports chains of linear, convolution, transposed convolution, normalisation, activation and pooling layers
(``nn.Sequential``, nested or not); timm's plain vision transformer with its residual stream, heads and MLPs; timm's
residual networks with one stream per stage and the channels inside their blocks; the versions of both for volumes; and
:class:`.system.MultiTaskModel` with its sharing schemes and decoders. In other transformers (Swin, PVT, ConvNeXt and
similar ones, and the Swin for volumes), it supports only the inside of attention and MLP modules, because the residual
streams change width between stages. Modules that nothing here describes are left out of the table, which freezes them.
A residual stream that an unknown module reads or writes is declared frozen as well.

A new type of module needs one describer in :mod:`.axes`.
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
from .axes import AxisGraphBuilder, describe


class SymmetryError(MtfedError):
    """Raised if permuting the units of a declared axis changes the model's output."""


def derive_axes(model: nn.Module) -> AxisGraph:
    """Return the axis graph of a model, with tensors named as in its ``state_dict``.

    Tensors that the model declares frozen (:attr:`.system.MultiTaskModel.frozen`) are left out.
    """
    builder = AxisGraphBuilder(model)
    describe(builder, "", model)
    builder.freeze(getattr(model, "frozen", ()))
    return builder.build()


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
    """Apply a random permutation to one axis at a time and check that the output stays the same.

    The check runs on a copy in float64 and in evaluation mode, with noise on every tensor: tensors that are all zero or
    one at initialisation would hide a wrong label.

    Args:
        model: not modified.
        graph: its axis graph.
        example_inputs: positional arguments of a forward pass.
        gauge: change of basis inside heads, for axes with circuits.
        seed: seed of the noise, the permutations and the bases.
        tolerance: largest allowed change of an output, relative to the largest output.

    Returns:
        Axis -> relative change of the output.

    Raises:
        SymmetryError: naming the first axis that changes the output.
    """
    generator = np.random.default_rng(seed)
    model = deepcopy(model).double().eval()
    state = {name: np.asarray(tensor) for name, tensor in model.cpu().state_dict().items()}
    graph.validate(state)
    network = {name: _add_noise(name, values, generator) for name, values in state.items()}
    inputs = _map_tensors(lambda x: x.cpu().double() if x.is_floating_point() else x.cpu(), example_inputs)

    def outputs(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        model.load_state_dict({name: torch.as_tensor(values) for name, values in tensors.items()})
        flat: list[Tensor] = []
        _map_tensors(flat.append, model(*inputs))
        return torch.cat([tensor.double().ravel() for tensor in flat]).numpy()

    expected = outputs(network)
    changes = {}
    for label, axis in graph.axes.items():
        if axis.axis_type == "frozen":
            continue
        moved = graph.permute(network, {label: axis.random_permutation(generator)})
        moved = graph.regauge(moved, label, graph.random_gauge(moved, label, gauge, generator))
        changes[label] = float(abs(outputs(moved) - expected).max() / abs(expected).max())
        if not changes[label] <= tolerance:
            carriers = ", ".join(name for name in graph.tensors if label in graph.labels(name))
            raise SymmetryError(
                f"Axis {label!r} is not a symmetry of {type(model).__name__}: permuting its units changes the output "
                f"by {changes[label]:.1e} of its size; look at the labels of {carriers}."
            )
    return changes


def _add_noise(name: str, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noisy = np.asarray(values + generator.normal(0, 0.1, values.shape))
    return values if values.dtype.kind != "f" else abs(noisy) + 0.1 if name.endswith("running_var") else noisy


def _map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to all tensors of nested lists, mappings and dataclasses; return nested lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_tensors(function, item) for item in value]
    if is_dataclass(value):
        return {field.name: _map_tensors(function, getattr(value, field.name)) for field in fields(value)}
    return value
