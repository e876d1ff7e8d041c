"""A division in the making: who may hold whom, and in which shares; schemes change it, then patients are dealt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import MtfedError
from ...tasks.task import Task
from ..manifest import Row
from .patients import Patient

MIN_PATIENTS = 2  # to train on, of a task at a site that holds it: one of them may be held out
OTHER = "(other)"  # the group of all groups that are too small for a site of their own
Group = tuple[str, ...]  # cells of the columns that patients are divided by
Share = Callable[[Sequence[int]], np.ndarray]  # of some sites: what part of a stratum's patients each gets


@dataclass(frozen=True)
class Options:
    """How a set is divided: the config's keys ``partition``, ``partition-alpha`` and so on."""

    scheme: str = "tasks + dirichlet"
    alpha: float = 1.0
    column: str = "site"
    seed: int = 0
    flower: str = ""  # arguments of a partitioner of flwr-datasets


@dataclass(frozen=True)
class Division:
    """Who holds what: the sites' names and rows, and the patients of whom no site holds a task."""

    names: tuple[str, ...]
    parts: tuple[tuple[Row, ...], ...]
    left_out: tuple[str, ...]


@dataclass
class Deal:
    """What schemes decide: until they do, every site holds every task, may hold anybody, and gets an even share."""

    patients: dict[str, Patient]
    tasks: dict[str, Task]
    sites: int
    options: Options
    rng: np.random.Generator
    shares: list[Share] = field(default_factory=list)  # which multiply
    by_kind: bool = False  # each kind of patient is dealt by itself, by shares of its own

    def __post_init__(self) -> None:
        self.groups: dict[str, Group] = dict.fromkeys(self.patients, ())
        self.seats: list[Group] = [()] * self.sites  # the group whose patients a site holds
        self.holds: list[tuple[str, ...]] = [tuple(self.tasks)] * self.sites

    @property
    def grouped(self) -> bool:
        """Return whether sites may hold patients of their own group only."""
        return any(self.seats)

    def group(self, cells: Mapping[str, str], what: str, *, join: bool = False) -> None:
        """Divide patients by their cells, within the groups that there are; every group gets a site, large ones more.

        Args:
            cells: by patient.
            what: the column, for errors.
            join: put the smallest groups, by patients to train on, together where there are more than sites.
        """
        self.groups = {name: (*group, cells[name]) for name, group in self.groups.items()}
        sizes = self._sizes()
        if join and len(sizes) > self.sites:
            labelled = [self.labelled(task) for task in self.tasks]
            most = {group: max(len(found.get(group, ())) for found in labelled) for group in sizes}
            own = sorted(sizes, key=lambda group: (-most[group], -sizes[group], group))[: self.sites - 1]
            self.groups = {name: group if group in own else (OTHER,) for name, group in self.groups.items()}
            sizes = self._sizes()
        if len(sizes) > self.sites:
            raise MtfedError(
                f"Config key partition: {what} divides the patients into {len(sizes)} groups, each of which needs a "
                f"site, but {self.sites} sites are asked for; ask for {len(sizes)} or more."
            )
        self.seats = seat(sizes, self.sites)

    def _sizes(self) -> dict[Group, int]:
        """Return how many patients to train on each group has."""
        sizes = dict.fromkeys(self.groups.values(), 0)
        for name, group in self.groups.items():
            sizes[group] += self.patients[name].split == "train"
        return sizes

    def assign(self, site_of: Mapping[str, int]) -> None:
        """Say of every patient which site it is to be at; of whom this does not say it, no site holds."""
        self.seats = [(f"site {site + 1}",) for site in range(self.sites)]
        self.groups = {name: self.seats[site_of[name]] if name in site_of else () for name in self.patients}

    def labelled(self, task: str) -> dict[Group, list[str]]:
        """Return the patients to train a task on, by group."""
        found: dict[Group, list[str]] = defaultdict(list)
        for name, patient in self.patients.items():
            if task in patient.tasks and patient.split == "train":
                found[self.groups[name]].append(name)
        return found

    def candidates(self) -> dict[str, tuple[int, ...]]:
        """Return which sites may hold a patient: those of its group that hold a task that it is labelled for."""
        members: dict[Group, list[int]] = defaultdict(list)
        for site, group in enumerate(self.seats):
            members[group].append(site)
        known: dict[tuple[Group, frozenset[str]], tuple[int, ...]] = {}
        for name, patient in self.patients.items():
            key = self.groups[name], patient.tasks
            if key not in known:
                known[key] = tuple(s for s in members[key[0]] if not key[1].isdisjoint(self.holds[s]))
        return {name: known[self.groups[name], patient.tasks] for name, patient in self.patients.items()}

    def deal(self, candidates: Mapping[str, Sequence[int]]) -> list[list[str]]:
        """Return the patients of every site: of each stratum (same candidates, split and kind) the sites' shares."""
        strata: dict[tuple, list[str]] = defaultdict(list)
        for name, patient in self.patients.items():
            if candidates[name]:
                strata[patient.kind if self.by_kind else (), patient.split, candidates[name]].append(name)
        dealt: list[list[str]] = [[] for _ in range(self.sites)]
        for stratum in sorted(strata):
            names, sites = strata[stratum], stratum[2]
            order = self.rng.permutation(len(names))
            weights = self._weights(sites)
            if len(names) < len(sites):  # rounded shares of few would go to the same sites each time
                for i, chosen in zip(order, self.rng.choice(len(sites), len(names), p=weights), strict=True):
                    dealt[sites[chosen]].append(names[i])
                continue
            ends = np.round(np.cumsum(weights) * len(order)).astype(int)
            for site, start, end in zip(sites, [0, *ends[:-1]], ends, strict=True):
                dealt[site].extend(names[i] for i in order[start:end])
        return dealt

    def _weights(self, sites: Sequence[int]) -> np.ndarray:
        """Return the sites' shares (S,), which sum to 1."""
        drawn = [share(sites) for share in self.shares]
        if len(drawn) == 1:
            return drawn[0]
        weights = np.prod([np.ones(len(sites)), *drawn], axis=0)
        return weights / weights.sum() if weights.sum() > 0 else np.full(len(sites), 1 / len(sites))


def seat(sizes: Mapping[Group, int], sites: int) -> list[Group]:
    """Return the group of every site: one for each, and what is left to those with most patients a site (D'Hondt)."""
    seats = dict.fromkeys(sorted(sizes, key=lambda group: (group == (OTHER,), group)), 1)
    for _ in range(sites - len(seats)):
        seats[max(seats, key=lambda group: sizes[group] / (seats[group] + 1))] += 1
    return [group for group, number in seats.items() for _ in range(number)]
