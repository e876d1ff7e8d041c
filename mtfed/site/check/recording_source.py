"""A source that also records what its files contained before training's preprocessing."""

from __future__ import annotations

import zipfile

from ...data.formats import Picture, file_of
from ...data.manifest import SiteData
from ...data.source import Source
from ...errors import MtfedError


class RecordingSource(Source):
    """A source that keeps the last image and the last label as they were read."""

    image_read: Picture | None = None
    label_read: Picture | None = None

    def read(self, name: str, what: str) -> Picture:
        picture = super().read(name, what)
        if what == "image" and name == self.image:
            self.image_read = picture
        else:
            self.label_read = picture
        return picture


def fault_of(data: SiteData, name: str) -> str:
    """Return why a file cannot be read: "outside" the site's folder, "missing", or "unreadable"."""
    try:
        data.root.stamp(file_of(name))
    except MtfedError:
        return "outside"
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return "missing"
    return "unreadable"
