"""A site's contribution to a merge, tensor by tensor: values, their precision, and how much they count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .attention_heads import inner_axes
from .averaging import SiteWeights
from .axes import AxisError, AxisGraph, Tensors
from .precision import Precision
from .update import Update
from .wire import TensorEntry, part_of

Layout = Mapping[str, list[TensorEntry]]  # the tensors of every array, by its key


@dataclass(frozen=True)
class Contribution:
    """A site's contribution to a merge."""

    site: str
    values: Tensors  # values by name of the tensor
    weights: dict[str, float]  # weights by key of the array
    precision: dict[str, Precision]  # precision by name of the tensor
    num_examples: float
    pulled: bool  # whether the site trained under a pull (:mod:`.cavity`)
    task_weights: dict[str, float]  # weight in the shared parts, divided among its tasks

    def copy(self) -> Contribution:
        """Return a copy with memory of its own, because an engine reuses the memory of a reply."""
        values = {name: np.array(value) for name, value in self.values.items()}
        precision = {name: replace(own, values=np.array(own.values)) for name, own in self.precision.items()}
        return replace(self, values=values, precision=precision)

    def permuted(
        self, graph: AxisGraph, values: Tensors, permutations: Mapping[str, np.ndarray], *, regauged: bool = False
    ) -> Contribution:
        """Return the contribution with permuted units; ``values`` are already permuted, the precision is permuted here.

        ``regauged`` is true if heads also got another inner basis. A diagonal does not turn with a basis, so their
        precision becomes the mean over the inner axis.
        """
        codes = graph.permute({name: own.values for name, own in self.precision.items()}, permutations)
        precision = {name: replace(own, values=codes[name]) for name, own in self.precision.items()}
        for name, axis in inner_axes(graph).items() if regauged else ():
            if name in precision:
                view = graph.tensors[name][0] or codes[name].shape
                decoded = precision[name].decode().reshape(view)
                mean = np.broadcast_to(decoded.mean(axis=axis, keepdims=True), view)
                precision[name] = Precision(mean.reshape(codes[name].shape))
        return replace(self, values=values, precision=precision)

    def tensor_weights(self, layout: Layout) -> dict[str, float]:
        """Return the weight of each tensor, which is that of its array."""
        return {tensor.name: weight for key, weight in self.weights.items() for tensor in layout[key]}


def read_contribution(
    update: Update, layout: Layout, weights: SiteWeights, *, with_precision: bool = True
) -> Contribution:
    """Return the contribution of an update whose arrays have this layout, with its precision if ``with_precision``."""
    own = {key: layout[key] for key in update.arrays}
    precision = {
        tensor.name: values.at(tensor.place, tensor.shape)
        for key, values in update.precision.items() for tensor in own[key]
    } if with_precision else {}  # fmt: skip
    return Contribution(
        update.site,
        tensors_by_name(update.arrays, own),
        {key: weights.weight(update, part_of(key)) for key in update.arrays},
        precision,
        update.num_examples,
        update.pulled,
        weights.by_task(update),
    )


def matching_weights(
    contributions: Sequence[Contribution], layout: Layout, graph: AxisGraph
) -> list[dict[str, float | np.ndarray]]:
    """Return the weight of each site in matching, by tensor: its precision, as in the merge.

    If a site that trains a tensor has no precision for it, all sites count there by their samples, because the two
    have no common unit.
    """
    unknown = {name for own in contributions for name in own.values if name not in own.precision}
    weights: list[dict[str, float | np.ndarray]] = []
    for own in contributions:
        by_tensor: dict[str, float | np.ndarray] = {**own.tensor_weights(layout)}
        for name in graph.tensors:
            if name in own.precision and name not in unknown and by_tensor[name]:
                by_tensor[name] = own.precision[name].decode().reshape(own.values[name].shape)
        weights.append(by_tensor)
    return weights


def unique_names(layout: Layout, graph: AxisGraph | None) -> dict[str, list[TensorEntry]]:
    """Return the tensors under unique names, because several parts of a packed record may contain, say, a ``weight``.

    Raises:
        AxisError: if the axis graph uses a name that is not unique.
    """
    uses = Counter(tensor.name for entries in layout.values() for tensor in entries)
    for name in graph.tensors if graph is not None else ():
        if uses[name] > 1:
            parts = f"{uses[name]} parts contain a tensor of this name"
            raise AxisError(f"{name}: {parts}; give each its own, or use no axes.")
    return {
        key: [tensor if uses[tensor.name] == 1 else tensor._replace(name=f"{key}/{tensor.name}") for tensor in entries]
        for key, entries in layout.items()
    }


def tensors_by_name(arrays: Mapping[str, np.ndarray], layout: Layout) -> Tensors:
    """Return the tensors of arrays by name, as views."""
    return {
        tensor.name: arrays[key].reshape(-1)[tensor.place].reshape(tensor.shape)
        for key in arrays for tensor in layout[key]
    }  # fmt: skip
