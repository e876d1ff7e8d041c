"""The record's plain side: who holds what, what the rounds cost, what failed, and how it was set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .config import KEYS, Config, flatten
from .report_charts import stacked_bar
from .report_html import Html, chip, count, escape, fold, join, listed, number, table, tag
from .report_runs import Group, Record
from .tasks import Task

DARK, LIGHT = (0x33, 0x41, 0x55), (0xC3, 0xCE, 0xDB)  # slate, which is no strategy's colour


def shades(amount: int) -> list[str]:
    """Return so many shades from dark to light: the classes of a task."""
    steps = [i / max(amount - 1, 1) for i in range(amount)]
    return ["#" + "".join(f"{round(d + (bright - d) * step):02x}" for d, bright in zip(DARK, LIGHT, strict=True)) for step in steps]


def sites(record: Record) -> Html:
    """Return who holds how many images of which task, as bars within a table."""
    if not record.sites:
        return escape("")
    tasks = record.config.tasks
    longest = {name: max(site["counts"].get(f"train.{name}", 0) for site in record.sites) for name in tasks}
    rows: list[list[object]] = [
        [site["key"], *(_holding(site["counts"], task, longest[name]) for name, task in tasks.items())] for site in record.sites
    ]
    sums = {key: sum(site["counts"].get(key, 0) for site in record.sites) for key in {k for s in record.sites for k in s["counts"]}}
    rows.append([tag("em", "All"), *(_holding(sums, task, 0) for task in tasks.values())])
    legends = [
        tag("p", tag("strong", name), " ", *(part for k, colour in zip(task.classes, shades(len(task.classes)), strict=True)
                                             for part in (chip(colour, "square"), k, " ")), class_="note")
        for name, task in tasks.items() if any(_classes(site["counts"], task) for site in record.sites)
    ]
    told = [(site["key"], {k: v for k, v in site.get("about", {}).items() if k != "num-partitions"}) for site in record.sites]
    about = [tag("p", f"{key}: " + ", ".join(f"{k} {v}" for k, v in more.items()), class_="note") for key, more in told if more]
    note = tag("p", "Images with a label that a hospital trains on, and those it keeps for validation.", class_="note")
    return join([note, *legends, table(["Hospital", *tasks], rows, "holds"), *about])


def _holding(counts: dict[str, float], task: Task, longest: float) -> Html:
    train, validation = counts.get(f"train.{task.name}", 0), counts.get(f"validation.{task.name}", 0)
    if not train and not validation:
        return tag("span", "–", class_="note")
    classes = _classes(counts, task)
    parts = [(k, classes.get(k, 0.0)) for k in task.classes] if classes else [("training images", train)]
    bar = stacked_bar(parts, longest, shades(len(parts))) if longest else escape("")
    said = ", ".join(f"{amount:,.0f} {k}" for k, amount in parts) if classes else ""
    return join([bar, f"{train:,.0f} ", tag("small", f"({said}) " if said else "", f"+ {validation:,.0f} validation")])


def _classes(counts: dict[str, float], task: Task) -> dict[str, float]:
    return {k: counts[f"class.{task.name}.{k}"] for k in task.classes if f"class.{task.name}.{k}" in counts}


def rounds(groups: Sequence[Group]) -> Html:
    """Return what the rounds of every strategy cost, and the failures."""
    header = ["", "Rounds", "Chosen", "Seconds a round", "of them training", "MB down a round", "MB up a round", "Answers", "Failures"]
    rows = [_costs(g, record) for g in groups for record in g.records]
    parts = [table(header, rows, "numbers")]
    if any(g.alone for g in groups):
        parts.append(tag("p", "Hospitals that train alone need move nothing; no bytes are counted for them.", class_="note"))
    parts.extend(_failures(g) for g in groups)
    parts.extend(fold(f"Every round: {_run_name(g, record)}", _every_round(record)) for g in groups for record in g.records)
    return join(parts)


def _run_name(group: Group, record: Record) -> str:
    return group.label if len(group.records) == 1 else f"{group.label}, seed {record.config.seed}"


def _costs(group: Group, record: Record) -> list[object]:
    lines = record.rounds
    asked, answered = (sum(line[key] for line in lines) for key in ("asked", "answered"))
    moved = ["–", "–"] if group.alone else [_megabytes(sum(line[key] for line in lines) / len(lines)) for key in ("bytes_down", "bytes_up")]
    seconds = [number(sum(line[key] for line in lines) / len(lines), 1) for key in ("seconds", "train_seconds")]
    return [
        join([chip(group.colour), _run_name(group, record)]), len(lines), record.summary["chosen_round"] if record.finished else "–",
        *seconds, *moved, f"{answered:,} of {asked:,}", sum(len(line["failures"]) for line in lines),
    ]


def _every_round(record: Record) -> Html:
    header = ["Round", "Seconds", "Training", "MB down", "MB up", "Steps", "Learning rate", "Answers", "Failures"]
    return table(header, [
        [line["round"], number(line["seconds"], 1), number(line["train_seconds"], 1), _megabytes(line["bytes_down"]),
         _megabytes(line["bytes_up"]), f"{line['steps']:,.0f}", f"{line['learning_rate']:.2e}", f"{line['answered']} of {line['asked']}",
         len(line["failures"])] for line in record.rounds
    ], "numbers")


def _megabytes(size: float) -> str:
    return number(size / 1e6, 1)


def _failures(group: Group) -> Html:
    """Return a group's failures, those of one site for one reason as one."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in group.records:
        for line in record.rounds:
            for failure in line["failures"]:
                found.setdefault((failure["site"], failure["action"], failure["reason"]), []).append(failure)
    items = []
    for (site, action, reason), failures in found.items():
        numbers = list(dict.fromkeys(str(failure["server_round"]) for failure in failures))
        where = f" in round{'s' * (len(numbers) > 1)} {listed(numbers)}, {action}: "
        trace = next((failure["traceback"] for failure in failures if failure.get("traceback")), "")
        items.append(tag("li", tag("strong", site), where, tag("code", reason), fold("Traceback", tag("pre", trace)) if trace else ""))
    return join([tag("h3", f"{group.label}: what failed"), tag("ul", *items)]) if items else escape("")


def settings(groups: Sequence[Group]) -> Html:
    """Return the settings that differ from the defaults, all of them, and the machine and versions, each folded."""
    records = [record for g in groups for record in g.records]
    flat = [flatten(record.config) for record in records]
    names = [_run_name(g, record) for g in groups for record in g.records]
    defaults = {alias: Config.model_fields[name].default for alias, name in KEYS.items()}
    keys = list(dict.fromkeys(key for config in flat for key in config))
    changed = [key for key in keys if any(config.get(key) != defaults.get(key) for config in flat)]
    changed.sort(key=lambda key: len({config.get(key) for config in flat}) == 1)  # what tells the runs apart, first
    folders = [[name, record.folder.name, record.environment.get("started", ""), _command(record)] for name, record in zip(names, records, strict=True)]
    return join([
        fold("Settings that are not the default", _compared(changed, names, lambda i, key: flat[i].get(key, "–"))),
        fold("All settings", _compared(keys, names, lambda i, key: flat[i].get(key, "–"))),
        fold("Versions and machine", _environment(records, names)),
        fold(f"The {count(len(records), 'run')}: folders and commands", table(["Run", "Folder", "Started", "Command"], folders)),
    ])


def _compared(keys: Sequence[str], names: Sequence[str], value: Callable[[int, str], object]) -> Html:
    """Return a table of keys with a column a run, or one column for all where no run differs."""
    rows = [[tag("code", key), *(_shown(value(i, key)) for i in range(len(names)))] for key in keys]
    if all(len(set(row[1:])) == 1 for row in rows):
        return table(["", "all runs" if len(names) > 1 else names[0]], [row[:2] for row in rows])
    return table(["", *names], rows)


def _environment(records: Sequence[Record], names: Sequence[str]) -> Html:
    flat = [
        {k: v for k, v in record.environment.items() if k in {"python", "platform", "processor", "cores"}} | record.environment.get("versions", {})
        for record in records
    ]
    return _compared(list(dict.fromkeys(key for one in flat for key in one)), names, lambda i, key: flat[i].get(key, "–"))


def _shown(value: object) -> str:
    return "yes" if value is True else "no" if value is False else str(value) if value != "" else "(none)"


def _command(record: Record) -> Html:
    return tag("code", " ".join(record.environment.get("command", [])))
