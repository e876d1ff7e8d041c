"""Errors that a user can act on; a message says what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MtfedError(Exception):
    """A mistake in the config, the data or a run folder. The command line shows it as one line."""


class LabelError(MtfedError):
    """A label that cannot be used.

    Args:
        message: the sentence for the user.
        fault: which finding of ``mtfed site check`` it is: an unknown "class"; "range", a value outside its range;
            "misfit", a map that does not cover its image; "values", a map with values that are not allowed;
            "unreadable", a file that cannot be read; "wrong", anything else.
    """

    def __init__(self, message: str, fault: str = "wrong") -> None:
        super().__init__(message)
        self.fault = fault


def unknown(what: str, name: str, options: Iterable[str]) -> MtfedError:
    """Return the error for a name that is not among the options; it suggests the nearest one or lists them all."""
    options = sorted(options)
    matches = get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}?" if matches else "expected one of: " + ", ".join(options) + "."
    return MtfedError(f"Unknown {what} {name!r}; {hint}")
