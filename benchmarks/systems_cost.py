"""Cost of the multi-task models: parameters, FLOPs, time and memory of a training step with three tasks.

A step is forward, losses, backward and optimizer on a batch with all labels. ``ratio`` is the time of a step relative
to that of the same encoder with one task, which is the mean over the three tasks alone; both are timed alternately in
one process. Memory is the peak of the process above its memory before the first step.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median
from typing import Any

from mtfed.cores import usable_cores

from .processes import run_module
from .tables import markdown_table

IMAGE_TASKS = {
    "grade": {"kind": "classification", "classes": "no, yes"},
    "outline": {"kind": "segmentation", "classes": "background, lesion"},
    "boxes": {"kind": "detection", "classes": "lesion"},
}
VOLUME_TASKS = {
    "grade": {"kind": "classification", "classes": "no, yes"},
    "outline": {"kind": "segmentation", "classes": "background, organ"},
    "age": {"kind": "regression", "classes": "years", "range": "0, 100"},
}
MODELS = ("hard-sharing", "mtmedformer", "mtan", "ctan", "single-task")
SIZES = {  # encoder -> dimensions, image size, batch size
    "coatnet_mini": (2, 64, 16),
    "resnet_mini": (2, 64, 16),
    "vit_small_patch16_224": (2, 224, 2),
    "resnet50": (2, 224, 2),
    "swin3d_mini": (3, 32, 4),
    "resnet3d_mini": (3, 32, 4),
}
REPEATS = 3


def measure() -> dict[str, Any]:
    """Return the figures of every model on every encoder; hard sharing on a transformer is MTMedFormer."""
    pairs = []
    for encoder in SIZES:
        excluded = "mtmedformer" if encoder.startswith("resnet") else "hard-sharing"
        pairs += [(encoder, model) for model in MODELS if model != excluded]
    with ThreadPoolExecutor(usable_cores()) as pool:
        figures = pool.map(lambda pair: run_module("systems_cost", *pair), pairs)
        by_encoder: dict[str, Any] = {}
        for (encoder, model), row in zip(pairs, figures, strict=True):
            print(encoder, model, json.dumps(row), flush=True)
            by_encoder.setdefault(encoder, {})[model] = row
    return by_encoder


def table(by_encoder: dict[str, Any]) -> str:
    """Return the figures as a table with one row per encoder and model."""
    rows = {encoder: models for encoder, models in by_encoder.items() if encoder in SIZES}
    columns = list(next(iter(next(iter(rows.values())).values())))
    cells = []
    for encoder, models in rows.items():
        dimensions, size, batch = SIZES[encoder]
        title = f"{encoder}, {' x '.join([str(size)] * dimensions)}, batches of {batch}"
        for model, figures in models.items():
            cells.append([title, model, *(str(figures[column]) for column in columns)])
            title = ""
    return markdown_table(["encoder, image", "model", *columns], cells)


def cost(encoder: str, model: str) -> dict[str, float]:
    """Return a model's figures: million parameters, GFLOPs per image (forward), ms per step, ratios, MB."""
    import resource

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(1)
    dimensions, _, batch = SIZES[encoder]
    tasks = IMAGE_TASKS if dimensions == 2 else VOLUME_TASKS
    multi_task = Step(model, encoder, tasks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    multi_task.run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    single_task = [Step("single-task", encoder, {name: task}) for name, task in tasks.items()]
    for step in single_task:
        step.run()
    times = [[step.seconds() for step in (multi_task, *single_task)] for _ in range(REPEATS)]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        multi_task.forward()
    multi_task_time, *single_task_times = (median(column) for column in zip(*times, strict=True))
    return {
        "million parameters": round(sum(p.numel() for p in multi_task.model.parameters()) / 1e6, 3),
        "GFLOPs forward": round(counter.get_total_flops() / batch / 1e9, 4),
        "ms a step": round(1000 * multi_task_time, 1),
        "ratio": round(multi_task_time / mean(single_task_times), 2),
        "ratio to the sum": round(multi_task_time / sum(single_task_times), 2),
        "MB": round(peak / 1024, 1),
    }


class Step:
    """A training step of a model on random images with all labels."""

    def __init__(self, model: str, encoder: str, tasks: dict[str, dict[str, str]]) -> None:
        import torch

        from mtfed.config import read_config
        from mtfed.data.shard import Labels
        from mtfed.learning.losses import task_losses
        from mtfed.models.build import build_model

        self.dimensions, size, batch = SIZES[encoder]
        settings = {f"task.{name}.{key}": value for name, task in tasks.items() for key, value in task.items()}
        self.config = read_config(
            {"model": model, "encoder": encoder, "image-size": size, "dimensions": self.dimensions, **settings}
        )
        self.model = build_model(self.config).train()
        self.images = torch.randn(batch, 1, *[size] * self.dimensions)
        self.rows = {name: torch.arange(batch) for name in tasks}
        values = {"outline": torch.randint(0, 2, (batch, *[size] * self.dimensions))}
        values |= {"grade": torch.randint(0, 2, (batch,)), "age": torch.rand(batch, 1) * 100}
        values["boxes"] = torch.tensor([[size / 4, size / 4, size / 3, size / 3, 0.0]]).repeat(batch, 1, 1)
        self.labels = {name: Labels(self.rows[name], values[name]) for name in tasks}
        self.losses = task_losses(self.config)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def forward(self) -> Any:
        return self.model(self.images, self.rows)

    def run(self) -> None:
        outputs = self.forward()
        loss = sum(self.losses[task](outputs[task], self.labels[task].values) for task in outputs)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(cost(*sys.argv[1:3])))
