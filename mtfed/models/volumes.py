"""Encoders of volumes by name: a plain transformer in three dimensions, and MONAI's ResNets and Swin transformer.

Each has the interface of timm's models of images (``feature_info``, ``forward_intermediates``, ``forward_head``,
``group_matcher``), and accepts any volume whose sides its finest stride divides. MONAI is imported when one of its
models is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MtfedError
from .timm_library import timm

Maps = list[Tensor]  # from fine to coarse, (B, C_i, D_i, H_i, W_i)
MATCH_PREVIOUS = (99999,)  # in timm's group matchers: these weights belong to the previous group


class VolumePatches(nn.Module):
    """Cut a volume into cubes of ``patch_size`` P and embed each: (B, C, D, H, W) to (B, E, D/P, H/P, W/P).

    Position embeddings are made for a cube of side ``img_size``. Further settings of timm's embedding of images are
    ignored.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, bias: bool = True, **settings: Any
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = (img_size // patch_size,) * 3
        self.num_patches = self.grid[0] ** 3
        self.proj = nn.Conv3d(in_chans, embed_dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        if any(side % self.patch_size for side in image.shape[2:]):
            raise MtfedError(
                f"Expected a volume whose sides {self.patch_size} divides, got {'x'.join(map(str, image.shape[2:]))}; "
                "choose another image-size."
            )
        return self.proj(image)


class VolumeTransformer(timm.models.VisionTransformer):  # type: ignore[name-defined]  # timm has no types
    """timm's plain vision transformer over cubes, with position embeddings resampled to the size of the volume.

    This is UNETR's encoder (Hatamizadeh et al., WACV 2022), with the mean of the tokens instead of a class token.
    """

    def __init__(self, side: int, channels: int, patch: int, width: int, depth: int, heads: int) -> None:
        shape: Any = {"img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
        fixed: Any = {"embed_layer": VolumePatches, "class_token": False, "global_pool": "avg", "num_classes": 0}
        super().__init__(in_chans=channels, mlp_ratio=4, **shape, **fixed)

    def _pos_embed(self, x: Tensor) -> Tensor:
        position = resample_positions(self.pos_embed, self.patch_embed.grid, x.shape[2:])
        return self.pos_drop(x.flatten(2).mT + position)

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | None = None, intermediates_only: bool = False, **_: Any
    ) -> Any:
        """Return the normalised tokens (B, N, E) and the maps after some blocks, or only the maps."""
        embedded = self.patch_embed(x)
        tokens = self.norm_pre(self.patch_drop(self._pos_embed(embedded)))
        maps: Maps = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if indices is None or index in indices:
                maps.append(tokens.mT.reshape(embedded.shape))
        return maps if intermediates_only else (self.norm(tokens), maps)


def resample_positions(positions: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resample position embeddings (1, N, E) from one grid to another by trilinear interpolation."""
    if tuple(old) == tuple(new):
        return positions
    grid = positions.mT.unflatten(2, tuple(old))
    return F.interpolate(grid, size=tuple(new), mode="trilinear").flatten(2).mT


def checkpoint_filter_fn(state: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Resample a file's position embeddings, of a cube of any size, to the body's size. timm defines the name."""
    if isinstance(body, VolumeTransformer) and "pos_embed" in state:
        side = round(state["pos_embed"].shape[1] ** (1 / 3))
        state = state | {"pos_embed": resample_positions(state["pos_embed"], (side,) * 3, body.patch_embed.grid)}
    return state


class VolumeResNet(nn.Module):
    """The layers of MONAI's ResNet with their names, which files of MedicalNet (Chen et al., 2019) also use.

    The four stages have ``layers`` blocks of the kind ``basic`` or ``bottleneck``, with ``widths`` channels inside.
    """

    def __init__(self, layers: Sequence[int], widths: Sequence[int], channels: int, block: str = "basic") -> None:
        super().__init__()
        from monai.networks.nets.resnet import ResNet

        options: Any = {"conv1_t_stride": 2, "feed_forward": False, "bias_downsample": False}
        net: Any = ResNet(block, list(layers), list(widths), n_input_channels=channels, **options)
        self.conv1, self.bn1, self.act, self.maxpool = net.conv1, net.bn1, net.act, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.feature_info = [
            {"num_chs": width * type(net.layer1[0]).expansion, "reduction": 4 * 2**i, "module": f"layer{i + 1}"}
            for i, width in enumerate(widths)
        ]
        self.head_hidden_size = self.feature_info[-1]["num_chs"]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers by the names of their weights, as timm's ResNet: the stem, and each stage or block."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_intermediates(self, x: Tensor, intermediates_only: bool = False, **_: Any) -> Any:
        """Return the last map and all four maps, or only the four maps."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        maps: Maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x.flatten(2).mean(2)


class VolumeSwin(nn.Module):
    """The blocks of MONAI's Swin transformer, as in SwinUNETR (Hatamizadeh et al., 2022).

    The map of a stage is its output before patches are merged for the next stage, as in two dimensions. The pooled
    features are the mean of the last map, normalised without weights, which is how SwinUNETR normalises its maps.
    """

    def __init__(self, patch: int, window: int, width: int, heads: tuple[int, ...], channels: int) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinTransformer

        shape: Any = {"window_size": (window,) * 3, "patch_size": (patch,) * 3, "depths": (2,) * 4, "num_heads": heads}
        # The first version of the merging reads some patches twice in some versions of MONAI.
        net: Any = SwinTransformer(in_chans=channels, embed_dim=width, **shape, downsample="mergingv2")
        stages = [net.layers1[0], net.layers2[0], net.layers3[0], net.layers4[0]]
        self.patch_embed = net.patch_embed
        self.mergers = nn.ModuleList(stage.downsample for stage in stages[:-1])
        self.stages = nn.ModuleList(stages)
        for stage in stages:
            stage.downsample = None
            for block in stage.blocks:
                # The index follows from the window size, so it must not be sent with the weights.
                index = block.attn.relative_position_index
                block.attn.register_buffer("relative_position_index", index, persistent=False)
        self.feature_info = [
            {"num_chs": width * 2**i, "reduction": patch * 2**i, "module": f"stages.{i}"} for i in range(4)
        ]
        self.head_hidden_size = width * 8

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers by the names of their weights, as timm's models: the stem, and each stage or block.

        The merging of patches after a stage belongs to the stage's last block.
        """
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^patch_embed", "blocks": [(blocks, None), (r"^mergers\.(\d+)", MATCH_PREVIOUS)]}

    def forward_intermediates(self, x: Tensor, intermediates_only: bool = False, **_: Any) -> Any:
        """Return the last map and all four maps, or only the four maps."""
        x = self.patch_embed(x).movedim(1, -1)
        maps: Maps = []
        for index, stage in enumerate(self.stages):
            x = _attend(stage, self.mergers[index - 1](x) if index else x)
            maps.append(x.movedim(-1, 1).contiguous())
        return maps if intermediates_only else (maps[-1], maps)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        tokens = x.flatten(2).mT
        return F.layer_norm(tokens, tokens.shape[-1:]).mean(1)


def _attend(stage: Any, x: Tensor) -> Tensor:
    """Apply the blocks of a stage to (B, D, H, W, C). MONAI's own layer does the same but needs einops."""
    windows: Any = sys.modules[type(stage).__module__]
    size = x.shape[1:4]
    window, shift = windows.get_window_size(size, stage.window_size, stage.shift_size)
    padded = [ceil(side / width) * width for side, width in zip(size, window, strict=True)]
    mask = windows.compute_mask(padded, window, shift, x.device) if any(shift) else None
    for block in stage.blocks:
        x = block(x, mask)
    return x


_WIDTHS = (64, 128, 256, 512)
VOLUMES: dict[str, Callable[[int, int], nn.Module]] = {  # each takes the side of the cube and the channels
    "vit3d_mini_patch4": lambda side, channels: VolumeTransformer(side, channels, 4, 96, 4, 4),
    "vit3d_mini_patch8": lambda side, channels: VolumeTransformer(side, channels, 8, 96, 4, 4),
    "vit3d_small_patch16": lambda side, channels: VolumeTransformer(side, channels, 16, 384, 12, 6),
    "vit3d_base_patch16": lambda side, channels: VolumeTransformer(side, channels, 16, 768, 12, 12),
    "resnet3d_mini": lambda side, channels: VolumeResNet((1, 1, 1, 1), (16, 32, 64, 128), channels),
    "resnet3d_10": lambda side, channels: VolumeResNet((1, 1, 1, 1), _WIDTHS, channels),
    "resnet3d_18": lambda side, channels: VolumeResNet((2, 2, 2, 2), _WIDTHS, channels),
    "resnet3d_34": lambda side, channels: VolumeResNet((3, 4, 6, 3), _WIDTHS, channels),
    "resnet3d_50": lambda side, channels: VolumeResNet((3, 4, 6, 3), _WIDTHS, channels, "bottleneck"),
    "swin3d_mini": lambda side, channels: VolumeSwin(4, 4, 24, (2, 4, 8, 16), channels),
    "swin3d_tiny": lambda side, channels: VolumeSwin(2, 7, 48, (3, 6, 12, 24), channels),
}


def build_volume_body(name: str, image_size: int, channels: int) -> Any:  # the models have no common base class
    """Build a model of :data:`VOLUMES` for cubes of a side; it also accepts other sides."""
    return VOLUMES[name](image_size, channels)
