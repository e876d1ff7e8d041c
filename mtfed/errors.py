"""Errors a person can act on: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MtfedError(Exception):
    """A mistake in what the user gave: config, data or a run folder. The command line shows it as one line."""


def unknown(what: str, name: str, options: Iterable[str]) -> MtfedError:
    """Return the error for a name that is not in a table, with the nearest valid one."""
    options = sorted(options)
    near = get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "expected one of: " + ", ".join(options) + "."
    return MtfedError(f"Unknown {what} {name!r}; {hint}")
