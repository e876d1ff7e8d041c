"""One occurrence of what a check looks for, and its wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Occurrence:
    """One place where a check found something."""

    name: str  # for example, a file, a patient or a task
    detail: str = ""  # what is wrong with it
    rows: tuple[int, ...] = ()  # numbers of the rows whose images illustrate it


def abbreviate(names: Sequence[str]) -> str:
    """Return the first three names, and how many others there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shorten(reason: str, name: str, key: str) -> str:
    """Return an error about a file without the names of the file and of the site, which are displayed next to it.

    >>> shorten("Image a.png of site st-mary should have 3 axes.", "a.png", "st-mary")
    'It should have 3 axes.'
    """
    reason = reason.replace(f" of site {key}", "")
    for start in (f"Cannot read image {name}: ", f"Image {name}: "):
        reason = reason.removeprefix(start)
    for start in (f"Mask {name} ", f"Image {name} "):
        if reason.startswith(start):
            reason = f"It {reason.removeprefix(start)}"
    return reason[:1].upper() + reason[1:]
