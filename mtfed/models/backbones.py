"""Small models for images of about 64 px on two cores, registered with timm. None has published weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from .timm_library import timm

# Arguments that timm's factory passes to every model, for loading weights.
_FACTORY_ARGUMENTS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _build(model: type[nn.Module], defaults: dict[str, Any], settings: dict[str, Any]) -> nn.Module:
    return model(**(defaults | {name: value for name, value in settings.items() if name not in _FACTORY_ARGUMENTS}))


def _small_vit(width: int, settings: dict[str, Any]) -> nn.Module:
    defaults: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": width, "depth": 4, "num_heads": 4}
    defaults |= {"mlp_ratio": 4, "global_pool": "avg", "class_token": False}
    return _build(timm.models.VisionTransformer, defaults, settings)


def _small_resnet(layers: tuple[int, ...], channels: tuple[int, ...], settings: dict[str, Any]) -> nn.Module:
    defaults = {"block": timm.models.resnet.BasicBlock, "layers": layers, "channels": channels}
    defaults |= {"stem_type": "deep", "stem_width": channels[0] // 2}  # the plain stem always has 64 channels
    return _build(timm.models.ResNet, defaults, settings)


@timm.models.register_model
def vit_mini_patch8(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a ViT for 64 px images on two cores: patch 8, width 96, 4 blocks of 4 heads, 0.46 M parameters."""
    return _small_vit(96, settings)


@timm.models.register_model
def vit_nano_patch8(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a ViT for trials and tests: patch 8, width 64, 4 blocks of 4 heads, 0.2 M parameters."""
    return _small_vit(64, settings)


@timm.models.register_model
def resnet_mini(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a ResNet-18 with a quarter of the width: stages of 16, 32, 64 and 128 channels, 0.7 M parameters."""
    return _small_resnet((2, 2, 2, 2), (16, 32, 64, 128), settings)


@timm.models.register_model
def resnet_nano(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a ResNet for trials and tests: one block per stage, 8 to 64 channels, 0.08 M parameters."""
    return _small_resnet((1, 1, 1, 1), (8, 16, 32, 64), settings)


@timm.models.register_model
def pvt_mini(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a PVT v2 with half the width of its b0: 16 to 128 channels, 0.8 M parameters."""
    defaults = {"depths": (2, 2, 2, 2), "embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 8)}
    return _build(timm.models.PyramidVisionTransformerV2, defaults, settings)


@timm.models.register_model
def swin_mini(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a Swin transformer with a quarter of the width of Swin-T: windows of 4 x 4 patches, 1.3 M parameters."""
    defaults: dict[str, Any] = {"img_size": 64, "patch_size": 4, "window_size": 4, "drop_path_rate": 0.0}
    defaults |= {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
    return _build(timm.models.SwinTransformer, defaults, settings)


@timm.models.register_model
def coatnet_mini(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a CoAtNet (Dai et al., NeurIPS 2021): stages of convolution, then of attention; 0.5 M parameters.

    Two stages of each, with 16 to 128 channels. From random weights and with few images it learns what a PVT does not.
    """
    maxxvit = timm.models.maxxvit
    stages = {"embed_dim": (16, 32, 64, 128), "depths": (2, 2, 2, 2), "block_type": ("C", "C", "T", "T")}
    blocks = {
        "conv_cfg": maxxvit.MaxxVitConvCfg(expand_ratio=2.0),
        "transformer_cfg": maxxvit.MaxxVitTransformerCfg(dim_head=16, rel_pos_type="bias_tf"),
    }
    shape = maxxvit.MaxxVitCfg(stem_width=16, stem_bias=True, **stages, **blocks)
    return _build(maxxvit.MaxxVit, {"cfg": shape}, settings)
