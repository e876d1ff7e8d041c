"""Faster training on a GPU: half precision, a memory format for convolutions, compiled models."""

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
Forward = Callable[[Tensor, dict[str, Tensor], Tensor | None], dict[str, Tensor]]

MIN_COMPILED_PASSES = 5000  # forward passes of a training that make up for minutes of compiling (our estimate)
MAX_GRAPHS = 64  # graphs of a compiled model: sites differ in their tasks, and batches in their labelled tasks
INITIAL_LOSS_SCALE = 1024.0  # for each round in float16; every halving from a larger scale would cost a step
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of a tensor
_compiled_forwards: dict[type[nn.Module], Callable[..., dict[str, Tensor]]] = {}
_can_compile: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def half_precision(autocast: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype that a model computes in under autocast, or ``None`` for the dtype of its weights.

    ``auto`` is bfloat16 on a CUDA GPU that supports it without emulation.

    Raises:
        MtfedError: for float16 on anything but a CUDA GPU.
    """
    if autocast == "auto":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if supported else None
    if autocast == "float16" and device.type != "cuda":
        raise MtfedError(f"Config key autocast: float16 needs a CUDA GPU, this is {device.type}; use auto or bfloat16.")
    return {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[autocast]


def autocast(dtype: torch.dtype | None, device: torch.device) -> Any:
    """Return the context for a forward pass; it does nothing if ``dtype`` is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def make_scaler(dtype: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler:
    """Return a loss scaler, which prevents float16's small gradients from vanishing; it is disabled for other types."""
    return torch.amp.GradScaler(device.type, init_scale=INITIAL_LOSS_SCALE, enabled=dtype is torch.float16)


def set_memory_format(model: nn.Module, config: Config) -> None:
    """Store a model's convolutions with channels last where that is faster: in half precision on CUDA.

    On a CPU it is not (a ResNet-18, 16 images of 64 px, one core: 5 % slower; ResNet-50 and ConvNeXt: no difference),
    and float32 convolutions on CUDA gain little. Shapes, names and values of all tensors stay the same.
    """
    device = next(model.parameters()).device
    if device.type == "cuda" and half_precision(config.autocast, device) is not None:
        channels_last(model)


def channels_last(model: nn.Module) -> None:
    """Store a model's convolutions with channels last, those of images and those of volumes."""
    model._apply(lambda x: x.to(memory_format=MEMORY_FORMATS[x.ndim]) if x.ndim in MEMORY_FORMATS else x)


def training_forward(model: nn.Module, config: Config, device: torch.device, passes: int) -> Forward:
    """Return a model's forward pass for training, compiled if the config asks for it and the model can be compiled.

    The model itself does not change, so the next training can choose again. ``compile = "auto"`` compiles on a CUDA GPU
    if the training has at least :data:`MIN_COMPILED_PASSES` forward passes.
    """
    pays_off = device.type == "cuda" and passes >= MIN_COMPILED_PASSES
    is_compiled = {"on": True, "off": False, "auto": pays_off}[config.compile]
    return partial(_call_compiled, model) if is_compiled else model


def _call_compiled(
    model: nn.Module, images: Tensor, rows: dict[str, Tensor], words: Tensor | None = None
) -> dict[str, Tensor]:
    """Call a model through the compiler, or plainly after the compiler has failed once.

    The first call tries to compile the forward and the backward pass. Later calls may compile again for other tasks or
    other shapes. If that fails, the batch is computed again without the compiler, and layers that ran before the
    failure have updated their batch norm statistics twice. Only the first backward pass is tested; a failure in a later
    one, which is compiled when it runs, is not caught.
    """
    model_class = type(model)
    if model_class not in _compiled_forwards:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
        _compiled_forwards[model_class] = torch.compile(model_class.forward, dynamic=True)
    if model not in _can_compile:
        _can_compile[model] = _try_to_compile(model, images, rows, words)
    if _can_compile[model]:
        try:
            return _compiled_forwards[model_class](model, images, rows, words)
        except Exception as error:  # an error of the model itself is raised again below
            _log_failure(error)
            _can_compile[model] = False
    forward: Callable[..., dict[str, Tensor]] = model_class.forward
    return forward(model, images, rows, words)


def _try_to_compile(model: nn.Module, images: Tensor, rows: dict[str, Tensor], words: Tensor | None) -> bool:
    """Return whether a model's forward and backward pass compile. The model and the random state do not change."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            outputs = _compiled_forwards[type(model)](model, images, rows, words)
            torch.stack([output.float().mean() for output in outputs.values()]).sum().backward()
        return True
    except Exception as error:  # the compiler raises many types
        _log_failure(error)
        return False
    finally:
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)


def _log_failure(error: Exception) -> None:
    reason = str(error).partition("\n")[0]
    log.warning("torch.compile failed, training continues without it: %s: %s", type(error).__name__, reason)
