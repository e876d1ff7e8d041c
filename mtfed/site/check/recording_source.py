"""An image as training reads it, and what its files held before they were made to fit the model."""

from __future__ import annotations

import zipfile

from ...data.formats import Picture, file_of
from ...data.manifest import SiteData
from ...data.source import Source
from ...errors import MtfedError


class RecordingSource(Source):
    """A source that keeps what was in its files as they were read, too."""

    image_read: Picture | None = None
    label_read: Picture | None = None  # the last

    def read(self, name: str, what: str) -> Picture:
        picture = super().read(name, what)
        if what == "image" and name == self.image:
            self.image_read = picture
        else:
            self.label_read = picture
        return picture


def fault_of(data: SiteData, name: str) -> str:
    """Say what is wrong with a file that cannot be read."""
    try:
        data.root.stamp(file_of(name))
    except MtfedError:
        return "outside"
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return "missing"
    return "unreadable"
