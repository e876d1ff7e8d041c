"""Low-rank adaptation of an encoder whose own weights are frozen.

LoRA (Hu et al., ICLR 2022) adds B A to the weight of a linear layer. A has the shape (rank, inputs), and B the shape
(outputs, rank); B is 0 at the start. In a federation, the mean of products is not the product of means, so
averages of A and of B are not an average of the sites' updates. FFA-LoRA (Sun et al., ICLR 2024) therefore freezes A at
its random initial values and trains B alone. A site's update is then linear in what it trains, any weighted average of
B is that of the updates, and a message has half the size. The rows of our A are orthonormal, so that B A has the norm
of B.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MtfedError
from .attention import CrossAttention
from .timm_library import timm

FIXED, TRAINED = "lora_a", "lora_b"  # the tensors A and B of an adapted layer

# Modules -> their linear layers. Attention of other types may read a layer's weight without calling the layer.
ADAPTED: dict[type[nn.Module], tuple[str, ...]] = {
    timm.layers.Attention: ("qkv", "proj"),
    timm.models.swin_transformer.WindowAttention: ("qkv", "proj"),
    timm.models.pvt_v2.Attention: ("q", "kv", "proj"),
    timm.models.pvt_v2.MlpWithDepthwiseConv: ("fc1", "fc2"),
    timm.layers.Mlp: ("fc1", "fc2"),
    CrossAttention: ("q", "kv", "proj"),
}


class AdaptedLinear(nn.Linear):
    """A linear layer with the weight W + B A, which shares W and the bias with a given layer."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        like: dict[str, Any] = {"dtype": layer.weight.dtype, "device": layer.weight.device}
        self.lora_a = nn.Parameter(torch.empty(rank, layer.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        nn.init.orthogonal_(self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(model: nn.Module, is_encoder: Callable[[str], bool], rank: int) -> None:
    """Replace the linear layers of the encoder's attention and MLPs in place by adapted ones.

    Args:
        model: the model that contains the encoder.
        is_encoder: returns whether a tensor of the model is the encoder's.
        rank: rank of the updates; that of a layer with fewer inputs or outputs is their number.

    Raises:
        MtfedError: if the encoder has no such layer.
    """
    adapted = ADAPTED | _of_monai()
    layers = [
        (module, layer)
        for path, module in model.named_modules()
        for layer in adapted.get(type(module), ())
        if is_encoder(f"{path}.{layer}.weight") and isinstance(getattr(module, layer), nn.Linear)
    ]
    if not layers:
        raise MtfedError(
            "Config key lora-rank: expected an encoder with attention layers to adapt, such as a ViT, Swin or PVT; "
            "choose one, or lora-rank = 0 and a small encoder-rate."
        )
    for module, layer in layers:
        linear = getattr(module, layer)
        setattr(module, layer, AdaptedLinear(linear, min(rank, linear.in_features, linear.out_features)))


def merge_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model without low-rank updates: those of a state dict, with W + B A as weights."""
    merged = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in (FIXED, TRAINED)}
    for name, tensor in tensors.items():
        layer = name.rpartition(".")[0]
        if is_lora(name) and f"{layer}.weight" in tensors and f"{layer}.{FIXED}" in tensors:
            merged[f"{layer}.weight"] = tensors[f"{layer}.weight"] + tensor @ tensors[f"{layer}.{FIXED}"]
    return merged


def is_lora(name: str) -> bool:
    """Return whether a tensor of an encoder is the trained part of a low-rank update."""
    return name.rpartition(".")[2] == TRAINED


def _of_monai() -> dict[type[nn.Module], tuple[str, ...]]:
    """Return the layers of the encoders of volumes, which come from a library that other models do not import."""
    if "monai" not in sys.modules:
        return {}
    from monai.networks.blocks.mlp import MLPBlock
    from monai.networks.nets.swin_unetr import WindowAttention

    return {WindowAttention: ("qkv", "proj"), MLPBlock: ("linear1", "linear2")}
