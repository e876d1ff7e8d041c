"""The form that images are brought to before a model sees them."""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """A square or a cube of pixels."""

    dimensions: int  # 2 or 3
    size: int  # side in pixels
    channels: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, (C, S, S) or (C, S, S, S)."""
        return self.channels, *(self.size,) * self.dimensions
