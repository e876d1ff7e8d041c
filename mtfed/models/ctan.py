"""CTAN: tasks share an encoder, look at its features through soft masks, and attend to each other while they do so.

Kim, Purdie, McIntosh, "Cross-task attention network", MICCAI 2023 Workshops (arXiv:2309.03837). Only the
idea, cross-task attention from pixel-level to image-level predictions, and, from secondary sources, the names of its
two components are public: a Cross-Task Attention Encoder (CTAE) and a Cross-Task Attention Bottleneck (CTAB). The
formulas and sizes below are our design.

CTAE. With p_i and u_i the encoder's maps before and after the last block of stage i, and for every task t

    h_i^t     = GELU(GroupNorm(P_i^t p_i + F_i^t pool(f_{i-1}^t)))      the task's view of the stage, with few channels
    m_i^{s>t} = sigmoid(G_i^t h_i^t + H_i^t h_i^s)                      how much t attends to s at each position
    a_i^t     = 2 sigmoid(A_i^t h_i^t + X_i^t sum_{s != t} m_i^{s>t} * V_i^t h_i^s)
    f_i^t     = a_i^t * u_i

where capitals are 1x1 convolutions. The tasks exchange h, which has an eighth of the channels of the maps: exchanging
the maps themselves would cost more than the encoder. For the same reason there is no shared bottleneck between stages,
which MTAN has.

CTAB. Each task makes tokens from its coarsest maps, and every token attends to the tokens of all tasks:

    z^t = LayerNorm(E^t f_4^t)
    y^t = z^t + Attention^t(queries z^t; keys and values [z^1; ...; z^T]),    y^t <- y^t + MLP^t(LayerNorm(y^t))
    f_4^t <- 2 sigmoid(D^t LayerNorm(y^t)) * f_4^t

The result is a mask here too, not a summand. If D y were added, it could grow larger than the features, and the norm of
a decoder that reads their mean would then suppress them (measured: image-level tasks no longer distinguished images).

A, X and D are initialised to 0, so all masks are 1, and the model starts as hard sharing with the encoder's own
features. A mask around one half or a random update would spoil pretrained features. Gates start small, so that a task
first learns from its own view.

Federation. Features of t need the streams of all tasks, including tasks that a site, or an image, has no labels for.
All modules that compute the stream of t are the part ``cross.t``. Every site receives all of these parts and computes
all streams, so the function is the same everywhere. It trains and returns the parts of its own tasks. The others are
context with fixed weights (:func:`mtfed.learning.parts.train_only`), through which gradients still reach the encoder.
For this reason, normalisation has no running statistics: context must not depend on whether it is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MtfedError
from ..strategies.wire import CROSS
from .attention import CrossAttention
from .decoders.layers import CONVOLUTIONS
from .encoders import Encoder, Features
from .sharing import Sharing, max_pool_to, select_rows

INITIAL_GATE_BIAS = -2.0  # gates start at about an eighth
HEAD_WIDTH = 32  # channels of an attention head
MAX_TOKEN_WIDTH = 256  # channels of the tokens
Layer = TypeVar("Layer", bound=nn.Module)


class CrossTaskAttention(Sharing):
    """CTAN's sharing scheme.

    Streams are computed for all images that any task is computed for, the bottleneck's queries only for the images of
    their own task.

    Args:
        encoder: see :class:`~.sharing.Sharing`.
        tasks: names of all tasks of the model; a single task attends to itself.
        in_encoder: whether to use CTAE. Without it f_i^t is u_i, and tasks differ only at the bottleneck.
        at_bottleneck: whether to use CTAB.

    Raises:
        MtfedError: if both are false, which would be hard sharing.
    """

    owners: ClassVar[Mapping[str, str]] = {"cross": CROSS}

    def __init__(
        self, encoder: Encoder, tasks: Iterable[str], in_encoder: bool = True, at_bottleneck: bool = True
    ) -> None:
        super().__init__(encoder, tasks)
        encoder.family()  # an encoder without stages fails here instead of in a site's first step
        if not (in_encoder or at_bottleneck):
            raise MtfedError(
                "Expected cross-task attention in the encoder, at the bottleneck, or both, got neither; "
                "use HardSharing."
            )
        self.in_encoder, self.at_bottleneck = in_encoder, at_bottleneck
        single = len(self.tasks) == 1
        self.cross: Any = nn.ModuleDict({t: Stream(encoder, in_encoder, at_bottleneck, single) for t in self.tasks})

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        stages = self.encoder.stages(image)
        positions = rows  # positions among the images that streams are computed for
        if rows and all(len(index) < len(image) for index in rows.values()):
            used = torch.cat(list(rows.values())).unique()
            positions = {task: torch.searchsorted(used, index) for task, index in rows.items()}
            stages = [(select_rows(before, used), select_rows(after, used)) for before, after in stages]
        streams = self._streams(stages)
        maps = {task: [select_rows(level, index) for level in streams[task]] for task, index in positions.items()}
        if self.at_bottleneck:
            tokens = {task: self.cross[task].bottleneck.tokens(streams[task][-1]) for task in self.tasks}
            context = torch.cat(list(tokens.values()), dim=1)  # (B, T P, D)
            for task, index in positions.items():
                mask = self.cross[task].bottleneck(select_rows(tokens[task], index), select_rows(context, index))
                coarsest = maps[task][-1]
                maps[task][-1] = mask.transpose(1, 2).reshape(coarsest.shape) * coarsest
        return {task: self.encoder.features(select_rows(image, index), maps[task]) for task, index in rows.items()}

    def _streams(self, stages: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
        """Return each task's maps f_i from the encoder's p_i and u_i."""
        if not self.in_encoder:
            return {task: [after for _, after in stages] for task in self.tasks}
        features: list[Tensor] = []
        for i, (before, after) in enumerate(stages):
            own = [self.cross[task].stages[i] for task in self.tasks]
            features.append(attend(own, before, after, features[-1] if features else None))
        return {task: [maps[:, t] for maps in features] for t, task in enumerate(self.tasks)}


class Stream(nn.Module):
    """All modules of one task in CTAN, see :class:`CrossTaskAttention`."""

    def __init__(self, encoder: Encoder, in_encoder: bool, at_bottleneck: bool, single: bool) -> None:
        super().__init__()
        if in_encoder:
            self.stages = nn.ModuleList(
                StageAttention(channels, before, encoder.dims, single)
                for channels, before in zip(encoder.channels, [0, *encoder.channels[:-1]], strict=True)
            )
        if at_bottleneck:
            self.bottleneck = BottleneckAttention(encoder.channels[-1])


class StageAttention(nn.Module):
    """One task's part of CTAE at one stage.

    ``before`` is the number of channels of the previous stage, 0 if there is none; ``single``: there is no other task.
    """

    def __init__(self, channels: int, before: int, dims: int, single: bool) -> None:
        super().__init__()
        conv, hidden = CONVOLUTIONS[dims], max(channels // 8, 16)
        self.present = conv(channels, hidden, 1)  # P
        self.past = conv(before, hidden, 1) if before else None  # F
        self.norm = nn.GroupNorm(1, hidden)
        self.own = zero_initialised(conv(hidden, channels, 1))  # A
        if not single:
            self.gate = conv(hidden, hidden, 1)  # G
            self.gate_other = conv(hidden, hidden, 1, bias=False)  # H
            self.value = conv(hidden, hidden, 1, bias=False)  # V
            self.heard = zero_initialised(conv(hidden, channels, 1, bias=False))  # X
            nn.init.constant_(self.gate.get_parameter("bias"), INITIAL_GATE_BIAS)


def attend(own: Sequence[StageAttention], before: Tensor, after: Tensor, last: Tensor | None) -> Tensor:
    """Return f_i of T tasks, (B, T, C, *s).

    Each layer is computed for all tasks in one product. The layers are so small that calling them task by task would
    cost more than the arithmetic.

    Args:
        own: the tasks' modules of the stage.
        before: p_i (B, C, *s).
        after: u_i (B, C, *s).
        last: f_{i-1} (B, T, C', *r), or None in the first stage.
    """
    size, count = before.shape[2:], len(own)
    views = mix([stage.present for stage in own], before.flatten(2)[:, None])  # (B, T, hidden, P)
    if last is not None:
        pooled = max_pool_to(last.flatten(1, 2), size).unflatten(1, (count, -1)).flatten(3)
        views = views + mix([stage.past for stage in own if stage.past is not None], pooled)
    scale, offset = (torch.cat([stage.norm.get_parameter(name) for stage in own]) for name in ("weight", "bias"))
    code = F.gelu(F.group_norm(views.flatten(1, 2), count, scale, offset)).view_as(views)  # h
    logits = mix([stage.own for stage in own], code)
    if count > 1:
        gates = mix([stage.gate_other for stage in own], code[:, :, None])  # (B, T of s, T of t, hidden, P)
        gates = torch.sigmoid(gates + mix([stage.gate for stage in own], code)[:, None])
        heard = gates * mix([stage.value for stage in own], code[:, :, None])
        others = 1 - torch.eye(count, dtype=heard.dtype, device=heard.device)  # s != t
        logits = logits + mix([stage.heard for stage in own], (heard * others[:, :, None, None]).sum(1))
    return 2 * torch.sigmoid(logits).unflatten(3, size) * after[:, None]


def mix(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply T 1x1 convolutions to (..., T or 1, channels, P), each to its own entry; return (..., T, out, P)."""
    mixed = torch.stack([layer.get_parameter("weight").flatten(1) for layer in layers]) @ x
    biases = [layer.bias for layer in layers if isinstance(layer.bias, Tensor)]
    return mixed + torch.stack(biases)[:, :, None] if biases else mixed


class BottleneckAttention(nn.Module):
    """One task's part of CTAB, for maps with ``channels`` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = max(min(channels, MAX_TOKEN_WIDTH) // HEAD_WIDTH, 1)
        width = heads * HEAD_WIDTH
        self.embed = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out_norm = nn.LayerNorm(width)
        self.out = zero_initialised(nn.Linear(width, channels))

    def tokens(self, level: Tensor) -> Tensor:
        """Return z (B, P, D) from a task's maps (B, C, *s) with P positions."""
        return self.norm(self.embed(level.flatten(2).transpose(1, 2)))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return a mask (B, P, C) for the task's map, between 0 and 2.

        Args:
            tokens: (B, P, D), of the task.
            context: (B, T P, D), the tokens of all tasks.
        """
        tokens = tokens + self.attention(tokens, context)
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return 2 * torch.sigmoid(self.out(self.out_norm(tokens)))


def zero_initialised(layer: Layer) -> Layer:
    """Set a layer's weights to 0, so that it outputs zeros until it is trained; return it."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
