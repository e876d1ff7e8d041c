"""Sums of the sites' metrics."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from flwr.app import MetricRecord


class MetricSums:
    """Metrics of several sites, added number by number and list by list once all of them have arrived.

    A record is added whole or not at all. The form of a metric, a number or a list of a certain length, is the one
    that most sites use; with equally many, the first by site key. A site with another version of the app must not
    keep the others out.
    """

    def __init__(self) -> None:
        self.records: dict[str, MetricRecord] = {}  # by site

    def add(self, site: str, record: MetricRecord) -> None:
        """Add a site's record; raise ``ValueError`` if its values are not finite."""
        for name, value in record.items():
            if not np.isfinite(value).all():
                raise ValueError(f"its metric {name} is not finite")
        self.records[site] = record

    def drop_other_forms(self) -> dict[str, str]:
        """Drop the records in which a metric has another form than at most sites; return the reason by site."""
        forms: dict[str, Counter[tuple[int, ...]]] = {}
        for record in self.records.values():
            for name, value in record.items():
                forms.setdefault(name, Counter())[np.shape(value)] += 1
        usual = {name: counts.most_common(1)[0][0] for name, counts in forms.items()}
        reasons = {
            site: f"its metric {name} has another form than at most sites"
            for site, record in self.records.items() for name, value in record.items() if np.shape(value) != usual[name]
        }  # fmt: skip
        self.records = {site: record for site, record in self.records.items() if site not in reasons}
        return reasons

    def total(self) -> dict[str, int | float | list[int] | list[float]]:
        """Return the sums, added in the order in which the records arrived."""
        total: dict[str, Any] = {}
        for record in self.records.values():
            for name, value in record.items():
                if isinstance(value, list):
                    total[name] = [a + b for a, b in zip(total[name], value, strict=True)] if name in total else value
                else:
                    total[name] = total.get(name, 0) + value
        return total
