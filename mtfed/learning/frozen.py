"""The frozen tensors of a model, which the server and every site read from the same weights instead of sending them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import MtfedError
from ..models.system import MultiTaskModel

PROJECTIONS = "frozen-projections"  # key of the settings in messages
TOLERANCE = 1e-3  # of a tensor's norm; machines round the resized embeddings of positions differently
_projections: WeakKeyDictionary[MultiTaskModel, list[tuple[float, float]]] = WeakKeyDictionary()


def frozen_arrays(model: MultiTaskModel) -> dict[str, np.ndarray]:
    """Return the model's frozen tensors by name, in the order of its state dict."""
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items() if name in model.frozen}


def write_projections(model: MultiTaskModel) -> dict[str, Any]:
    """Return the settings of a message that let a site check its frozen tensors; none if nothing is frozen."""
    return {PROJECTIONS: [projection for projection, _ in _project(model)]} if model.frozen else {}


def check_frozen(model: MultiTaskModel, settings: Mapping[str, Any], weights: str) -> None:
    """Compare a site's frozen tensors with the server's, if the server sends their projections.

    Raises:
        MtfedError: if they differ; ``weights`` is where the site has read its own.
    """
    if PROJECTIONS not in settings:  # a server of another app
        return
    expected, own = list(settings[PROJECTIONS]), _project(model)
    fits = len(expected) == len(own) and all(
        abs(a - b) <= TOLERANCE * norm for a, (b, norm) in zip(expected, own, strict=True)
    )
    if not fits:
        raise MtfedError(
            "Config key weights: expected the frozen encoder of the server, got another from "
            f"{weights or 'the random seed'}; copy the server's file to the site, and name it in the node config as "
            "encoder-weights."
        )


def first_difference(frozen: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the first frozen tensor that differs from the other one of its name, or ``None``."""
    for name, array in frozen.items():
        if name not in others or others[name].shape != array.shape:
            return name
        own, other = array.astype(np.float64), others[name].astype(np.float64)
        if not np.linalg.norm(own - other) <= TOLERANCE * np.linalg.norm(own):
            return name
    return None


def _project(model: MultiTaskModel) -> list[tuple[float, float]]:
    """Return each frozen tensor's inner product with cos(0), cos(1), ..., which other weights change, and its norm."""
    if model not in _projections:  # once for a model, because these tensors stay as they are
        flat = [array.ravel().astype(np.float64) for array in frozen_arrays(model).values()]
        _projections[model] = [(float(x @ np.cos(np.arange(x.size))), float(np.linalg.norm(x))) for x in flat]
    return _projections[model]
