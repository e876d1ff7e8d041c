"""Merges as others published them, with the same messages and under the same rules, for comparison.

Each fixes the settings of :class:`.bayesian.BayesianMatching` that its paper does not have; setting one is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .alignment import comparable_slots, count_columns
from .axes import AxisGraph, Slot, Tensors
from .bayesian import BayesianMatching
from .bayesian_merge import BayesianMerge
from .contribution import Contribution
from .limits import check_settings, with_fixed
from .matching import match, moved_share
from .precision import Precision
from .product import MEAN, VARIANCE
from .rebasin import match_many, moving_permutations

ROUNDING = 1e-12  # minimum relative gain: these methods have no gate, but sums have rounding errors
FixedSettings = Mapping[str, Any]
LAPLACE: FixedSettings = {"axes": None, "precision": "fisher", "cavity": 0.0}
COUNTING: FixedSettings = {"precision": "none", "prior_strength": 0.0, "cavity": 0.0, "gate": 0.0, "inner": "none"}


class Published(BayesianMatching):
    """A merge some of whose settings are fixed by its paper."""

    fixed: ClassVar[FixedSettings] = {}  # settings of BayesianMatching that the user cannot set

    def __init__(self, **settings: Any) -> None:
        super().__init__(**with_fixed(self, settings))


class FisherMerging(Published):
    """Fisher merging (Matena & Raffel, NeurIPS 2022): a mean weighted by each weight's Fisher information, unmatched.

    theta = sum_j n_j F_j theta_j / sum_j n_j F_j, with F_j the diagonal Fisher information of one sample, raised to
    ``min_fisher`` where it is less (1e-6 in the paper). The paper tunes a coefficient for each model on validation
    data; here it is the number of samples.
    """

    fixed: ClassVar[FixedSettings] = {**LAPLACE, "precision_floor": 0.0, "prior_strength": 0.0}

    def __init__(self, *, min_fisher: float = 1e-6, **settings: Any) -> None:
        super().__init__(**settings)
        check_settings(locals())
        self.min_fisher = min_fisher

    def _multiply(self, merge: BayesianMerge, contribution: Contribution) -> None:
        samples = contribution.tensor_weights(merge.layout)
        raised = {}
        for name, precision in contribution.precision.items():
            values = np.maximum(precision.decode(), np.float32(self.min_fisher * samples[name]))
            raised[name] = Precision(values.reshape(precision.values.shape))
        super()._multiply(merge, replace(contribution, precision=raised))


class Fola(Published):
    """FOLA (Liu et al., TPAMI 2023): a product of Laplace posteriors in which every round is the prior of the next.

    Lambda = Lambda_0 + sum_j n_j F_j and theta = (Lambda_0 theta_0 + sum_j n_j F_j theta_j) / Lambda, with the last
    round's Lambda as Lambda_0, starting from 0. In the paper, sites also train against that prior, theta_0 and
    Lambda_0; here they train as with all other strategies. ``precision_floor`` is not in the paper; 0 leaves it out.
    """

    fixed: ClassVar[FixedSettings] = {**LAPLACE, "prior_strength": 1.0}


class Rebasin(Published):
    """Git Re-Basin (Ainsworth et al., ICLR 2023): weight matching to the last global model, then the average.

    Matching maximises inner products of the weights without scaling or gate; sites count by their samples. With
    ``start="apart"`` the first round has no common model: each site is matched to the mean of the others until
    nothing moves (the paper's MergeMany); the mean of a tensor is over the sites that have it.
    """

    fixed: ClassVar[FixedSettings] = COUNTING

    def _match(self, merge: BayesianMerge, contribution: Contribution) -> Contribution:
        if self.axes is None:
            return contribution
        moving = moving_permutations(self.axes, merge.previous_tensors(), contribution.values, seed=self.seed)
        if not moving:
            return contribution
        return contribution.permuted(self.axes, self.axes.permute(contribution.values, moving), moving)

    def _match_all(self, merge: BayesianMerge) -> Iterator[Contribution]:
        assert self.axes is not None
        networks, permutations = match_many(self.axes, [own.values for own in merge.waiting], seed=self.seed)
        for contribution, network, own in zip(merge.waiting, networks, permutations, strict=True):
            yield contribution.permuted(self.axes, network, own)


class Pfnm(Published):
    """PFNM (Yurochkin et al., ICML 2019) at a fixed width: MAP matching and MAP weights under a prior around zero.

    As in the paper: units are N(theta_i, sigma^2), with the same sigma for every site and weight, and theta_i is
    N(0, sigma_0^2), anew in every round. The assignment maximises sum N^2 / S, site by site and then in sweeps. Layers
    are matched from the top down: a unit is its bias and outgoing weights and, in the lowest layer, incoming weights.
    The merge is theta = sum_j v_j / (J + sigma^2 / sigma_0^2): by default J / (J + 1) of the mean, in every round.

    This version leaves out the beta-Bernoulli process on the width, which needs sites of other widths (:mod:`.pfnm`
    implements it, :class:`.growing.GrowingMatching` uses it), the class shares as precision of the output layer, and
    the mean 0.1 of biases, which is the initial value in the paper's networks. For networks other than perceptrons it
    adds: a unit's rows are all its slices that the other axes make comparable (:func:`.alignment.comparable_slots`),
    and an axis on which these are only vectors, such as biases, waits for the neighbouring axes; tensors without axes
    have the same prior; BatchNorm's statistics are averaged; J counts the sites that have a part.

    Args:
        sigma0: variance of a global weight around 0, relative to that of a site's weight around the global one.
        sweeps: passes over the sites of an axis after the first placement.
        settings: see :class:`BayesianMatching`.
    """

    fixed: ClassVar[FixedSettings] = {**COUNTING, "weighting": "uniform"}

    def __init__(self, *, sigma0: float = 1.0, sweeps: int = 5, **settings: Any) -> None:
        super().__init__(**settings)
        check_settings(locals())
        self.sigma0 = sigma0
        self.sweeps = sweeps

    def _waits_for_all(self) -> bool:
        return True

    def _prior(self, merge: BayesianMerge) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        mean = {key: np.zeros_like(values) for key, values in merge.previous.items()}
        precision = {key: np.full(values.shape, 1 / self.sigma0, np.float32) for key, values in mean.items()}
        for key, tensors in merge.layout.items():
            for tensor in tensors:
                if tensor.name.endswith((MEAN, VARIANCE)):
                    precision[key].reshape(-1)[tensor.place] = 0
        return mean, precision

    def _match_all(self, merge: BayesianMerge) -> Iterator[Contribution]:
        graph, contributions = self.axes, merge.waiting
        if graph is None:
            yield from contributions
            return
        networks = [own.values for own in contributions]
        permutations: list[dict[str, np.ndarray]] = [{} for _ in contributions]
        union = {name: values for network in networks for name, values in network.items()}
        waiting = [label for label, axis in graph.axes.items() if axis.axis_type != "frozen"][::-1]
        settled = set(graph.axes) - set(waiting)
        while waiting:
            label, slots = _next_axis(graph, waiting, union, settled)
            waiting.remove(label)
            settled.add(label)
            members = [j for j, network in enumerate(networks) if any(slot.name in network for slot in slots)]
            if not members:
                continue
            matched = self._match_axis(graph, label, slots, [networks[j] for j in members])
            for j, permutation in zip(members, matched, strict=True):
                moved = moved_share(permutation)
                merge.metrics.add_moved(label, moved)
                if moved:
                    networks[j] = graph.permute(networks[j], {label: permutation})
                    permutations[j][label] = permutation
        for contribution, network, own in zip(contributions, networks, permutations, strict=True):
            yield contribution.permuted(graph, network, own)

    def _match_axis(self, graph: AxisGraph, label: str, slots: list[Slot], networks: list[Tensors]) -> list[np.ndarray]:
        """Return for each network which of its units belongs to each atom of an axis."""
        rows = [np.hstack([_rows(slot, network) for slot in slots]) for network in networks]
        widths = [slot.width for slot in slots]
        present = [np.repeat([float(slot.name in network) for slot in slots], widths) for network in networks]
        prior = np.zeros(rows[0].shape), np.full(rows[0].shape[1], 1 / self.sigma0)
        return match(
            rows, present, prior=prior, groups=graph.axes[label].groups, gate=ROUNDING, max_sweeps=self.sweeps,
            seed=self.seed, dtype=np.float64,
        ).permutations  # fmt: skip


def _next_axis(graph: AxisGraph, waiting: list[str], tensors: Tensors, settled: set[str]) -> tuple[str, list[Slot]]:
    """Return the axis to match next and its slots: the topmost with a matrix, or that with the most columns."""
    slots = {label: comparable_slots(graph, label, graph.slots(label, tensors), settled)[0] for label in waiting}
    with_matrix = [label for label in waiting if any(tensors[slot.name].ndim > 1 for slot in slots[label])]
    label = with_matrix[0] if with_matrix else max(waiting, key=lambda label: count_columns(slots[label]))
    return label, slots[label] or graph.slots(label, tensors)


def _rows(slot: Slot, network: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (L, width) the rows of a network's units in a slot; they are 0 if it does not have the tensor."""
    return slot.rows(network[slot.name]) if slot.name in network else np.zeros((slot.stop - slot.start, slot.width))
