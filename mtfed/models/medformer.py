"""Medformer: one transformer for images and volumes of any modality, which reads and answers through learned latents.

After Simionescu, "Multitask Multimodal Self-Supervised Learning for Medical Images" (PhD thesis, 2025,
arXiv:2510.23325). Known are its three components and its latents; everything else is our design, in the manner of
Perceiver IO (Jaegle et al., ICLR 2022):

* The *Input Adaptformer* embeds patches of an image or a volume as tokens (:class:`.patches.PatchEmbedding`). A fixed
  number of latents, to each of which the latents of the image's dimensionality, modality and body part are added,
  attends to the tokens. Its output has the same size for every image. Each latent has a learned position, and starts by
  attending to the tokens near it, in images and in volumes.
* The *Main Body* is a stack of pre-norm transformer layers on these latents, with all weights shared. Its cost does not
  depend on the size of the image.
* The *Output Adaptformer* attends to the body's output: with the latent of a task for a prediction of the whole image,
  and with position queries, which are the image's tokens plus the latent of the task, for maps.

The decoders of this package read its features like those of an encoder: as pooled features the task's latent, and as
maps the stem of the patch embedding, the tokens, and the position queries after each layer of the Output Adaptformer.

Parts of the federation: what only images of a kind pass through is ``input.NAME`` (``input.3d``, ``input.ct``), so a
site with other images neither receives nor changes it. The latent of a task belongs to the task's decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..data.vocabulary import BODY_PARTS, MODALITIES
from ..errors import MtfedError
from ..strategies.wire import DECODER, INPUT, input_of, task_of
from ..tasks.task import Task
from .attention import CrossAttentionBlock
from .encoders import Encoder, EncoderSettings, FeatureInfo, Features, layers_of
from .patches import PatchEmbedding, spread_points
from .pretrained import is_of_scheme, load_scheme
from .sharing import Sharing, select_rows
from .timm_library import timm
from .volumes import VOLUMES

LATENTS = 32  # of the Input Adaptformer
LATENT_DEVIATION = 0.1  # at the start; that of the embedding of positions is about 0.4
OUTPUT_LAYERS = 2  # layers of the Output Adaptformer
OUTPUT_MLP_RATIO = 2.0  # its hidden units, in widths; position queries are many, so it is kept cheap


class Medformer(Sharing):
    """Medformer's sharing scheme.

    Args:
        body: a plain transformer (timm's ViT or :class:`.volumes.VolumeTransformer`) that gives the Main Body its
            layers, the number of heads and the width, and the size of patches.
        settings: forms of the images.
        tasks: tasks by name.
    """

    owners: ClassVar[Mapping[str, str]] = {
        "patches": INPUT, "dimensionality": INPUT, "modality": INPUT, "body_part": INPUT, "task_latents": DECODER,
    }  # fmt: skip

    def __init__(self, body: Any, settings: EncoderSettings, tasks: Mapping[str, Task]) -> None:
        nn.Module.__init__(self)  # there is no encoder whose modules this scheme would take
        self.tasks = tuple(tasks)
        self.dimensions = {name: task.dimensions or settings.forms[0].dimensions for name, task in tasks.items()}
        width, heads = int(body.embed_dim), int(body.blocks[0].attn.num_heads)
        self.width = width
        self.dimensionality = _vectors((f"{form.dimensions}d" for form in settings.forms), width)
        self.modality, self.body_part = _vectors(MODALITIES, width), _vectors(BODY_PARTS, width)
        self.latents = nn.Parameter(LATENT_DEVIATION * torch.randn(LATENTS, width))
        self.points = nn.Parameter(spread_points(LATENTS, 3))  # images have the first two coordinates
        self.reader = CrossAttentionBlock(width, heads)
        self.blocks = body.blocks  # the writer normalises what comes out of them
        self.writer = nn.ModuleList(CrossAttentionBlock(width, heads, OUTPUT_MLP_RATIO) for _ in range(OUTPUT_LAYERS))
        for layer in (self.reader, *self.writer):
            layer.attention.match_queries_and_keys()
        # Drawn after what all models share, so that the same seed gives that the same weights, whatever the tasks are.
        self.patches = nn.ModuleDict(
            {f"{form.dimensions}d": PatchEmbedding(form, patch_size(body), width) for form in settings.forms}
        )
        self.task_latents = nn.ParameterDict({task: nn.Parameter(torch.randn(width)) for task in self.tasks})

    @classmethod
    def build(cls, settings: EncoderSettings, tasks: Mapping[str, Task], **options: Any) -> Sharing:
        """Return the scheme, with the Main Body and the size of patches of a plain transformer.

        Weights of another Medformer give all that is shared, and what is learned about the images and tasks that both
        have. Those of a plain transformer give the Main Body its layers.

        Raises:
            MtfedError: if the encoder is not a plain transformer, patches do not fit, or the weights file does not; or
                if the weights leave something at random that is frozen.
        """
        dimensions, weights = 3 if settings.name in VOLUMES else 2, settings.weights
        continued = weights not in ("", "timm") and is_of_scheme(Path(weights).expanduser(), "latents")
        body = Encoder(settings.name, settings.forms[0].size, 1, dimensions, "" if continued else weights).body
        if not isinstance(body, timm.models.VisionTransformer):
            raise MtfedError(
                f"Config key encoder: medformer takes its layers and the size of patches from a plain ViT, which "
                f"{settings.name} is not; choose one, such as vit_mini_patch8."
            )
        scheme = cls(body, settings, tasks, **options)
        missing = ["the Input and the Output Adaptformer"]
        if continued:
            parts = load_scheme(scheme, scheme.part, settings.name, Path(weights).expanduser())
            missing = [part for part in parts if input_of(part)]
        if settings.frozen and weights and missing:
            raise MtfedError(
                f"Config key weights: expected all weights of a frozen medformer, got none of {', '.join(missing)} "
                f"from {weights}; set encoder-rate above 0 and lora-rank to 0, or pre-train on such images first."
            )
        return scheme

    def is_encoder(self, name: str) -> bool:
        return not task_of(self.part(name))

    def layers(self) -> dict[str, int]:
        return {name: layer for name, layer in layers_of(self).items() if self.is_encoder(name)}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return a pattern of the names of each layer's weights, from the first layer to the last, as timm's models."""
        return {
            "input": r"^(?:patches|latents|points|dimensionality|modality|body_part)\b",
            "reader": r"^reader\b",
            "blocks": r"^blocks\.(\d+)",
            "writer": r"^writer\.(\d+)",
        }

    def info(self, task: str) -> FeatureInfo:
        return self._patches(self.dimensions[task]).info

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        stem, tokens = self._patches(image.ndim - 2)(image)
        memory = self.read(tokens, image.ndim - 2, words)
        features: dict[str, Features] = {}
        for task, index in rows.items():
            own = [select_rows(x, index) for x in (image, stem, tokens, memory)]
            features[task] = TaskFeatures(own[0], own[1], own[2], own[3], self.task_latents[task], self.write)
        return features

    def read(self, tokens: Tensor, dimensions: int, words: Tensor | None = None) -> Tensor:
        """Return the body's output (B, N, D) for tokens (B, D, *s): the Input Adaptformer and the Main Body."""
        if words is None:
            words = torch.zeros(len(tokens), 2, dtype=torch.long, device=tokens.device)
        about = self.dimensionality[f"{dimensions}d"]  # what kind of image it is, (D,) and then (B, D)
        for vectors, table, index in ((self.modality, MODALITIES, 0), (self.body_part, BODY_PARTS, 1)):
            about = about + _look_up(vectors, tuple(table), words[:, index])
        positions = self._patches(dimensions).embed_positions(self.points[:, :dimensions])
        latents = self.reader(self.latents + positions + about[:, None], tokens.flatten(2).mT)
        for block in self.blocks:
            latents = block(latents)
        return latents

    def write(self, queries: Tensor, memory: Tensor) -> list[Tensor]:
        """Return queries (B, Q, D) after each layer of the Output Adaptformer."""
        outputs = []
        for layer in self.writer:
            queries = layer(queries, memory)
            outputs.append(queries)
        return outputs

    def _patches(self, dimensions: int) -> PatchEmbedding:
        embedding = self.patches[f"{dimensions}d"]
        assert isinstance(embedding, PatchEmbedding)
        return embedding


class TaskFeatures(Features):
    """The features of one task; maps and pooled features are computed only if a decoder reads them."""

    def __init__(
        self,
        image: Tensor,
        stem: Tensor,
        tokens: Tensor,
        memory: Tensor,
        latent: Tensor,
        write: Callable[[Tensor, Tensor], list[Tensor]],
    ) -> None:
        self.image = image
        self._stem, self._tokens, self._memory, self._latent, self._write = stem, tokens, memory, latent, write

    @cached_property
    def maps(self) -> list[Tensor]:  # type: ignore[override]  # the fields of the base class
        queries = (self._tokens.flatten(2).mT + self._latent).contiguous()
        written = [x.mT.reshape(self._tokens.shape) for x in self._write(queries, self._memory)]
        return [self._stem, self._tokens, *written]

    @cached_property
    def pooled(self) -> Tensor:  # type: ignore[override]
        query = self._latent.expand(len(self._memory), 1, -1)
        return self._write(query, self._memory)[-1][:, 0]


def patch_size(body: Any) -> int:
    """Return the side of a plain transformer's patches."""
    size = body.patch_embed.patch_size
    return int(size if isinstance(size, int) else size[0])


def _vectors(names: Iterable[str], width: int) -> nn.ParameterDict:
    """Return a learned vector for each name, without any effect at first.

    Each is a parameter of its own: an optimiser leaves it alone as long as no image needs it.
    """
    return nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in names})


def _look_up(vectors: nn.ParameterDict, names: Sequence[str], index: Tensor) -> Tensor:
    """Return the vector (B, D) of the name at each index (B,). PyTorch sorts the names of vectors."""
    used, places = index.unique(return_inverse=True)
    return torch.stack([vectors[names[i]] for i in used.tolist()])[places]
