"""Batches computed in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.three_tasks import IMAGES, shard
from mtfed.data.shard import Batch
from mtfed.learning.losses import split_batch

torch.set_num_threads(1)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7, 40])
def test_pieces_make_up_the_batch(pieces: int) -> None:
    batch = next(shard().batches(7, torch.randperm(IMAGES)))
    parts = list(split_batch(batch, pieces))
    assert len(parts) == {1: 1, 2: 2, 3: 3, 5: 4, 7: 7, 40: 7}[pieces]
    assert torch.equal(torch.cat([piece.images for piece in parts]), batch.images)
    for task, labels in batch.labels.items():
        starts = np.cumsum([0, *(len(piece.images) for piece in parts)])
        own = [(start, piece.labels[task]) for start, piece in zip(starts, parts, strict=False) if task in piece.labels]
        assert torch.equal(torch.cat([piece.rows + start for start, piece in own]), labels.rows)
        assert torch.equal(torch.cat([piece.values for _, piece in own]), labels.values)


def test_one_piece_is_the_batch_itself() -> None:
    batch = Batch(torch.zeros(3, 1, 2, 2), {})
    assert [piece is batch for piece in split_batch(batch, 1)] == [True]
