"""A growing width: the global model has as many units as the sites' data ask for, each site trains a part of them.

A round: the updates are kept until it ends; :func:`.growth.grow` finds every unit's place in the global model or opens
one (the predictive density of SPAHM, Yurochkin et al., NeurIPS 2019); :func:`.growth.expand` brings tensors and
precision to the global width; the product of posteriors (:mod:`.merging`) merges them.
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

from .axes import AxisError, AxisGraph, Tensors
from .bayesian import BayesianMatching
from .contribution import Contribution, tensors_by_name
from .frame import Frame, Placement
from .growth import Growth, expand, grow
from .merging import Product
from .precision import Precision, floored, inflation
from .screening import Update
from .settings import check_settings, refuse_fixed
from .sites import SiteCard
from .widths import infer_sizes, submodel
from .wire import FlatArray, TensorEntry, is_packed, pack, tensors_in, unpack

log = getLogger("flwr")
UNITS = "@units"  # group of a checkpoint


class GrowingMatching(BayesianMatching):
    """Bayesian matching at a growing width: units that match none of the global model's are added to it.

    What grows are hidden units of MLPs, whole heads, and channels with BatchNorm or no norm. A site always gets and
    returns tensors of the width that it began with: the global units that its own were matched to, in its order; a
    site that is new gets those that most sites hold. So no client app changes, and sites evaluate the part that they
    train, while the server holds all of the model (``mtfed.models.width.resize`` gives a torch model its width).

    A site counts in a tensor that reads a unit which it lacks with 0: the merge is the mean of the sites' functions
    (:func:`.growth.expand`). So what a unit of few sites sends on becomes small, and their training has to raise it in
    every round. A unit that no site of a round holds stays as it was, and so does what others read of it. Units are
    never removed. A merge keeps all updates of a round in memory, and takes their precision in double.

    Args:
        axes: as in :class:`BayesianMatching`, at the sites' width.
        gamma: mass of the beta process: how readily a unit opens a place of its own.
        width_cap: no new units beyond this many times the sites' width.
        settings: see :class:`BayesianMatching`; ``start="apart"`` first aligns the sites with each other, as there.
    """

    fixed: ClassVar[Mapping[str, Any]] = {"cavity": 0.0}  # sites of other widths have no tensor in common to step on

    def __init__(
        self, axes: AxisGraph | None = None, *, gamma: float = 1.0, width_cap: float = 1.5, **settings: Any
    ) -> None:
        refuse_fixed("GrowingMatching", self.fixed, settings)
        super().__init__(axes, **self.fixed, **settings)
        check_settings(gamma=gamma, width_cap=width_cap)
        self.gamma = gamma
        self.width_cap = width_cap
        self.graph = axes if axes is not None else AxisGraph({}, {})  # at the sites' width
        free = {label: axis for label, axis in self.graph.axes.items() if axis.kind in ("perm", "heads")}
        self.grows = [label for label, axis in free.items() if axis.growable]
        self.units: dict[str, dict[str, np.ndarray]] = {}  # site -> axis -> (L_j,) the global unit of each of its own
        self._widths: dict[str, int] = {}
        self._ready: list[Contribution] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        names = Counter(tensor.name for held in tensors_in(arrays).values() for tensor in held)
        if twice := [name for name, uses in names.items() if uses > 1]:
            raise AxisError(f"{twice[0]}: {names[twice[0]]} parts hold a tensor of this name; give each its own.")
        return super().configure_train(server_round, arrays, config, grid)

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Iterable[str] | None) -> ArrayRecord:
        record = super().arrays_for(site, arrays, tasks)
        tensors = _tensors(record)
        sizes = infer_sizes(self.graph, tensors)
        units = {label: self._units_of(site.key, label, sizes[label]) for label in self.grows if label in sizes}
        if all(np.array_equal(own, np.arange(sizes[label])) for label, own in units.items()):
            return record  # the arrays of all sites then travel once
        return relaid(record, submodel(self.graph.resize(sizes), tensors, units))

    def finish_merge(self) -> dict[str, np.ndarray]:
        frame, apart = tensors_by_name(self._previous, self._tensors), super()._waits()
        if apart:
            self._bring_together()
        else:
            for said in self._kept:
                self._multiply(self._bring(said))
        ready, self._kept, self._ready = [self._heard(said) for said in self._ready], [], []
        sizes = infer_sizes(self.graph, frame)
        grown = grow(
            self.graph.resize(sizes), [said.values for said in ready], frame=None if apart else frame,
            weights=[said.counts(self._tensors) for said in ready], gamma=self.gamma, width_cap=self.width_cap,
            seed=self.seed,
        )  # fmt: skip
        self._place(ready, grown, sizes)
        stays = Growth(grown.graph, [{label: np.arange(sizes[label]) for label in self.grows if label in sizes}])
        wide, sure = expand(stays, 0, frame, self._sure_of(self.posterior))
        grew = any(wide[name].shape != values.shape for name, values in frame.items())
        record = relaid(self._arrays, wide) if grew else self._arrays
        layout = tensors_in(record)
        previous = {key: record[key].numpy() for key in layout}
        posterior = {key: _flat(layout[key], sure, previous[key].shape) for key in self.posterior}
        product = self._merge(ready, grown, layout)
        scaled = {key: np.float32(self.prior_strength) * precision for key, precision in posterior.items()}
        merged = product.finish(previous, scaled if self.prior_strength else None)
        self.posterior = posterior | merged.precision
        first = {key: tensors[0].name for key, tensors in self._tensors.items()}
        heard = [(said, key) for said in ready for key, weight in said.weights.items() if weight > 0]
        self._keep_told(merged, {key for said, key in heard if first[key] in said.precision})
        changed = {key: array.numpy() for key, array in record.items()} if grew else {}
        return changed | merged.arrays

    def merge_metrics(self) -> dict[str, float]:
        """Add the width of every axis that may grow; ``moved`` says how many of the sites' units changed theirs."""
        return super().merge_metrics() | {f"merge.width.{label}": float(n) for label, n in self._widths.items()}

    def state(self) -> dict[str, ArrayRecord]:
        record = ArrayRecord()
        for site, units in sorted(self.units.items()):
            for label, own in units.items():
                record[f"{site}/{label}"] = FlatArray(own.astype(np.int32))
        return super().state() | {UNITS: record}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.units = {}
        for key, array in state.get(UNITS, ArrayRecord()).items():
            site, _, label = key.partition("/")
            self.units.setdefault(site, {})[label] = array.numpy()

    def summary(self) -> None:
        log.info("\t├──> Growing: %d axes, gamma %g, cap %g", len(self.grows), self.gamma, self.width_cap)
        super().summary()

    # The steps of a merge.

    def _waits(self) -> bool:
        return True

    def _layout(self, update: Update) -> dict[str, list[TensorEntry]]:
        return tensors_in(self._sent(update.site))

    def _sent(self, site: str) -> ArrayRecord:
        sent = self._asked[site].content["arrays"]
        assert isinstance(sent, ArrayRecord)
        return sent

    def _bring(self, said: Contribution) -> Contribution:
        """Return what a site says, in the order of what it was sent on the axes that do not grow."""
        fixed = [label for label, axis in self.graph.axes.items() if label not in self.grows and axis.kind != "frozen"]
        if not fixed:
            return said
        sent = _tensors(self._sent(said.site))
        graph = self.graph.resize(infer_sizes(self.graph, sent)).freeze(*self.grows)
        aligned = Frame(graph, sent, gate=self.gate, seed=self.seed).align(said.values)
        for label, placement in aligned.placements.items():
            self._placements.setdefault(label, []).append(placement)
        return said.moved(graph, aligned.tensors, aligned.permutations) if aligned.permutations else said

    def _multiply(self, said: Contribution) -> None:
        self._ready.append(said)  # what it is multiplied into has its width only when all are there

    def _heard(self, said: Contribution) -> Contribution:
        """Return a site's word without the arrays in which it does not count: they must not open units."""
        names = {tensor.name for key, weight in said.weights.items() if weight > 0 for tensor in self._tensors[key]}
        return replace(said, values={name: values for name, values in said.values.items() if name in names})

    def _place(self, ready: Sequence[Contribution], grown: Growth, sizes: Mapping[str, int]) -> None:
        """Note where the sites' units are, and how many of them moved."""
        for said, units in zip(ready, grown.units, strict=True):
            for label, own in units.items():
                moved = float((own != self._units_of(said.site, label, sizes[label])).mean())
                self._placements.setdefault(label, []).append(Placement(moved, np.nan, np.nan))
        for said, units in zip(ready, grown.units, strict=True):
            self.units[said.site] = self.units.get(said.site, {}) | units
        self._widths = {label: grown.graph.axes[label].size for label in self.grows}

    def _units_of(self, site: str, label: str, size: int) -> np.ndarray:
        """Return (L_j,) the global units that a site holds of an axis; of a newcomer, those that most others hold."""
        if label in (units := self.units.get(site, {})):
            return units[label]
        count = np.zeros(size, int)
        for other in self.units.values():
            count[other.get(label, [])] += 1
        return np.sort(np.argsort(-count, kind="stable")[: self.graph.axes[label].size])

    def _sure_of(self, precision: Mapping[str, np.ndarray]) -> dict[str, float | np.ndarray]:
        """Return by tensor what is given by key."""
        return {
            tensor.name: np.broadcast_to(values, self._previous[key].shape).reshape(-1)[tensor.place].reshape(
                tensor.shape
            )
            for key, values in precision.items() for tensor in self._tensors[key]
        }  # fmt: skip

    def _merge(
        self, ready: Sequence[Contribution], grown: Growth, layout: Mapping[str, Sequence[TensorEntry]]
    ) -> Product:
        """Return the product of the sites at the global width."""
        product = Product(layout, floor=0.0)  # each site's own floor is in its precision by then: 0 has to stay 0
        usual = self._usual(ready)
        silent = {label: np.flatnonzero(grown.count_holders(label) == 0) for label in self.grows}
        for j, said in enumerate(ready):
            known: dict[str, float | np.ndarray] = {}
            for name, weight in said.counts(self._tensors).items():
                known[name] = weight * usual.get(name, 1.0)
                if told := said.precision.get(name):
                    known[name] = floored(told, self.precision_floor)[0].reshape(told.values.shape)
            wide, precision = expand(grown, j, said.values, known)
            _silence(grown.graph, precision, silent)
            whole = {name: Precision(np.broadcast_to(precision[name], values.shape)) for name, values in wide.items()}
            self._shares[said.site] = product.add(wide, said.weights, whole)
        return product

    def _usual(self, ready: Sequence[Contribution]) -> dict[str, float]:
        """Return by tensor what a sample comes to in the unit of the sites that tell their precision.

        Where those know nothing of a tensor, the mean over tensors stands in; where no site tells, all count.
        """
        total: dict[str, float] = defaultdict(float)
        samples: dict[str, float] = defaultdict(float)
        for said in ready:
            for name, weight in said.counts(self._tensors).items():
                if name in said.precision and weight > 0:
                    total[name] += inflation(self.precision_floor) * said.precision[name].mean()
                    samples[name] += weight
        usual = {name: total[name] / samples[name] for name in samples}
        mean = float(np.mean([value for value in usual.values() if value] or [1.0]))
        return {name: value or mean for name, value in usual.items()}


def relaid(like: ArrayRecord, tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return a record of the same tensors as another, packed or plain as that is, at the shapes of the given ones."""
    if is_packed(like):
        return pack({part: {name: tensors[name] for name in held} for part, held in unpack(like).items()})
    record = ArrayRecord()
    for name in like:
        record[name] = FlatArray(tensors[name])
    return record


def _tensors(record: ArrayRecord) -> Tensors:
    layout = tensors_in(record)
    return tensors_by_name({key: record[key].numpy() for key in layout}, layout)


def _flat(
    tensors: Sequence[TensorEntry], values: Mapping[str, float | np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """Return the single-precision array of a key of which the tensors have these values."""
    flat = np.zeros(int(np.prod(shape)), np.float32)
    for tensor in tensors:
        flat[tensor.place] = np.ravel(np.asarray(values[tensor.name]))
    return flat.reshape(shape)


def _silence(graph: AxisGraph, precision: dict[str, float | np.ndarray], silent: Mapping[str, np.ndarray]) -> None:
    """Take back, in place, what a site says of units that nobody holds: they, and what reads them, stay."""
    arrays = {name: values for name, values in precision.items() if isinstance(values, np.ndarray) and values.ndim}
    for label, units in silent.items():
        for slot in graph.slots(label, arrays) if len(units) else ():
            if slot.name in graph.axes[label].readers:
                values = arrays[slot.name].reshape(slot.view)
                np.moveaxis(values, slot.axis, 0)[slot.start + units] = 0
