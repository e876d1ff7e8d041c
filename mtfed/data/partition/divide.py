"""Turn an allocation into a division: draw the patients, ensure the minimum, and name the sites."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from .allocation import Allocation, Division, Group
from .capacity import fill_sites, limit_tasks

MAX_LENGTH = 32  # characters of a site's name, which stands in tables


def divide(allocation: Allocation, *, by_group: bool = False) -> Division:
    """Return the division that an allocation results in; ``by_group``: name sites after their groups."""
    limit_tasks(allocation, f"partition {allocation.options.scheme!r}")
    candidates = allocation.candidates()
    drawn = allocation.draw(candidates)
    fill_sites(allocation, drawn, candidates)
    parts = tuple(
        tuple(
            replace(row, labels=labels)
            for patient in part
            for row in allocation.patients[patient].rows
            if (labels := {task: label for task, label in row.labels.items() if task in tasks})
        )
        for part, tasks in zip(drawn, allocation.site_tasks, strict=True)
    )
    left_out = tuple(name for name, sites in candidates.items() if not sites)
    names = site_names(allocation.site_groups if by_group else [()] * allocation.sites)
    return Division(tuple(names), parts, left_out)


def site_names(groups: Sequence[Group]) -> list[str]:
    """Return a unique name for every site, derived from its group if it has one."""
    if not any(groups):
        return [f"hospital-{i + 1:0{len(str(len(groups)))}d}" for i in range(len(groups))]
    slugs = [_slug("-".join(group)) or "site" for group in groups]
    total, seen = Counter(slugs), Counter[str]()
    names: list[str] = []
    for slug in slugs:
        seen[slug] += 1
        number = f"-{seen[slug]:0{len(str(total[slug]))}d}" if total[slug] > 1 else ""
        names.append(slug + number)
    return names if len(set(names)) == len(names) else [f"{slug}-{i + 1}" for i, slug in enumerate(slugs)]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words if len(words) <= MAX_LENGTH else words[:MAX_LENGTH].rpartition("-")[0] or words[:MAX_LENGTH]
