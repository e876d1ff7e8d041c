"""timm, imported once for this package."""

from ..startup import import_timm

timm = import_timm()
