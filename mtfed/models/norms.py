"""Batch normalisation that also accepts a single value in each channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .timm_library import timm


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm for maps of any dimension, which normalises a single value per channel by the running statistics.

    A batch may contain one image of a task, and the last map of a small image may be one pixel. A single value has no
    variance, and PyTorch would raise an error.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == self.num_features:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class BatchNormAct(BatchNorm):
    """The same norm, followed by the dropout and the activation of timm's BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


REPLACEMENTS: dict[type[nn.Module], type[BatchNorm]] = {
    nn.BatchNorm2d: BatchNorm, nn.BatchNorm3d: BatchNorm, timm.layers.BatchNormAct2d: BatchNormAct,
}  # fmt: skip


def replace_norms(module: nn.Module) -> nn.Module:
    """Replace PyTorch's and timm's batch norms in a module by those above, with the same weights and statistics."""
    for name, child in module.named_children():
        if type(child) in REPLACEMENTS:
            assert isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d)
            settings = child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            norm = REPLACEMENTS[type(child)](*settings)
            norm.training = child.training
            for part, inner in child.named_children():
                norm.add_module(part, inner)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            replace_norms(child)
    return module
