"""How far the tasks agree about the shared weights: a table of all pairs, and heat maps by layer and round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from .html import Html, count, escape, fold, join, number, table, tag, task_title
from .records import Group

NEGATIVE, POSITIVE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)  # orange and blue, distinguishable for the colour-blind
DEEPEST = 0.85  # share of the colour in the deepest cell, on which numbers can still be read
LIMITS = (0.05, 0.1, 0.2, 0.5, 1.0)  # possible ends of the colour scale
MAX_MAPS = 6  # pairs drawn by layer
MAX_COLUMNS = 24  # columns of a heat map; more rounds share one
WIDTH, LABELS, MEANS, ROW = 330, 92, 34, 12  # of a heat map, in units of its view box
Rounds = Mapping[int, float]  # round -> cosine, the mean over the runs
Layers = Mapping[str, Rounds]  # "all", part or layer -> its rounds
NOTE = (
    "How two tasks changed the shared weights in a round, compared as a cosine from −1 to 1: where it is orange, they "
    "pulled a layer in opposite directions, which is interference; where it is blue, in the same direction; where it "
    "is white, their changes had nothing in common. Hospitals that have both tasks are left out of a pair, because "
    "they would agree with themselves; a third task that both sides have raises the figure."
)


def agreement(groups: Sequence[Group], chosen: Group) -> Html:
    """Return the agreement of the headline group, and that of the others folded; nothing if no pair was compared."""
    ordered = [chosen, *(group for group in groups if group is not chosen)]
    pairs = {group.label: own for group in ordered if (own := pairs_of(group, "agreement"))}
    if not pairs:
        return escape("")
    weighted = {group.label: pairs_of(group, "weighted_agreement") for group in ordered}
    every_layer = [layers for own in pairs.values() for layers in own.values()]
    limit = _limit([abs(v) for layers in every_layer for rounds in layers.values() for v in rounds.values()])
    first, *others = pairs
    shown = _group(pairs[first], weighted[first], limit, MAX_MAPS)
    label = tag("p", first, ".", class_="note") if len(groups) > 1 else ""
    folded = (fold(f"The same, {name}", _group(pairs[name], weighted[name], limit, 1)) for name in others)
    return join([tag("p", NOTE, class_="note"), _scale(limit), label, shown, *folded])


def pairs_of(group: Group, key: str) -> dict[str, Layers]:
    """Return a key of ``rounds.jsonl`` by pair of tasks, layer and round, the mean over the group's runs."""
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    for line in (line for run in group.runs for line in run.rounds):
        for pair, layers in line.get(key, {}).items():
            for name, value in layers.items():
                values.setdefault(pair, {}).setdefault(name, {}).setdefault(line["round"], []).append(value)
    return {
        pair: {name: {r: fmean(own) for r, own in sorted(rounds.items())} for name, rounds in layers.items()}
        for pair, layers in values.items()
    }


def _group(pairs: Mapping[str, Layers], weighted: Mapping[str, Layers], limit: float, maps: int) -> Html:
    """Return the table of all pairs, if there are several, and the heat maps of those that agree least."""
    means = {pair: _means(layers)["all"] for pair, layers in pairs.items()}
    lowest = sorted(means, key=lambda pair: means[pair])[:maps]
    parts = [_table(means, limit)] if len(means) > 1 else []
    if len(lowest) < len(means):
        some = "The pair that agrees" if len(lowest) == 1 else f"The {len(lowest)} pairs that agree"
        parts.append(tag("p", f"{some} least, by layer; rounds.jsonl contains all pairs.", class_="note"))
    figures = []
    for pair in lowest:
        caption = f"{_title(pair)}: {_figure(means[pair])}"
        if by_precision := weighted.get(pair):
            caption += f", weighted by precision {_figure(_means(by_precision)['all'])}"
        figures.append(tag("figure", tag("figcaption", caption), _heat_map(pair, pairs[pair], limit)))
    return join([*parts, tag("div", *figures, class_="charts")])


def _table(means: Mapping[str, float], limit: float) -> Html:
    """Return a table of the mean over all rounds and shared weights, with tasks as rows and columns."""
    tasks = sorted({task for pair in means for task in pair.split(", ")})
    rows = []
    for task in tasks:
        values = [means.get(f"{task}, {other}", means.get(f"{other}, {task}")) for other in tasks]
        cells = ["" if other == task else _cell(value, limit) for other, value in zip(tasks, values, strict=True)]
        rows.append([task_title(task), *cells])
    return table(["", *map(task_title, tasks)], rows, "agreement")


def _cell(value: float | None, limit: float) -> Html:
    style = f"background:{_colour(value, limit)}" if value is not None else ""
    return tag("span", _figure(value), style=style)


def _heat_map(pair: str, layers: Layers, limit: float) -> Html:
    """Return a picture with a row for each layer and a column for each round, or for a few if there are many."""
    numbers = sorted({server_round for rounds in layers.values() for server_round in rounds})
    step = -(-len(numbers) // MAX_COLUMNS)
    columns = [numbers[i : i + step] for i in range(0, len(numbers), step)]
    width = (WIDTH - LABELS - MEANS) / len(columns)
    names = [name for name in layers if name != "encoder" or layers[name] != layers["all"]]
    marks, text = [], {"font_size": 9, "fill": "#5b6675"}
    for row, name in enumerate(names):
        y = row * ROW + (4 if row else 0)  # "all" stands apart
        marks.append(tag("text", _layer_title(name), x=LABELS - 5, y=y + 9, text_anchor="end", **text))
        for i, column in enumerate(columns):
            if known := [layers[name][r] for r in column if r in layers[name]]:
                x, fill = f"{LABELS + i * width:.1f}", _colour(fmean(known), limit)
                marks.append(tag("rect", x=x, y=y, width=f"{width - 0.6:.1f}", height=ROW - 1, fill=fill))
        mean = _figure(fmean(layers[name].values()))
        marks.append(tag("text", mean, x=WIDTH, y=y + 9, text_anchor="end", **text))
    bottom = len(names) * ROW + 14
    marks.append(tag("text", f"round {numbers[0]}", x=LABELS, y=bottom, **text))
    if len(columns) > 2:
        marks.append(tag("text", numbers[-1], x=WIDTH - MEANS, y=bottom, text_anchor="end", **text))
    marks.append(tag("text", "mean", x=WIDTH, y=bottom, text_anchor="end", **text))
    label = f"{_title(pair)}: agreement by layer and {count(len(numbers), 'round')}"
    return tag("svg", *marks, viewBox=f"0 0 {WIDTH} {bottom + 4}", role="img", aria_label=label)


def _scale(limit: float) -> Html:
    """Return the legend of the colours."""
    steps = [-1 + i / 8 for i in range(17)]
    marks = [tag("rect", x=8 * i, y=0, width=8, height=10, fill=_colour(s * limit, limit)) for i, s in enumerate(steps)]
    ends = (f"{number(-limit, 2)} opposite", f"{number(limit, 2)} same direction")
    bar = tag("svg", *marks, viewBox="0 0 136 10", aria_hidden="true", class_="colours")
    return tag("ul", tag("li", ends[0], " ", bar, " ", ends[1]), class_="legend")


def _colour(value: float, limit: float) -> str:
    """Return white for 0, and deeper orange or blue for values further below or above it."""
    depth = DEEPEST * min(abs(value) / limit, 1.0)
    end = NEGATIVE if value < 0 else POSITIVE
    return "#" + bytes(round(255 + (channel - 255) * depth) for channel in end).hex()


def _limit(sizes: Sequence[float]) -> float:
    """Return the end of the colour scale that nine in ten values do not pass, so that one does not pale the others."""
    usual = sorted(sizes)[9 * (len(sizes) - 1) // 10]
    return next((limit for limit in LIMITS if limit >= usual), LIMITS[-1])


def _means(layers: Layers) -> dict[str, float]:
    return {name: fmean(rounds.values()) for name, rounds in layers.items()}


def _figure(value: float | None) -> str:
    """Return a cosine with two decimals, without the sign of a negative zero."""
    return number(None if value is None else round(value, 2) + 0.0, 2)


def _title(pair: str) -> str:
    first, second = map(task_title, pair.split(", "))
    return f"{first} and {second[0].lower()}{second[1:]}"


def _layer_title(name: str) -> str:
    """Return a layer's name without the modules around it.

    >>> [_layer_title(name) for name in ("all", "encoder.body.blocks.3", "encoder.body.pos_embed", "input.ct")]
    ['all shared weights', 'block 3', 'pos embed', 'input ct']
    """
    if name == "all":
        return "all shared weights"
    name = name.removeprefix("encoder.").removeprefix("body.").replace("blocks.", "block ")
    name = name.replace("_", " ").replace(".", " ")
    return name if len(name) <= 20 else "…" + name[-19:]
