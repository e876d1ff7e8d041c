"""Git Re-Basin (Ainsworth, Hayase & Srinivasa, ICLR 2023): weight matching of two models, and the merging of many.

As published: inner products of weights as they are, no scale of tensors, no gate, no precision. :mod:`.alignment`
differs in all of these; this is what it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .axes import AxisGraph, Tensors
from .matching import assign


def weight_matching(
    graph: AxisGraph,
    target: Mapping[str, np.ndarray],
    network: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    tolerance: float = 1e-12,
    passes: int = 100,
) -> dict[str, np.ndarray]:
    """Return the orders that bring a network nearest to a target, by coordinate descent over axes (Algorithm 1).

    Each axis in turn gets argmax_P <P, sum over its slots of W_target W_network^T>, with all others as they stand.

    Args:
        graph: the table of axes; frozen ones stay.
        target: all tensors that the network has.
        network: the network to reorder.
        seed: of the order of axes in each pass.
        tolerance: a pass in which no axis gains more is the last.
        passes: most passes; the authors' limit.

    Returns:
        Axis -> its unit at each place, as :meth:`.axes.AxisGraph.permute` takes it.
    """
    moved = dict(network)
    labels = [label for label, axis in graph.axes.items() if axis.kind != "frozen" and graph.slots(label, moved)]
    orders = {label: np.arange(graph.axes[label].size) for label in labels}
    generator = np.random.default_rng(seed)
    for _ in range(passes):
        progress = False
        for index in generator.permutation(len(labels)):
            label = labels[index]
            products = np.zeros((graph.axes[label].size,) * 2)  # (target's units, network's units)
            for slot in graph.slots(label, moved):
                products += slot.rows(target[slot.name]) @ slot.rows(moved[slot.name]).T
            order = assign(products, graph.axes[label].groups)
            progress |= products[np.arange(len(order)), order].sum() > products.trace() + tolerance
            moved = graph.permute(moved, {label: order})
            orders[label] = orders[label][order]
        if not progress:
            break
    return orders


def merge_many(
    graph: AxisGraph, networks: Sequence[Mapping[str, np.ndarray]], *, seed: int = 0, passes: int = 100
) -> tuple[Tensors, list[Tensors]]:
    """Match each network to the mean of the others until nothing moves (MergeMany, Algorithm 3).

    Args:
        graph: the table of axes.
        networks: two or more, with the same tensors.
        seed: of all random orders.
        passes: most passes over the networks.

    Returns:
        The mean, and the networks as they were averaged.
    """
    members = [dict(network) for network in networks]
    generator = np.random.default_rng(seed)
    for _ in range(passes):
        moved = False
        for j in generator.permutation(len(members)):
            others = mean_network([network for k, network in enumerate(members) if k != j])
            orders = weight_matching(graph, others, members[j], seed=int(generator.integers(2**32)))
            moved |= any((order != np.arange(len(order))).any() for order in orders.values())
            members[j] = graph.permute(members[j], orders)
        if not moved:
            break
    return mean_network(members), members


def mean_network(networks: Sequence[Mapping[str, np.ndarray]]) -> Tensors:
    """Return the plain mean, tensor by tensor."""
    return {name: np.mean([network[name] for network in networks], axis=0) for name in networks[0]}
