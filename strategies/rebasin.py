"""Git Re-Basin (Ainsworth, Hayase & Srinivasa, ICLR 2023): weight matching of two models, and merging of many.

As published: inner products of unscaled weights, no gate, no precision. :mod:`.alignment` differs in all of these and
is compared with this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .axes import AxisGraph, Tensors
from .matching import assign, moved_share


def weight_matching(
    graph: AxisGraph,
    target: Mapping[str, np.ndarray],
    network: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    tolerance: float = 1e-12,
    max_passes: int = 100,
) -> dict[str, np.ndarray]:
    """Return the permutations that bring a network closest to a target, by coordinate descent (Algorithm 1).

    In turn, each axis gets argmax_P <P, sum over its slots of W_target W_network^T>, with all other axes fixed.

    Args:
        graph: the axis graph; frozen axes are not permuted.
        target: contains all tensors of the network.
        network: the network to permute.
        seed: seed of the order of axes in each pass.
        tolerance: the descent ends after a pass in which no axis gains more.
        max_passes: maximum number of passes; the authors' limit.

    Returns:
        Axis -> permutation, as :meth:`.axes.AxisGraph.permute` takes it.
    """
    permuted = dict(network)
    labels = [
        label for label, axis in graph.axes.items() if axis.axis_type != "frozen" and graph.slots(label, permuted)
    ]
    permutations = {label: np.arange(graph.axes[label].size) for label in labels}
    generator = np.random.default_rng(seed)
    for _ in range(max_passes):
        progress = False
        for index in generator.permutation(len(labels)):
            label = labels[index]
            products = np.zeros((graph.axes[label].size,) * 2)  # (target's units, network's units)
            for slot in graph.slots(label, permuted):
                products += slot.rows(target[slot.name]) @ slot.rows(permuted[slot.name]).T
            permutation = assign(products, graph.axes[label].groups)
            gain = products[np.arange(len(permutation)), permutation].sum()
            progress |= gain > products.trace() + tolerance
            permuted = graph.permute(permuted, {label: permutation})
            permutations[label] = permutations[label][permutation]
        if not progress:
            break
    return permutations


def moving_permutations(
    graph: AxisGraph, target: Mapping[str, np.ndarray], network: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the permutations of :func:`weight_matching` that move a unit, based on the tensors that both have."""
    common = {name: values for name, values in network.items() if name in target}
    permutations = weight_matching(graph, target, common, seed=seed)
    return {label: permutation for label, permutation in permutations.items() if moved_share(permutation)}


def match_many(
    graph: AxisGraph, networks: Sequence[Mapping[str, np.ndarray]], *, seed: int = 0, max_passes: int = 100
) -> tuple[list[Tensors], list[dict[str, np.ndarray]]]:
    """Match each network to the mean of the others until nothing moves (MergeMany, Algorithm 3).

    Args:
        graph: the axis graph.
        networks: they may lack tensors.
        seed: seed of all random orders.
        max_passes: maximum number of passes over the networks; the authors' limit.

    Returns:
        The permuted networks, ready to be averaged, and per network the permutation of each axis.
    """
    permuted = [dict(network) for network in networks]
    permutations: list[dict[str, np.ndarray]] = [{} for _ in permuted]
    generator = np.random.default_rng(seed)
    for _ in range(max_passes if len(permuted) > 1 else 0):
        moved = False
        for j in generator.permutation(len(permuted)):
            others = mean_network([network for k, network in enumerate(permuted) if k != j])
            moving = moving_permutations(graph, others, permuted[j], seed=int(generator.integers(2**32)))
            permuted[j] = graph.permute(permuted[j], moving)
            for label, permutation in moving.items():
                permutations[j][label] = permutations[j].get(label, np.arange(len(permutation)))[permutation]
            moved |= bool(moving)
        if not moved:
            break
    return permuted, permutations


def mean_network(networks: Sequence[Mapping[str, np.ndarray]]) -> Tensors:
    """Return the unweighted mean of every tensor over the networks that have it."""
    names = dict.fromkeys(name for network in networks for name in network)
    return {name: np.mean([network[name] for network in networks if name in network], axis=0) for name in names}
