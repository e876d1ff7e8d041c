"""A file that is being read, and the errors that name it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ...errors import MtfedError
from ..root import Root
from .picture import MAX_VALUES


class SiteFiles(Protocol):
    """What readers need of a site: its key, for errors, and access to its files."""

    @property
    def key(self) -> str:
        """Return the site's name."""

    @property
    def root(self) -> Root:
        """Return the folder or zip that contains the files."""

    def read(self, name: str, what: str) -> bytes:
        """Return a file's bytes; raise :class:`MtfedError` that names it, as ``what``, if it cannot be read."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a site."""

    site: SiteFiles
    name: str  # path within the site's folder
    what: str  # "image", or the name of a label
    arrays: Mapping[str, np.ndarray] | None = None  # arrays of an .npz file that is open already

    @property
    def is_label(self) -> bool:
        """Return whether the values are labels, which must be read exactly, rather than intensities to look at."""
        return self.what != "image"

    def other(self, name: str) -> SourceFile:
        """Return another file of the same image."""
        return replace(self, name=name)

    def read(self) -> bytes:
        """Return the file's bytes; raise :class:`MtfedError` if there are none."""
        content = self.site.read(self.name, self.what)
        if not content:
            raise self.error("it is empty; repair or remove it")
        return content

    def error(self, reason: str) -> MtfedError:
        """Return an error that names this file; the reason should say what to do."""
        line = " ".join(reason.split())  # a decoder's message may have several lines
        return MtfedError(f"Cannot read {self.what} {self.name} of site {self.site.key}: {line}.")

    @contextmanager
    def reading(self, reason: str) -> Iterator[None]:
        """Turn any exception of a decoder into an error that names this file; decoders raise all kinds of them."""
        try:
            yield
        except MtfedError:
            raise
        except Exception as error:
            raise self.error(reason) from error

    def check_size(self, *shape: int) -> None:
        """Refuse a declared shape without values, or with more than an image may have, before anything is unpacked."""
        sides = " x ".join(map(str, shape))
        if not shape or min(shape) < 1:
            raise self.error(f"it declares {sides or 'no'} values; repair or remove it")
        if math.prod(map(int, shape)) > MAX_VALUES:
            limit = f"the {MAX_VALUES} that an image may have"
            raise self.error(f"it declares {sides} values, more than {limit}; crop or resample it")
