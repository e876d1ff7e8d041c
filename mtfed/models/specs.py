"""The multi-task models by name. This module does not import torch, so a config can be checked and described quickly.

A model is a row of :data:`MODEL_SPECS` and the module of its sharing scheme. :func:`.build.build_model` builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import MtfedError


@dataclass(frozen=True)
class ModelSpec:
    """How a model shares features between its tasks."""

    title: str  # title in reports
    description: str
    scheme: str  # the :class:`.sharing.Sharing` subclass as "MODULE:CLASS", imported when a model is built
    options: Mapping[str, object] = field(default_factory=dict)  # keyword arguments of the scheme
    requires_transformer: bool = False  # whether the encoder must be a transformer


_HARD = "mtfed.models.sharing:HardSharing"
_CTAN = "mtfed.models.ctan:CrossTaskAttention"
MODEL_SPECS: dict[str, ModelSpec] = {
    "mtmedformer": ModelSpec(
        "MTMedFormer", "shared transformer encoder, a decoder for each task (Nath, Shukla, Gupta, 2025)",
        _HARD, requires_transformer=True,
    ),
    "hard-sharing": ModelSpec("Hard sharing", "shared encoder of any architecture, a decoder for each task", _HARD),
    "single-task": ModelSpec(
        "Single-task", "an encoder and a decoder for each task, nothing shared",
        "mtfed.models.sharing:SeparateEncoders",
    ),
    "medformer": ModelSpec(
        "Medformer", "images and volumes of any modality in one transformer, through latents (Simionescu, 2025)",
        "mtfed.models.medformer:Medformer",
    ),
    "mtan": ModelSpec(
        "MTAN", "shared encoder, a mask on its features for each task (Liu, Johns, Davison, 2019)",
        "mtfed.models.mtan:TaskAttention",
    ),
    "ctan": ModelSpec(
        "CTAN", "tasks attend to each other in the encoder and at the bottleneck (Kim, Purdie, McIntosh, 2023)", _CTAN,
    ),
    "ctan-encoder": ModelSpec(
        "CTAN in the encoder", "ctan without the attention at the bottleneck", _CTAN, {"at_bottleneck": False},
    ),
    "ctan-bottleneck": ModelSpec(
        "CTAN at the bottleneck", "ctan without the attention in the encoder", _CTAN, {"in_encoder": False},
    ),
}  # fmt: skip

# Initial value of each task's learned number ``balance[t]``, by balancing rule (mtfed.learning.balancing).
INITIAL_BALANCE = {"uncertainty": -0.5, "equal": 0.0, "dwa": 0.0, "gradnorm": 0.0, "pcgrad": 0.0}


def register_model(name: str, spec: ModelSpec) -> None:
    """Add a model under a name that a config can then use; raise :class:`MtfedError` if the name is taken."""
    if name in MODEL_SPECS:
        taken = f"got {name!r}, which is {MODEL_SPECS[name].scheme}"
        raise MtfedError(f"Expected a new name for a model of {spec.scheme}, {taken}; choose another name.")
    MODEL_SPECS[name] = spec
