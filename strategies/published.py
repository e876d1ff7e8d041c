"""Merges as others published them, on the same wire and under the same rules, to compare with.

Each fixes the settings of :class:`.bayesian.BayesianMatching` that its paper does not have; naming one is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .alignment import comparable_slots, count_columns
from .axes import AxisGraph, Slot, Tensors
from .bayesian import BayesianMatching
from .contribution import Contribution, tensors_by_name
from .frame import Placement
from .matching import match
from .merging import MEAN, VARIANCE
from .precision import Precision
from .rebasin import match_many, moving_permutations
from .screening import Update
from .settings import check_settings, refuse_fixed

ROUNDING = 1e-12  # least relative gain of an order: none of these methods has a gate, but sums have last bits
Settings = Mapping[str, Any]
COUNTING: Settings = {"precision": "none", "prior_strength": 0.0, "cavity": 0.0, "gate": 0.0, "inner": "none"}


class Published(BayesianMatching):
    """A merge with settings that its paper fixes."""

    fixed: ClassVar[Settings] = {}  # settings of BayesianMatching that are not the user's

    def __init__(self, **settings: Any) -> None:
        refuse_fixed(type(self).__name__, self.fixed, settings)
        super().__init__(**self.fixed, **settings)


class FisherMerging(Published):
    """Fisher merging (Matena & Raffel, NeurIPS 2022): a mean weighted by each weight's Fisher information, unmatched.

    theta = sum_j n_j F_j theta_j / sum_j n_j F_j, with F_j the diagonal Fisher information of one sample, raised to
    their 1e-6 where it is less. Their coefficients, which they tune on validation data, are the numbers of samples.
    """

    fixed: ClassVar[Settings] = {
        "axes": None,
        "precision": "fisher",
        "precision_floor": 0.0,
        "prior_strength": 0.0,
        "cavity": 0.0,
    }

    def __init__(self, *, min_fisher: float = 1e-6, **settings: Any) -> None:
        super().__init__(**settings)
        check_settings(min_fisher=min_fisher)
        self.min_fisher = min_fisher

    def _multiply(self, said: Contribution) -> None:
        count = said.counts(self._tensors)
        raised = {
            name: Precision(np.maximum(told.decode(), np.float32(self.min_fisher * count[name])).reshape(
                told.values.shape
            ))
            for name, told in said.precision.items()
        }  # fmt: skip
        super()._multiply(replace(said, precision=raised))


class Fola(Published):
    """FOLA (Liu et al., TPAMI 2023): a product of Laplace posteriors in which every round is the prior of the next.

    Lambda = Lambda_0 + sum_j n_j F_j and theta = (Lambda_0 theta_0 + sum_j n_j F_j theta_j) / Lambda, with the last
    round's Lambda as Lambda_0, from 0. The paper's sites also train against that prior, theta_0 and Lambda_0; here
    they train as with all other strategies. ``precision_floor`` is not the paper's; 0 leaves it out.
    """

    fixed: ClassVar[Settings] = {"axes": None, "precision": "fisher", "prior_strength": 1.0, "cavity": 0.0}


class Rebasin(Published):
    """Git Re-Basin (Ainsworth et al., ICLR 2023): weight matching to the last global model, then the average.

    Inner products of weights as they are, no gate; sites count by their samples. With ``start="apart"`` the first
    round has no common model: each site is matched to the mean of the others until nothing moves (their MergeMany), a
    tensor's mean over those who hold it.
    """

    fixed: ClassVar[Settings] = COUNTING

    def _bring(self, said: Contribution) -> Contribution:
        if self.axes is None:
            return said
        orders = moving_permutations(
            self.axes, tensors_by_name(self._previous, self._tensors), said.values, seed=self.seed
        )
        return said.moved(self.axes, self.axes.permute(said.values, orders), orders) if orders else said

    def _bring_together(self) -> None:
        assert self.axes is not None
        networks, orders = match_many(self.axes, [said.values for said in self._kept], seed=self.seed)
        for said, *told in zip(self._kept, networks, orders, strict=True):
            self._multiply(said.moved(self.axes, *told))
        self._kept = []


class Pfnm(Published):
    """PFNM (Yurochkin et al., ICML 2019) at a fixed width: MAP matching and MAP weights under a prior around zero.

    The paper's: units are N(theta_i, sigma^2), the same at every site and for every weight, and theta_i is
    N(0, sigma_0^2), in every round anew. The assignment maximises sum N^2 / S, site by site and then in sweeps; layers
    come from the top down, a unit being its bias and outgoing weights, and in the lowest layer its incoming ones. The
    merge is theta = sum_j v_j / (J + sigma^2 / sigma_0^2): by default J / (J + 1) of the mean, in every round.

    Not the paper's: its beta-Bernoulli process on the width, which needs sites of other widths (:mod:`.pfnm` has it,
    :class:`.growing.GrowingMatching` uses it), its class shares as precision of the output layer, and its mean 0.1 of
    biases, which is how its networks begin. What it does not say for networks other than perceptrons: a unit's rows are
    all its slices that other axes allow to compare (:func:`.alignment.comparable_slots`), and an axis of which these
    are but vectors, as biases, waits for the axes beside it; tensors that no axis moves have the same prior; BatchNorm's
    statistics are averaged; a part counts the sites that hold it.

    Args:
        sigma0: variance of a global weight around 0, in those of a site's weight around it.
        sweeps: passes over the sites of an axis after the first placement.
        settings: see :class:`BayesianMatching`.
    """

    fixed: ClassVar[Settings] = {**COUNTING, "weighting": "uniform"}

    def __init__(self, *, sigma0: float = 1.0, sweeps: int = 5, **settings: Any) -> None:
        super().__init__(**settings)
        check_settings(sigma0=sigma0)
        self.sigma0 = sigma0
        self.sweeps = sweeps

    def _waits(self) -> bool:
        return True

    def _weight(self, update: Update, part: str) -> float:
        return float(super()._weight(update, part) > 0)

    def _bring_together(self) -> None:
        members, self._kept = self._kept, []
        for said in members if self.axes is None else self._placed(self.axes, members):
            self._multiply(said)
        self._previous = {key: np.zeros_like(values) for key, values in self._previous.items()}  # the prior's mean

    def _prior(self) -> dict[str, np.ndarray]:
        prior = {key: np.full(values.shape, 1 / self.sigma0, np.float32) for key, values in self._previous.items()}
        for key, tensors in self._tensors.items():
            for tensor in tensors:
                if tensor.name.endswith((MEAN, VARIANCE)):
                    prior[key].reshape(-1)[tensor.place] = 0
        return prior

    def _placed(self, graph: AxisGraph, members: Sequence[Contribution]) -> list[Contribution]:
        """Return the sites' words with their units at the atoms, axis by axis."""
        networks = [said.values for said in members]
        orders: list[dict[str, np.ndarray]] = [{} for _ in members]
        union = {name: values for network in networks for name, values in network.items()}
        waiting = [label for label, axis in graph.axes.items() if axis.kind != "frozen"][::-1]
        settled = set(graph.axes) - set(waiting)
        while waiting:
            found = {label: _comparable_slots(graph, label, union, settled) for label in waiting}
            matrices = [label for label in waiting if any(union[slot.name].ndim > 1 for slot in found[label])]
            label = matrices[0] if matrices else max(waiting, key=lambda label: count_columns(found[label]))
            slots = found[label] or _comparable_slots(graph, label, union, set(graph.axes))
            waiting.remove(label)
            settled.add(label)
            holders = [j for j, network in enumerate(networks) if any(slot.name in network for slot in slots)]
            if not holders:
                continue
            rows = [np.hstack([_rows(slot, networks[j]) for slot in slots]) for j in holders]
            seen = [np.repeat([float(s.name in networks[j]) for s in slots], [s.width for s in slots]) for j in holders]
            zero = np.zeros(rows[0].shape), np.full(rows[0].shape[1], 1 / self.sigma0)
            result = match(
                rows, seen, prior=zero, groups=graph.axes[label].groups, gate=ROUNDING, max_sweeps=self.sweeps,
                seed=self.seed, dtype=np.float64,
            )  # fmt: skip
            for j, order in zip(holders, result.permutations, strict=True):
                moved = float((order != np.arange(len(order))).mean())
                self._placements.setdefault(label, []).append(Placement(moved, np.nan, np.nan))
                if moved:
                    networks[j], orders[j][label] = graph.permute(networks[j], {label: order}), order
        return [said.moved(graph, *told) for said, *told in zip(members, networks, orders, strict=True)]


def _comparable_slots(graph: AxisGraph, label: str, tensors: Tensors, settled: set[str]) -> list[Slot]:
    return comparable_slots(graph, label, graph.slots(label, tensors), settled, False)[0]


def _rows(slot: Slot, network: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (L, width) of a network's units in a slot, 0 where it lacks the tensor."""
    return slot.rows(network[slot.name]) if slot.name in network else np.zeros((slot.stop - slot.start, slot.width))
