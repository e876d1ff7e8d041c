"""The optimiser of local training, and the proximal terms that strategies add to its gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..config import Config
from ..models.system import MultiTaskModel

Anchors = Iterable[tuple[Tensor, Tensor, float]]  # weight, anchor and mu


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without the decorators that load torch's compiler, which takes about a second.

    They keep the compiler out of these methods, or break its graphs around ``step``. Here only a model's forward pass
    is ever compiled (:mod:`.acceleration`), so the plain methods do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def encoder_rates(model: MultiTaskModel, config: Config) -> dict[int, float]:
    """Return the factor of the learning rate by the id of each of the encoder's weights; none if all factors are 1.

    The last layer learns at ``encoder-rate``, and each layer before it at ``layer-decay`` times the rate of the next,
    as in the fine-tuning of ELECTRA (Clark et al., ICLR 2020), BEiT (Bao et al., ICLR 2022) and MAE (He et al., CVPR
    2022). There the decoder is the last layer and starts the decay; here the decoders' rate is ``learning-rate``.
    """
    if config.encoder_rate == config.layer_decay == 1:
        return {}
    layers = model.layers()
    last = max(layers.values(), default=0)
    return {
        id(weight): config.encoder_rate * config.layer_decay ** (last - layers.get(name, last))
        for name, weight in model.named_parameters() if model.is_encoder(name)
    }  # fmt: skip


def adamw(weights: Iterable[Tensor], factors: Mapping[int, float], config: Config) -> AdamW:
    """Return an optimiser of the weights, with a group for each factor of the learning rate.

    PyTorch's AdamW decays a weight by its learning rate times ``weight-decay``, so the factor holds for both.
    """
    groups: dict[float, list[Tensor]] = {}
    for weight in weights:
        groups.setdefault(factors.get(id(weight), 1.0), []).append(weight)
    named = [{"params": group, "factor": factor} for factor, group in groups.items()]
    return AdamW(named, weight_decay=config.weight_decay, fused=True)


def set_learning_rate(optimizer: AdamW, learning_rate: float) -> None:
    """Set the learning rate of each group to its factor times this one."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * learning_rate


def add_proximal_gradients(anchors: Anchors) -> None:
    """Add the gradient of ``mu / 2 * ||w - anchor||^2`` to each weight that has a gradient."""
    for weight, anchor, mu in anchors:
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - anchor, alpha=mu)
