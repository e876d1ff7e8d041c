"""Attention from tokens to others, which CTAN and Medformer use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .timm_library import timm


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context (Vaswani et al., NeurIPS 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    @torch.no_grad()
    def match_queries_and_keys(self) -> None:
        """Give queries and keys the same orthogonal weights, so that tokens start by attending to what resembles them.

        With independent weights, scores are random at the start, and every token gets nearly the mean of the context.
        """
        nn.init.orthogonal_(self.q.weight)
        self.kv.weight[: len(self.q.weight)] = self.q.weight
        for bias in (self.q.bias, self.kv.bias[: len(self.q.bias)]):
            nn.init.zeros_(bias)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, P, D / heads)
            for x in (self.q(tokens), *self.kv(context).chunk(2, dim=-1))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    """A pre-norm transformer layer in which tokens attend to a context instead of to each other."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = timm.layers.Mlp(width, int(mlp_ratio * width))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return tokens (B, N, D) after attention to a context (B, M, D) and an MLP."""
        tokens = tokens + self.attention(self.norm(tokens), self.context_norm(context))
        return tokens + self.mlp(self.mlp_norm(tokens))
