"""Markup: text is escaped, numbers and plurals are formatted."""

from __future__ import annotations

import math

from mtfed.report.html import Html, count, fold, join, number, tag


def test_markup_escapes_what_is_no_markup() -> None:
    assert tag("p", "a<b", Html("<br>"), class_="x", title='"') == '<p class="x" title="&quot;">a&lt;b<br></p>'
    assert join(["<", Html("<i></i>")], " & ") == "&lt; &amp; <i></i>"
    assert fold("s", "&") == "<details><summary>s</summary>&amp;</details>"
    assert [number(x) for x in (0.12345, -1234.5, math.nan, None)] == ["0.123", "−1,234.500", "–", "–"]
    assert [count(x, "round") for x in (1, 2)] == ["1 round", "2 rounds"]
    assert [count(2, noun) for noun in ("class", "box")] == ["2 classes", "2 boxes"]
