"""What a reader returns: the values of an image, and their position in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

MAX_VALUES = 2**28  # of one image, 512 x 512 x 1024; a file that declares more is refused before it is unpacked


@dataclass(frozen=True)
class Picture:
    """An image, or a label that covers one.

    Args:
        values: numbers, (H, W), (H, W, 3) or (D, H, W).
        spacing: millimetres along the spatial axes of ``values``, in their order; None if unknown.
        affine: (4, 4) from voxel x, y, z to millimetres in LPS; None if unknown. For a slice, z is 0.
        window: the lowest and highest value that should be displayed, if the file contains them.
        unplaced: why the affine is only assumed, such as fields that are missing; empty if the file contains it.
    """

    values: np.ndarray
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    window: tuple[float, float] | None = None
    unplaced: str = ""

    def slice(self, index: int) -> Picture:
        """Return a copy of one slice along z of a volume."""
        affine = self.affine
        if affine is not None:
            affine = affine.copy()
            affine[:, 3] += index * affine[:, 2]
        spacing = self.spacing and self.spacing[1:]
        return replace(self, values=np.array(self.values[index]), spacing=spacing, affine=affine)
