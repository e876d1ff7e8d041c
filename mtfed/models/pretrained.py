"""Pretrained weights of an encoder: those that timm publishes, or those of a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import MtfedError
from .lora import merge_lora
from .timm_library import timm

log = getLogger("mtfed.models")
MAX_MISSING = 0.1  # share of a body's tensors that may be missing in a file or have other shapes there
PICKLED = (".pth", ".pt", ".bin")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # keys under which files store a state dict
_PREFIXES = ("", "body.", "encoder.body.", "encoder.", "backbone.")  # prefixes of a body's tensors in files
_SCHEME = "encoder."  # prefix of a sharing scheme's tensors in mtfed's files
_TASK_BODY = re.compile(r"(?:encoder\.)?own\.([^.]+)\.body\.")  # prefix of each task's own body in mtfed's files


def load_weights(body: nn.Module, name: str, weights: str, settings: dict[str, Any] | None) -> None:
    """Load weights into a body; tensors that are missing keep their initial values.

    Position embeddings are resampled to the body's image size. A first convolution of three channels is summed for grey
    images, and one of a single channel is divided among three. A classifier is ignored.

    Args:
        body: body of an encoder.
        name: name of the encoder.
        weights: ``timm`` for the weights that timm publishes under the name and downloads; or the path of a file with
            the suffix .safetensors or one of :data:`PICKLED`, which is read without running code in it.
        settings: settings with which timm builds the body; ``None`` if timm does not build it.

    Raises:
        MtfedError: if there are no weights, they cannot be read, or they contain too few of the body's tensors.
    """
    if weights == "timm":
        body.load_state_dict(_published(name, settings).state_dict())
        return
    path = Path(weights).expanduser()
    loaded = read(path)
    tensors = adapt(loaded, body)
    own = body.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in own and value.shape == own[key].shape}
    counted = [key for key in own if not key.endswith("num_batches_tracked")]
    missing = [key for key in counted if key not in fitting]
    filled = f"{len(counted) - len(missing)} of the {len(counted)} tensors of encoder {name!r}"
    if len(missing) > MAX_MISSING * len(counted):
        if tasks := list(dict.fromkeys(match[1] for key in loaded if (match := _TASK_BODY.match(key)))):
            raise MtfedError(
                f"Weights file {path} holds an encoder for each of the tasks {', '.join(tasks)}, expected only one; "
                f"save that of one task, each tensor encoder.own.{tasks[0]}.body.NAME as NAME."
            )
        raise MtfedError(
            f"Weights file {path} has {filled}, expected at least {1 - MAX_MISSING:.0%}; set encoder to the "
            f"model that it was trained as (first missing: {missing[0]})."
        )
    if missing:
        log.warning("Weights file %s has %s; first missing: %s.", path, filled, missing[0])
    body.load_state_dict(fitting, strict=False)


def load_scheme(scheme: nn.Module, part_of: Callable[[str], str], name: str, path: Path) -> list[str]:
    """Load what a run of the same sharing scheme learned: the shared part, and each other part that both have.

    Other parts of the scheme keep their initial values and are named in the log; other parts of the file are ignored.
    So a model that was trained on images can go on with volumes, or with other tasks.

    Args:
        scheme: the sharing scheme.
        part_of: returns the part that a tensor of the scheme belongs to (:meth:`.sharing.Sharing.part`).
        name: name of the encoder, for errors.
        path: a checkpoint of a run.

    Returns:
        The parts of the scheme that the file lacks.

    Raises:
        MtfedError: if the file cannot be read, or one of these tensors is missing, unknown, or of another shape.
    """
    own = scheme.state_dict()
    tensors = {key.removeprefix(_SCHEME): value for key, value in read(path).items() if key.startswith(_SCHEME)}
    tensors = {key: _of_channels(value, own[key].shape) if key in own else value for key, value in tensors.items()}
    common = {part_of(key) for key in tensors} & {part_of(key) for key in own} | {"encoder"}
    for key in dict.fromkeys([*own, *tensors]):
        shapes = [tuple(values[key].shape) if key in values else None for values in (own, tensors)]
        if part_of(key) in common and shapes[0] != shapes[1]:
            expected = f"{key} of the shape {shapes[0]}" if shapes[0] else f"no tensor {key}"
            raise MtfedError(
                f"Weights file {path} does not fit encoder {name!r}: expected {expected}, got {shapes[1] or 'none'}; "
                "set encoder to that of the run that wrote the file."
            )
    if missing := list(dict.fromkeys(part_of(key) for key in own if part_of(key) not in common)):
        log.warning("Weights file %s lacks %s; they start with initial values.", path, ", ".join(missing))
    scheme.load_state_dict({key: value for key, value in tensors.items() if part_of(key) in common}, strict=False)
    return missing


def is_of_scheme(path: Path, key: str) -> bool:
    """Return whether a weights file is a checkpoint of a run whose sharing scheme has a tensor ``key``."""
    return _SCHEME + key in read(path)


def _published(name: str, settings: dict[str, Any] | None) -> nn.Module:
    cfg = None if settings is None else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or not cfg.has_weights:
        raise MtfedError(f"timm publishes no weights of encoder {name!r}; set weights = '' or a file.")
    try:
        return timm.create_model(name, pretrained=True, **(settings or {}))
    except Exception as error:  # each way of downloading raises other errors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise MtfedError(
            f"timm's weights of encoder {name!r} cannot be downloaded: {reason}; download them on a machine with "
            "network access, and set weights to the file."
        ) from error


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name, unwrapped from a checkpoint's other content.

    Low-rank updates in a checkpoint of a run with ``lora-rank`` are added to the weights that they belong to.
    """
    if not path.is_file():
        raise MtfedError(f"Weights {path} is not a file; expected '', 'timm', or the path of a weights file.")
    if path.suffix not in (".safetensors", *PICKLED):
        raise MtfedError(f"Weights file {path}: expected .safetensors, {', '.join(PICKLED)}; got {path.suffix!r}.")
    try:
        if path.suffix == ".safetensors":
            return merge_lora(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise many types
        first_line = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        reason = "it contains objects that are not tensors" if isinstance(error, UnpicklingError) else first_line
        raise MtfedError(
            f"Cannot read weights file {path}: {reason}; save only its tensors, as .safetensors."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        type_name = type(content).__name__
        raise MtfedError(f"Weights file {path} holds a {type_name} instead of tensors by name; save a state dict.")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return merge_lora(timm.models.clean_state_dict(tensors))


def adapt(tensors: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Adapt a file's tensors to a body's names, image size and channels."""
    own = body.state_dict()
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in tensors for name in own))
    tensors = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)  # a convention of timm's
    try:
        converted = convert(tensors, body) if convert else tensors
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError, AssertionError):
        return {}  # the file lacks names or shapes that the filter expects
    if own.keys() <= tensors.keys() and not own.keys() <= converted.keys():
        # timm 1.0.16 treats a Swin without a classifier as an original checkpoint and renames correct names.
        resized = {name for name in own.keys() & converted.keys() if tensors[name].shape != own[name].shape}
        converted = tensors | {name: converted[name] for name in resized}
    return {name: _of_channels(value, own[name].shape) for name, value in converted.items() if name in own}


def _of_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """Return the first convolution for another number of channels, with the same output for grey images."""
    old, new = weight.shape[1:2], shape[1:2]
    if weight.ndim < 4 or old == new or {*old, *new} != {1, 3}:
        return weight
    return weight.sum(1, keepdim=True) if new[0] == 1 else weight.expand(-1, 3, *weight.shape[2:]) / 3
