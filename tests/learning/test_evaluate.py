"""Evaluation of a model."""

from __future__ import annotations

import torch

from helpers.two_tasks import config, random_shard
from mtfed.data.shard import Shard
from mtfed.learning.evaluate import evaluate
from mtfed.models.build import build_model

torch.set_num_threads(1)


def test_evaluation_counts_labelled_images_only() -> None:
    metrics = evaluate(build_model(config()), random_shard(), ["pneumonia", "lungs"], config(batch_size=2))
    assert {task: m.count for task, m in metrics.items()} == {"pneumonia": 6, "lungs": 6}
    assert evaluate(build_model(config()), Shard.empty(), ["lungs"], config()) == {}
