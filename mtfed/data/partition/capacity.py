"""Ensure that every site has a minimum of training patients for each of its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import MtfedError
from .allocation import MIN_PATIENTS, Allocation


def limit_tasks(allocation: Allocation, scheme: str) -> None:
    """Check that there are enough patients for every task; take tasks from sites whose group has too few.

    Args:
        allocation: its ``site_tasks`` are changed if sites are bound to groups of patients.
        scheme: the partition, for errors.
    """
    for task in allocation.tasks:
        labelled = allocation.training_patients(task)
        amount = sum(map(len, labelled.values()))
        if not amount:
            raise MtfedError(f"No site holds task {task!r}: the data has no label for it; take the task out.")
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
        if not tasks:
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
    moved = True
    while moved:
        moved = False
        for task in allocation.tasks:
            for site, tasks in enumerate(allocation.site_tasks):
                while task in tasks and counts[site][task] < MIN_PATIENTS:
                    if not _move(allocation, drawn, counts, candidates, task, site):
                        break
                    moved = True
    for site, by_task in enumerate(counts):
        for task, amount in by_task.items():
            if amount < MIN_PATIENTS:
                raise MtfedError(
                    f"The patients do not suffice: of {task}, {amount} {'is' if amount == 1 else 'are'} left for "
                    f"site {site + 1} of {allocation.sites}, "
                    f"and {MIN_PATIENTS} are needed; ask for fewer sites, or divide by something else."
                )


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
