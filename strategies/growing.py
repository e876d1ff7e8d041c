"""A growing width: the global model has as many units as the sites' data need, and each site trains some of them.

In a round, all updates are kept until it ends. :func:`.growth.grow` finds the place of every unit in the global model,
or opens one (the predictive density of SPAHM, Yurochkin et al., NeurIPS 2019); :func:`.growth.expand` brings tensors
and precision to the global width; the product of posteriors (:mod:`.product`) merges them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from logging import getLogger
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from .agreement import Agreement
from .axes import AxisError, AxisGraph, Tensors
from .bayesian import BayesianMatching
from .bayesian_merge import BayesianMerge
from .contribution import Contribution, Layout, read_contribution, tensors_by_name
from .frame import Frame
from .growth import Growth, expand, grow
from .limits import check_settings, with_fixed
from .precision import Precision, floored, inflation
from .product import Product
from .sites import SiteCard
from .update import Update
from .widths import Units, infer_sizes, submodel, unit_indices, widen
from .wire import TensorEntry, arrays_in, is_packed, pack, record_of, tensors_in, unpack

log = getLogger("flwr")
UNITS = "@units"  # group of a checkpoint


class GrowingMatching(BayesianMatching):
    """Bayesian matching at a growing width: units that match none of the global model's units are added to it.

    Hidden units of MLPs, whole heads, and channels with BatchNorm or no norm can grow. A site always receives and
    returns tensors of the width that it started with: the global units that its own were matched to, in its order; a
    new site receives the units that most sites have. So no client app has to change, and a site evaluates the part
    that it trains, while the server has the whole model (``mtfed.models.width.resize`` gives a torch model its width).

    In a tensor that reads a unit, a site without that unit counts with the value 0, so that the merge is the mean of
    the sites' functions (:func:`.growth.expand`). The outputs of a unit that few sites have therefore become small,
    and the training at these sites has to raise them in every round. A unit that no site of a round has stays as it
    was, and so do the weights that read it. Units are never removed. A merge keeps all updates of a round in memory,
    and their precision in double precision.

    Args:
        axes: the model's axes, as in :class:`BayesianMatching`, at the sites' width.
        gamma: mass of the beta process: how readily a unit opens a place of its own.
        width_cap: no new units beyond this many times the sites' width.
        settings: see :class:`BayesianMatching`; with ``start="apart"``, the sites are first aligned with each other.
    """

    fixed: ClassVar[Mapping[str, Any]] = {"cavity": 0.0}  # sites of different widths have no common tensors to step on

    def __init__(
        self, axes: AxisGraph | None = None, *, gamma: float = 1.0, width_cap: float = 1.5, **settings: Any
    ) -> None:
        super().__init__(axes, **with_fixed(self, settings))
        check_settings(locals())
        self.gamma = gamma
        self.width_cap = width_cap
        self.graph = axes if axes is not None else AxisGraph({}, {})  # at the sites' width
        free = {label: axis for label, axis in self.graph.axes.items() if axis.axis_type in ("perm", "heads")}
        self.grows = [label for label, axis in free.items() if axis.growable]
        self.units: dict[str, dict[str, np.ndarray]] = {}  # site -> axis -> (L_j,) the global unit of each of its own

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        names = Counter(tensor.name for entries in tensors_in(arrays).values() for tensor in entries)
        if repeated := [name for name, uses in names.items() if uses > 1]:
            name, uses = repeated[0], names[repeated[0]]
            raise AxisError(f"{name}: {uses} parts contain a tensor of this name; give each its own.")
        return super().configure_train(server_round, arrays, config, grid)

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Iterable[str] | None) -> ArrayRecord:
        record = super().arrays_for(site, arrays, tasks)
        tensors = _tensors(record)
        sizes = infer_sizes(self.graph, tensors)
        units = {label: self._units_of(site.key, label, sizes[label]) for label in self.grows if label in sizes}
        if all(np.array_equal(own, np.arange(sizes[label])) for label, own in units.items()):
            return record  # the same arrays for all sites are then sent once
        return with_tensors(record, submodel(self.graph.resize(sizes), tensors, units))

    def finish_merge(self) -> dict[str, np.ndarray]:
        merge = self._end_merge()
        contributions, grown = self._grow(merge)
        frame = merge.previous_tensors()
        sizes = infer_sizes(self.graph, frame)
        same_units = {label: np.arange(sizes[label]) for label in self.grows if label in sizes}
        full = {key: np.broadcast_to(values, merge.previous[key].shape) for key, values in self.posterior.items()}
        precision = tensors_by_name(full, merge.layout)
        wide, wide_precision = expand(Growth(grown.graph, [same_units]), 0, frame, precision)
        has_grown = any(wide[name].shape != values.shape for name, values in frame.items())
        record = with_tensors(merge.arrays, wide) if has_grown else merge.arrays
        layout = tensors_in(record)
        previous = arrays_in(record)
        if not self._starts_apart():
            self._measure_agreement(record, contributions, grown, frame, same_units)
        posterior = {key: _flat(layout[key], wide_precision, previous[key].shape) for key in self.posterior}
        product = self._multiply_wide(merge, contributions, grown, layout)
        scaled = {key: np.float32(self.prior_strength) * precision for key, precision in posterior.items()}
        merged = product.finish(previous, scaled if self.prior_strength else None)
        first = {key: tensors[0].name for key, tensors in merge.layout.items()}
        counting = [(own, key) for own in contributions for key, weight in own.weights.items() if weight > 0]
        measured = {key for own, key in counting if first[key] in own.precision}
        self._update_posterior(posterior | merged.precision, merged, measured)
        changed = {key: array.numpy() for key, array in record.items()} if has_grown else {}
        return changed | merged.arrays

    def state(self) -> dict[str, ArrayRecord]:
        units = {f"{site}/{label}": own for site, axes in sorted(self.units.items()) for label, own in axes.items()}
        return super().state() | {UNITS: record_of({key: own.astype(np.int32) for key, own in units.items()})}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.units = {}
        for key, units in arrays_in(state.get(UNITS)).items():
            site, _, label = key.partition("/")
            self.units.setdefault(site, {})[label] = units

    def summary(self) -> None:
        log.info("\t├──> Growing: %d axes, gamma %g, cap %g", len(self.grows), self.gamma, self.width_cap)
        super().summary()

    # The steps of a merge.

    def _waits_for_all(self) -> bool:
        return True

    def _read(self, merge: BayesianMerge, update: Update) -> Contribution:
        layout = tensors_in(self.phase.arrays_sent(update.site))  # at the site's width
        return read_contribution(update, layout, merge.weights, with_precision=self.precision != "none")

    def _match(self, merge: BayesianMerge, contribution: Contribution) -> Contribution:
        """Return a contribution in the order of the arrays that its site was sent, on the axes that do not grow."""
        axes = self.graph.axes.items()
        if not any(label not in self.grows and axis.axis_type != "frozen" for label, axis in axes):
            return contribution
        sent = _tensors(self.phase.arrays_sent(contribution.site))
        graph = self.graph.resize(infer_sizes(self.graph, sent)).freeze(*self.grows)
        return merge.match_to(Frame(graph, sent, gate=self.gate, seed=self.seed), contribution)

    def _grow(self, merge: BayesianMerge) -> tuple[list[Contribution], Growth]:
        """Return the matched contributions of all sites, and the place of their units in the global model."""
        apart = self._starts_apart()
        matched = self._match_all(merge) if apart else (self._match(merge, own) for own in merge.waiting)
        contributions = []
        for own in matched:
            weights = own.tensor_weights(merge.layout)  # units of arrays without weight must not open places
            counted = {name: values for name, values in own.values.items() if weights[name] > 0}
            contributions.append(replace(own, values=counted))
        merge.waiting.clear()
        frame = merge.previous_tensors()
        sizes = infer_sizes(self.graph, frame)
        grown = grow(
            self.graph.resize(sizes), [own.values for own in contributions], frame=None if apart else frame,
            weights=[own.tensor_weights(merge.layout) for own in contributions],
            gamma=self.gamma, width_cap=self.width_cap, seed=self.seed,
        )  # fmt: skip
        for own, units in zip(contributions, grown.units, strict=True):
            for label, places in units.items():
                earlier = self._units_of(own.site, label, sizes[label])
                merge.metrics.add_moved(label, float((places != earlier).mean()))
        for own, units in zip(contributions, grown.units, strict=True):
            self.units[own.site] = self.units.get(own.site, {}) | units
        merge.metrics.widths = {label: grown.graph.axes[label].size for label in self.grows}
        return contributions, grown

    def _measure_agreement(
        self, record: ArrayRecord, contributions: Sequence[Contribution], grown: Growth, frame: Tensors, old: Units
    ) -> None:
        """Add the sites' steps from the last global model to the agreement, each unit at its place in ``record``.

        ``old`` contains the places of the last global model's units. Steps of new units are 0: there is no start.
        """
        self.agreement = Agreement(record, self.agreement.all_tasks)  # at the new width
        graph = grown.graph
        for own, units in zip(contributions, grown.units, strict=True):
            steps = {}
            for name, values in own.values.items():
                if values.dtype.kind == "f" and name in graph.tensors and unit_indices(graph, name, units):
                    steps[name] = widen(graph, name, values, units) - widen(graph, name, frame[name], old)
                    for shape, places in ((values.shape, units), (frame[name].shape, old)):
                        steps[name] *= widen(graph, name, np.ones(shape, bool), places)
                elif values.dtype.kind == "f":
                    steps[name] = values - frame[name]
            self.agreement.add_tensors(own.task_weights, steps, tensors_in(record), are_steps=True)

    def _units_of(self, site: str, label: str, size: int) -> np.ndarray:
        """Return (L_j,) the global units of a site on an axis; for a new site, those that most other sites have."""
        if label in (units := self.units.get(site, {})):
            return units[label]
        count = np.zeros(size, int)
        for other in self.units.values():
            count[other.get(label, [])] += 1
        return np.sort(np.argsort(-count, kind="stable")[: self.graph.axes[label].size])

    def _multiply_wide(
        self, merge: BayesianMerge, contributions: Sequence[Contribution], grown: Growth, layout: Layout
    ) -> Product:
        product = Product(layout, floor=0.0)  # the precision already contains each site's own floor; 0 must stay 0
        per_sample = self._sample_precision(merge, contributions)
        unused = {label: np.flatnonzero(grown.count_holders(label) == 0) for label in self.grows}
        for j, own in enumerate(contributions):
            known: dict[str, float | np.ndarray] = {}
            for name, weight in own.tensor_weights(merge.layout).items():
                known[name] = weight * per_sample.get(name, 1.0)
                if precision := own.precision.get(name):
                    known[name] = floored(precision, self.precision_floor)[0].reshape(precision.values.shape)
            wide, expanded = expand(grown, j, own.values, known)
            _clear_unused(grown.graph, expanded, unused)
            whole = {name: Precision(np.broadcast_to(expanded[name], values.shape)) for name, values in wide.items()}
            merge.metrics.add_shares(own.site, product.add(wide, own.weights, whole))
        return product

    def _sample_precision(self, merge: BayesianMerge, contributions: Sequence[Contribution]) -> dict[str, float]:
        """Return by tensor the precision that corresponds to one sample at the sites that send their precision.

        If it is 0 for a tensor, the mean over tensors is used; if no site sends its precision, the result is empty.
        """
        total: dict[str, float] = defaultdict(float)
        samples: dict[str, float] = defaultdict(float)
        for own in contributions:
            for name, weight in own.tensor_weights(merge.layout).items():
                if name in own.precision and weight > 0:
                    total[name] += inflation(self.precision_floor) * own.precision[name].mean()
                    samples[name] += weight
        per_sample = {name: total[name] / samples[name] for name in samples}
        mean = float(np.mean([value for value in per_sample.values() if value] or [1.0]))
        return {name: value or mean for name, value in per_sample.items()}


def with_tensors(record: ArrayRecord, tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return a record with the same tensors as another, packed or plain like that, with the given values and shapes."""
    if is_packed(record):
        return pack({part: {name: tensors[name] for name in own} for part, own in unpack(record).items()})
    return record_of({name: tensors[name] for name in record})


def _tensors(record: ArrayRecord) -> Tensors:
    return tensors_by_name(arrays_in(record), tensors_in(record))


def _flat(
    tensors: Sequence[TensorEntry], values: Mapping[str, float | np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    flat = np.zeros(int(np.prod(shape)), np.float32)
    for tensor in tensors:
        flat[tensor.place] = np.ravel(np.asarray(values[tensor.name]))
    return flat.reshape(shape)


def _clear_unused(graph: AxisGraph, precision: dict[str, float | np.ndarray], unused: Mapping[str, np.ndarray]) -> None:
    """Set to 0, in place, a site's precision of weights that read units that no site has, so that these stay."""
    arrays = {name: values for name, values in precision.items() if isinstance(values, np.ndarray) and values.ndim}
    for label, units in unused.items():
        for slot in graph.slots(label, arrays) if len(units) else ():
            if slot.name in graph.axes[label].readers:
                values = arrays[slot.name].reshape(slot.view)
                np.moveaxis(values, slot.axis, 0)[slot.start + units] = 0
