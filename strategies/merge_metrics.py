"""Metrics of one merge: the units that moved, the objective of the matching, and the sites' shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from .frame import Placement
from .wire import part_of


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
