"""Encoders by name, with features at several scales: any timm model, and models of volumes."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Form
from ..errors import MtfedError, unknown
from . import backbones  # noqa: F401  (registers them with timm)
from .families import FAMILY_NAMES, Family, StageMaps, family_of, is_transformer, run_stages
from .norms import replace_norms
from .pretrained import load_weights
from .timm_library import timm
from .volumes import VOLUMES, build_volume_body

# Settings with which timm's models that are built for one size accept other sizes too; the last is for models without.
_SIZE_SETTINGS: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


@dataclass
class Features:
    """The output of an encoder, from which decoders predict. *S is (S, S) or (S, S, S)."""

    image: Tensor  # (B, C, *S), the normalised input
    maps: list[Tensor]  # from fine to coarse, (B, C_i, *S / stride_i)
    pooled: Tensor  # (B, D)

    def rows(self, index: Tensor) -> Features:
        """Return the features of some samples of the batch."""
        return Features(self.image[index], [level[index] for level in self.maps], self.pooled[index])


@dataclass(frozen=True)
class EncoderSettings:
    """What a sharing scheme needs to know to build its encoders."""

    name: str  # a timm model, or in three dimensions a key of :data:`.volumes.VOLUMES`
    forms: tuple[Form, ...]  # forms of the images that tasks need
    weights: str = ""  # pretrained weights, see :func:`.pretrained.load_weights`
    frozen: bool = False  # whether the weights stay as they are, so that pretrained weights have to be complete

    def build(self) -> Encoder:
        """Return a new encoder.

        Raises:
            MtfedError: if images have several forms, or the encoder does not fit (see :class:`Encoder`).
        """
        if len(self.forms) > 1:
            raise MtfedError(
                "Config key model: expected tasks of one dimensionality, got tasks of images and of volumes; set "
                "model = 'medformer', or divide the tasks between two runs."
            )
        (form,) = self.forms
        return Encoder(self.name, form.size, form.channels, form.dimensions, self.weights)


@dataclass(frozen=True)
class FeatureInfo:
    """The form of features, which decoders are built for."""

    dims: int  # 2 or 3
    image_channels: int  # channels of the image
    channels: list[int]  # channels of each map
    strides: list[int]  # stride of each map
    dim: int  # width of the pooled features


class Encoder(nn.Module):
    """A backbone that outputs four feature maps and a pooled vector.

    The maps of a plain ViT are the outputs of four evenly spaced blocks, all with the stride of its patches. Those of a
    hierarchical model are the outputs of its last four stages. A norm at the end of the body is applied to the
    pooled features, not to the maps; the norm that a PVT has at the end of every stage is applied to the maps. If the
    architecture allows, images may differ in size from the position embeddings: ViT, Swin, PVT, ConvNets and all of
    :data:`.volumes.VOLUMES`, at sizes that the finest stride divides.

    Args:
        name: name of a timm model, or in three dimensions a key of :data:`.volumes.VOLUMES`.
        image_size: side of the square or cubic input in pixels, for which position embeddings are made.
        channels: 1 or 3.
        dimensions: 2 or 3.
        weights: pretrained weights, see :func:`.pretrained.load_weights`; if empty, they are random.

    Raises:
        MtfedError: if the name is unknown or belongs to the other number of dimensions, or if the image size or the
            weights do not fit.
    """

    def __init__(self, name: str, image_size: int, channels: int, dimensions: int = 2, weights: str = "") -> None:
        super().__init__()
        create = _create_volume_body if dimensions == 3 else _create_image_body
        self.body, settings = create(name, image_size, channels)
        replace_norms(self.body)
        self.indices, chosen = _choose_levels(name, self.body)
        self.name = name
        self.stage_names = [str(level["module"]) for level in chosen]
        self.channels = [int(level["num_chs"]) for level in chosen]  # channels of each map
        self.strides = [int(level["reduction"]) for level in chosen]  # stride of each map
        self.dim = int(self.body.head_hidden_size)  # width of the pooled features
        self.image_channels = channels  # channels of the input
        self.dims = dimensions
        self.info = FeatureInfo(dimensions, channels, self.channels, self.strides, self.dim)
        self.is_transformer = is_transformer(self.body)
        if weights:
            load_weights(self.body, name, weights, settings)

    def forward(self, image: Tensor) -> Features:
        final, maps = self.body.forward_intermediates(image, indices=self.indices, output_fmt="NCHW")
        return Features(image, maps, self.body.forward_head(final, pre_logits=True))

    def stages(self, image: Tensor) -> StageMaps:
        """Return the maps before and after the last block of each stage, four pairs (B, C_i, *S / stride_i).

        The maps after it are those of ``forward``. The stages of a plain ViT are four groups of blocks. If the only
        block of a stage also changes the size, as in a ResNet with one block in each stage, the output of its shortcut
        takes the place of the map before it.

        Raises:
            MtfedError: if the architecture's stages are unknown.
        """
        options = {"indices": self.indices, "output_fmt": "NCHW", "intermediates_only": True}
        forward = partial(self.body.forward_intermediates, image, **options)
        return run_stages(self.body, self.stage_names, self.family().tokens, forward)

    def layers(self) -> dict[str, int]:
        """Return the layer of each weight by name, see :func:`layers_of`."""
        return {f"body.{name}": layer for name, layer in layers_of(self.body).items()}

    def features(self, image: Tensor, maps: list[Tensor]) -> Features:
        """Return the features of modified maps, pooled from the last map.

        Norm and pooling are those of the body's head. For a ViT with a class token, the mean over the other tokens
        takes its place. Without a class token, maps of ``forward`` give the pooled features of ``forward``.

        Raises:
            MtfedError: if the architecture's head is unknown.
        """
        return Features(image, maps, self.family().pool(self.body, maps[-1]))

    def family(self) -> Family:
        """Return the family of the body's architecture, which :meth:`stages` and :meth:`features` need.

        Raises:
            MtfedError: if it is unknown.
        """
        if (family := family_of(self.body)) is None:
            body = f"{self.name!r} ({type(self.body).__name__})"
            raise MtfedError(f"Encoder {body} shows no maps inside its stages; choose {FAMILY_NAMES}.")
        return family


def layers_of(module: Any) -> dict[str, int]:
    """Return the layer of each of a module's weights by name, 0 for the first, as its ``group_matcher`` groups them.

    timm's models have this method, which returns a pattern of the names of each group's weights. Weights that match no
    pattern form a layer after all others. Without the method, no weight has a layer.
    """
    matcher = getattr(module, "group_matcher", None)
    return timm.models.group_parameters(module, matcher(coarse=False), reverse=True) if matcher else {}


def _choose_levels(name: str, body: Any) -> tuple[list[int] | None, list[dict[str, Any]]]:
    """Return the indices of the four levels to use, or ``None`` for all, and the body's description of each."""
    levels = getattr(body.feature_info, "info", body.feature_info)  # a list, or an object that contains it
    if len(levels) < 4:
        raise MtfedError(
            f"Encoder {name!r} gives {len(levels)} feature maps, decoders read 4; choose a ViT, Swin, PVT or ConvNet."
        )
    if len(levels) == 4:
        return None, levels
    plain = len({level["reduction"] for level in levels}) == 1
    step = len(levels) / 4
    indices = [round((i + 1) * step) - 1 for i in range(4)] if plain else list(range(len(levels)))[-4:]
    return indices, [levels[i] for i in indices]


def _check_size(name: str, image_size: int, body: Any) -> None:
    finest = min(int(level["reduction"]) for level in _choose_levels(name, body)[1])
    if image_size < finest or image_size % finest:
        reason = f"its finest maps have one pixel for {finest}; choose a multiple of {finest}"
        raise _size_error(name, image_size, reason)


def _size_error(name: str, image_size: int, reason: str) -> MtfedError:
    return MtfedError(f"Encoder {name!r} cannot take images of {image_size} px: {reason}.")


def _create_image_body(name: str, image_size: int, channels: int) -> tuple[Any, dict[str, Any]]:
    """Create a timm model without its classifier, for all input sizes that it can accept, and return its settings."""
    if name in VOLUMES:
        raise MtfedError(f"Encoder {name!r} is for volumes; set dimensions = 3, or choose a timm model.")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise MtfedError(f"Unknown encoder {name!r}; nearest in timm: {', '.join(near) or 'none'}.")
    try:
        body, settings = _create(name, image_size, channels)
        _check_size(name, image_size, body)
        with torch.no_grad():  # a size that does not fit fails here instead of in a site's first step
            body.eval().forward_intermediates(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise _size_error(name, image_size, f"{error}; choose another image-size") from error
    except (AttributeError, TypeError) as error:
        problem = f"Encoder {name!r} gives no feature maps ({error})"
        raise MtfedError(f"{problem}; choose a ViT, Swin, PVT or ConvNet.") from error
    return body.train(), settings


def _create(name: str, image_size: int, channels: int) -> tuple[Any, dict[str, Any]]:
    """Return a timm model and the settings that built it, which allow as many image sizes as the model supports."""
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or cfg.fixed_input_size:
        for flexible in _SIZE_SETTINGS:
            sized = settings | {"img_size": image_size} | flexible
            try:
                return timm.create_model(name, pretrained=False, **sized), sized
            except TypeError:  # the model does not know this setting
                continue
    return timm.create_model(name, pretrained=False, **settings), settings


def _create_volume_body(name: str, image_size: int, channels: int) -> tuple[Any, None]:
    if name not in VOLUMES:
        if timm.is_model(name):
            raise MtfedError(
                f"Encoder {name!r} is for flat images; set dimensions = 2, or choose one of {', '.join(VOLUMES)}."
            )
        raise unknown("encoder of volumes", name, VOLUMES)
    body = build_volume_body(name, image_size, channels)
    _check_size(name, image_size, body)
    return body, None
