"""FedMA (Wang et al., ICLR 2020): match layer by layer from the bottom, and let clients retrain the layers above.

One pass over a network of C layers takes C rounds. Each round freezes one more layer, which is wider than the clients'
own, and sends it to the clients. For further passes, a client starts from its part of the result,
:func:`.pfnm.local_network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .beta_bernoulli import BetaBernoulli, base_measure, match_growing
from .pfnm import IBM, MatchedNetwork, Network, class_shares

Retrain = Callable[[int, Network, int], Network]
AUTHORS = replace(IBM.process, gamma=7.0)


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
) -> MatchedNetwork:
    """Match perceptrons [W_1, b_1, ...] by each layer's incoming weights and biases, then average the output layer.

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
        seed: of the order of clients in each sweep.
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
