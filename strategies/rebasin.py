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
    max_passes: int = 100,
) -> dict[str, np.ndarray]:
    """Return the orders that bring a network nearest to a target, by coordinate descent over axes (Algorithm 1).

    Each axis in turn gets argmax_P <P, sum over its slots of W_target W_network^T>, with all others as they stand.

    Args:
        graph: the table of axes; frozen ones stay.
        target: all tensors that the network has.
        network: the network to reorder.
        seed: of the order of axes in each pass.
        tolerance: a pass in which no axis gains more is the last.
        max_passes: most passes; the authors' limit.

    Returns:
        Axis -> its unit at each place, as :meth:`.axes.AxisGraph.permute` takes it.
    """
    moved = dict(network)
    labels = [label for label, axis in graph.axes.items() if axis.kind != "frozen" and graph.slots(label, moved)]
    orders = {label: np.arange(graph.axes[label].size) for label in labels}
    generator = np.random.default_rng(seed)
    for _ in range(max_passes):
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


def moving_permutations(
    graph: AxisGraph, target: Mapping[str, np.ndarray], network: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return those orders of :func:`weight_matching` that move a unit, matched on the tensors that both have."""
    held = {name: values for name, values in network.items() if name in target}
    orders = weight_matching(graph, target, held, seed=seed)
    return {label: order for label, order in orders.items() if (order != np.arange(len(order))).any()}


def match_many(
    graph: AxisGraph, networks: Sequence[Mapping[str, np.ndarray]], *, seed: int = 0, max_passes: int = 100
) -> tuple[list[Tensors], list[dict[str, np.ndarray]]]:
    """Match each network to the mean of the others until nothing moves (MergeMany, Algorithm 3).

    Args:
        graph: the table of axes.
        networks: they may lack tensors.
        seed: of all random orders.
        max_passes: most passes over the networks; the authors' limit.

    Returns:
        The networks, ready to be averaged, and how each was reordered, by axis.
    """
    members = [dict(network) for network in networks]
    orders: list[dict[str, np.ndarray]] = [{} for _ in members]
    generator = np.random.default_rng(seed)
    for _ in range(max_passes if len(members) > 1 else 0):
        moved = False
        for j in generator.permutation(len(members)):
            others = mean_network([network for k, network in enumerate(members) if k != j])
            found = moving_permutations(graph, others, members[j], seed=int(generator.integers(2**32)))
            members[j] = graph.permute(members[j], found)
            for label, order in found.items():
                orders[j][label] = orders[j].get(label, np.arange(len(order)))[order]
            moved |= bool(found)
        if not moved:
            break
    return members, orders


def mean_network(networks: Sequence[Mapping[str, np.ndarray]]) -> Tensors:
    """Return the plain mean of every tensor over those who hold it."""
    names = dict.fromkeys(name for network in networks for name in network)
    return {name: np.mean([network[name] for network in networks if name in network], axis=0) for name in names}
