"""What makes training faster on a GPU: half precision, memory laid out for convolutions, compiled models."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import MtfedError

log = logging.getLogger("mtfed")
Forward = Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]

COMPILE_FROM = 5000  # forward passes of a training that make up for minutes of compiling (our estimate)
GRAPHS = 64  # that a compiled model may have: sites differ in their tasks, and batches in which of them they label
FIRST_SCALE = (
    1024.0  # of float16 gradients; each round begins with it, and every halving from a higher one costs a step
)
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
_graphs: dict[type[nn.Module], Callable[..., dict[str, Tensor]]] = {}  # compiled forward passes, by class
_compiles: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a model can be compiled


def half_precision(autocast: str, device: torch.device) -> torch.dtype | None:
    """Return the type that a model computes in under autocast, or ``None`` for that of its weights.

    ``auto`` is bfloat16 on a CUDA GPU that computes in it.

    Raises:
        MtfedError: for float16 anywhere but on a CUDA GPU.
    """
    if autocast == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if able else None
    if autocast == "float16" and device.type != "cuda":
        raise MtfedError(f"Config key autocast: float16 needs a CUDA GPU, this is {device.type}; use auto or bfloat16.")
    return {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[autocast]


def cast_to(dtype: torch.dtype | None, device: torch.device) -> Any:
    """Return the context that a forward pass runs in."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def make_scaler(dtype: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler:
    """Return what keeps float16's small gradients from vanishing; for other types it passes everything on."""
    return torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=dtype is torch.float16)


def lay_out(model: nn.Module, config: Config) -> None:
    """Put channels last in the memory of a model's convolutions, where that is faster: in half precision on CUDA.

    On a CPU it is not (a ResNet-18, 16 images of 64 px, one core: 5 % slower; ResNet-50 and ConvNeXt: no difference),
    and float32 convolutions on CUDA gain little. Shapes, names and values of all tensors stay.
    """
    device = next(model.parameters()).device
    if device.type == "cuda" and half_precision(config.autocast, device) is not None:
        model.to(memory_format=LAYOUTS[config.dimensions])  # type: ignore[call-overload]  # torch does not type it


def forward_of(model: nn.Module, config: Config, device: torch.device, passes: int) -> Forward:
    """Return a model's forward pass for training: compiled, if the config wants that and it can be done.

    Nothing of the model changes, so that what trains next may again choose. ``compile = "auto"`` compiles on a CUDA GPU
    for a training of so many passes that it is worth it, :data:`COMPILE_FROM`.
    """
    worth = device.type == "cuda" and passes >= COMPILE_FROM
    wanted = {"on": True, "off": False, "auto": worth}[config.compile]
    return partial(_call_compiled, model) if wanted else model


def _call_compiled(model: nn.Module, images: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Call a model through the compiler, until that fails; from then on without.

    Its first call finds out whether that can be done, forward and back. Later ones may compile anew, for other tasks or
    other shapes: where that fails, the batch runs again without, and what had run of it has counted in batch norms'
    statistics. A backward pass that is compiled only when it runs is not caught, but for the first.
    """
    kind = type(model)
    if kind not in _graphs:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        _graphs[kind] = torch.compile(kind.forward, dynamic=True)
    if model not in _compiles:
        _compiles[model] = _try(model, images, rows)
    if _compiles[model]:
        try:
            return _graphs[kind](model, images, rows)
        except Exception as error:  # an error of the model itself comes again below
            _compiles[model] = _give_up(error)
    forward: Callable[..., dict[str, Tensor]] = kind.forward
    return forward(model, images, rows)


def _try(model: nn.Module, images: Tensor, rows: dict[str, Tensor]) -> bool:
    """Say whether a model can be compiled, forward and back; the trial leaves no trace but a line in the log."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            outputs = _graphs[type(model)](model, images, rows)
            torch.stack([output.float().mean() for output in outputs.values()]).sum().backward()
        return True
    except Exception as error:  # a compiler has many
        return _give_up(error)
    finally:
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)


def _give_up(error: Exception) -> bool:
    """Log why a model cannot be compiled, and say that it cannot."""
    reason = next(iter(str(error).splitlines()), "")
    log.warning("torch.compile failed, training goes on without: %s: %s", type(error).__name__, reason)
    return False
