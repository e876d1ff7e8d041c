"""The first screen: what came out, beside a hospital on its own and the untrained model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .report_charts import strip
from .report_html import Html, chip, count, escape, join, listed, number, table, tag
from .report_runs import Group, deviation, differing, mean
from .tasks import METRICS_OF_KIND, Task

METRICS = {  # name on the page, and what it says
    "auc": ("AUC", "how often a sick image is scored above a healthy one; 1 is perfect, 0.5 is guessing"),
    "accuracy": ("Accuracy", "share of images whose most probable class is the true one"),
    "dice": ("Dice", "overlap of predicted and true area, twice the shared area over the sum of both; 1 is perfect"),
    "iou": ("IoU", "overlap of predicted and true area, the shared area over the area of either; 1 is perfect"),
}
SAME = 0.0005  # figures nearer than this are equal as shown


def metric_title(metric: str) -> str:
    """Return a metric's name as people write it."""
    return METRICS[metric][0] if metric in METRICS else metric


def task_title(task: str) -> str:
    """Return a task's name as a heading."""
    return task.replace("-", " ").replace("_", " ").capitalize()


def all_tasks(groups: Sequence[Group]) -> dict[str, Task]:
    """Return the tasks of all runs, in the order in which they are declared."""
    return {name: task for group in reversed(groups) for name, task in group.records[0].config.tasks.items()}


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


def split_of(task: Task, groups: Sequence[Group]) -> str:
    """Return whose images a task's figures are of: the test images, or the hospitals' own if there are none."""
    return "test" if any(group.values(task.name, "test", task.metric) for group in groups) else "validation"


def verdict(groups: Sequence[Group]) -> Html:
    """Return headline, notes and a card per task."""
    chosen = headline_group(groups)
    tasks = all_tasks(groups)
    cards = [_card(task, [group for group in groups if name in group.records[0].config.tasks]) for name, task in tasks.items()]
    return join([
        tag("h1", _headline(chosen, groups)), *_warnings(groups), tag("div", *cards, class_="cards"),
        *(tag("p", note, class_="note") for note in _notes(groups, tasks)),
    ])


def _headline(chosen: Group, groups: Sequence[Group]) -> str:
    if not chosen.finished:
        record = chosen.records[0]
        return f"Not finished: {len(record.rounds)} of {count(record.config.rounds, 'round')}"
    tasks = chosen.records[0].config.tasks
    gains = [_gain(task, chosen, groups) for task in tasks.values()]
    known = [gain for gain in gains if math.isfinite(gain)]
    if chosen.alone or not known:
        figures = [
            f"{task_title(name)} {metric_title(task.metric)} "
            + number(mean(chosen.values(name, split_of(task, [chosen]), task.metric))) for name, task in tasks.items()
        ]
        return f"{chosen.label}: {', '.join(figures)}"
    won, what = sum(gain >= SAME for gain in known), "one model trained together"
    where = "" if len(known) == 1 else f" in {'both' if len(known) == 2 else f'all {len(known)}'} tasks"
    if won == len(known):
        return f"{what} beats the average hospital training alone{where}".capitalize()
    if won:
        return f"{what} beats the average hospital training alone in {won} of {len(known)} tasks".capitalize()
    return f"{what} does not beat the average hospital training alone{where.replace('both', 'either').replace('all', 'any of')}".capitalize()


def _alone(groups: Sequence[Group]) -> Group | None:
    return next((group for group in groups if group.alone and group.finished), None)


def _gain(task: Task, chosen: Group, groups: Sequence[Group]) -> float:
    alone, split = _alone(groups), split_of(task, groups)
    if alone is None or chosen.alone:
        return math.nan
    return mean(chosen.values(task.name, split, task.metric)) - mean(alone.values(task.name, split, task.metric))


def _warnings(groups: Sequence[Group]) -> list[Html]:
    found = []
    for group in groups:
        if not group.finished:
            last, of = len(group.records[0].rounds), group.records[0].config.rounds
            found.append(f"{group.label}: stopped or still running after round {last} of {of}; its figures are of the last evaluated round.")
        failures = sum(len(line["failures"]) for record in group.records for line in record.rounds)
        if failures:
            names = sorted({f["site"] for record in group.records for line in record.rounds for f in line["failures"]})
            found.append(f"{group.label}: {count(failures, 'failure')} at {listed(names)}; see Rounds.")
    keys = [key for key in differing(group.records[0] for group in groups) if key != "strategy"]
    if keys:
        found.append(f"The runs differ in more than strategy and seed ({', '.join(keys)}), so in what a difference is due to.")
    sites = [record.sites for group in groups for record in group.records]
    if any(other != sites[0] for other in sites):
        found.append("Not all runs were of the same hospitals with the same images.")
    return [tag("p", text, class_="warn") for text in found]


def _notes(groups: Sequence[Group], tasks: dict[str, Task]) -> list[str]:
    notes = []
    splits = {split_of(task, groups) for task in tasks.values()}
    if "test" in splits:
        notes.append("Figures are of the test images, which no hospital trained on and no choice went by; higher is better, the best is bold.")
    if "validation" in splits:
        notes.append("Without test images, figures are of the hospitals' own validation images; a model that trained alone sees its own hospital's only.")
    if any(len(group.records) > 1 for group in groups):
        notes.append("± is the standard deviation over seeds.")
    if any(len(group.records) == 1 for group in groups):
        notes.append("One run a strategy does not tell a small difference from chance; repeat it with other seeds."
                     if all(len(group.records) == 1 for group in groups) else "Where there is one run, a small difference may be chance.")
    if _alone(groups):
        notes.append("A hospital alone trains on its own images only, as long as the federation does.")
    return [" ".join(notes)]


def _card(task: Task, groups: Sequence[Group]) -> Html:
    chosen, split = headline_group(groups), split_of(task, groups)
    metric = task.metric
    big = tag("p", number(mean(chosen.values(task.name, split, metric))), " ", tag("small", f"{metric_title(metric)}, {chosen.label}"), class_="figure")
    head = tag("h2", task_title(task.name), " ", tag("small", f"{task.kind}: {', '.join(task.classes)}"))
    return tag("section", head, big, tag("p", _claim(task, chosen, groups), class_="claim"), _table(task, groups), class_="card")


def _claim(task: Task, chosen: Group, groups: Sequence[Group]) -> Html:
    """Say what the federation gains or loses, over a hospital alone and over the untrained model."""
    split, metric = split_of(task, groups), task.metric
    values, parts = chosen.values(task.name, split, metric), []
    alone = _alone(groups)
    gain = _gain(task, chosen, groups)
    if alone is not None and math.isfinite(gain):
        said = [_difference(gain, "a hospital training alone")]
        # A range of hospitals tells more than their mean: some do well alone, and should know.
        if own := alone.per_site(task.name, metric):
            beaten = sum(mean(values) - value >= SAME for value in own.values())
            said.append(f" (better than {beaten} of {len(own)} hospitals' own models)")
        spreads = [deviation(values), deviation(alone.values(task.name, split, metric))]
        if any(abs(gain) <= spread for spread in spreads):  # NaN, of a single run, is never above
            said.append(", within the spread of the seeds")
        parts.append(join(said))
    untrained = mean([value for group in groups for value in group.values(task.name, "untrained", metric)])
    if values and split == "test" and math.isfinite(untrained):
        parts.append(_difference(mean(values) - untrained, "the untrained model"))
    return join([join(parts, ", "), "."]) if parts else escape("")


def _difference(gain: float, other: str) -> Html:
    if abs(gain) < SAME:
        return join(["level with ", other])
    return join([tag("strong", "+" if gain > 0 else "", number(gain) if gain > 0 else number(-gain)), " over " if gain > 0 else " below ", other])


def _table(task: Task, groups: Sequence[Group]) -> Html:
    """Return a task's table: a row a strategy, the spread of the first metric drawn beside its figures."""
    split, metrics = split_of(task, groups), METRICS_OF_KIND[task.kind]
    own = {group.label: group.per_site(task.name, task.metric) for group in groups}
    untrained = {m: [v for group in groups for v in group.values(task.name, "untrained", m)] for m in metrics}
    rows = [(group.label, group.colour, {m: group.values(task.name, split, m) for m in metrics}) for group in groups]
    shown = [list(own[label].values()) or values[task.metric] for label, _, values in rows]
    if split == "test" and untrained[task.metric]:
        rows.append(("Untrained model", "#b5bdc8", untrained))
        shown.append(untrained[task.metric][:1])
    best = {m: max((round(mean(values[m]), 3) for _, _, values in rows if values[m]), default=math.nan) for m in metrics}
    points = [point for row in shown for point in row]
    low, high = (math.floor(min(points) * 20) / 20, math.ceil(max(points) * 20) / 20) if points else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 0.05, high + 0.05)
    body = []
    for (label, colour, values), dots in zip(rows, shown, strict=True):
        name = [chip(colour), label]
        if sites := own.get(label):
            low_site, high_site = min(sites, key=lambda s: sites[s]), max(sites, key=lambda s: sites[s])
            name.append(tag("small", f"mean of {len(sites)}: {number(sites[low_site])} ({low_site}) to {number(sites[high_site])} ({high_site})"))
        elif label != "Untrained model" and any(len(group.records) > 1 for group in groups):
            name.append(tag("small", f"{next(group.repeats for group in groups if group.label == label)} seeds"))
        cells = [_cell(values[m], best[m], label != "Untrained model") for m in metrics]
        body.append([join(name), strip(dots, mean(values[task.metric]), low, high, colour), *cells])
    scale = tag("span", tag("span", f"{low:.2f}"), tag("span", metric_title(task.metric)), tag("span", f"{high:.2f}"))
    return table([split.capitalize() + " images", scale, *(metric_title(m) for m in metrics)], body, "numbers verdict")


def _cell(values: Sequence[float], best: float, spread: bool) -> Html:
    text = number(mean(values))
    figure = tag("strong", text) if values and round(mean(values), 3) == best else escape(text)
    return join([figure, tag("small", "±" + number(deviation(values)))]) if spread and len(values) > 1 else figure
