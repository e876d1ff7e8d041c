"""Every site that holds a task gets a minimum of patients to train it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import MtfedError
from .deal import MIN_PATIENTS, Deal


def serve(deal: Deal, where: str) -> None:
    """Check that there are patients enough for every task; let no site hold one that its group cannot serve.

    Args:
        deal: its ``holds`` are changed where sites are bound to groups of patients.
        where: what binds them, for errors.
    """
    for task in deal.tasks:
        labelled = deal.labelled(task)
        amount = sum(map(len, labelled.values()))
        if not amount:
            raise MtfedError(f"No site holds task {task!r}: the data has no label for it; take the task out.")
        if deal.grouped:
            _within_groups(deal, task, where)
            continue
        holders = sum(task in held for held in deal.holds)
        if not holders:
            raise MtfedError(
                f"No site would hold task {task!r}: {where} gives {deal.sites} sites the tasks in turn, and there are "
                f"{len(deal.tasks)}; ask for as many sites or more, or take 'tasks' out of the partition."
            )
        if amount < MIN_PATIENTS * holders:
            raise MtfedError(
                f"The data can serve {task} to at most {amount // MIN_PATIENTS} sites "
                f"({amount} patients, {MIN_PATIENTS} a site), but {holders} of {deal.sites} sites hold it; "
                "ask for fewer sites."
            )
    for group, held in zip(deal.seats, deal.holds, strict=True):
        if not held:
            most = max(len(deal.labelled(task).get(group, ())) for task in deal.tasks)
            sites = deal.seats.count(group)
            raise MtfedError(
                f"Config key partition: {where} makes {sites} site{'s' * (sites != 1)} of {', '.join(group)!r}, where "
                f"no task has more than {most} to train it on, and {MIN_PATIENTS} patients a site are needed; ask for "
                "fewer sites, or join small groups."
            )


def _within_groups(deal: Deal, task: str, where: str) -> None:
    """Take a task from sites whose group has too few patients for it, and give it to one if nobody is left."""
    labelled = {group: len(names) for group, names in deal.labelled(task).items()}
    for group in dict.fromkeys(deal.seats):
        holders = [site for site, held in enumerate(deal.holds) if deal.seats[site] == group and task in held]
        holders.sort(key=lambda site: len(deal.holds[site]))  # the last to lose it is who has nothing else
        for site in holders[labelled.get(group, 0) // MIN_PATIENTS :]:
            deal.holds[site] = tuple(other for other in deal.holds[site] if other != task)
    if any(task in held for held in deal.holds):
        return
    site = max(range(deal.sites), key=lambda site: labelled.get(deal.seats[site], 0))
    if (most := labelled.get(deal.seats[site], 0)) < MIN_PATIENTS:
        raise MtfedError(
            f"No site can hold task {task!r}: {where} leaves its {sum(labelled.values())} patients at sites with "
            f"{most} at most, and {MIN_PATIENTS} are needed at one; divide by something else, or take the task out."
        )
    deal.holds[site] = tuple(other for other in deal.tasks if other == task or other in deal.holds[site])


def fill_up(deal: Deal, dealt: list[list[str]], candidates: Mapping[str, Sequence[int]]) -> None:
    """Move patients to sites below the minimum, from the site that has most of the task, if it keeps enough."""
    counts = [dict.fromkeys(held, 0) for held in deal.holds]
    for site, names in enumerate(dealt):
        for name in names:
            _count(deal, counts[site], name, 1)
    moved = True
    while moved:
        moved = False
        for task in deal.tasks:
            for site, held in enumerate(deal.holds):
                while task in held and counts[site][task] < MIN_PATIENTS:
                    if not _move(deal, dealt, counts, candidates, task, site):
                        break
                    moved = True
    for site, counted in enumerate(counts):
        for task, amount in counted.items():
            if amount < MIN_PATIENTS:
                raise MtfedError(
                    f"The patients do not suffice: of {task}, {amount} {'is' if amount == 1 else 'are'} left for "
                    f"site {site + 1} of {deal.sites}, "
                    f"and {MIN_PATIENTS} are needed; ask for fewer sites, or divide by something else."
                )


def _move(
    deal: Deal,
    dealt: list[list[str]],
    counts: list[dict[str, int]],
    candidates: Mapping[str, Sequence[int]],
    task: str,
    poor: int,
) -> bool:
    """Move a patient who is labelled for a task to a site; return whether there is one who can go."""
    # Of a site that does not hold the task, too: a patient with labels of two tasks may be there for the other.
    for donor in sorted(set(range(deal.sites)) - {poor}, key=lambda site: (-counts[site].get(task, 0), site)):
        for name in reversed(dealt[donor]):
            patient = deal.patients[name]
            if (
                task in patient.tasks
                and patient.split == "train"
                and poor in candidates[name]
                and all(counts[donor].get(other, MIN_PATIENTS + 1) > MIN_PATIENTS for other in patient.tasks)
            ):
                dealt[donor].remove(name)
                dealt[poor].append(name)
                _count(deal, counts[donor], name, -1)
                _count(deal, counts[poor], name, 1)
                return True
    return False


def _count(deal: Deal, counts: dict[str, int], name: str, change: int) -> None:
    patient = deal.patients[name]
    if patient.split == "train":
        for task in patient.tasks & counts.keys():
            counts[task] += change
