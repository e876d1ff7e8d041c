"""The federated parts of a resident model: read them, overwrite them, and train only some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import MtfedError
from ..models.system import MultiTaskModel
from ..strategies.wire import task_of
from .frozen import first_difference, frozen_arrays


def numpy_parts(model: MultiTaskModel) -> dict[str, dict[str, np.ndarray]]:
    """Return the model's parts as arrays. On a CPU they share the model's memory."""
    return {part: {name: t.cpu().numpy() for name, t in tensors.items()} for part, tensors in model.parts().items()}


def load_parts(model: MultiTaskModel, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Copy received tensors into the model in place."""
    for part, tensors in parts.items():
        own = model.parts()[part]
        for name, value in tensors.items():
            if own[name].device.type == "cpu":
                np.copyto(own[name].numpy(), value)
            else:
                own[name].copy_(torch.tensor(value))


def load_weights(model: MultiTaskModel, path: Path, parts: Iterable[str] | None = None) -> None:
    """Copy tensors of a safetensors file into the given parts of the model, by default all.

    Tensors that are missing in the file keep their values.

    Raises:
        MtfedError: if the file cannot be read, contains no tensor of this model, or a tensor of another shape; or if
            its frozen tensors are not those of the model.
    """
    chosen = model.parts() if parts is None else {part: model.parts()[part] for part in parts}
    own = {name: tensor for tensors in chosen.values() for name, tensor in tensors.items()}
    try:
        loaded = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MtfedError(f"Node config weights: cannot read {path} as a safetensors file: {error}.") from None
    if not loaded.keys() & own.keys():
        raise MtfedError(f"Node config weights: {path} holds no tensor of this model, such as {next(iter(own))}.")
    frozen = {name: array for name, array in frozen_arrays(model).items() if name in loaded}
    if differing := first_difference(frozen, {name: loaded[name].numpy() for name in frozen}):
        raise MtfedError(
            f"Node config weights: expected decoders of the run's frozen encoder, but {path} has another {differing}; "
            "train them with this encoder, or set encoder-rate above 0."
        )
    for name in loaded.keys() & own.keys():
        if loaded[name].shape != own[name].shape:
            raise MtfedError(
                f"Node config weights: {name} should be {list(own[name].shape)}, in {path} it is "
                f"{list(loaded[name].shape)}; use the run's model and image size."
            )
        own[name].copy_(loaded[name])


@contextmanager
def train_only(model: MultiTaskModel, tasks: Iterable[str]) -> Iterator[None]:
    """Restrict training to the parts of some tasks: ``encoder``, and every part KIND.TASK of these tasks.

    Parts of other tasks are context, such as the streams that a task attends to in CTAN. Their weights get no gradient,
    and modules that contain only such tensors are in evaluation mode, so that batch norms keep their statistics. The
    same holds for the model's frozen tensors.
    """
    parts = model.parts()
    frozen = model.frozen | {name for part in parts if task_of(part) not in ("", *tasks) for name in parts[part]}
    trained = {name for tensors in parts.values() for name in tensors} - frozen
    weights = [weight for name, weight in model.named_parameters() if name in frozen and weight.requires_grad]
    idle = {m for name in frozen for m in _enclosing(name)} - {m for name in trained for m in _enclosing(name)}
    # eval() and train() are recursive, so only the outermost modules are needed.
    modules = [model.get_submodule(name) for name in sorted(idle) if name.rpartition(".")[0] not in idle]
    for weight in weights:
        weight.requires_grad_(False)
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        for module in modules:
            module.train(model.training)


def _enclosing(name: str) -> Iterator[str]:
    """Yield the names of the modules that contain a tensor, from the inside out."""
    while name := name.rpartition(".")[0]:
        yield name
