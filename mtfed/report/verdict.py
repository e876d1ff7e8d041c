"""The first screen: what came out, beside a hospital on its own and the untrained model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..tasks import METRICS_OF_KIND, Task
from .charts import strip
from .html import Html, chip, count, escape, join, listed, number, table, tag, task_title
from .records import Group, deviation, differing, mean

METRICS = {  # name on the page, and what it says
    "auc": ("AUC", "how often an image of a class is scored above one of another; 1 is perfect, 0.5 is guessing"),
    "accuracy": ("Accuracy", "share of images whose most probable class is the true one"),
    "dice": ("Dice", "overlap of predicted and true area, as twice the shared area over the sum of both; 1 is perfect"),
    "iou": ("IoU", "overlap of predicted and true area, as the shared area over all that either covers; 1 is perfect"),
}
PALE = "#b5bdc8"
SAME = 0.0005  # figures nearer than this are equal as shown


def metric_title(metric: str) -> str:
    """Return a metric's name as people write it."""
    return METRICS[metric][0] if metric in METRICS else metric


def all_tasks(groups: Sequence[Group]) -> dict[str, Task]:
    """Return the tasks of all runs, in the order of the first run that has them."""
    tasks: dict[str, Task] = {}
    for group in groups:
        tasks |= group.records[0].config.tasks
    return tasks


def headline_group(groups: Sequence[Group]) -> Group:
    """Return the group that the headline is about: finished, federated, of most tasks, best on validation images.

    Validation, as in the choice of a round: a choice that went by the test images would flatter its figures.
    """

    def rank(group: Group) -> tuple[bool, bool, int, float]:
        tasks = group.records[0].config.tasks
        scores = [mean(group.values(name, "validation", task.metric)) for name, task in tasks.items()]
        known = [score for score in scores if math.isfinite(score)]
        return group.finished, not group.alone, len(tasks), mean(known) if known else -math.inf

    return max(groups, key=rank)


def verdict(groups: Sequence[Group]) -> Html:
    """Return headline, warnings, a card per task, and what its figures are."""
    chosen = headline_group(groups)
    cards = [
        _card(task, [group for group in groups if name in group.records[0].config.tasks])
        for name, task in all_tasks(groups).items()
    ]
    return join(
        [
            tag("h1", _headline(chosen, groups)),
            *(tag("p", text, class_="warn") for text in _warnings(groups)),
            tag("div", *cards, class_="cards"),
            tag("p", " ".join(_notes(groups)), class_="note"),
        ]
    )


def _headline(chosen: Group, groups: Sequence[Group]) -> str:
    """Say in one line whether training together was worth it, or else how far it came."""
    if not chosen.finished:
        record = chosen.records[0]
        return f"Not finished: {len(record.rounds)} of {count(record.config.rounds, 'round')}"
    tasks = chosen.records[0].config.tasks
    gains = [gain for task in tasks.values() if math.isfinite(gain := _gain(task, chosen, groups))]
    if not gains:
        shown = {task: chosen.values(task.name, _split(task, [chosen]), task.metric) for task in tasks.values()}
        figures = [f"{task_title(t.name)} {metric_title(t.metric)} {number(mean(v))}" for t, v in shown.items()]
        return f"{chosen.label}: {', '.join(figures)}"
    won, of = sum(gain >= SAME for gain in gains), len(gains)
    if of == 1:
        where = ""
    elif won == of:
        where = " in both tasks" if of == 2 else f" in all {of} tasks"
    elif won == 0:
        where = " in either task" if of == 2 else f" in any of {of} tasks"
    else:
        where = f" in {won} of {of} tasks"
    verb = "beats" if won else "does not beat"
    return f"One model trained together {verb} the average hospital training alone{where}"


def _warnings(groups: Sequence[Group]) -> list[str]:
    """Return what a reader must know before believing a figure."""
    found = []
    for group in groups:
        lines = [line for record in group.records for line in record.rounds]
        if not group.finished:
            rounds, of = len(group.records[0].rounds), group.records[0].config.rounds
            found.append(
                f"{group.label}: stopped, or still running, after round {rounds} of {of}. Its figures are those of the "
                "last evaluated round, not of a chosen one."
            )
        if failures := [failure for line in lines for failure in line["failures"]]:
            where = listed(sorted({failure["site"] for failure in failures}))
            found.append(f"{group.label}: {count(len(failures), 'failure')} at {where}; see Rounds.")
    if keys := [key for key in differing(group.records[0] for group in groups) if key != "strategy"]:
        found.append(f"The runs differ in more than strategy and seed: {listed(keys)}. A difference may come of these.")
    sites = [record.sites for group in groups for record in group.records]
    if any(other != sites[0] for other in sites):
        found.append("The runs are not all of the same hospitals with the same images.")
    return found


def _notes(groups: Sequence[Group]) -> list[str]:
    splits = {_split(task, groups) for task in all_tasks(groups).values()}
    repeated = [len(group.records) > 1 for group in groups]
    notes = ["Higher is better; the best is bold."]
    if "test" in splits:
        notes.insert(0, "Figures are of test images that no hospital trained on and no choice went by.")
    if "validation" in splits:
        notes.insert(0, "Without test figures, those of the hospitals' own validation images are shown.")
    if any(repeated):
        notes.append("± is the standard deviation over seeds.")
    if not all(repeated):
        notes.append("A single run cannot tell a small difference from chance; more seeds can.")
    if any(group.alone for group in groups):
        notes.append("A hospital alone trains for as many rounds, on its own images only.")
    return notes


def _split(task: Task, groups: Sequence[Group]) -> str:
    """Return whose images a task's figures are of: the test images, or the hospitals' own if there are none."""
    return "test" if any(group.values(task.name, "test", task.metric) for group in groups) else "validation"


def _alone(chosen: Group, groups: Sequence[Group]) -> Group | None:
    """Return the sites that trained alone under the settings nearest to the chosen group's, if any did."""
    found = [group for group in groups if group.alone and group.finished]
    return min(found, key=lambda group: len(differing([chosen.records[0], group.records[0]])), default=None)


def _untrained(task: str, metric: str, chosen: Group, groups: Sequence[Group]) -> list[float]:
    others = (value for group in groups for value in group.values(task, "untrained", metric))
    return chosen.values(task, "untrained", metric) or list(others)


def _gain(task: Task, chosen: Group, groups: Sequence[Group]) -> float:
    """Return by how much the chosen group is better than the average site on its own; NaN if none trained alone."""
    alone, split = _alone(chosen, groups), _split(task, groups)
    if alone is None or chosen.alone:
        return math.nan
    return mean(chosen.values(task.name, split, task.metric)) - mean(alone.values(task.name, split, task.metric))


def _card(task: Task, groups: Sequence[Group]) -> Html:
    """Return a task's figure, what it means, and the table behind it."""
    chosen = headline_group(groups)
    figure = number(mean(chosen.values(task.name, _split(task, groups), task.metric)))
    what = tag("small", f"{metric_title(task.metric)}, {chosen.label}")
    return tag(
        "section",
        tag("h2", task_title(task.name), " ", tag("small", f"{task.kind}: {', '.join(task.classes)}")),
        tag("p", figure, " ", what, class_="figure"),
        tag("p", _claim(task, chosen, groups), class_="claim"),
        _table(task, chosen, groups),
        class_="card",
    )


def _claim(task: Task, chosen: Group, groups: Sequence[Group]) -> Html:
    """Say what the federation gains or loses, over sites alone and over the untrained model."""
    split, metric = _split(task, groups), task.metric
    values, alone, parts, best = chosen.values(task.name, split, metric), _alone(chosen, groups), [], ""
    gain = _gain(task, chosen, groups)
    if alone is not None and math.isfinite(gain):
        parts.append(_difference(gain, "a hospital training alone"))
        if any(abs(gain) <= deviation(v) for v in (values, alone.values(task.name, split, metric))):  # NaN of one run
            parts.append(escape("which is within the spread of the seeds"))
        # A mean hides that some sites do well on their own, and those should know.
        if own := alone.per_site(task.name, metric):
            beaten, top = sum(mean(values) - value >= SAME for value in own.values()), max(own, key=lambda s: own[s])
            parts[0] = join([parts[0], f" (better than {beaten} of {len(own)})"])
            best = f" The best one alone, {top}, reaches {number(own[top])}." if beaten < len(own) else ""
    untrained = mean(_untrained(task.name, metric, chosen, groups))
    if values and split == "test" and math.isfinite(untrained):
        parts.append(_difference(mean(values) - untrained, "the untrained model"))
    return join([join(parts, ", "), ".", best]) if parts else escape("")


def _difference(gain: float, other: str) -> Html:
    if abs(gain) < SAME:
        return escape(f"level with {other}")
    amount = f"+{number(gain)}" if gain > 0 else number(-gain)
    return join([tag("strong", amount), " over " if gain > 0 else " below ", other])


def _table(task: Task, chosen: Group, groups: Sequence[Group]) -> Html:
    """Return a task's table, a row a group, with a drawing of the first metric run by run or site by site."""
    split, metrics = _split(task, groups), METRICS_OF_KIND[task.kind]
    rows = []  # name, colour, values by metric, dots
    for group in groups:
        own, values = group.per_site(task.name, task.metric), {m: group.values(task.name, split, m) for m in metrics}
        name = [chip(group.colour), group.label]
        if own:
            name.append(tag("small", f"mean of {len(own)}: {number(min(own.values()))} to {number(max(own.values()))}"))
        if len(group.records) > 1:
            name.append(tag("small", f"{group.repeats} seeds"))
        rows.append((join(name), group.colour, values, list(own.values()) or values[task.metric]))
    if split == "test" and (level := _untrained(task.name, task.metric, chosen, groups)):
        values = {m: _untrained(task.name, m, chosen, groups) for m in metrics}
        rows.append((join([chip(PALE), "Untrained model"]), PALE, values, level))
    low, high = _scale([dot for *_, dots in rows for dot in dots])
    best = {m: max((round(mean(v[m]), 3) for _, _, v, _ in rows if v[m]), default=math.nan) for m in metrics}
    body = [
        [name, strip(dots, mean(values[task.metric]), low, high, colour), *(_cell(values[m], best[m]) for m in metrics)]
        for name, colour, values, dots in rows
    ]
    scale = tag("span", tag("span", f"{low:.2f}"), tag("span", f"{high:.2f}"))
    count = chosen.records[0].summary.get("tasks", {}).get(task.name, {}).get("test_images")
    images = f"{count} test images" if split == "test" and count else f"{split.capitalize()} images"
    return table([images, scale, *map(metric_title, metrics)], body, "numbers verdict")


def _scale(points: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a scale, in steps of 0.05, that holds all points."""
    low, high = math.floor(min(points, default=0) * 20) / 20, math.ceil(max(points, default=1) * 20) / 20
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def _cell(values: Sequence[float], best: float) -> Html:
    text = number(mean(values))
    figure = tag("strong", text) if values and round(mean(values), 3) == best else escape(text)
    return join([figure, tag("small", f"±{number(deviation(values))}")]) if len(values) > 1 else figure
