"""Shared encoders by name, with features at several scales: any timm model, and models of volumes."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MtfedError, unknown
from ..startup import import_timm
from . import backbones  # noqa: F401  (registers them with timm)
from .families import NAMES, Family, family_of, is_transformer, run_stages
from .norms import with_our_norms
from .pretrained import load_weights
from .volumes import VOLUMES, build_volume_body

timm = import_timm()
# How timm's models that are built for a size are told to take others too, and those that know of none.
_SIZES: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


@dataclass
class Features:
    """What an encoder hands to the decoders. *S is (S, S) or (S, S, S)."""

    image: Tensor  # (B, C, *S), the normalised input
    maps: list[Tensor]  # from fine to coarse, (B, C_i, *S / stride_i)
    pooled: Tensor  # (B, D)

    def rows(self, index: Tensor) -> Features:
        """Return the features of some samples of the batch."""
        return Features(self.image[index], [level[index] for level in self.maps], self.pooled[index])


class Encoder(nn.Module):
    """A backbone seen as four feature maps and a pooled vector.

    A plain ViT gives four evenly spaced blocks, all at the stride of its patch; a hierarchical model its last four
    stages. Maps are as blocks and stages leave them: before a norm that the body has at its end, which the pooled
    features have behind them, and after the norm that a PVT has at the end of every stage. Images of other sizes than
    that of the position embeddings are taken where the architecture allows: ViT, Swin, PVT, ConvNets and all of
    :data:`.volumes.VOLUMES`, at sizes that the finest stride divides.

    Args:
        name: timm model name, or one of :data:`.volumes.VOLUMES` in three dimensions.
        image_size: side of the square or cubic input in pixels; position embeddings are made for it.
        channels: 1 or 3.
        dimensions: 2 or 3.
        weights: initial ones, see :func:`.pretrained.load_weights`; none if empty.

    Attributes:
        channels: of the four maps.
        strides: of the four maps.
        dim: width of the pooled features.
        image_channels: of the input.
        dims: 2 or 3.
        is_transformer: whether the body is one.

    Raises:
        MtfedError: for a name that is not known, or of the other dimensions; an image size that does not fit; and
            weights that do not.
    """

    def __init__(self, name: str, image_size: int, channels: int, dimensions: int = 2, weights: str = "") -> None:
        super().__init__()
        settings: dict[str, Any] | None = None
        if dimensions == 3:
            self.body = _create_volume_body(name, image_size, channels)
        else:
            self.body, settings = _create_image_body(name, image_size, channels)
        with_our_norms(self.body)
        self.indices, chosen = _choose_levels(name, self.body)
        self.name = name
        self.stage_names = [str(level["module"]) for level in chosen]
        self.channels = [int(level["num_chs"]) for level in chosen]
        self.strides = [int(level["reduction"]) for level in chosen]
        self.dim = int(self.body.head_hidden_size)
        self.image_channels = channels
        self.dims = dimensions
        self.is_transformer = is_transformer(self.body)
        if weights:
            load_weights(self.body, name, weights, settings)

    def forward(self, image: Tensor) -> Features:
        final, maps = self.body.forward_intermediates(image, indices=self.indices, output_fmt="NCHW")
        return Features(image, maps, self.body.forward_head(final, pre_logits=True))

    def stages(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the maps before and after the last block of each stage; those after are the maps of ``forward``.

        A plain ViT has four groups of blocks for stages. Where a stage's only block also changes the size, as in a
        ResNet of one block a stage, its shortcut stands for the map before it.

        Returns:
            Four pairs of maps (B, C_i, *S / stride_i).

        Raises:
            MtfedError: if the architecture's stages are not known.
        """
        family = self.family()

        def forward() -> list[Tensor]:
            return self.body.forward_intermediates(
                image, indices=self.indices, output_fmt="NCHW", intermediates_only=True
            )

        return run_stages(self.body, self.stage_names, family.tokens, forward)

    def features(self, image: Tensor, maps: list[Tensor]) -> Features:
        """Return features of maps that someone changed, pooled from the last of them.

        Norm and pooling are those of the body's head; the mean over a ViT's tokens stands in for its class token.
        Without one, maps of ``forward`` give its own pooled features.

        Raises:
            MtfedError: if the architecture's head is not known.
        """
        return Features(image, maps, self.family().pool(self.body, maps[-1]))

    def family(self) -> Family:
        """Return what is known of the body's architecture, which :meth:`stages` and :meth:`features` need.

        Raises:
            MtfedError: if nothing is.
        """
        family = family_of(self.body)
        if family is None:
            raise MtfedError(
                f"Encoder {self.name!r} ({type(self.body).__name__}) shows no maps inside its stages; choose {NAMES}."
            )
        return family


def _choose_levels(name: str, body: Any) -> tuple[list[int] | None, list[dict[str, Any]]]:
    """Return the indices of the four levels to read, ``None`` for all, and what the body tells of each."""
    levels = body.feature_info
    levels = levels if isinstance(levels, list) else levels.info
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
        raise _misfit(name, image_size, f"its finest maps have one pixel for {finest}; choose a multiple of {finest}")


def _misfit(name: str, image_size: int, reason: str) -> MtfedError:
    return MtfedError(f"Encoder {name!r} cannot take images of {image_size} px: {reason}.")


def _create_image_body(name: str, image_size: int, channels: int) -> tuple[Any, dict[str, Any]]:
    """Create a timm model without its classifier, for any input size it can take; errors name the model."""
    if name in VOLUMES:
        raise MtfedError(f"Encoder {name!r} is for volumes; set dimensions = 3, or choose a timm model.")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise MtfedError(f"Unknown encoder {name!r}; nearest in timm: {', '.join(near) or 'none'}.")
    try:
        body, settings = _create(name, image_size, channels)
        _check_size(name, image_size, body)
        with torch.no_grad():  # a size that does not fit fails here, not in a hospital's first step
            body.eval().forward_intermediates(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise _misfit(name, image_size, f"{error}; choose another image-size") from error
    except (AttributeError, TypeError) as error:
        raise MtfedError(
            f"Encoder {name!r} gives no feature maps ({error}); choose a ViT, Swin, PVT or ConvNet."
        ) from error
    return body.train(), settings


def _create(name: str, image_size: int, channels: int) -> tuple[Any, dict[str, Any]]:
    """Return a timm model and the settings that built it: the most free in their image size that it knows."""
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or cfg.fixed_input_size:
        for freedom in _SIZES:
            sized = settings | {"img_size": image_size} | freedom
            try:
                return timm.create_model(name, pretrained=False, **sized), sized
            except TypeError:  # a setting that it does not know
                continue
    return timm.create_model(name, pretrained=False, **settings), settings


def _create_volume_body(name: str, image_size: int, channels: int) -> Any:
    if name not in VOLUMES:
        if timm.is_model(name):
            raise MtfedError(
                f"Encoder {name!r} is for flat images; set dimensions = 2, or choose one of {', '.join(VOLUMES)}."
            )
        raise unknown("encoder of volumes", name, VOLUMES)
    body = build_volume_body(name, image_size, channels)
    _check_size(name, image_size, body)
    return body
