"""A torch model at the widths of a grown network's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..errors import MtfedError
from .sketch import join
from .transformer_axes import ATTENTIONS, FREE_WIDTH

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # of a module's own tensors
Model = TypeVar("Model", bound=nn.Module)


def resize(model: Model, tensors: Mapping[str, np.ndarray | torch.Tensor]) -> Model:
    """Return a copy of a model that holds the given tensors, at their widths.

    Understood are linear layers, convolutions, BatchNorm and PReLU, and attention whose heads are free in number, with
    or without options; anything else keeps its shapes.

    Args:
        model: left as it is.
        tensors: all of the model's ``state_dict``, as :func:`mtfed.strategies.growth.expand` and a merge give them.

    Raises:
        MtfedError: naming the first module whose shapes cannot become those of the tensors.
    """
    model = deepcopy(model)
    own = model.state_dict()
    if strange := sorted(own.keys() ^ tensors.keys()):
        raise MtfedError(
            f"Expected the tensors of the model's state_dict, all of them and no others; see {strange[0]!r}."
        )
    for path, module in model.named_modules():
        names = [*module._parameters, *module._buffers]
        shapes = {name: tuple(tensors[join(path, name)].shape) for name in names if join(path, name) in own}
        if type(module) in ATTENTIONS:
            _resize_attention(path, module, tuple(tensors[join(path, "proj.weight")].shape))
        if any(shapes[name] != tuple(own[join(path, name)].shape) for name in shapes):
            _resize_module(path, module, shapes)
    model.load_state_dict({name: torch.as_tensor(values) for name, values in tensors.items()})
    return model._apply(lambda tensor: tensor)  # as if moved: what a model keeps of its tensors is out of date


def _resize_module(path: str, module: nn.Module, shapes: Shapes) -> None:
    for types, change in WIDTHS.items():
        if isinstance(module, types):
            change(path, module, shapes)
            break
    else:
        if type(module) not in ATTENTIONS:  # a table of positions, one column a head
            raise MtfedError(
                f"{path}: {type(module).__name__} cannot take tensors of other shapes ({shapes}); grow only axes that "
                "linear layers, convolutions, BatchNorm, PReLU and attention carry."
            )
    for name, shape in shapes.items():
        old = getattr(module, name)
        new = torch.empty(shape, dtype=old.dtype, device=old.device)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _linear(path: str, module: Any, shapes: Shapes) -> None:
    module.out_features, module.in_features = shapes["weight"]


def _convolution(path: str, module: Any, shapes: Shapes) -> None:
    first, second = shapes["weight"][:2]
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        module.groups, second = first, first
    elif module.groups > 1:
        raise MtfedError(
            f"{path}: a convolution of {module.groups} groups cannot be widened; keep its channels as they are."
        )
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    module.in_channels, module.out_channels = (first, second) if transposed else (second, first)


def _batch_norm(path: str, module: Any, shapes: Shapes) -> None:
    module.num_features = next(shape[0] for shape in shapes.values() if shape)


def _prelu(path: str, module: Any, shapes: Shapes) -> None:
    (module.num_parameters,) = shapes["weight"]


WIDTHS: dict[type[nn.Module], Callable[[str, Any, Shapes], None]] = {
    nn.Linear: _linear, nn.modules.conv._ConvNd: _convolution, nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.PReLU: _prelu,
}  # fmt: skip


def _resize_attention(path: str, module: Any, proj: Shape) -> None:
    """Change the number of heads, each as wide as before."""
    head, width = module.proj.in_features // module.num_heads, proj[1]
    if width == module.proj.in_features:
        return
    if type(module) not in FREE_WIDTH or width % head:
        raise MtfedError(f"{path}: {type(module).__name__} cannot take heads of {head} that are {width} wide together.")
    module.num_heads = width // head
    if hasattr(module, "attn_dim"):
        module.attn_dim = width
