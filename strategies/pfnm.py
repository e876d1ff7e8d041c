"""PFNM and FedMA as published: perceptrons are matched layer by layer at a growing width.

A network is a list of arrays [W_1, b_1, ..., W_C, b_C], every W of shape (inputs, outputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .beta_bernoulli import Atoms, BetaBernoulli, base_measure, gather_atoms, match_growing

Network = list[np.ndarray]
Retrain = Callable[[int, Network, int], Network]


@dataclass(frozen=True)
class Quirks:
    """Differences between IBM's code and the paper; the defaults, including those of the process, are the paper's."""

    process: BetaBernoulli  # its gamma is not used
    zeros_observed: bool = False  # a client that lacks an atom of the next layer counts as having observed weights 0
    restart_prior_unscaled: bool = False  # from an earlier assignment, N starts at the prior mean, not mean * precision


PAPER = Quirks(BetaBernoulli())
IBM_PROCESS = BetaBernoulli(existing_factor=1.0, popularity_cap=10, width_cap=700, beyond_cap=1)
IBM = Quirks(IBM_PROCESS, zeros_observed=True, restart_prior_unscaled=True)
FEDMA_PROCESS = replace(IBM_PROCESS, gamma=7.0)  # the authors' value


@dataclass(frozen=True)
class MatchedNetwork:
    """A merged network, and the global unit of each client's units."""

    weights: Network
    precisions: Network  # posterior precision of every weight
    assignment: list[list[np.ndarray]]  # hidden layer, then client: (L_j,) the global unit of each local one


def pfnm(
    networks: Sequence[Network],
    class_counts: np.ndarray,
    *,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    gamma: float = 1.0,
    bias_mean: float = 0.1,
    sweeps: int = 5,
    seed: int = 0,
    orders: Sequence[Sequence[Sequence[int]]] | None = None,
    start: Sequence[Sequence[np.ndarray]] | None = None,
    quirks: Quirks = PAPER,
) -> MatchedNetwork:
    """Match layer by layer from the top (PFNM, Yurochkin et al., ICML 2019).

    Incoming weights are used in the first hidden layer only. The precision of an outgoing weight to a class is the
    client's share of the samples of that class, over sigma.

    Args:
        networks: per client, [W_1, b_1, ...].
        class_counts: (J, K) number of samples of each class at each client.
        sigma: variance of a client's weight around its atom.
        sigma0: prior variance of an atom. The prior mean is 0 for weights and ``bias_mean`` for biases.
        gamma: mass of the beta process.
        bias_mean: prior mean of every bias.
        sweeps: number of sweeps over the clients after the first placement.
        seed: seed of the order of clients in each sweep.
        orders: (hidden layers, sweeps, J) these orders themselves, top layer first.
        start: assignment of an earlier round to continue from, for clients that trained its :func:`local_network`.
        quirks: ``IBM`` reproduces the authors' code.
    """
    clients, hidden = len(networks), len(networks[0]) // 2 - 1
    shares = class_shares(class_counts)
    process = replace(quirks.process, gamma=gamma)
    state = np.random.RandomState(seed)  # the same generator and the same draws as in the authors' code
    drawn = np.array([[state.permutation(clients) for _ in range(sweeps)] for _ in range(hidden)])
    precision = 1 / sigma0 + (shares / sigma).sum(axis=0)  # precision of the output layer's biases
    biases = np.array([network[-1] for network in networks], float)
    bias = (bias_mean / sigma0 + (shares / sigma * biases).sum(axis=0)) / precision
    weights, precisions, width = [bias], [precision], len(bias)  # the width is that of the layer above
    assignment: list[list[np.ndarray]] = []
    for layer in reversed(range(hidden)):
        inputs = len(networks[0][0]) if layer == 0 else 0
        above = assignment[0] if assignment else None
        rows, row_precisions = _layer_rows(networks, layer, inputs, shares, above, width, sigma, quirks.zeros_observed)
        mean = np.zeros(inputs + 1 + width)
        mean[inputs] = bias_mean
        base = base_measure(mean, np.full(len(mean), 1 / sigma0))
        begin = None
        if start is not None:
            prior = Atoms(mean[None], base.precision, base.count) if quirks.restart_prior_unscaled else base
            begin = (start[layer], gather_atoms(start[layer], rows, row_precisions, prior))
        order = (drawn if orders is None else orders)[hidden - 1 - layer]
        matched, atoms = match_growing(rows, row_precisions, base, process, order, start=begin)
        assignment.insert(0, matched)
        width = len(atoms.count)
        for merged, values in ((weights, atoms.mean), (precisions, atoms.precision)):
            merged[:0] = [values[:, :inputs].T] * (layer == 0) + [values[:, inputs], values[:, inputs + 1 :]]
    return MatchedNetwork(weights, precisions, assignment)


def class_shares(class_counts: np.ndarray, absent: float = 0.0) -> np.ndarray:
    """Return (J, K) each client's share of the samples of a class; ``absent`` for a class that has none."""
    totals = class_counts.sum(axis=0)
    return np.divide(class_counts, totals, out=np.full(class_counts.shape, absent), where=totals > 0)


def _layer_rows(
    networks: Sequence[Network],
    layer: int,
    inputs: int,
    shares: np.ndarray,
    assignment: Sequence[np.ndarray] | None,
    width: int,
    sigma: float,
    zeros_observed: bool,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return per client the (L_j, D) units of a hidden layer and their (D,) precision.

    A unit is its first ``inputs`` incoming weights, its bias, and its outgoing weights in the order of the layer above.
    ``assignment`` is that of the layer above, per client (L_j,), or ``None`` if that is the output layer; ``width`` is
    the merged width of that layer.
    """
    rows, precisions = [], []
    for j, network in enumerate(networks):
        outgoing, observed = np.asarray(network[2 * layer + 2], float), shares[j]
        if assignment is not None:
            outgoing, observed = np.zeros((len(outgoing), width)), np.full(width, float(zeros_observed))
            outgoing[:, assignment[j]], observed[assignment[j]] = network[2 * layer + 2], 1.0
        rows.append(np.hstack([network[2 * layer].T[:, :inputs], network[2 * layer + 1][:, None], outgoing]))
        precisions.append(np.concatenate([np.ones(inputs + 1), observed]) / sigma)
    return rows, precisions


def local_network(weights: Network, assignment: Sequence[Sequence[np.ndarray]], client: int) -> Network:
    """Return the part of a merged network that a client's units were matched to, in the client's order."""
    units: list[np.ndarray | slice] = [slice(None), *(layer[client] for layer in assignment), slice(None)]
    network = []
    for layer, (inputs, outputs) in enumerate(pairwise(units)):
        network += [weights[2 * layer][inputs][:, outputs], weights[2 * layer + 1][outputs]]
    return network


def fedma(
    networks: Sequence[Network],
    class_counts: np.ndarray,
    retrain: Retrain | None = None,
    *,
    process: BetaBernoulli = FEDMA_PROCESS,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    bias_mean: float = 0.1,
    sweeps: int = 5,
    seed: int = 0,
) -> MatchedNetwork:
    """Match each layer from the bottom by its incoming weights and biases, then average the output layer (FedMA).

    Wang et al., ICLR 2020. One pass over C layers takes C rounds: each freezes one more layer, which is wider than the
    clients' own, and lets clients retrain those above. For further passes, a client starts from its part of the result,
    :func:`local_network`.

    A client that lacks a unit of the merged layer receives weight 0 from it, and counts as having observed 0. The
    output layer is the mean weighted by each client's share of the samples of a class.

    Args:
        networks: per client, W (inputs, outputs).
        class_counts: (J, K) number of samples of each class at each client.
        retrain: called with the client, its network and the number of frozen layers; returns the network with the
            layers above them trained further. Without it, all layers are matched in one shot.
        process: decides when a unit opens a new atom.
        sigma: variance of a client's weight around its atom.
        sigma0: prior variance of an atom. The prior mean is 0 for weights and ``bias_mean`` for biases.
        bias_mean: prior mean of every bias.
        sweeps: number of sweeps over the clients after the first placement of a layer.
        seed: seed of the order of clients in each sweep.
    """
    clients, hidden = len(networks), len(networks[0]) // 2 - 1
    local = [[np.asarray(tensor, float) for tensor in network] for network in networks]
    state = np.random.RandomState(seed)
    weights: Network = []
    precisions: Network = []
    assignment = []
    for layer in range(hidden):
        rows = [np.vstack([network[2 * layer], network[2 * layer + 1]]).T for network in local]
        mean = np.zeros(rows[0].shape[1])
        mean[-1] = bias_mean
        orders = [state.permutation(clients).tolist() for _ in range(sweeps)]
        base = base_measure(mean, np.full(len(mean), 1 / sigma0))
        matched, atoms = match_growing(rows, [np.full(len(mean), 1 / sigma)] * clients, base, process, orders)
        assignment.append(matched)
        weights += [atoms.mean[:, :-1].T, atoms.mean[:, -1]]
        precisions += [atoms.precision[:, :-1].T, atoms.precision[:, -1]]
        for j, network in enumerate(local):
            outgoing = np.zeros((len(atoms.count), network[2 * layer + 2].shape[1]))
            outgoing[matched[j]] = network[2 * layer + 2]
            local[j] = [*(tensor.copy() for tensor in weights), outgoing, *network[2 * layer + 3 :]]
            if retrain is not None:
                local[j] = retrain(j, local[j], layer + 1)
    shares = class_shares(class_counts, absent=1 / clients)
    for tensor in (-2, -1):
        weights.append(sum(share * network[tensor] for share, network in zip(shares, local, strict=True)))
        precisions.append(np.broadcast_to(shares.sum(axis=0) / sigma, weights[-1].shape))
    return MatchedNetwork(weights, precisions, assignment)
