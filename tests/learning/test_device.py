"""Devices and seeds."""

from __future__ import annotations

import pytest
import torch

from mtfed.errors import MtfedError
from mtfed.learning.device import derive_seed, pick_device

torch.set_num_threads(1)


def test_seeds_and_devices() -> None:
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1) != derive_seed(0, "a", 2)
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(MtfedError, match="asks for a GPU"):
            pick_device("cuda")
