"""What a site says in a round, tensor by tensor: values, how much they count, and how surely it knows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .axes import AxisError, AxisGraph, Tensors
from .heads import inner_axes
from .precision import Precision
from .wire import TensorEntry


@dataclass(frozen=True)
class Contribution:
    """What a site says in a round, by tensor."""

    site: str
    values: Tensors
    weights: dict[str, float]  # by key
    precision: dict[str, Precision]

    def copy(self) -> Contribution:
        """Return it in memory of its own: an engine takes that of a reply back."""
        values = {name: np.array(value) for name, value in self.values.items()}
        precision = {name: replace(said, values=np.array(said.values)) for name, said in self.precision.items()}
        return replace(self, values=values, precision=precision)

    def moved(
        self, graph: AxisGraph, values: Tensors, orders: Mapping[str, np.ndarray], *, turned: bool = False
    ) -> Contribution:
        """Return it with the units in another order, precision too.

        Where heads also got another inner basis, a diagonal does not turn with it: their precision is the mean over
        the inner axis.
        """
        codes = graph.permute({name: said.values for name, said in self.precision.items()}, orders)
        precision = {name: replace(said, values=codes[name]) for name, said in self.precision.items()}
        for name, axis in inner_axes(graph).items() if turned else ():
            if name in precision:
                view = graph.tensors[name][0] or codes[name].shape
                decoded = precision[name].decode().reshape(view)
                mean = np.broadcast_to(decoded.mean(axis=axis, keepdims=True), view)
                precision[name] = Precision(mean.reshape(codes[name].shape))
        return replace(self, values=values, precision=precision)

    def counts(self, tensors: Mapping[str, list[TensorEntry]]) -> dict[str, float]:
        """Return how much the site counts in matching, tensor by tensor."""
        return {tensor.name: weight for key, weight in self.weights.items() for tensor in tensors[key]}


def matching_weights(
    sites: Sequence[Contribution], tensors: Mapping[str, list[TensorEntry]], graph: AxisGraph
) -> list[dict[str, float | np.ndarray]]:
    """Return how much each site counts in matching, by tensor: by its precision, as it does in the merge.

    Where one that holds a tensor tells none, all count there by their samples: the two have no common unit.
    """
    unknown = {name for said in sites for name in said.values if name not in said.precision}
    says: list[dict[str, float | np.ndarray]] = []
    for said in sites:
        own: dict[str, float | np.ndarray] = {**said.counts(tensors)}
        for name in graph.tensors:
            if name in said.precision and name not in unknown and own[name]:
                own[name] = said.precision[name].decode().reshape(said.values[name].shape)
        says.append(own)
    return says


def unique_names(tensors: Mapping[str, list[TensorEntry]], graph: AxisGraph | None) -> dict[str, list[TensorEntry]]:
    """Return tensors under names of their own: parts of a packed record may each hold, say, a ``weight``.

    Raises:
        AxisError: where a table of axes means such a name.
    """
    uses = Counter(tensor.name for held in tensors.values() for tensor in held)
    for name in graph.tensors if graph is not None else ():
        if uses[name] > 1:
            raise AxisError(f"{name}: {uses[name]} parts hold a tensor of this name; give each its own, or no axes.")
    return {
        key: [one if uses[one.name] == 1 else one._replace(name=f"{key}/{one.name}") for one in held]
        for key, held in tensors.items()
    }


def tensors_by_name(arrays: Mapping[str, np.ndarray], tensors: Mapping[str, list[TensorEntry]]) -> Tensors:
    """Return the tensors of arrays by name, as views."""
    return {
        tensor.name: arrays[key].reshape(-1)[tensor.place].reshape(tensor.shape)
        for key in arrays for tensor in tensors[key]
    }  # fmt: skip
