"""FedMA (Wang et al., ICLR 2020): match layer after layer from the bottom, and let clients retrain what is above.

A pass over a network of C layers takes C rounds: each freezes one more layer, wider than the clients' own, and sends
it out. For further passes a client starts from its part of the result, :func:`.pfnm.local_network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .pfnm import BetaBernoulli, Matched, Network, base_measure, match_growing

Retrain = Callable[[int, Network, int], Network]
AUTHORS = BetaBernoulli(gamma=7.0, existing_factor=1.0, popularity_cap=10, width_cap=700, beyond_cap=1)


def fedma(
    networks: Sequence[Network],
    class_counts: np.ndarray,
    retrain: Retrain | None = None,
    *,
    process: BetaBernoulli = AUTHORS,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    bias_mean: float = 0.1,
    sweeps: int = 5,
    seed: int = 0,
) -> Matched:
    """Match perceptrons [W_1, b_1, ...] on each layer's incoming weights and biases, then average the output layer.

    A client that lacks a unit of the merged layer gets weight 0 from it, and is counted as having observed 0. The
    output layer is the mean weighted by each client's share of a class's samples.

    Args:
        networks: per client, W (inputs, outputs).
        class_counts: (J, K) samples of each class at each client.
        retrain: called with the client, its network and how many layers are frozen; returns the network with the
            layers above them trained on. Without it all is matched in one shot.
        process: when a unit opens an atom of its own.
        sigma: variance of a client's weight around its atom.
        sigma0: variance of an atom around the prior mean: 0 for weights, ``bias_mean`` for biases.
        bias_mean: prior mean of every bias.
        sweeps: passes over the clients after the first placement of a layer.
        seed: of the clients' order in each sweep.
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
        sure, base = [np.full(len(mean), 1 / sigma)] * clients, base_measure(mean, np.full(len(mean), 1 / sigma0))
        matched, atoms = match_growing(rows, sure, base, process, orders)
        assignment.append(matched)
        weights += [atoms.mean[:, :-1].T, atoms.mean[:, -1]]
        precisions += [atoms.precision[:, :-1].T, atoms.precision[:, -1]]
        for j, network in enumerate(local):
            following = np.zeros((len(atoms.count), network[2 * layer + 2].shape[1]))
            following[matched[j]] = network[2 * layer + 2]
            local[j] = [*(tensor.copy() for tensor in weights), following, *network[2 * layer + 3 :]]
            if retrain is not None:
                local[j] = retrain(j, local[j], layer + 1)
    totals = class_counts.sum(axis=0)
    shares = np.divide(class_counts, totals, out=np.full(class_counts.shape, 1 / clients), where=totals > 0)
    for tensor in (-2, -1):
        weights.append(sum(share * network[tensor] for share, network in zip(shares, local, strict=True)))
        precisions.append(np.broadcast_to(shares.sum(axis=0) / sigma, weights[-1].shape))
    return Matched(weights, precisions, assignment)
