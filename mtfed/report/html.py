"""HTML that is safe by construction: text is escaped unless it is :class:`Html` already."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template


class Html(str):
    """Markup. Any other string is escaped when it becomes part of a page."""


def escape(text: object) -> Html:
    """Return text as markup. Names, error messages and tracebacks come from other machines and are never trusted."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Concatenate parts into one piece of markup."""
    return Html(escape(separator).join(escape(part) for part in parts))


def tag(tag_name: str, *children: object, **attributes: object) -> Html:
    """Return an element. In attribute names ``_`` becomes ``-``; a trailing ``_`` avoids Python's keywords."""
    text = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag_name}{text}>{join(children)}</{tag_name}>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], css_class: str = "") -> Html:
    """Return a table whose first column names the rows. It scrolls sideways on a narrow page."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_=css_class), class_="scroll")


def fold(summary: object, *children: object) -> Html:
    """Return content that opens on a click."""
    return tag("details", tag("summary", summary), *children)


def chip(colour: str, css_class: str = "") -> Html:
    """Return the coloured mark that stands for a strategy or a class."""
    return tag("span", class_=f"chip {css_class}".rstrip(), style=f"background:{colour}")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with fixed decimals, or a dash if it is missing or not finite."""
    is_known = value is not None and math.isfinite(value)
    return with_minus(f"{value:,.{digits}f}") if is_known else "–"


def with_minus(text: str) -> str:
    """Replace the hyphen of a formatted number by a minus sign."""
    return text.replace("-", "−")


def task_title(task: str) -> str:
    """Return a task's name as a heading."""
    return task.replace("-", " ").replace("_", " ").capitalize()


def count(amount: int, noun: str) -> str:
    """Return an amount with its noun, in the plural unless the amount is 1."""
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{amount:,} {noun if amount == 1 else plural}"


def page(title: str, *body: object, style: str = "") -> str:
    """Return a whole document that loads nothing else.

    Args:
        title: title of the browser's tab.
        body: the content of the page's main element.
        style: CSS to add to ``page.css``.
    """
    template, css = ((files(__package__) / name).read_text("utf-8") for name in ("page.html", "page.css"))
    return Template(template).substitute(title=escape(title), style=css + style, body=join(body))
