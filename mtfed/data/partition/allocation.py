"""The state of a division: which sites may get which patients, and in which shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import MtfedError
from ...tasks.task import Task
from ..manifest import Row
from .patients import Patient

MIN_PATIENTS = 2  # training patients that a site needs for each of its tasks: one of them may be held out
OTHER = "(other)"  # the group that joins all groups that are too small for a site of their own
GroupKey = tuple[str, ...]  # cells of the columns that patients are grouped by
Share = Callable[[Sequence[int]], np.ndarray]  # sites -> the fraction of a stratum's patients that each of them gets


@dataclass(frozen=True)
class Options:
    """How a set is divided: the config keys ``partition``, ``partition-alpha`` and so on."""

    scheme: str = "tasks + dirichlet"
    alpha: float = 1.0
    column: str = "site"
    seed: int = 0
    flower: str = ""  # arguments of a partitioner of flwr-datasets
    every_patient: bool = False  # whether sites also get patients without a label of their tasks


@dataclass(frozen=True)
class Division:
    """The sites' names and rows, and the patients that no site gets because no site has any of their tasks.

    Sites get these patients, too, without their labels, if there are tasks that need none (``Options.every_patient``).
    """

    names: tuple[str, ...]
    parts: tuple[tuple[Row, ...], ...]
    left_out: tuple[str, ...]


@dataclass
class Allocation:
    """The rules by which patients are drawn for sites; the schemes change them.

    At the start, every site has every task, may get any patient, and gets an equal share.
    """

    patients: dict[str, Patient]
    tasks: dict[str, Task]
    sites: int
    options: Options
    rng: np.random.Generator
    shares: list[Share] = field(default_factory=list)  # their product counts
    by_stratum: bool = False  # whether patients with different classes are drawn separately, with shares of their own

    def __post_init__(self) -> None:
        self.groups: dict[str, GroupKey] = dict.fromkeys(self.patients, ())  # by patient
        self.site_groups: list[GroupKey] = [()] * self.sites  # the group whose patients a site gets
        self.site_tasks: list[tuple[str, ...]] = [tuple(self.tasks)] * self.sites

    @property
    def is_grouped(self) -> bool:
        """Return whether sites get patients of their own group only."""
        return any(self.site_groups)

    def group(self, cells: Mapping[str, str], what: str, *, join: bool = False) -> None:
        """Group patients by their cells, within the present groups. Each group gets a site, large groups get several.

        Args:
            cells: a cell by patient.
            what: the column, for errors.
            join: if there are more groups than sites, join those with the fewest training patients.
        """
        self.groups = {name: (*group, cells[name]) for name, group in self.groups.items()}
        sizes = self._group_sizes()
        if join and len(sizes) > self.sites:
            by_task = [self.training_patients(task) for task in self.tasks]
            largest = {group: max(len(patients.get(group, ())) for patients in by_task) for group in sizes}
            separate = sorted(sizes, key=lambda group: (-largest[group], -sizes[group], group))[: self.sites - 1]
            self.groups = {name: group if group in separate else (OTHER,) for name, group in self.groups.items()}
            sizes = self._group_sizes()
        if len(sizes) > self.sites:
            raise MtfedError(
                f"Config key partition: {what} divides the patients into {len(sizes)} groups, each of which needs a "
                f"site, but {self.sites} sites are asked for; ask for {len(sizes)} or more."
            )
        self.site_groups = allocate_sites(sizes, self.sites)

    def _group_sizes(self) -> dict[GroupKey, int]:
        """Return the number of training patients with a label in each group."""
        sizes = dict.fromkeys(self.groups.values(), 0)
        divided = self.divided_patients()
        for name, group in self.groups.items():
            sizes[group] += name in divided and self.patients[name].split == "train"
        return sizes

    def divided_patients(self) -> dict[str, Patient]:
        """Return the patients that decide how the set is divided: those with a label, or all if none has one."""
        return {name: patient for name, patient in self.patients.items() if patient.tasks} or self.patients

    def assign(self, site_of: Mapping[str, int]) -> None:
        """Fix the site of every patient. No site gets a patient without an entry."""
        self.site_groups = [(f"site {site + 1}",) for site in range(self.sites)]
        self.groups = {name: self.site_groups[site_of[name]] if name in site_of else () for name in self.patients}

    def training_patients(self, task: str | None) -> dict[GroupKey, list[str]]:
        """Return the patients that a task, or a task that needs no labels (None), can be trained on, by group."""
        patients: dict[GroupKey, list[str]] = defaultdict(list)
        for name, patient in self.patients.items():
            if (task is None or task in patient.tasks) and patient.split == "train":
                patients[self.groups[name]].append(name)
        return patients

    def candidates(self) -> dict[str, tuple[int, ...]]:
        """Return by patient the sites that may get it: those of its group with a task that it is labelled for."""
        members: dict[GroupKey, list[int]] = defaultdict(list)
        for site, group in enumerate(self.site_groups):
            members[group].append(site)
        known: dict[tuple[GroupKey, frozenset[str]], tuple[int, ...]] = {}
        for name, patient in self.patients.items():
            key = self.groups[name], patient.tasks
            if key not in known:
                known[key] = tuple(s for s in members[key[0]] if not key[1].isdisjoint(self.site_tasks[s]))
        return {name: known[self.groups[name], patient.tasks] for name, patient in self.patients.items()}

    def draw(self, candidates: Mapping[str, Sequence[int]]) -> list[list[str]]:
        """Return the patients of every site.

        Each set of patients with the same candidates and split (and stratum, if ``by_stratum``) is divided by itself.
        """
        sets: dict[tuple, list[str]] = defaultdict(list)
        for name, patient in self.patients.items():
            if candidates[name]:
                sets[patient.stratum if self.by_stratum else (), patient.split, candidates[name]].append(name)
        drawn: list[list[str]] = [[] for _ in range(self.sites)]
        for key in sorted(sets):
            names, sites = sets[key], key[2]
            order = self.rng.permutation(len(names))
            weights = self._weights(sites)
            if len(names) < len(sites):  # rounded shares of so few would favour the same sites each time
                for i, chosen in zip(order, self.rng.choice(len(sites), len(names), p=weights), strict=True):
                    drawn[sites[chosen]].append(names[i])
                continue
            ends = np.round(np.cumsum(weights) * len(order)).astype(int)
            for site, start, end in zip(sites, [0, *ends[:-1]], ends, strict=True):
                drawn[site].extend(names[i] for i in order[start:end])
        return drawn

    def _weights(self, sites: Sequence[int]) -> np.ndarray:
        """Return the sites' shares (S,), which sum to 1."""
        shares = [share(sites) for share in self.shares]
        if len(shares) == 1:
            return shares[0]
        weights = np.prod([np.ones(len(sites)), *shares], axis=0)
        return weights / weights.sum() if weights.sum() > 0 else np.full(len(sites), 1 / len(sites))


def allocate_sites(sizes: Mapping[GroupKey, int], sites: int) -> list[GroupKey]:
    """Return the group of every site: each group gets one, the rest go to the most patients per site (D'Hondt)."""
    counts = dict.fromkeys(sorted(sizes, key=lambda group: (group == (OTHER,), group)), 1)
    for _ in range(sites - len(counts)):
        counts[max(counts, key=lambda group: sizes[group] / (counts[group] + 1))] += 1
    return [group for group, count in counts.items() for _ in range(count)]
