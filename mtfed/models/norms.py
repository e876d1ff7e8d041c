"""Batch normalisation that a small batch cannot stop."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..startup import import_timm

timm = import_timm()


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm for maps of any dimension; a single value a channel goes by the running statistics.

    A batch may hold one image of a task, and the last map of a small image is one pixel: of one value there is no
    variance, and PyTorch would end the training.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == self.num_features:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class BatchNormAct(BatchNorm):
    """The same with what timm's BatchNormAct2d has behind its norm: dropout and an activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


OURS: dict[type[nn.Module], type[BatchNorm]] = {
    nn.BatchNorm2d: BatchNorm,
    nn.BatchNorm3d: BatchNorm,
    timm.layers.BatchNormAct2d: BatchNormAct,
}


def with_our_norms(module: nn.Module) -> nn.Module:
    """Put our norms in the place of PyTorch's and timm's, throughout a module, with the same weights and statistics."""
    for name, child in module.named_children():
        if type(child) in OURS:
            assert isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d)
            make = OURS[type(child)]
            norm = make(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            norm.training = child.training
            for part, inner in child.named_children():
                norm.add_module(part, inner)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            with_our_norms(child)
    return module
