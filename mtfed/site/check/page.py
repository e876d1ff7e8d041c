"""The page of a check: first what is wrong and where, then what the site contains. It loads no other files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.resources import files

from ...data.every_image import image_dimensions
from ...report.html import Html, count, escape, fold, join, page, table, tag
from .contents import SPLITS, class_counts, image_samples, image_statistics
from .drawing import draw_image
from .findings import CHECKS, Finding
from .occurrence import Occurrence
from .survey import Survey

VISIBLE_ROWS, MAX_ROWS = 8, 400  # occurrences of a finding that are visible at once, and that are listed at all
MAX_PICTURES = 6  # per finding; a pair counts as one


def render_page(survey: Survey, findings: list[Finding], app: str | None) -> str:
    """Return the HTML page about a site; ``app`` is the experiment whose tasks were used instead of the site file's."""
    eyebrow = f"{survey.data.key} · check of {survey.data.root.path} · this page stays at the site"
    body = [
        tag("p", eyebrow, class_="eyebrow"),
        _headline(survey, findings),
        _cards(survey, findings),
        _overview(findings),
        _section("Findings", join(_finding(survey, finding) for finding in findings)),
        _section("Labels", class_counts(survey)),
        _section("Images", image_statistics(survey)),
        _section("Sample images", image_samples(survey)),
        _section("What was checked", _checks(survey, findings, app)),
        tag(
            "footer",
            "Written by mtfed on this machine, from files on this machine. This page shows images of patients and file "
            "names. Nothing in it has been sent anywhere; please do not send it to anyone either.",
        ),
    ]
    style = (files(__package__) / "page.css").read_text("utf-8")
    return page(f"{survey.data.key}: check", *body, style=style)


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content) if content else escape("")


def _headline(survey: Survey, findings: list[Finding]) -> Html:
    """Return a heading and a sentence on whether the site can train."""
    severities = Counter(finding.check.severity for finding in findings)
    if severities["error"]:
        places = sum(len(finding.occurrences) for finding in findings if finding.check.severity == "error")
        title = f"{survey.data.key}: not ready to train"
        text = f"{count(severities['error'], 'error')} to correct, in {count(places, 'place')}. See the list below."
        return join([tag("h1", title), tag("p", text, class_="bad")])
    title = f"{survey.data.key}: ready to train"
    text = "No errors were found."
    if severities["warning"]:
        text += f" {count(severities['warning'], 'warning')} should be looked at by a person."
    return join([tag("h1", title), tag("p", text, class_="fine")])


def _cards(survey: Survey, findings: list[Finding]) -> Html:
    """Return the numbers of images, patients, tasks and errors."""
    severities = Counter(finding.check.severity for finding in findings)
    dimensions = {image_dimensions(row, survey.config) for row in survey.rows}
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for row, split in zip(survey.rows, survey.split, strict=True):
        patients[split].add(row.patient)
    patient_counts = {split: len(names) for split, names in patients.items()}
    cards = [
        (len(survey.rows), "volume" if dimensions == {3} else "image", _by_split(Counter(survey.split))),
        (len(survey.patients), "patient", _by_split(patient_counts)),
        (len(survey.config.tasks), "task", ", ".join(survey.config.tasks)),
        (severities["error"], "error", ", ".join(count(severities[name], name) for name in ("warning", "note"))),
    ]
    elements = []
    for amount, noun, note in cards:
        figure = tag("p", f"{amount:,} ", tag("small", noun + "s" * (amount != 1)), class_="figure")
        elements.append(tag("div", figure, tag("p", note, class_="note"), class_="card"))
    return tag("div", *elements, class_="figures")


def _by_split(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[split]:,} {name}" for split, name in SPLITS.items() if counts[split])


def _overview(findings: list[Finding]) -> Html:
    """Return a table of the findings: severity, title, number of occurrences, and the first of them."""
    rows = []
    for finding in findings:
        amount = len(finding.occurrences)
        link = tag("a", finding.check.title, href=f"#{finding.id}")
        others = f" and {amount - 1:,} more" if amount > 1 else ""
        rows.append((_badge(finding), link, f"{amount:,}", join([tag("code", finding.occurrences[0].name), others])))
    return table(("", "What", "How many", "Where"), rows, "overview") if rows else escape("")


def _badge(finding: Finding) -> Html:
    return tag("span", finding.check.severity, class_=f"badge is-{finding.check.severity}")


def _finding(survey: Survey, finding: Finding) -> Html:
    """Return a finding: its advice, all occurrences, and pictures if there are any."""
    occurrences = finding.occurrences
    rows = [(tag("code", occurrence.name), occurrence.detail) for occurrence in occurrences[:MAX_ROWS]]
    header = ("Where", "What") if any(occurrence.detail for occurrence in occurrences) else ("Where", "")
    parts: list[Html] = [
        tag("h3", _badge(finding), finding.check.title),
        tag("p", finding.check.advice),
        table(header, rows[:VISIBLE_ROWS], "sheet"),
    ]
    if len(rows) > VISIBLE_ROWS:
        omitted, hidden = len(occurrences) - len(rows), rows[VISIBLE_ROWS:]
        note = tag("p", f"and {omitted:,} more; --json writes all of them.", class_="note") if omitted else ""
        parts.append(fold(f"{len(occurrences) - VISIBLE_ROWS:,} more", table(header, hidden, "sheet"), note))
    parts.append(_pictures(survey, occurrences))
    return tag("section", *parts, class_=f"finding is-{finding.check.severity}", id=finding.id)


def _pictures(survey: Survey, occurrences: tuple[Occurrence, ...]) -> Html:
    """Return pictures that illustrate a finding: pairs side by side, others in a row."""
    pairs = [occurrence for occurrence in occurrences if len(occurrence.rows) == 2][:MAX_PICTURES]
    if pairs:
        figures = [
            tag("figure", tag("div", *(_picture(survey, n) for n in pair.rows)), tag("figcaption", pair.name))
            for pair in pairs
        ]
        return tag("div", *figures, class_="pairs")
    numbers = [number for occurrence in occurrences for number in occurrence.rows][:MAX_PICTURES]
    figures = [
        tag("figure", picture, tag("figcaption", survey.rows[number].image))
        for number in numbers
        if (picture := _picture(survey, number))
    ]
    return tag("div", *figures, class_="few") if figures else escape("")


def _picture(survey: Survey, number: int) -> Html:
    return draw_image(survey, number) if not survey.examined[number].fault else escape("")


def _checks(survey: Survey, findings: list[Finding], app: str | None) -> Html:
    """Return the tasks that were used, and all checks with the number of occurrences."""
    amounts = {finding.id: len(finding.occurrences) for finding in findings}
    checks = [(check.title, f"{amounts[id]:,}" if id in amounts else "none") for id, check in CHECKS.items()]
    tasks = [
        (task.name, task.kind, ", ".join(task.classes), " to ".join(f"{end:g}" for end in task.range))
        for task in survey.config.tasks.values()
    ]
    source = f"the experiment {app}" if app else "the site file"
    note = f"Every image and label was read once, in the same way as in training, with the tasks of {source}."
    return join([
        tag("p", note, class_="note"),
        table(("Task", "Kind", "Classes", "Range"), tasks),
        fold(f"All {len(CHECKS)} checks", table(("Check", "Found"), checks)),
    ])  # fmt: skip
