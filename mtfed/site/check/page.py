"""The page of a check: what is wrong and where, then what the site holds. A file that loads nothing, and stays here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ...report.html import Html, count, escape, fold, join, page, table, tag
from .contents import SPLITS, grid, images, labels
from .findings import CHECKS, Finding
from .survey import Survey, SurveyedImage
from .thumbnails import shown

FIRST, MOST = 8, 400  # things of a finding that are in sight, and that are listed at all
PICTURES = 6  # of a finding: rows of pictures
STYLE = """
.sheet th:first-child { width: 34%; overflow-wrap: anywhere; font-weight: 500 } .sheet td { overflow-wrap: anywhere }
.overview td:last-child { overflow-wrap: anywhere } .overview a { color: inherit }
.badge { display: inline-block; min-width: 5.2em; text-align: center; border-radius: 4px; padding: .05em .5em;
         font-size: .8rem; font-weight: 600; vertical-align: .1em; margin-right: .6em }
.badge.is-error { background: #b3261e; color: #fff } .badge.is-warning { background: #f6c177; color: #3d2600 }
.badge.is-note { background: #e3e8ee; color: #38434f }
.finding { margin: 1.5em 0; padding-left: 1em; border-left: 4px solid #e3e8ee; break-inside: avoid }
.finding.is-error { border-color: #b3261e } .finding.is-warning { border-color: #f6c177 } .finding h3 { margin-top: 0 }
.fine { border-left: 4px solid #00694b; background: #eef7f3; padding: .55em .9em; max-width: none }
.bad { border-left: 4px solid #b3261e; background: #fcefee; padding: .55em .9em; max-width: none }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px 22px; margin: .7em 0 }
.pairs figure > div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px }
.pairs svg, .few svg { display: block; width: 100%; height: auto; border-radius: 4px; background: #000 }
.few { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 12px; margin: .7em 0 }
.pairs figcaption, .few figcaption { overflow-wrap: anywhere; padding-top: .3em; font-size: .8rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; margin: 1em 0 }
.figures .card { padding: 12px 16px }
.counts { table-layout: fixed } .counts tr > :first-child { width: 26%; white-space: normal }
.counts tr > :last-child { width: 30% } .counts .class { padding-left: 1.2em; font-weight: 400 }
"""


def write_page(survey: Survey, found: list[Finding], app: str | None) -> str:
    """Return the page about a site."""
    body = [
        tag("style", Html(STYLE)),
        tag(
            "p", f"{survey.data.key} · check of {survey.data.root.path} · this page stays at the site", class_="eyebrow"
        ),
        _headline(survey, found),
        _figures(survey, found),
        _overview(found),
        _section("What was found", join(_finding(survey, one) for one in found)),
        _section("Labels", labels(survey)),
        _section("Images", images(survey)),
        _section("Some of the images", grid(survey)),
        _section("What was looked for", _checks(survey, found, app)),
        tag(
            "footer",
            "Written by mtfed on this machine, from files on this machine. It shows patients' images and names files: "
            "nothing of it has been sent anywhere, and it is not to be.",
        ),
    ]
    return page(f"{survey.data.key}: check", *body)


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content) if content else escape("")


def _headline(survey: Survey, found: list[Finding]) -> Html:
    """Say in a sentence whether the site can train."""
    by = Counter(one.check.severity for one in found)
    if by["error"]:
        wrong = sum(len(one.items) for one in found if one.check.severity == "error")
        title = f"{survey.data.key}: not ready to train"
        said = f"{count(by['error'], 'error')} to mend, in {count(wrong, 'place')}. The list below leads to each."
        return join([tag("h1", title), tag("p", said, class_="bad")])
    title = f"{survey.data.key}: ready to train"
    said = "No errors were found."
    if by["warning"]:
        said += f" {count(by['warning'], 'warning').capitalize()} a person should look at."
    return join([tag("h1", title), tag("p", said, class_="fine")])


def _figures(survey: Survey, found: list[Finding]) -> Html:
    by = Counter(one.check.severity for one in found)
    who: dict[str, set[str]] = {split: set() for split in SPLITS}
    for row, split in zip(survey.rows, survey.split, strict=True):
        who[split].add(row.patient)
    cards = [
        (len(survey.rows), "image" if survey.config.dimensions == 2 else "volume", _by_split(Counter(survey.split))),
        (len(survey.patients), "patient", _by_split({split: len(held) for split, held in who.items()})),
        (len(survey.config.tasks), "task", ", ".join(survey.config.tasks)),
        (by["error"], "error", f"{count(by['warning'], 'warning')}, {count(by['note'], 'note')}"),
    ]
    drawn = []
    for amount, noun, more in cards:
        figure = tag("p", f"{amount:,} ", tag("small", noun + "s" * (amount != 1)), class_="figure")
        drawn.append(tag("div", figure, tag("p", more, class_="note"), class_="card"))
    return tag("div", *drawn, class_="figures")


def _by_split(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[split]:,} {name}" for split, name in SPLITS.items() if counts[split])


def _overview(found: list[Finding]) -> Html:
    """Return what was found in a table: how bad, what, how often, and the first place."""
    rows = []
    for one in found:
        first = one.items[0].name
        more = f" and {len(one.items) - 1:,} more" if len(one.items) > 1 else ""
        link = tag("a", one.check.title, href=f"#{one.id}")
        rows.append((_badge(one), link, f"{len(one.items):,}", join([tag("code", first), more])))
    return table(("", "What", "How many", "Where"), rows, "overview") if rows else escape("")


def _badge(one: Finding) -> Html:
    return tag("span", one.check.severity, class_=f"badge is-{one.check.severity}")


def _finding(survey: Survey, one: Finding) -> Html:
    """Return a finding: what to do, every place, and pictures where they help."""
    rows = [(tag("code", item.name), item.said) for item in one.items[:MOST]]
    header = ("Where", "What") if any(item.said for item in one.items) else ("Where", "")
    parts: list[Html] = [
        tag("h3", _badge(one), one.check.title),
        tag("p", one.check.advice),
        table(header, rows[:FIRST], "sheet"),
    ]
    if len(rows) > FIRST:
        left = len(one.items) - len(rows)
        after = tag("p", f"and {left:,} more: --json writes all of them.", class_="note") if left else ""
        parts.append(fold(f"{len(rows) - FIRST:,} more", table(header, rows[FIRST:], "sheet"), after))
    parts.append(_item_pictures(survey, one.items))
    return tag("section", *parts, class_=f"finding is-{one.check.severity}", id=one.id)


def _item_pictures(survey: Survey, items: tuple[SurveyedImage, ...]) -> Html:
    """Return pictures of what a finding is about: pairs side by side, others in a row."""
    pairs = [item for item in items if len(item.images) == 2][:PICTURES]
    if pairs:
        figures = [tag("figure", tag("div", *(_shown(survey, n) for n in item.images)), tag("figcaption", item.name))
                   for item in pairs]  # fmt: skip
        return tag("div", *figures, class_="pairs")
    numbers = [n for item in items for n in item.images][:PICTURES]
    drawn = [(n, picture) for n in numbers if (picture := _shown(survey, n))]
    figures = [tag("figure", picture, tag("figcaption", survey.rows[n].image)) for n, picture in drawn]
    return tag("div", *figures, class_="few") if figures else escape("")


def _shown(survey: Survey, number: int) -> Html:
    return shown(survey, number) if not survey.examined[number].fault else escape("")


def _checks(survey: Survey, found: list[Finding], app: str | None) -> Html:
    """Return all that was looked for, and by which tasks and settings."""
    hit = {one.id: one for one in found}
    rows = [(check.title, f"{len(hit[name].items):,}" if name in hit else "nothing") for name, check in CHECKS.items()]
    config = survey.config
    settings = [
        (t.name, t.kind, ", ".join(t.classes), " to ".join(f"{n:g}" for n in t.range)) for t in config.tasks.values()
    ]
    source = f"the experiment {app}" if app else "the site file"
    read = f"Every image and label was read once, as training reads them, with the tasks of {source}."
    return join([
        tag("p", read, class_="note"),
        table(("Task", "Kind", "Classes", "Range"), settings),
        fold(f"All {len(CHECKS)} checks", table(("Looked for", "Found"), rows)),
    ])  # fmt: skip
