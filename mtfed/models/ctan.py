"""CTAN: tasks share an encoder, look at its features through soft masks, and attend to each other while they do.

Kim, Purdie, McIntosh, "Cross-task attention network", MICCAI 2023 Workshops (arXiv:2309.03837). Known are the idea,
cross-task attention from pixel-level to image-level predictions, and, at second hand, the names of its two components:
a Cross-Task Attention Encoder (CTAE) and a Cross-Task Attention Bottleneck (CTAB). Formulas and sizes are not public;
those here are our design.

CTAE. With p_i and u_i the encoder's maps before and after the last block of stage i, and for every task t

    h_i^t     = GELU(GroupNorm(P_i^t p_i + F_i^t pool(f_{i-1}^t)))      what t makes of the stage, a few channels wide
    m_i^{s>t} = sigmoid(G_i^t h_i^t + H_i^t h_i^s)                      how much t listens to s, place by place
    a_i^t     = 2 sigmoid(A_i^t h_i^t + X_i^t sum_{s != t} m_i^{s>t} * V_i^t h_i^s)
    f_i^t     = a_i^t * u_i

where capitals are 1x1 convolutions. The exchange is of h, an eighth as wide as the maps: of the maps themselves it
would cost more than the encoder. For the same reason there is no shared bottleneck between stages as MTAN has.

CTAB. Of the coarsest maps each task makes tokens, and every token attends to those of all tasks:

    z^t = LayerNorm(E^t f_4^t)
    y^t = z^t + Attention^t(queries z^t; keys and values [z^1; ...; z^T]),    y^t <- y^t + MLP^t(LayerNorm(y^t))
    f_4^t <- 2 sigmoid(D^t LayerNorm(y^t)) * f_4^t

A mask here too, and no sum: added, D y may grow past the features, and the norm of a decoder that reads their mean then
leaves nothing of them (measured: image-level tasks stopped telling images apart).

A, X and D are 0 at first: all masks are 1, and the model begins as hard sharing with the encoder's own features, which
a mask around one half or a random update would spoil where they are pretrained. Gates begin small, so that a task first
learns from its own view.

Federation. Features of t need the streams of all tasks, also of those that a site, or an image, has no label for. All
that forms the stream of t is the part ``cross.t``. Every site is sent all of these and computes all, so the function is
the same everywhere; it trains and returns those of its own tasks, and the others are context with fixed weights
(:func:`mtfed.learning.parts.train_only`), through which gradients still reach the encoder. Normalisation is without
running statistics for that reason too: context must not depend on whether it trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MtfedError
from ..strategies.wire import CROSS
from .decoders.layers import CONVOLUTIONS
from .encoders import Encoder, Features
from .sharing import Sharing, max_pool_to, select_rows

GATE = -2.0  # bias of the gates at first: they let through an eighth
HEAD = 32  # channels of a head
WIDEST = 256  # channels of the tokens, at most
Layer = TypeVar("Layer", bound=nn.Module)


class CrossTaskAttention(Sharing):
    """CTAN's sharing scheme.

    Streams are computed for the images that any task is wanted for, the bottleneck's queries for each task's own.

    Args:
        encoder: see :class:`~.sharing.Sharing`.
        tasks: names of all tasks of the model; a single one attends to itself.
        in_encoder: with CTAE; without it f_i^t is u_i, and only the bottleneck is the tasks' own.
        at_bottleneck: with CTAB.

    Raises:
        MtfedError: with neither, which is hard sharing.
    """

    owners: ClassVar[Mapping[str, str]] = {"cross": CROSS}

    def __init__(
        self, encoder: Encoder, tasks: Iterable[str], in_encoder: bool = True, at_bottleneck: bool = True
    ) -> None:
        super().__init__(encoder, tasks)
        encoder.family()  # an encoder without stages fails here, not in a hospital's first step
        if not (in_encoder or at_bottleneck):
            raise MtfedError(
                "Expected cross-task attention in the encoder, at the bottleneck, or both, got neither; "
                "use HardSharing."
            )
        self.in_encoder, self.at_bottleneck = in_encoder, at_bottleneck
        alone = len(self.tasks) == 1
        self.cross: Any = nn.ModuleDict(
            {task: Stream(encoder, in_encoder, at_bottleneck, alone) for task in self.tasks}
        )

    def forward(self, image: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Features]:
        stages = self.encoder.stages(image)
        places = rows
        if rows and all(len(index) < len(image) for index in rows.values()):
            used = torch.cat(list(rows.values())).unique()
            places = {task: torch.searchsorted(used, index) for task, index in rows.items()}
            stages = [(select_rows(before, used), select_rows(after, used)) for before, after in stages]
        streams = self._streams(stages)
        maps = {task: [select_rows(level, index) for level in streams[task]] for task, index in places.items()}
        if self.at_bottleneck:
            tokens = {task: self.cross[task].bottleneck.tokens(streams[task][-1]) for task in self.tasks}
            context = torch.cat(list(tokens.values()), dim=1)  # (B, T P, D)
            for task, index in places.items():
                mask = self.cross[task].bottleneck(select_rows(tokens[task], index), select_rows(context, index))
                coarsest = maps[task][-1]
                maps[task][-1] = mask.transpose(1, 2).reshape(coarsest.shape) * coarsest
        return {task: self.encoder.features(select_rows(image, index), maps[task]) for task, index in rows.items()}

    def _streams(self, stages: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
        """Return each task's maps f_i from the encoder's p_i and u_i."""
        if not self.in_encoder:
            return {task: [after for _, after in stages] for task in self.tasks}
        found: list[Tensor] = []
        for i, (before, after) in enumerate(stages):
            own = [self.cross[task].stages[i] for task in self.tasks]
            found.append(attend(own, before, after, found[-1] if found else None))
        return {task: [maps[:, t] for maps in found] for t, task in enumerate(self.tasks)}


class Stream(nn.Module):
    """All that one task has of CTAN: see :class:`CrossTaskAttention`."""

    def __init__(self, encoder: Encoder, in_encoder: bool, at_bottleneck: bool, alone: bool) -> None:
        super().__init__()
        if in_encoder:
            self.stages = nn.ModuleList(
                StageAttention(channels, before, encoder.dims, alone)
                for channels, before in zip(encoder.channels, [0, *encoder.channels[:-1]], strict=True)
            )
        if at_bottleneck:
            self.bottleneck = BottleneckAttention(encoder.channels[-1])


class StageAttention(nn.Module):
    """One task's part of CTAE at one stage.

    Args:
        channels: of the stage.
        before: channels of the stage before, 0 if it is the first.
        dims: 2 or 3.
        alone: whether there is no other task to listen to.
    """

    def __init__(self, channels: int, before: int, dims: int, alone: bool) -> None:
        super().__init__()
        conv, hidden = CONVOLUTIONS[dims], max(channels // 8, 16)
        self.present = conv(channels, hidden, 1)  # P
        self.past = conv(before, hidden, 1) if before else None  # F
        self.norm = nn.GroupNorm(1, hidden)
        self.own = zero_initialised(conv(hidden, channels, 1))  # A
        if not alone:
            self.gate = conv(hidden, hidden, 1)  # G
            self.gate_other = conv(hidden, hidden, 1, bias=False)  # H
            self.value = conv(hidden, hidden, 1, bias=False)  # V
            self.heard = zero_initialised(conv(hidden, channels, 1, bias=False))  # X
            nn.init.constant_(self.gate.get_parameter("bias"), GATE)


def attend(own: Sequence[StageAttention], before: Tensor, after: Tensor, last: Tensor | None) -> Tensor:
    """Return f_i of T tasks, (B, T, C, *s).

    The tasks' layers run as one product each: small as they are, a call a task would cost more than its arithmetic.

    Args:
        own: the tasks' parts of the stage.
        before: p_i (B, C, *s).
        after: u_i (B, C, *s).
        last: f_{i-1} (B, T, C', *r), if there is a stage before.
    """
    size, count = before.shape[2:], len(own)
    seen = mix([stage.present for stage in own], before.flatten(2)[:, None])  # (B, T, hidden, P)
    if last is not None:
        pooled = max_pool_to(last.flatten(1, 2), size).unflatten(1, (count, -1)).flatten(3)
        seen = seen + mix([stage.past for stage in own if stage.past is not None], pooled)
    scale, offset = (torch.cat([stage.norm.get_parameter(name) for stage in own]) for name in ("weight", "bias"))
    code = F.gelu(F.group_norm(seen.flatten(1, 2), count, scale, offset)).view_as(seen)  # h
    logits = mix([stage.own for stage in own], code)
    if count > 1:
        gates = mix([stage.gate_other for stage in own], code[:, :, None])  # (B, T of s, T of t, hidden, P)
        gates = torch.sigmoid(gates + mix([stage.gate for stage in own], code)[:, None])
        heard = gates * mix([stage.value for stage in own], code[:, :, None])
        apart = 1 - torch.eye(count, dtype=heard.dtype, device=heard.device)  # s != t
        logits = logits + mix([stage.heard for stage in own], (heard * apart[:, :, None, None]).sum(1))
    return 2 * torch.sigmoid(logits).unflatten(3, size) * after[:, None]


def mix(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return what T 1x1 convolutions make of (..., T or 1, channels, P), each of its own entry: (..., T, out, P)."""
    mixed = torch.stack([layer.get_parameter("weight").flatten(1) for layer in layers]) @ x
    biases = [layer.bias for layer in layers if isinstance(layer.bias, Tensor)]
    return mixed + torch.stack(biases)[:, :, None] if biases else mixed


class BottleneckAttention(nn.Module):
    """One task's part of CTAB, for maps of so many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = max(min(channels, WIDEST) // HEAD, 1)
        width = heads * HEAD
        self.embed = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out_norm = nn.LayerNorm(width)
        self.out = zero_initialised(nn.Linear(width, channels))

    def tokens(self, level: Tensor) -> Tensor:
        """Return z (B, P, D) of a task's maps (B, C, *s), P being their number of places."""
        return self.norm(self.embed(level.flatten(2).transpose(1, 2)))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return a mask (B, P, C) of the task's map, between 0 and 2, from its tokens (B, P, D) and all (B, T P, D)."""
        tokens = tokens + self.attention(tokens, context)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return 2 * torch.sigmoid(self.out(self.out_norm(tokens)))


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others (Vaswani et al., NeurIPS 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, P, D / heads)
            for x in (self.q(tokens), *self.kv(context).chunk(2, dim=-1))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def zero_initialised(layer: Layer) -> Layer:
    """Return a layer that gives zeros until it is trained."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
