"""Resize a torch model to the widths of a grown network's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..errors import MtfedError
from .axes.builder import join
from .axes.transformers import ATTENTIONS, FREE_WIDTH

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # shapes of the tensors that a module itself holds
Model = TypeVar("Model", bound=nn.Module)


def resize(model: Model, tensors: Mapping[str, np.ndarray | torch.Tensor]) -> Model:
    """Return a copy of a model with the given tensors, resized to their widths.

    Linear layers, convolutions, BatchNorm, PReLU and attention with a free number of heads, with or without options,
    can be resized. All other modules must keep their shapes.

    Args:
        model: not modified.
        tensors: the complete ``state_dict``, as :func:`mtfed.strategies.growth.expand` and a merge return it.

    Raises:
        MtfedError: if a module cannot take tensors of these shapes; the message names the first one.
    """
    model = deepcopy(model)
    own = model.state_dict()
    if mismatched := sorted(own.keys() ^ tensors.keys()):
        raise MtfedError(f"Expected exactly the tensors of the model's state_dict; see {mismatched[0]!r}.")
    for path, module in model.named_modules():
        names = [*module._parameters, *module._buffers]
        shapes = {name: tuple(tensors[join(path, name)].shape) for name in names if join(path, name) in own}
        if type(module) in ATTENTIONS:
            _resize_attention(path, module, tuple(tensors[join(path, "proj.weight")].shape))
        if any(shapes[name] != tuple(own[join(path, name)].shape) for name in shapes):
            _resize_module(path, module, shapes)
    model.load_state_dict({name: torch.as_tensor(values) for name, values in tensors.items()})
    return model._apply(lambda tensor: tensor)  # as if moved to a device: modules drop values cached from old tensors


def _resize_module(path: str, module: nn.Module, shapes: Shapes) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shapes["weight"]
    elif isinstance(module, nn.modules.conv._ConvNd):
        _set_channels(path, module, *shapes["weight"][:2])
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = next(shape[0] for shape in shapes.values() if shape)
    elif isinstance(module, nn.PReLU):
        (module.num_parameters,) = shapes["weight"]
    elif type(module) not in ATTENTIONS:  # attention may hold a table of positions with one column per head
        raise MtfedError(
            f"{path}: {type(module).__name__} cannot take tensors of other shapes ({shapes}); grow only axes of linear "
            "layers, convolutions, BatchNorm, PReLU and attention."
        )
    for name, shape in shapes.items():
        old = getattr(module, name)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _set_channels(path: str, module: nn.modules.conv._ConvNd, first: int, second: int) -> None:
    """Set the channels of a convolution from the first two axes of its weight."""
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        module.groups, second = first, first
    elif module.groups > 1:
        raise MtfedError(f"{path}: a convolution of {module.groups} groups cannot be widened; freeze its channels.")
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    module.in_channels, module.out_channels = (first, second) if transposed else (second, first)


def _resize_attention(path: str, module: Any, proj: Shape) -> None:
    """Set the number of heads; the width of a head stays."""
    head, width = module.proj.in_features // module.num_heads, proj[1]
    if width == module.proj.in_features:
        return
    if type(module) not in FREE_WIDTH or width % head:
        module_name = type(module).__name__
        raise MtfedError(f"{path}: {module_name} cannot take heads of {head} channels that are {width} wide together.")
    module.num_heads = width // head
    if hasattr(module, "attn_dim"):
        module.attn_dim = width
