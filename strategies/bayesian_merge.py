"""The working state of one round's merge in :class:`.bayesian.BayesianMatching`, and its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord

from .averaging import SiteWeights
from .axes import AxisGraph, Tensors
from .cavity import PulledSteps
from .contribution import Contribution, tensors_by_name, unique_names
from .frame import Frame, Placement
from .product import Product
from .wire import arrays_in, part_of, tensors_in


class MergeMetrics:
    """What one merge did, for the record of its round."""

    def __init__(self) -> None:
        self.widths: dict[str, int] = {}  # axis that may grow -> its size
        self._placements: dict[str, list[Placement]] = {}  # axis -> one entry for each site
        self._shares: dict[str, dict[str, float]] = {}  # site -> key -> its precision in the product
        self._counted: set[tuple[str, str]] = set()  # site and key, where its share is a number of samples

    def add_placement(self, label: str, placement: Placement) -> None:
        """Add how a site's units on an axis were matched to the frame."""
        self._placements.setdefault(label, []).append(placement)

    def add_moved(self, label: str, moved: float) -> None:
        """Add the share of a site's units that moved on an axis, if there is no frame to measure a distance to."""
        self.add_placement(label, Placement(moved, np.nan, np.nan))

    def add_shares(self, site: str, shares: Mapping[str, float], counted: Iterable[str] = ()) -> None:
        """Add a site's precision by key; ``counted`` are the keys whose share is a number of samples."""
        self._shares[site] = dict(shares)
        self._counted |= {(site, key) for key in counted}

    def scale_counted(self, factors: Mapping[str, float]) -> None:
        """Convert samples to precision by the factor of their key, where other sites sent their precision."""
        for site, key in self._counted:
            self._shares[site][key] *= factors.get(key, 1.0)

    def compute(self) -> dict[str, float]:
        """Return the share of units that moved on every axis, the objective, every site's share, and the widths.

        The objective is the mean squared distance between the units of the sites and of the frame, relative to the
        frame's mean squares, before and after matching. Models that were trained apart have no frame, and so no
        objective. A site's share is its part of the precision of all sites, for each part or array.
        """
        metrics = {}
        for label, placements in self._placements.items():
            metrics[f"merge.moved.{label}"] = float(np.mean([placement.moved for placement in placements]))
        every = [placement for placements in self._placements.values() for placement in placements]
        if measured := [placement for placement in every if np.isfinite(placement.distance_before)]:
            metrics["merge.distance-before"] = float(np.mean([placement.distance_before for placement in measured]))
            metrics["merge.distance"] = float(np.mean([placement.distance_after for placement in measured]))
        parts: dict[str, dict[str, float]] = {}
        for site, shares in self._shares.items():
            for key, share in shares.items():
                part = parts.setdefault(part_of(key), {})
                part[site] = part.get(site, 0.0) + share
        for name, part in parts.items():
            total = sum(part.values()) or 1.0
            metrics |= {f"merge.share.{name or 'model'}.{site}": share / total for site, share in part.items()}
        return metrics | {f"merge.width.{label}": float(size) for label, size in self.widths.items()}


@dataclass
class BayesianMerge:
    """One merge: it begins with the global arrays and ends when the product is taken."""

    arrays: ArrayRecord  # the global arrays that the round started from
    graph: AxisGraph | None  # None: units are not matched
    weights: SiteWeights  # how much each site counts in each part
    precision_floor: float  # see :class:`.product.Product`

    def __post_init__(self) -> None:
        self.previous = arrays_in(self.arrays)
        self.layout = unique_names(tensors_in(self.arrays), self.graph)
        self.product = Product(self.layout, self.precision_floor)
        self.pulled_steps = PulledSteps()
        self.metrics = MergeMetrics()
        self.waiting: list[Contribution] = []  # contributions that are merged only when all have arrived
        self._frame: Frame | None = None

    def previous_tensors(self) -> Tensors:
        """Return the tensors of the global model by name, as views."""
        return tensors_by_name(self.previous, self.layout)

    def match(self, contribution: Contribution, gate: float, seed: int) -> Contribution:
        """Return a contribution with its units in the global model's order."""
        if self.graph is None:
            return contribution
        if self._frame is None:
            self._frame = Frame(self.graph, self.previous_tensors(), gate=gate, seed=seed)
        return self.match_to(self._frame, contribution)

    def match_to(self, frame: Frame, contribution: Contribution) -> Contribution:
        """Return a contribution with its units in the order of a frame."""
        aligned = frame.align(contribution.values)
        for label, placement in aligned.placements.items():
            self.metrics.add_placement(label, placement)
        if not aligned.permutations:
            return contribution
        return contribution.permuted(frame.graph, aligned.tensors, aligned.permutations)
