"""The frozen tensors of a model, which the server and every site read from the same weights instead of sending them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MtfedError
from ..models.system import MultiTaskModel

NORMS = "frozen-norms"  # key of the settings in messages
TOLERANCE = 1e-3  # relative; machines round the resized embeddings of positions differently


def frozen_arrays(model: MultiTaskModel) -> dict[str, np.ndarray]:
    """Return the model's frozen tensors by name, in the order of its state dict."""
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items() if name in model.frozen}


def norms(model: MultiTaskModel) -> list[float]:
    """Return the norm of each frozen tensor, by which other weights are recognised."""
    return [float(np.linalg.norm(array.astype(np.float64))) for array in frozen_arrays(model).values()]


def write_norms(model: MultiTaskModel) -> dict[str, list[float]]:
    """Return the settings of a message that let a site check its frozen tensors; none if nothing is frozen."""
    return {NORMS: norms(model)} if model.frozen else {}


def check_frozen(model: MultiTaskModel, settings: Mapping[str, Any], weights: str) -> None:
    """Compare a site's frozen tensors with the norms of the server's, if the server sends them.

    Raises:
        MtfedError: if they are others; ``weights`` is where the site has read them.
    """
    if NORMS not in settings:  # a server of another app
        return
    expected, own = list(settings[NORMS]), norms(model)
    fits = len(expected) == len(own) and all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in zip(expected, own, strict=True)
    )
    if not fits:
        raise MtfedError(
            f"Config key weights: expected the frozen encoder of the server, got another from {weights or 'the seed'}; "
            "copy the server's file to the site, and name it in the node config as encoder-weights."
        )
