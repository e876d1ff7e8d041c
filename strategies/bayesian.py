"""Bayesian neuron matching: the sites' models, as Gaussian posteriors, are brought into one frame and multiplied.

A round handles the sites' updates one by one. Each is screened; every unit (hidden neuron, attention head, channel) is
matched to a unit of the global model (:mod:`.frame`, or :mod:`.alignment` for models trained apart); and the posterior
of every weight is multiplied into the product (:mod:`.product`). Yurochkin et al. (ICML 2019) match neurons of
perceptrons under a beta-Bernoulli process with one precision for each client. Here the atoms are centred on the last
global model, the axes are those of the user's network, transformers included, and the precision is the curvature that
each site measures for each weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from logging import getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from .alignment import align
from .averaging import TaskFedAvg
from .axes import AxisGraph, Gauge
from .bayesian_merge import BayesianMerge, MergeMetrics
from .cavity import Cavities
from .contribution import Contribution, matching_weights, read_contribution
from .limits import PrecisionKind, Start, check_settings
from .matching import moved_share
from .product import MEAN, VARIANCE, Merged
from .sites import SiteCard
from .update import Update
from .wire import FlatArray, arrays_in, json_record, read_json_record, record_of, tensors_in

log = getLogger("flwr")
# Groups of a checkpoint.
POSTERIOR, CAVITIES, MEASURED = "@posterior", "@cavities", "@measured"


class BayesianMatching(TaskFedAvg):
    """Match the sites' units to those of the global model, then multiply the sites' posteriors.

    Works with the packed records of this package and with a plain ``ArrayRecord(model.state_dict())``, with partial
    updates, and under ``start()``. A site whose reply contains a record ``precision`` (see :mod:`.precision`; mtfed's
    clients send one) counts weight by weight, the others count by their samples. Without ``axes`` nothing is matched.
    If in addition no site sends its precision, this is FedAvg, bit for bit, except that BatchNorm's variances are
    those of the pooled images.

    ``posterior`` contains the precision of the global weights by key, ``measured_keys`` the keys for which it contains
    more than numbers of samples.

    Args:
        axes: which axes of which tensors may be reordered together; ``mtfed.models.symmetry.derive_axes(model)``
            derives them from a torch model.
        precision: what sites are asked to send: ``fisher``, the curvature of their loss, or ``none``, which also
            ignores a precision that they send.
        precision_floor: minimum precision of a weight, as a share of its row's mean (:func:`.precision.floored`).
        prior_strength: how much of the last rounds' precision is kept; 0 forgets it, 1 is the recursive posterior of
            FOLA (Liu et al., TPAMI 2023), under which a model learns more and more slowly.
        cavity: how much of the other sites' posterior a site trains under (:mod:`.cavity`); 0 for none. Only sites
            whose metrics report ``pulled`` (mtfed's clients do) are merged accordingly.
        start: ``common`` if all sites start from the server's model; ``apart`` if they bring models of their own to
            the first round, which is then matched as a whole, so that all its updates are kept until it ends.
        inner: freedom inside the heads of models that were trained apart, see :func:`.alignment.align`.
        gate: minimum relative gain of a permutation; below it, units would move because of noise.
        settings: see :class:`TaskFedAvg`; ``weighting`` applies to sites without precision.
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
        check_settings(locals())
        self.axes = axes
        self.precision: PrecisionKind = precision
        self.precision_floor = precision_floor
        self.prior_strength = prior_strength
        self.start_from: Start = start
        self.inner: Gauge = inner
        self.gate = gate
        self.cavities = Cavities(cavity)
        self.posterior: dict[str, np.ndarray] = {}
        self.measured_keys: set[str] = set()
        self._merge: BayesianMerge | None = None  # the current round's
        self._metrics = MergeMetrics()  # the last merge's

    def train_config(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        return ConfigRecord({**super().train_config(server_round, config), "precision": self.precision})

    def extra_records(self, site: SiteCard) -> dict[str, ConfigRecord]:
        pulls: dict[str, Any] = self.cavities.pulls(site.key)
        return {"pull": ConfigRecord(pulls)} if pulls else {}

    def begin_merge(self, arrays: ArrayRecord) -> None:
        self._merge = BayesianMerge(arrays, self.axes, self.site_weights(), self.precision_floor)

    def add_to_merge(self, update: Update) -> None:
        merge = self._merge
        assert merge is not None
        contribution = self._read(merge, update)
        if self._waits_for_all():
            merge.waiting.append(contribution.copy())
        else:
            self._multiply(merge, self._match(merge, contribution))

    def finish_merge(self) -> dict[str, np.ndarray]:
        merge = self._end_merge()
        if self._waits_for_all():
            for contribution in self._match_all(merge):
                self._multiply(merge, contribution)
            merge.waiting.clear()
        merged = merge.product.finish(*self._prior(merge))
        merge.pulled_steps.apply(merged.arrays, merged.precision, merge.layout)
        self.cavities.end_round([site.key for site in self.roster.sites])
        merge.metrics.scale_counted(merged.sample_precision)
        # A merge's precisions are views of one block; those carried over must not keep all of an earlier block alive.
        carried = {key: values.copy() for key, values in self.posterior.items() if key not in merged.precision}
        self._update_posterior(carried | merged.precision, merged, merged.sample_precision.keys())
        return merged.arrays

    def merge_metrics(self) -> dict[str, float]:
        """Return the metrics of the last merge, see :meth:`.bayesian_merge.MergeMetrics.compute`."""
        return self._metrics.compute()

    def task_weights_of(self, update: Update) -> dict[str, float]:
        assert self._merge is not None
        return self._merge.weights.by_task(update)

    def measure_agreement(self, update: Update, sent: ArrayRecord) -> None:
        if self.axes is None:  # otherwise once its units are in the global order
            super().measure_agreement(update, sent)

    def measured_precision(self) -> Mapping[str, np.ndarray]:
        return {key: self.posterior[key] for key in sorted(self.measured_keys)}

    def sample(self, arrays: ArrayRecord, seed: int, temperature: float = 1.0) -> ArrayRecord:
        """Draw a model from the posterior N(arrays, temperature / precision).

        Weights that no site trained, or for which sites reported only their samples, keep their values.

        Args:
            arrays: the global model of the last round.
            seed: seed of the draw.
            temperature: below 1, draws are nearer to the mean; a diagonal posterior around one mode is known to be
                too wide.
        """
        if not 0 <= temperature < np.inf:
            raise ValueError(f"Expected a temperature of 0 or more, got {temperature}.")
        generator, drawn, layout = np.random.default_rng(seed), dict(arrays), tensors_in(arrays)
        for key in [key for key in arrays if key in self.measured_keys]:
            precision, values = self.posterior[key], arrays[key].numpy()
            deviation = np.sqrt(np.divide(temperature, precision, out=np.zeros_like(precision), where=precision > 0))
            noise = generator.standard_normal(values.shape, np.float32)
            for tensor in layout[key]:
                if tensor.name.endswith((MEAN, VARIANCE)):
                    noise.reshape(-1)[tensor.place] = 0
            drawn[key] = FlatArray((values + noise * deviation).astype(values.dtype))
        return record_of(drawn)

    def state(self) -> dict[str, ArrayRecord]:
        posterior, measured = record_of(self.posterior), json_record(sorted(self.measured_keys))
        return super().state() | {POSTERIOR: posterior, CAVITIES: self.cavities.state(), MEASURED: measured}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.posterior = arrays_in(state.get(POSTERIOR))
        self.measured_keys = set(read_json_record(state[MEASURED])) if MEASURED in state else set()
        if CAVITIES in state:
            self.cavities.restore(state[CAVITIES])

    def summary(self) -> None:
        axes = self.axes.axes if self.axes is not None else {}
        log.info("\t├──> Matching: %d axes, start %s, gate %g", len(axes), self.start_from, self.gate)
        log.info("\t├──> Precision: %s, floor %g, prior %g", self.precision, self.precision_floor, self.prior_strength)
        log.info("\t├──> Cavity: %g", self.cavities.strength)
        super().summary()

    # The steps of a merge, which other strategies replace.

    def _waits_for_all(self) -> bool:
        """Return whether a round's updates are merged only when all have arrived."""
        return self._starts_apart()

    def _read(self, merge: BayesianMerge, update: Update) -> Contribution:
        return read_contribution(update, merge.layout, merge.weights, with_precision=self.precision != "none")

    def _match(self, merge: BayesianMerge, contribution: Contribution) -> Contribution:
        """Return a contribution with its units in the global model's order."""
        return merge.match(contribution, self.gate, self.seed)

    def _match_all(self, merge: BayesianMerge) -> Iterator[Contribution]:
        """Match models that were trained apart with each other, and yield them one by one."""
        assert self.axes is not None
        aligned = align(
            self.axes, [own.values for own in merge.waiting], gauge=self.inner, gate=self.gate, seed=self.seed,
            weights=matching_weights(merge.waiting, merge.layout, self.axes),
        )  # fmt: skip
        for contribution, tensors, own in zip(merge.waiting, aligned.clients, aligned.permutations, strict=True):
            for label, permutation in own.items():
                merge.metrics.add_moved(label, moved_share(permutation))
            yield contribution.permuted(self.axes, tensors, own, regauged=self.inner != "none")

    def _multiply(self, merge: BayesianMerge, contribution: Contribution) -> None:
        shares = merge.product.add(contribution.values, contribution.weights, contribution.precision)
        counted = [key for key in shares if merge.layout[key][0].name not in contribution.precision]
        merge.metrics.add_shares(contribution.site, shares, counted)
        if self.axes is not None and not self._starts_apart():  # models of their own are no updates
            self.agreement.add_tensors(contribution.task_weights, contribution.values, merge.layout)
        if not self.cavities.strength:
            return
        means = merge.product.mean_precision.items()
        factors = {name: mean for name, mean in means if not name.endswith((MEAN, VARIANCE))}
        self.cavities.note(contribution.site, factors, contribution.num_examples)
        if contribution.pulled:
            others = self.cavities.others(contribution.site)
            strengths = {name: others[name] for name in factors if others.get(name, 0.0) > 0}
            merge.pulled_steps.add(contribution.values, merge.previous_tensors(), strengths)

    def _prior(self, merge: BayesianMerge) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """Return the mean of the prior by key, and its precision if it counts."""
        if not self.prior_strength:
            return merge.previous, None
        strength = np.float32(self.prior_strength)
        return merge.previous, {key: strength * precision for key, precision in self.posterior.items()}

    # The state and the result of a merge.

    def _starts_apart(self) -> bool:
        """Return whether the sites' models have no common start yet."""
        return self.axes is not None and self.start_from == "apart" and not self.posterior

    def _end_merge(self) -> BayesianMerge:
        """Return the current merge and release it, except its metrics."""
        assert self._merge is not None
        merge, self._merge = self._merge, None
        self._metrics = merge.metrics
        return merge

    def _update_posterior(self, posterior: dict[str, np.ndarray], merged: Merged, measured: Iterable[str]) -> None:
        """Set the posterior and the keys that sites measured in this round, or in earlier ones that still count."""
        earlier = self.measured_keys if self.prior_strength else self.measured_keys - merged.precision.keys()
        self.posterior = posterior
        self.measured_keys = earlier | (merged.precision.keys() & measured)
