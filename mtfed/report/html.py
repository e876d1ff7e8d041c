"""Markup that is safe by construction: text is escaped unless it is markup already."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

CSS = """
:root { --ink: #1b2430; --soft: #5b6675; --line: #dde3ea; --pale: #f5f7f9; --link: #0b5394 }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
       "Helvetica Neue", "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums }
main { max-width: 1160px; margin: 0 auto; padding: 28px 24px 56px }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; margin: .1em 0 .3em; text-wrap: balance }
h2 { font-size: 1.3rem; margin: 2em 0 .5em; padding-top: .8em; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.5em 0 .4em }
p { margin: .4em 0; max-width: 80ch } p.note { max-width: 105ch }
.eyebrow { color: var(--soft); font-size: .9rem; margin: 0; max-width: none }
.note, figcaption, small { color: var(--soft) }
.note, figcaption { font-size: .88rem }
.warn { border-left: 4px solid #d55e00; background: #fdf3ec; padding: .55em .9em; max-width: none }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
         gap: 20px; margin: 1.1em 0 }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px 14px; min-width: 0; break-inside: avoid }
.card h2 { border: 0; padding: 0; margin: 0; font-size: 1rem; font-weight: 600 }
.card h2 small { font-weight: 400 }
.figure { font-size: 2.1rem; font-weight: 650; line-height: 1.15; margin: .15em 0 .1em; letter-spacing: -.01em }
.figure small { font-size: 1rem; font-weight: 400; letter-spacing: 0 }
.claim { min-height: 3em }
.scroll { overflow-x: auto; margin: .6em 0 }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
th, td { padding: .38em .6em; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom }
tbody th { font-weight: 500 }
tbody tr:last-child > * { border-bottom: 0 }
tr > :first-child { padding-left: 0 } tr > :last-child { padding-right: 0 }
.numbers td, .numbers thead th:not(:first-child) { text-align: right } .numbers td { white-space: nowrap }
.numbers:not(.verdict) tbody th { white-space: nowrap }
.verdict td, .verdict tbody th { vertical-align: middle }
.verdict small { display: block; font-weight: 400; font-size: .8rem; line-height: 1.3 }
.verdict tr > :nth-child(2) { width: 30% }
.verdict thead span { display: flex; justify-content: space-between; gap: .3em }
.verdict svg { display: block; width: 100%; height: auto; min-width: 60px; overflow: visible }
.chip { display: inline-block; width: .72em; height: .72em; border-radius: 50%; margin-right: .45em }
.chip.square { border-radius: 2px } .key { display: inline-block; margin-left: .8em }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; padding: 0; margin: .4em 0;
          list-style: none; font-size: .9rem }
.legend svg { width: 26px; height: 10px; margin-right: .45em; vertical-align: middle }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 6px 24px;
          margin: .6em 0 1.4em }
figure { margin: 0; min-width: 0; break-inside: avoid }
.charts svg { display: block; width: 100%; height: auto }
.charts svg text { font-family: inherit !important }
.images { display: grid; grid-template-columns: repeat(8, 1fr); gap: 14px 12px; margin: .7em 0 }
.images.large { grid-template-columns: repeat(4, 1fr) } .images.wide { grid-template-columns: repeat(3, 1fr) }
.images svg { display: block; width: 100%; height: auto; border-radius: 4px }
.images figcaption { font-size: .83rem; line-height: 1.35; padding-top: .3em; color: var(--ink) }
.outline { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round }
.images svg text { font-weight: 600; paint-order: stroke; stroke: #000a; stroke-width: .2em; stroke-linejoin: round }
.images svg.ruler { max-width: 130px; border-radius: 0 } .legend svg.colours { width: 128px; margin: 0 .3em }
.true { color: #0072b2; font-weight: 600 } .predicted { color: #d55e00; font-weight: 600 }
.models thead small, .verdict thead th small { display: block; font-size: .8rem; line-height: 1.3 }
.models small { display: block; font-weight: 400; font-size: .8rem; line-height: 1.3 }
.right { color: #00694b; font-weight: 600 } .wrong { color: #b04400; font-weight: 600 }
.bar { display: block; width: 100%; min-width: 70px; height: 11px; margin: .4em 0 .1em }
.holds { table-layout: fixed; min-width: 360px } .holds thead th { white-space: normal }
.holds tr > :first-child { width: 15%; overflow-wrap: anywhere }
details { margin: .5em 0; border: 1px solid var(--line); border-radius: 8px; padding: .1em .9em }
details[open] { padding-bottom: .6em }
summary { cursor: pointer; padding: .45em 0; color: var(--link); font-weight: 500 }
pre { overflow-x: auto; background: var(--pale); padding: .8em; font-size: .8rem; border-radius: 6px;
      white-space: pre-wrap }
code { font-family: ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; font-size: .9em;
       overflow-wrap: anywhere }
footer { margin-top: 3em; color: var(--soft); font-size: .85rem }
@media (max-width: 1000px) { .images { grid-template-columns: repeat(4, 1fr) } }
@media (max-width: 600px) {
  main { padding: 18px 14px 40px } h1 { font-size: 1.5rem } .card { padding: 14px 14px 8px } .claim { min-height: 0 }
  .images { grid-template-columns: repeat(3, 1fr) } .images.large { grid-template-columns: 1fr 1fr }
  .images.wide { grid-template-columns: 1fr }
  .holds tr > :first-child { width: 25% } .figure { font-size: 1.8rem }
  .verdict tr > :nth-child(2) { width: 26% } th, td { padding: .38em .4em }
}
@media print {
  body { font-size: 10.5pt } main { max-width: none; padding: 0 } .scroll { overflow: visible }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  h2, h3, .note, .legend { break-after: avoid } .images, .legend, .scroll, tr { break-inside: avoid }
  .cards { grid-template-columns: 1fr 1fr } .charts { grid-template-columns: repeat(3, 1fr) }
  .images, .images.large { grid-template-columns: repeat(8, 1fr) }
  .images.wide { grid-template-columns: repeat(4, 1fr) } .images figcaption { font-size: 7pt }
  .verdict tr > :nth-child(2) { width: 24% }
}
"""


class Html(str):
    """Markup; any other text is escaped when it is put on the page."""


def escape(text: object) -> Html:
    """Return text as markup: names, reasons and tracebacks come from other machines."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Return parts as one piece of markup."""
    return Html(escape(separator).join(escape(part) for part in parts))


def tag(tag_name: str, *children: object, **attributes: object) -> Html:
    """Return an element; attributes write ``_`` for ``-`` and a trailing one where Python has the word."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag_name}{written}>{join(children)}</{tag_name}>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """Return a table whose first column names the rows; it scrolls by itself where the page is narrow."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_=kind), class_="scroll")


def fold(summary: object, *children: object) -> Html:
    """Return content that opens on a click."""
    return tag("details", tag("summary", summary), *children)


def chip(colour: str, kind: str = "") -> Html:
    """Return the coloured mark that stands for a strategy or a class."""
    return tag("span", class_=f"chip {kind}".rstrip(), style=f"background:{colour}")


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with fixed decimals, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return with_minus(f"{value:,.{digits}f}")


def with_minus(figure: str) -> str:
    """Return a written figure with a minus sign in the place of a hyphen."""
    return figure.replace("-", "−")


def task_title(task: str) -> str:
    """Return a task's name as a heading."""
    return task.replace("-", " ").replace("_", " ").capitalize()


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + "".join(names[-1:])


def count(amount: int, noun: str) -> str:
    """Return an amount with its noun, in the plural where it is due."""
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{amount:,} {noun if amount == 1 else plural}"


def page(title: str, *body: object) -> str:
    """Return the whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n{tag('main', *body)}\n</body>\n</html>\n"
    )
