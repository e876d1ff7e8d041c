"""Turn an allocation into a division: draw the patients, ensure the minimum, and name the sites."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...errors import MtfedError
from .allocation import MIN_PATIENTS, Allocation, Division, GroupKey

MAX_LENGTH = 32  # characters of a site's name, which is shown in tables


def divide(allocation: Allocation, *, by_group: bool = False) -> Division:
    """Return the division that an allocation results in; ``by_group``: name sites after their groups."""
    limit_tasks(allocation, f"partition {allocation.options.scheme!r}")
    candidates = allocation.candidates()
    drawn = allocation.draw(candidates)
    fill_sites(allocation, drawn, candidates)
    every_patient = allocation.options.every_patient
    if every_patient:
        deal_unlabelled(allocation, drawn)
    parts = tuple(
        tuple(
            replace(row, labels=labels)
            for patient in part
            for row in allocation.patients[patient].rows
            if (labels := {task: label for task, label in row.labels.items() if task in tasks}) or every_patient
        )
        for part, tasks in zip(drawn, allocation.site_tasks, strict=True)
    )
    dealt = {name for part in drawn for name in part}
    left_out = tuple(name for name in candidates if name not in dealt)
    names = site_names(allocation.site_groups if by_group else [()] * allocation.sites)
    return Division(tuple(names), parts, left_out)


def site_names(groups: Sequence[GroupKey]) -> list[str]:
    """Return a unique name for every site, derived from its group if it has one."""
    if not any(groups):
        return [f"hospital-{i + 1:0{len(str(len(groups)))}d}" for i in range(len(groups))]
    slugs = [_slug("-".join(group)) or "site" for group in groups]
    total, seen = Counter(slugs), Counter[str]()
    names = []
    for slug in slugs:
        seen[slug] += 1
        number = f"-{seen[slug]:0{len(str(total[slug]))}d}" if total[slug] > 1 else ""
        names.append(slug + number)
    return names if len(set(names)) == len(names) else [f"{slug}-{i + 1}" for i, slug in enumerate(slugs)]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words if len(words) <= MAX_LENGTH else words[:MAX_LENGTH].rpartition("-")[0] or words[:MAX_LENGTH]


def limit_tasks(allocation: Allocation, scheme: str) -> None:
    """Check that there are enough patients for every task; take tasks from sites whose group has too few."""
    for task in allocation.tasks:
        labelled = allocation.training_patients(task)
        amount = sum(map(len, labelled.values()))
        if not amount:
            raise MtfedError(f"No site holds task {task!r}: the data have no label for it; remove the task.")
        if allocation.is_grouped:
            _limit_within_groups(allocation, task, scheme)
            continue
        sites = sum(task in tasks for tasks in allocation.site_tasks)
        if not sites:
            raise MtfedError(
                f"No site would hold task {task!r}: {scheme} gives {allocation.sites} sites the tasks in turn, and "
                f"there are {len(allocation.tasks)}; ask for as many sites or more, or take 'tasks' out of the "
                "partition."
            )
        if amount < MIN_PATIENTS * sites:
            raise MtfedError(
                f"The data can serve {task} to at most {amount // MIN_PATIENTS} sites "
                f"({amount} patients, {MIN_PATIENTS} a site), but {sites} of {allocation.sites} sites hold it; "
                "ask for fewer sites."
            )
    for group, tasks in zip(allocation.site_groups, allocation.site_tasks, strict=True):
        if not tasks and not allocation.options.every_patient:
            largest = max(len(allocation.training_patients(task).get(group, ())) for task in allocation.tasks)
            sites = allocation.site_groups.count(group)
            raise MtfedError(
                f"Config key partition: {scheme} makes {sites} site{'s' * (sites != 1)} of {', '.join(group)!r}, where "
                f"no task has more than {largest} to train it on, and {MIN_PATIENTS} patients a site are needed; ask "
                "for fewer sites, or join small groups."
            )


def _limit_within_groups(allocation: Allocation, task: str, scheme: str) -> None:
    """Take a task from sites whose group has too few patients for it; if no site is left, give it to one."""
    site_tasks, site_groups = allocation.site_tasks, allocation.site_groups
    labelled = {group: len(names) for group, names in allocation.training_patients(task).items()}
    for group in dict.fromkeys(site_groups):
        sites = [site for site, tasks in enumerate(site_tasks) if site_groups[site] == group and task in tasks]
        sites.sort(key=lambda site: len(site_tasks[site]))  # a site that has no other task loses it last
        for site in sites[labelled.get(group, 0) // MIN_PATIENTS :]:
            site_tasks[site] = tuple(other for other in site_tasks[site] if other != task)
    if any(task in tasks for tasks in site_tasks):
        return
    site = max(range(allocation.sites), key=lambda site: labelled.get(site_groups[site], 0))
    if (largest := labelled.get(site_groups[site], 0)) < MIN_PATIENTS:
        raise MtfedError(
            f"No site can hold task {task!r}: {scheme} leaves its {sum(labelled.values())} patients at sites with "
            f"{largest} at most, and {MIN_PATIENTS} are needed at one; divide by something else, or take the task out."
        )
    site_tasks[site] = tuple(other for other in allocation.tasks if other == task or other in site_tasks[site])


def fill_sites(allocation: Allocation, drawn: list[list[str]], candidates: Mapping[str, Sequence[int]]) -> None:
    """Move patients to sites below the minimum, from the site with most patients of the task that can spare one."""
    counts = [dict.fromkeys(tasks, 0) for tasks in allocation.site_tasks]
    for site, names in enumerate(drawn):
        for name in names:
            _count(allocation, counts[site], name, 1)
    needy = [(task, site) for task in allocation.tasks for site in range(allocation.sites) if task in counts[site]]
    moved = True
    while moved:
        moved = False
        for task, site in needy:
            while counts[site][task] < MIN_PATIENTS and _move(allocation, drawn, counts, candidates, task, site):
                moved = True
    for site, by_task in enumerate(counts):
        for task, amount in by_task.items():
            if amount < MIN_PATIENTS:
                raise MtfedError(
                    f"There are not enough patients: of {task}, {amount} {'is' if amount == 1 else 'are'} left for "
                    f"site {site + 1} of {allocation.sites}, and {MIN_PATIENTS} are needed; ask for fewer sites, or "
                    "divide by something else."
                )


def deal_unlabelled(allocation: Allocation, drawn: list[list[str]]) -> None:
    """Give sites the remaining patients, who have no label that their sites may hold: those of a group to its sites.

    They are drawn last, so that labels are divided as they would be without these patients. A site without any task
    gets at least :data:`.allocation.MIN_PATIENTS` training patients.
    """
    dealt = {name for part in drawn for name in part}
    members: dict[GroupKey, tuple[int, ...]] = defaultdict(tuple)
    for site, group in enumerate(allocation.site_groups):
        members[group] += (site,)
    everywhere = tuple(range(allocation.sites))
    candidates: dict[str, tuple[int, ...]] = dict.fromkeys(allocation.patients, ())
    for name, group in allocation.groups.items():
        if name not in dealt:
            candidates[name] = members.get(group, everywhere)
    for part, names in zip(drawn, allocation.draw(candidates), strict=True):
        part += names
    training = {name for name, patient in allocation.patients.items() if patient.split == "train"}
    counts = [len(training.intersection(part)) for part in drawn]
    for site in (site for site, tasks in enumerate(allocation.site_tasks) if not tasks):
        while counts[site] < MIN_PATIENTS:
            spare = [
                (-counts[donor], donor, name)
                for donor, part in enumerate(drawn)
                for name in part
                if donor != site and counts[donor] > MIN_PATIENTS and name in training and site in candidates[name]
            ]
            if not spare:
                raise MtfedError(
                    f"There are not enough patients: {counts[site]} {'is' if counts[site] == 1 else 'are'} left for "
                    f"site {site + 1} of {allocation.sites}, and {MIN_PATIENTS} are needed; ask for fewer sites, or "
                    "divide by something else."
                )
            _, donor, name = min(spare)
            drawn[donor].remove(name)
            drawn[site].append(name)
            counts[donor] -= 1
            counts[site] += 1


def _move(
    allocation: Allocation,
    drawn: list[list[str]],
    counts: list[dict[str, int]],
    candidates: Mapping[str, Sequence[int]],
    task: str,
    receiver: int,
) -> bool:
    """Move a patient who is labelled for a task to a site; return whether any patient could be moved."""
    # Sites without the task can give, too: a patient with labels of two tasks may be there because of the other one.
    others = set(range(allocation.sites)) - {receiver}
    for donor in sorted(others, key=lambda site: (-counts[site].get(task, 0), site)):
        for name in reversed(drawn[donor]):
            patient = allocation.patients[name]
            if (
                task in patient.tasks
                and patient.split == "train"
                and receiver in candidates[name]
                and all(counts[donor].get(other, MIN_PATIENTS + 1) > MIN_PATIENTS for other in patient.tasks)
            ):
                drawn[donor].remove(name)
                drawn[receiver].append(name)
                _count(allocation, counts[donor], name, -1)
                _count(allocation, counts[receiver], name, 1)
                return True
    return False


def _count(allocation: Allocation, counts: dict[str, int], name: str, change: int) -> None:
    patient = allocation.patients[name]
    if patient.split == "train":
        for task in patient.tasks & counts.keys():
            counts[task] += change
