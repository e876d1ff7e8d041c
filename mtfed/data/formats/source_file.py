"""A file that is being read, for what errors have to say of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ...errors import MtfedError
from ..manifest import SiteData
from .picture import MAX_VALUES


@dataclass(frozen=True)
class SourceFile:
    """A file of a site, and ``what`` it is: "image", or the name of a label."""

    data: SiteData
    name: str
    what: str

    @property
    def is_label(self) -> bool:
        """Say whether its numbers mean something by themselves, and are not there to be looked at."""
        return self.what != "image"

    def other(self, name: str) -> SourceFile:
        """Return another file of the same image."""
        return replace(self, name=name)

    def read(self) -> bytes:
        """Return the file's bytes; raise :class:`MtfedError` if there are none."""
        content = self.data.read(self.name, self.what)
        if not content:
            raise self.error("it is empty; mend or remove it")
        return content

    def error(self, reason: str) -> MtfedError:
        """Return the error that this file cannot be read, for a reason that says what to do."""
        plain = " ".join(reason.split())  # a decoder's words may have several lines
        return MtfedError(f"Cannot read {self.what} {self.name} of site {self.data.key}: {plain}.")

    @contextmanager
    def reading(self, reason: str) -> Iterator[None]:
        """Say of any failure to decode which file it was; decoders fail in as many ways as files are broken."""
        try:
            yield
        except MtfedError:
            raise
        except Exception as error:
            raise self.error(reason) from error

    def check_size(self, *shape: int) -> None:
        """Refuse what declares no values, or more than an image may have, before any is unpacked."""
        told = " x ".join(map(str, shape))
        if not shape or min(shape) < 1:
            raise self.error(f"it declares {told or 'no'} values; mend or remove it")
        if math.prod(map(int, shape)) > MAX_VALUES:
            raise self.error(
                f"it declares {told} values, more than the {MAX_VALUES} that an image may have; crop or resample it"
            )
