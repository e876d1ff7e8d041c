"""The first screen: what came out, beside a hospital on its own and the untrained model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..tasks.specs import LOWER_IS_BETTER
from ..tasks.task import Task
from .charts import strip
from .figures import digits, direction, gain, heading, metric_title, same, scale, unit, written
from .html import Html, chip, count, escape, join, listed, table, tag, task_title, with_minus
from .models import SINGLE, models, said_over_single
from .records import COMPARED, Group, all_tasks, compared, deviation, differing, mean, split_of

PALE = "#b5bdc8"
IN_A_LINE = 4  # tasks whose figures a headline has room for


def headline_group(groups: Sequence[Group]) -> Group:
    """Return the group that the headline is about: finished, federated, one model, most tasks, best on validation.

    Validation, as in the choice of a round: a choice that went by the test images would flatter its figures.
    """

    def rank(group: Group) -> tuple[bool, bool, bool, int, int, float]:
        tasks = group.records[0].config.tasks
        scores = [task.score(mean(group.values(name, "validation", task.metric))) for name, task in tasks.items()]
        known = [score for score in scores if math.isfinite(score)]
        best = mean(known) if known else -math.inf
        return group.finished, not group.alone, not _apart(group), len(tasks), len(known), best

    return max(groups, key=rank)


def _apart(group: Group) -> bool:
    """Say whether each of several tasks has a model to itself."""
    config = group.records[0].config
    return config.model == SINGLE and len(config.tasks) > 1


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
            models(groups),
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
    gains = {task: gained for task in tasks.values() if math.isfinite(gained := _gain(task, chosen, groups))}
    if not gains:
        if said := said_over_single(chosen, groups):
            return said
        if len(tasks) > IN_A_LINE:
            how = ", a model each" if _apart(chosen) else "" if chosen.alone else " trained together"
            return f"{chosen.label}: {len(tasks)} tasks{how}"
        shown = {task: chosen.values(task.name, split_of(task, [chosen]), task.metric) for task in tasks.values()}
        figures = [f"{task_title(t.name)} {metric_title(t.metric)} {_with_unit(mean(v), t)}" for t, v in shown.items()]
        return f"{chosen.label}: {', '.join(figures)}"
    won, of = sum(gained >= same(task, task.metric) for task, gained in gains.items()), len(gains)
    if of == 1:
        where = ""
    elif won == of:
        where = " in both tasks" if of == 2 else f" in all {of} tasks"
    elif won == 0:
        where = " in either task" if of == 2 else f" in any of {of} tasks"
    else:
        where = f" in {won} of {of} tasks"
    verb = "beats" if won else "does not beat"
    model = "A model for each task, trained together," if _apart(chosen) else "One model trained together"
    return f"{model} {verb} the average hospital training alone{where}"


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
    firsts = [group.records[0] for group in groups]
    if keys := [key for key in differing(firsts) if key not in COMPARED]:
        told = listed([*compared(firsts), "seed"])
        found.append(f"The runs differ in more than {told}: {listed(keys)}. A difference may come of these.")
    sites = [record.sites for group in groups for record in group.records]
    if any(other != sites[0] for other in sites):
        found.append("The runs are not all of the same hospitals with the same images.")
    return found


def _notes(groups: Sequence[Group]) -> list[str]:
    tasks = all_tasks(groups).values()
    splits = {split_of(task, groups) for task in tasks}
    repeated = [len(group.records) > 1 for group in groups]
    falls = LOWER_IS_BETTER & {metric for task in tasks for metric in task.metrics}
    notes = ["Higher is better, but for what is marked ↓, where lower is; the best is bold."]
    if not falls:
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


def _with_unit(value: float, task: Task) -> str:
    """Return the figure of the metric that choices go by."""
    return f"{written(value, task, task.metric)} {unit(task, task.metric)}".rstrip()


def _alone(chosen: Group, groups: Sequence[Group]) -> Group | None:
    """Return the sites that trained alone under the settings nearest to the chosen group's, if any did."""
    found = [group for group in groups if group.alone and group.finished]
    return min(found, key=lambda group: len(differing([chosen.records[0], group.records[0]])), default=None)


def _untrained(task: str, metric: str, chosen: Group, groups: Sequence[Group]) -> list[float]:
    others = (value for group in groups for value in group.values(task, "untrained", metric))
    return chosen.values(task, "untrained", metric) or list(others)


def _gain(task: Task, chosen: Group, groups: Sequence[Group]) -> float:
    """Return by how much the chosen group is better than the average site on its own; NaN if none trained alone.

    NaN without test images too: sites that train alone are validated each by its own images, which is easier.
    """
    alone, split = _alone(chosen, groups), split_of(task, groups)
    if alone is None or chosen.alone or split != "test":
        return math.nan
    together, by_itself = (mean(group.values(task.name, split, task.metric)) for group in (chosen, alone))
    return gain(together, by_itself, task.metric)


def _card(task: Task, groups: Sequence[Group]) -> Html:
    """Return a task's figure, what it means, and the table behind it."""
    chosen = headline_group(groups)
    figure = _with_unit(mean(chosen.values(task.name, split_of(task, groups), task.metric)), task)
    told = [metric_title(task.metric), direction(task.metric), chosen.label]
    return tag(
        "section",
        tag("h2", task_title(task.name), " ", tag("small", f"{task.kind}: {', '.join(task.classes)}")),
        tag("p", figure, " ", tag("small", ", ".join(filter(None, told))), class_="figure"),
        tag("p", _claim(task, chosen, groups), class_="claim"),
        _table(task, chosen, groups),
        class_="card",
    )


def _claim(task: Task, chosen: Group, groups: Sequence[Group]) -> Html:
    """Say what the federation gains or loses, over sites alone and over the model before training."""
    split, metric = split_of(task, groups), task.metric
    values, alone, parts, best = chosen.values(task.name, split, metric), _alone(chosen, groups), [], ""
    gained = _gain(task, chosen, groups)
    if alone is not None and math.isfinite(gained):
        parts.append(_difference(gained, task, "a hospital training alone"))
        if any(abs(gained) <= deviation(v) for v in (values, alone.values(task.name, split, metric))):  # NaN of one run
            parts.append(escape("which is within the spread of the seeds"))
        # A mean hides that some sites do well on their own, and those should know.
        if own := alone.per_site(task.name, metric):
            beaten = sum(gain(mean(values), value, metric) >= same(task, metric) for value in own.values())
            top = max(own, key=lambda site: gain(own[site], 0, metric))
            parts[0] = join([parts[0], f" (better than {beaten} of {len(own)})"])
            best = f" The best one alone, {top}, reaches {_with_unit(own[top], task)}." if beaten < len(own) else ""
    untrained = mean(_untrained(task.name, metric, chosen, groups))
    if values and split == "test" and math.isfinite(untrained):
        parts.append(_difference(gain(mean(values), untrained, metric), task, "the model before training"))
    said = join(parts, ", ")
    return join([Html(said[:1].upper() + said[1:]), ".", best]) if parts else escape("")


def _difference(gained: float, task: Task, other: str) -> Html:
    """Say a difference from another figure: of what is better when higher as a gain, else as so much less or more."""
    if abs(gained) < same(task, task.metric):
        return escape(f"level with {other}")
    amount, falls = _with_unit(abs(gained), task), task.metric in LOWER_IS_BETTER
    words = ("less than", "more than") if falls else ("over", "below")
    sign = "+" if gained > 0 and not falls else ""
    return join([tag("strong", sign + amount), f" {words[gained < 0]} ", other])


def _table(task: Task, chosen: Group, groups: Sequence[Group]) -> Html:
    """Return a task's table, a row a group, with a drawing of the first metric run by run or site by site."""
    split, metrics = split_of(task, groups), task.metrics
    rows = []  # name, colour, values by metric, dots
    for group in groups:
        own, values = group.per_site(task.name, task.metric), {m: group.values(task.name, split, m) for m in metrics}
        name = [chip(group.colour), group.label]
        if own:
            least, most = (written(end(own.values()), task, task.metric) for end in (min, max))
            name.append(tag("small", f"mean of {len(own)}: {least} to {most}"))
        if len(group.records) > 1:
            name.append(tag("small", f"{group.repeats} seeds"))
        rows.append((join(name), group.colour, values, list(own.values()) or values[task.metric]))
    if split == "test" and (level := _untrained(task.name, task.metric, chosen, groups)):
        values = {m: _untrained(task.name, m, chosen, groups) for m in metrics}
        rows.append((join([chip(PALE), "Before training"]), PALE, values, level))
    low, high = scale([dot for *_, dots in rows for dot in dots], task.metric)
    best = {
        m: max((mean(v[m]) for _, _, v, _ in rows if v[m]), key=lambda x: gain(x, 0, m), default=math.nan)
        for m in metrics
    }
    shown = digits(task, task.metric)
    body = [
        [
            name,
            strip(dots, mean(values[task.metric]), low, high, colour, shown),
            *(_cell(values[m], best[m], task, m) for m in metrics),
        ]
        for name, colour, values, dots in rows
    ]
    ends = (f"{end:g}" if unit(task, task.metric) or task.range else f"{end:.2f}" for end in (low, high))
    across = tag("span", *(tag("span", with_minus(end)) for end in ends))
    count = chosen.records[0].summary.get("tasks", {}).get(task.name, {}).get("test_images")
    images = f"{count} test images" if split == "test" and count else f"{split.capitalize()} images"
    return table([images, across, *(heading(task, m) for m in metrics)], body, "numbers verdict")


def _cell(values: Sequence[float], best: float, task: Task, metric: str) -> Html:
    text = written(mean(values), task, metric)
    figure = tag("strong", text) if values and text == written(best, task, metric) else escape(text)
    spread = tag("small", f"±{written(deviation(values), task, metric)}")
    return join([figure, spread]) if len(values) > 1 else figure
