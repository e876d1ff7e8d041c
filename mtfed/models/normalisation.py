"""The normalisation of images that a pretrained encoder expects. timm is imported only if a config asks for it."""

from __future__ import annotations

import torch

from ..config import Config
from ..data.shard import Normalisation
from ..errors import MtfedError

WHITE = 255.0  # the pixel that counts as 1 in timm's means and deviations


def encoder_normalisation(config: Config) -> Normalisation | None:
    """Return the mean and deviation that timm names for the config's encoder; ``None`` for another ``normalise``.

    They are those of the images that timm's weights of this name were trained on. With three channels they are exact;
    grey images are repeated in all three. With one channel, the first convolution of pretrained weights is summed over
    its channels (:mod:`.pretrained`), so there can be only one mean and one deviation: the averages over the three
    channels. This is exact for an encoder whose channels do not differ, such as ``tf_efficientnet_lite0``, and close
    for others: the pooled features of DINOv2's ViT-S/14 for 16 chest X-rays of the sample at 112 px have a
    cosine similarity of 0.988 to those with three channels, and of 0.961 if each image is normalised by itself.

    Raises:
        MtfedError: if timm names no mean and deviation for the encoder.
    """
    if config.normalise != "encoder":
        return None
    from .timm_library import timm

    pretrained = timm.get_pretrained_cfg(config.encoder, allow_unregistered=True)
    if pretrained is None:
        raise MtfedError(
            f"Config key normalise: expected an encoder for which timm names a mean and a deviation, got "
            f"{config.encoder!r}; choose another encoder, or normalise = 'image'."
        )
    mean, deviation = torch.tensor(pretrained.mean), torch.tensor(pretrained.std)
    if config.channels == 1:
        mean, deviation = mean.mean(0, keepdim=True), deviation.mean(0, keepdim=True)
    return Normalisation(mean, deviation, WHITE)
