"""Bayesian neuron matching: sites' models as Gaussian posteriors, brought into one frame and multiplied.

One round, for the sites' updates one by one: screen; find for every unit (hidden neuron, attention head, channel) its
place in the global model (:mod:`.frame`, or for models trained apart :mod:`.alignment`); multiply what the sites know
of every weight (:mod:`.merging`). Yurochkin et al. (ICML 2019) match neurons of perceptrons under a beta-Bernoulli
process with one precision a client; here the atoms are centred on the last global model, axes are those of the user's
network, transformers included, and precision is the curvature that each site measures, weight by weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from .alignment import align
from .averaging import TaskFedAvg
from .axes import AxisGraph, Gauge, Tensors
from .cavity import Cavities
from .contribution import Contribution, matching_weights, tensors_by_name, unique_names
from .frame import Frame, Placement
from .merging import MEAN, VARIANCE, Merged, Product
from .screening import Update
from .settings import PrecisionKind, Start, check_settings
from .sites import SiteCard
from .wire import MANIFEST, FlatArray, TensorEntry, json_record, part_of, read_json_record, tensors_in

log = getLogger("flwr")
POSTERIOR = "@posterior"
CAVITIES = "@cavities"
TOLD = "@told"


class BayesianMatching(TaskFedAvg):
    """Match the sites' units to those of the global model, then multiply the sites' posteriors.

    Works with the packed records of this package and with a plain ``ArrayRecord(model.state_dict())``, with partial
    updates, under ``start()``. A site whose reply holds a record ``precision`` (see :mod:`.precision`; mtfed's clients
    send one) counts weight by weight; the others by their samples. Without ``axes`` nothing is matched, and if nobody
    sends precision either, this is FedAvg, bit for bit, except that BatchNorm's variances are those of the pooled
    images.

    Args:
        axes: which axes of which tensors may be reordered together; ``mtfed.models.symmetry.derive_axes(model)`` reads
            them off a torch model.
        precision: what sites are asked to send: ``fisher``, the curvature of their loss, or ``none``; then what they
            send all the same is left aside.
        precision_floor: least precision of a weight, as a share of the mean over its row (:func:`.precision.floored`).
        prior_strength: how much of the last rounds' precision still holds; 0 forgets it, 1 is FOLA's (Liu et al.,
            TPAMI 2023) recursive posterior, in which a model learns ever more slowly.
        cavity: how much of the other sites' posterior a site trains under (:mod:`.cavity`); 0 for none. Only sites
            that say in their metrics that they were ``pulled`` (mtfed's clients do) are merged so.
        start: ``common`` if all sites start from the server's model; ``apart`` if they bring models of their own to
            the first round, which is then matched as a whole: its updates are all kept until it ends.
        inner: freedom inside heads of models that were trained apart, see :func:`.alignment.align`.
        gate: least relative gain of a new order; below it, noise would move units for nothing.
        settings: see :class:`TaskFedAvg`; ``weighting`` is how sites without precision count.
    """

    def __init__(
        self,
        axes: AxisGraph | None = None,
        *,
        precision: PrecisionKind = "fisher",
        precision_floor: float = 0.2,
        prior_strength: float = 0.0,
        cavity: float = 1.0,
        start: Start = "common",
        inner: Gauge = "orth",
        gate: float = 1e-3,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_settings(
            precision=precision,
            precision_floor=precision_floor,
            prior_strength=prior_strength,
            cavity=cavity,
            start=start,
            inner=inner,
            gate=gate,
        )
        self.axes = axes
        self.ask = precision
        self.precision_floor = precision_floor
        self.prior_strength = prior_strength
        self.start_from = start
        self.inner: Gauge = inner
        self.gate = gate
        self.cavities = Cavities(cavity)
        self.posterior: dict[str, np.ndarray] = {}  # key -> precision of the global weights, after the last merge
        self.told: set[str] = set()  # keys of which the posterior holds more than samples

    def train_config(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        return ConfigRecord({**super().train_config(server_round, config), "precision": self.ask})

    def more_for(self, site: SiteCard) -> dict[str, ConfigRecord]:
        pulls: dict[str, Any] = self.cavities.pulls(site.key)
        return {"pull": ConfigRecord(pulls)} if pulls else {}

    def begin_merge(self, arrays: ArrayRecord) -> None:
        super().begin_merge(arrays)
        self._pulled: set[str] = set()
        self._samples: dict[str, float] = {}
        self._steps: Tensors = {}  # tensor -> sum over pulled sites of c (S - P_j) times their step
        self._stepped: dict[str, float] = {}  # tensor -> sum of c (S - P_j)
        self._previous = {key: array.numpy() for key, array in arrays.items() if key != MANIFEST}
        self._tensors = unique_names(tensors_in(arrays), self.axes)
        self._product = Product(self._tensors, self.precision_floor)
        self._kept: list[Contribution] = []
        self._shares: dict[str, dict[str, float]] = {}  # site -> key -> its precision in the product
        self._counted: set[tuple[str, str]] = set()  # site and key, where it told none
        self._placements: dict[str, list[Placement]] = {}  # axis -> the sites' ways to the frame
        self._frame: Frame | None = None
        self._collect = self._waits()

    def add_to_merge(self, update: Update) -> None:
        said = self._read(update)
        self._samples[update.site] = update.num_examples
        if update.pulled:
            self._pulled.add(update.site)
        if self._collect:
            self._kept.append(said.copy())
            return
        self._multiply(self._bring(said))

    def finish_merge(self) -> dict[str, np.ndarray]:
        if self._collect:
            self._bring_together()
        merged = self._product.finish(self._previous, self._prior())
        self._step_on(merged)
        self.cavities.end_round([site.key for site in self.roster.sites])
        for site, key in self._counted:  # told in samples; beside sites that know their precision, in its unit
            self._shares[site][key] *= merged.usual.get(key, 1.0)
        self._keep(merged)
        self._keep_told(merged, merged.usual.keys())
        return merged.arrays

    def merge_metrics(self) -> dict[str, float]:
        """Return what the merge did: the share of units moved on every axis, the objective, every site's share.

        The objective is the mean squared distance of the sites' units to the frame's, in the frame's mean squares,
        before and after matching (not of models that were trained apart: they had no frame); a site's share is that of
        the precision that all sites gave for a part, or array.
        """
        metrics = {}
        for label, placements in self._placements.items():
            metrics[f"merge.moved.{label}"] = float(np.mean([placement.moved for placement in placements]))
        together = [placement for placements in self._placements.values() for placement in placements]
        if every := [placement for placement in together if np.isfinite(placement.distance_before)]:
            metrics["merge.distance-before"] = float(np.mean([placement.distance_before for placement in every]))
            metrics["merge.distance"] = float(np.mean([placement.distance_after for placement in every]))
        parts: dict[str, dict[str, float]] = {}
        for site, shares in self._shares.items():
            for key, share in shares.items():
                part = parts.setdefault(part_of(key), {})
                part[site] = part.get(site, 0.0) + share
        for name, part in parts.items():
            total = sum(part.values()) or 1.0
            metrics |= {f"merge.share.{name or 'model'}.{site}": share / total for site, share in part.items()}
        return metrics

    def sample(self, arrays: ArrayRecord, seed: int, temperature: float = 1.0) -> ArrayRecord:
        """Draw a model from the posterior N(arrays, temperature / precision).

        Weights of which nobody told anything, or of which sites told no more than their samples, keep their values.

        Args:
            arrays: the global model of the last round.
            seed: of the draw.
            temperature: below 1, nearer to the mean; a diagonal posterior around one mode is known to be too wide.
        """
        if not 0 <= temperature < np.inf:
            raise ValueError(f"Expected a temperature of 0 or more, got {temperature}.")
        generator, drawn, held = np.random.default_rng(seed), ArrayRecord(), tensors_in(arrays)
        for key, array in arrays.items():
            if key not in self.told:
                drawn[key] = array
                continue
            precision, values = self.posterior[key], array.numpy()
            deviation = np.sqrt(np.divide(temperature, precision, out=np.zeros_like(precision), where=precision > 0))
            noise = generator.standard_normal(values.shape, np.float32)
            for tensor in held[key]:
                if tensor.name.endswith((MEAN, VARIANCE)):
                    noise.reshape(-1)[tensor.place] = 0
            drawn[key] = FlatArray((values + noise * deviation).astype(values.dtype))
        return drawn

    def state(self) -> dict[str, ArrayRecord]:
        record = ArrayRecord()
        for key, precision in self.posterior.items():
            record[key] = FlatArray(precision)
        told = json_record(sorted(self.told))
        return super().state() | {POSTERIOR: record, CAVITIES: self.cavities.state(), TOLD: told}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.posterior = {key: array.numpy() for key, array in state.get(POSTERIOR, ArrayRecord()).items()}
        self.told = set(read_json_record(state[TOLD])) if TOLD in state else set()
        if CAVITIES in state:
            self.cavities.restore(state[CAVITIES])

    def summary(self) -> None:
        axes = self.axes.axes if self.axes is not None else {}
        log.info("\t├──> Matching: %d axes, start %s, gate %g", len(axes), self.start_from, self.gate)
        log.info("\t├──> Precision: %s, floor %g, prior %g", self.ask, self.precision_floor, self.prior_strength)
        log.info("\t├──> Cavity: %g", self.cavities.strength)
        super().summary()

    # The steps of a merge.

    def _waits(self) -> bool:
        """Say whether a round's updates are kept until it ends."""
        return self.axes is not None and self.start_from == "apart" and not self.posterior

    def _bring(self, said: Contribution) -> Contribution:
        """Return what a site says with the units in the global model's order."""
        if self.axes is None:
            return said
        if self._frame is None:
            self._frame = Frame(
                self.axes, tensors_by_name(self._previous, self._tensors), gate=self.gate, seed=self.seed
            )
        aligned = self._frame.align(said.values)
        for label, placement in aligned.placements.items():
            self._placements.setdefault(label, []).append(placement)
        return said.moved(self._frame.graph, aligned.tensors, aligned.permutations) if aligned.permutations else said

    def _layout(self, update: Update) -> dict[str, list[TensorEntry]]:
        """Return where the tensors of an update lie, by key."""
        return self._tensors

    def _read(self, update: Update) -> Contribution:
        layout = self._layout(update)
        tensors = {key: layout[key] for key in update.arrays}
        return Contribution(
            update.site,
            tensors_by_name(update.arrays, tensors),
            {key: self._weight(update, part_of(key)) for key in update.arrays},
            {
                tensor.name: precision.at(tensor.place, tensor.shape)
                for key, precision in update.precision.items() for tensor in tensors[key] if self.ask != "none"
            },
        )  # fmt: skip

    def _multiply(self, said: Contribution) -> None:
        told = self._shares[said.site] = self._product.add(said.values, said.weights, said.precision)
        self._counted |= {(said.site, key) for key in told if self._tensors[key][0].name not in said.precision}
        if not self.cavities.strength:
            return
        factors = {name: mean for name, mean in self._product.told.items() if not name.endswith((MEAN, VARIANCE))}
        self.cavities.note(said.site, factors, self._samples[said.site])
        others = self.cavities.others(said.site) if said.site in self._pulled else {}
        places = tensors_by_name(self._previous, self._tensors)
        for name in [name for name in factors if others.get(name, 0.0) > 0]:
            step = np.subtract(said.values[name], places[name], dtype=np.float64)
            step *= others[name]
            self._steps[name] = self._steps[name] + step if name in self._steps else step
            self._stepped[name] = self._stepped.get(name, 0.0) + others[name]

    def _step_on(self, merged: Merged) -> None:
        """Add what pulled sites' steps come to beyond the product's mean, at most as much again.

        A precision that has fallen since the last round is a new estimate, and no reason to step further.
        """
        for key, tensors in self._tensors.items():
            precision = merged.precision.get(key)
            if precision is None:
                continue
            array, sure = merged.arrays[key].reshape(-1), precision.reshape(-1)
            for tensor in tensors:
                if tensor.name in self._steps:
                    mean = max(float(sure[tensor.place].mean(dtype=np.float64)), self._stepped[tensor.name])
                    array[tensor.place] += (self._steps.pop(tensor.name) / mean).reshape(-1).astype(array.dtype)

    def _bring_together(self) -> None:
        """Match models that were trained apart, all with all."""
        assert self.axes is not None
        aligned = align(
            self.axes, [said.values for said in self._kept], gauge=self.inner, gate=self.gate, seed=self.seed,
            weights=matching_weights(self._kept, self._tensors, self.axes),
        )  # fmt: skip
        for said, tensors, orders in zip(self._kept, aligned.clients, aligned.permutations, strict=True):
            for label, order in orders.items():
                moved = float((order != np.arange(len(order))).mean())
                self._placements.setdefault(label, []).append(Placement(moved, np.nan, np.nan))
            self._multiply(said.moved(self.axes, tensors, orders, turned=self.inner != "none"))
        self._kept = []

    def _prior(self) -> dict[str, np.ndarray] | None:
        if not self.prior_strength:
            return None
        return {key: np.float32(self.prior_strength) * precision for key, precision in self.posterior.items()}

    def _keep(self, merged: Merged) -> None:
        # A merge's precisions lie in one block; what is carried on from an earlier one must not hold all of it.
        carried = {key: told.copy() for key, told in self.posterior.items() if key not in merged.precision}
        self.posterior = carried | merged.precision

    def _keep_told(self, merged: Merged, told: Iterable[str]) -> None:
        """Note of which keys somebody told precision in this round, or earlier where that still counts."""
        stays = self.told if self.prior_strength else self.told - merged.precision.keys()
        self.told = stays | (merged.precision.keys() & told)
