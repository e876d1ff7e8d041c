"""Details of a run: the sites' data, the cost of rounds, failures, settings and environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..config import defaults, flatten
from ..tasks.task import Task
from .charts import stacked_bar
from .html import Html, chip, escape, fold, join, number, table, tag, task_title
from .records import Group, RunContents

DARK, LIGHT = (0x33, 0x41, 0x55), (0xC3, 0xCE, 0xDB)  # slate, which no strategy uses


def shades(amount: int) -> list[str]:
    """Return ``amount`` shades from dark to light: one for each class of a task."""
    steps = [i / max(amount - 1, 1) for i in range(amount)]
    mixed = [[round(dark + (light - dark) * step) for dark, light in zip(DARK, LIGHT, strict=True)] for step in steps]
    return ["#" + bytes(colour).hex() for colour in mixed]


def sites(run: RunContents) -> Html:
    """Return a table with a bar of each site's labelled images for each task."""
    if not run.sites:
        return escape("")
    tasks = run.config.tasks
    total: Counter[str] = Counter()
    for site in run.sites:
        total.update(site["counts"])
    longest = {name: max(site["counts"].get(f"train.{name}", 0) for site in run.sites) for name in tasks}
    rows = []
    for site in [*run.sites, {"key": tag("em", "All"), "counts": total}]:
        # The total has no bar: the bars of the hospitals would become too short to compare.
        widths = dict.fromkeys(tasks, 0) if site["counts"] is total else longest
        rows.append([_site_name(site), *(_images(site["counts"], task, widths[name]) for name, task in tasks.items())])
    header = [_task_header(task, bool(_classes(total, task))) for task in tasks.values()]
    note = tag("p", "Labelled images for training, and those held out for validation.", class_="note")
    return join([note, table(["Hospital", *header], rows, "holds")])


def _site_name(site: dict[str, Any]) -> Html:
    """Return a site's key and the other facts that it reported about itself."""
    # The number of simulated sites is not a fact about this one.
    facts = [f"{key} {value}" for key, value in site.get("about", {}).items() if key != "num-partitions"]
    return join([site["key"], tag("div", tag("small", ", ".join(facts))) if facts else ""])


def _task_header(task: Task, shared: bool) -> Html:
    """Return a task's name, with the shades of its classes if the sites share class counts."""
    classes = zip(task.classes, shades(len(task.classes)), strict=True) if shared else ()
    keys = (tag("span", chip(colour, "square"), name, class_="key") for name, colour in classes)
    return join([task_title(task.name), *keys])


def _images(counts: Mapping[str, float], task: Task, longest: float) -> Html:
    train, validation = counts.get(f"train.{task.name}", 0), counts.get(f"validation.{task.name}", 0)
    if not train and not validation:
        return tag("span", "–", class_="note")
    classes = _classes(counts, task)
    parts = [(k, classes.get(k, 0.0)) for k in task.classes] if classes else [("training images", train)]
    bar = stacked_bar(parts, longest, shades(len(parts))) if longest else escape("")
    by_class = f"({', '.join(f'{amount:,.0f} {k}' for k, amount in parts)}) " if classes else ""
    return join([bar, f"{train:,.0f} ", tag("small", by_class, f"+ {validation:,.0f} validation")])


def _classes(counts: Mapping[str, float], task: Task) -> dict[str, float]:
    """Return the number of training images by class, if images have a single class and the site shares counts."""
    if not task.spec.by_class:
        return {}
    return {k: counts[f"class.{task.name}.{k}"] for k in task.classes if f"class.{task.name}.{k}" in counts}


def rounds(groups: Sequence[Group]) -> Html:
    """Return the cost of the rounds of every run, and the failures."""
    header = ["Run", "Rounds", "Chosen round", "Minutes", "Seconds per round", "Training seconds per round"]
    header += ["MB down per round", "MB up per round", "Answers", "Failures"]
    rows = [_costs(g, run) for g in groups for run in g.runs]
    parts = [table(header, rows, "numbers")]
    if any(g.alone for g in groups):
        parts.append(tag("p", "Hospitals that train alone exchange no weights, so no bytes are shown.", class_="note"))
    parts.extend(_failures(_run_name(g, run), run) for g in groups for run in g.runs)
    tables = ((tag("h3", _run_name(g, run)), _every_round(g, run)) for g in groups for run in g.runs)
    return join([*parts, fold("Every round", *(part for pair in tables for part in pair))])


def _run_name(group: Group, run: RunContents) -> str:
    return group.label if len(group.runs) == 1 else f"{group.label}, seed {run.config.seed}"


def _costs(group: Group, run: RunContents) -> list[object]:
    lines, status = run.rounds, run.summary.get("stopped", "") if run.finished else "not finished"
    name = join([chip(group.colour), _run_name(group, run), tag("div", tag("small", status))])
    asked, answered = (sum(line[key] for line in lines) for key in ("asked", "answered"))
    seconds = [number(fmean(line[key] for line in lines), 1) for key in ("seconds", "train_seconds")]
    minutes = number(sum(line["seconds"] for line in lines) / 60, 1)
    traffic = [_megabytes(group, fmean(line[key] for line in lines)) for key in ("bytes_down", "bytes_up")]
    chosen = run.summary["chosen_round"] if run.finished else "–"
    failures = sum(len(line["failures"]) for line in lines)
    return [name, len(lines), chosen, minutes, *seconds, *traffic, f"{answered:,} of {asked:,}", failures]


def _every_round(group: Group, run: RunContents) -> Html:
    header = ["Round", "Seconds", "Training", "MB down", "MB up", "Steps", "Learning rate", "Answers", "Failures"]
    rows = [
        [
            line["round"],
            *(number(line[key], 1) for key in ("seconds", "train_seconds")),
            *(_megabytes(group, line[key]) for key in ("bytes_down", "bytes_up")),
            f"{line['steps']:,.0f}",
            f"{line['learning_rate']:.2e}",
            f"{line['answered']} of {line['asked']}",
            len(line["failures"]),
        ]
        for line in run.rounds
    ]
    return table(header, rows, "numbers")


def _megabytes(group: Group, size: float) -> str:
    return "–" if group.alone else number(size / 1e6, 1)


def _failures(name: str, run: RunContents) -> Html:
    """Return a run's failures; repeated failures of a site for the same reason are one entry."""
    by_reason: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for failure in (failure for line in run.rounds for failure in line["failures"]):
        by_reason.setdefault((failure["site"], failure["action"], failure["reason"]), []).append(failure)
    items = []
    for (site, action, reason), failures in by_reason.items():
        numbers = list(dict.fromkeys(str(failure["server_round"]) for failure in failures))
        where = f" in round{'s' * (len(numbers) > 1)} {', '.join(numbers)}, {action}: "
        trace = next((failure["traceback"] for failure in failures if failure.get("traceback")), "")
        folded = fold("Traceback", tag("pre", trace)) if trace else ""
        items.append(tag("li", tag("strong", site), where, tag("code", reason), folded))
    return join([tag("h3", f"{name}: failures"), tag("ul", *items)]) if items else escape("")


def settings(groups: Sequence[Group]) -> Html:
    """Return settings that differ from the defaults, all settings, and the environment, each folded."""
    runs = [run for g in groups for run in g.runs]
    flat = [flatten(run.config) for run in runs]
    names = [_run_name(g, run) for g in groups for run in g.runs]
    default = defaults()
    keys = list(dict.fromkeys(key for config in flat for key in config))
    changed = [key for key in keys if any(config.get(key) != default.get(key) for config in flat)]
    changed.sort(key=lambda key: len({config.get(key) for config in flat}) == 1)  # differing settings first
    folders = []
    for name, run in zip(names, runs, strict=True):
        command = tag("code", " ".join(run.environment.get("command", [])))
        folders.append([name, run.folder.name, run.environment.get("started", ""), command])
    parts = [fold("Settings that differ from the defaults", _compared(changed, names, flat))]
    parts.append(fold("All settings", _compared(keys, names, flat)))
    parts.append(fold("Versions and machine", _environment(runs, names)))
    return join([*parts, fold("Folders and commands", table(["Run", "Folder", "Started", "Command"], folders))])


def _compared(keys: Sequence[str], names: Sequence[str], values: Sequence[Mapping[str, object]]) -> Html:
    """Return a table of keys with a column per run, or a single column if the runs do not differ."""
    rows = [[_text(settings.get(key, "–")) for settings in values] for key in keys]
    is_constant = [len(set(row)) == 1 for row in rows]
    if all(is_constant):
        header, rows = ["", "All runs" if len(names) > 1 else names[0]], [row[:1] for row in rows]
    else:
        header = ["", *names]
    cells = ([cell if c else tag("strong", cell) for cell in row] for row, c in zip(rows, is_constant, strict=True))
    return table(header, [[tag("code", key), *row] for key, row in zip(keys, cells, strict=True)])


def _environment(runs: Sequence[RunContents], names: Sequence[str]) -> Html:
    machine = ("python", "platform", "processor", "cores")
    environments = [
        {"parameters of the model": run.summary.get("parameters", "–")}
        | {key: run.environment.get(key, "–") for key in machine}
        | run.environment.get("versions", {})
        for run in runs
    ]
    keys = list(dict.fromkeys(key for environment in environments for key in environment))
    return _compared(keys, names, environments)


def _text(value: object) -> str:
    return "yes" if value is True else "no" if value is False else str(value) if value != "" else "(none)"
