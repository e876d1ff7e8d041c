"""What a reader gives: numbers, and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

MAX_VALUES = 2**28  # of one image, as its file declares them: 512 x 512 x 1024; more is refused before it is unpacked


@dataclass(frozen=True)
class Picture:
    """An image or a label that lies over one.

    Args:
        values: numbers, (H, W), (H, W, 3) or (D, H, W).
        spacing: millimetres along the spatial axes of ``values``, in their order; None where the file does not say.
        affine: (4, 4) from voxel x, y, z to millimetres in LPS; None where the file does not say. Of a slice, z is 0.
        window: low and high end of what the file asks to be shown.
        unplaced: why the affine is made up: what the file leaves out; empty where the file says where it lies.
    """

    values: np.ndarray
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    window: tuple[float, float] | None = None
    unplaced: str = ""

    def slice(self, index: int) -> Picture:
        """Return one slice along z of a volume, which need not be kept for it."""
        affine = self.affine
        if affine is not None:
            affine = affine.copy()
            affine[:, 3] += index * affine[:, 2]
        spacing = self.spacing and self.spacing[1:]
        return replace(self, values=np.array(self.values[index]), spacing=spacing, affine=affine)
