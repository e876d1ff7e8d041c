"""Throughput of Medformer by the number of tokens, in two and three dimensions, next to a plain ViT of the same size.

python -m benchmarks.medformer_cost

A step is a forward and a backward pass of a classification task, on one thread. The parts of a forward pass are timed
apart: the patch embedding, the attention of the latents to the tokens, and the Main Body. Models of a size are timed
alternately and the fastest of REPEATS counts, so that figures of a run can be compared with each other. The table is
written to experiments/medformer/README.md, the plot to the same folder.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtfed.config import Form
from mtfed.models.build import assemble
from mtfed.tasks import Task

from . import trials
from .tables import markdown_table, replace_marked

HOME = trials.HOME / "medformer"
RESULTS = HOME / "cost.json"
ENCODERS = {2: "vit_mini_patch8", 3: "vit3d_mini_patch8"}
SIZES = {2: (32, 64, 128, 224), 3: (32, 48, 64, 96)}
BATCH = {2: 8, 3: 4}
REPEATS = 5
COLOURS = {"medformer": "#009e73", "mtmedformer": "#999999"}


def main() -> None:
    """Time all sizes, and write figures, table and plot."""
    torch.set_num_threads(1)
    figures = [measure(dimensions, size) for dimensions, sizes in SIZES.items() for size in sizes]
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, figures)) + "\n]\n")
    write_pages(figures)


def measure(dimensions: int, size: int) -> dict[str, Any]:
    """Return images per second of both models in training, and milliseconds per image of Medformer's parts."""
    form, task = Form(dimensions, size), Task(name="finding", kind="classification", classes=("no", "yes"))
    rows, images = {"finding": torch.arange(BATCH[dimensions])}, torch.randn(BATCH[dimensions], *form.shape)
    models = {
        name: assemble(name, {"finding": task}, (form,), encoder=ENCODERS[dimensions])
        for name in ("medformer", "mtmedformer")
    }
    scheme = models["medformer"].encoder
    with torch.no_grad():
        tokens = scheme.patches[f"{dimensions}d"](images)[1]
        latents = scheme.reader(scheme.latents.expand(len(images), -1, -1), tokens.flatten(2).mT)
    parts: dict[str, Callable[[], Tensor]] = {
        "patches": lambda: scheme.patches[f"{dimensions}d"](images)[1],
        "reader": lambda: scheme.reader(scheme.latents.expand(len(images), -1, -1), tokens.flatten(2).mT),
        "body": lambda: torch.nn.Sequential(*scheme.blocks)(latents),
    }
    steps = {
        name: lambda m=model: m(images, rows)["finding"].square().mean().backward() for name, model in models.items()
    }
    best: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, step in steps.items():
            best[name] = min(best.get(name, float("inf")), seconds(step))
        for name, part in parts.items():
            with torch.no_grad():
                best[name] = min(best.get(name, float("inf")), seconds(part))
    rates = {name: len(images) / best[name] for name in models}
    print(dimensions, size, rates, flush=True)
    milliseconds = {name: 1000 * best[name] / len(images) for name in parts}
    return {"dimensions": dimensions, "size": size, "tokens": tokens[0, 0].numel(), **rates, **milliseconds}


def seconds(step: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def write_pages(figures: list[dict[str, Any]]) -> None:
    """Write the table and the plot."""
    head = [
        "image",
        "tokens",
        "Medformer, images/s",
        "plain ViT, images/s",
        "ratio",
        "patches, ms",
        "reader, ms",
        "body, ms",
    ]
    rows = [
        [
            " x ".join([str(f["size"])] * f["dimensions"]), str(f["tokens"]), f"{f['medformer']:.1f}",
            f"{f['mtmedformer']:.1f}", f"{f['medformer'] / f['mtmedformer']:.2f}",
            *(f"{f[part]:.2f}" for part in ("patches", "reader", "body")),
        ]
        for f in figures
    ]  # fmt: skip
    replace_marked(HOME / "README.md", {"cost": "![Throughput by tokens](cost.png)\n\n" + markdown_table(head, rows)})
    plot(figures)


def plot(figures: list[dict[str, Any]]) -> None:
    """Draw throughput by tokens, and the time of Medformer's parts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for dimensions, style in ((2, "o-"), (3, "s--")):
        own = [f for f in figures if f["dimensions"] == dimensions]
        tokens = [f["tokens"] for f in own]
        for name, title in (("medformer", "Medformer"), ("mtmedformer", "plain ViT")):
            left.plot(tokens, [f[name] for f in own], style, color=COLOURS[name], label=f"{title}, {dimensions}D")
        for part, colour in (("patches", "#e69f00"), ("reader", "#56b4e9"), ("body", "#009e73")):
            right.plot(tokens, [f[part] for f in own], style, color=colour, label=f"{part}, {dimensions}D")
    left.set(xlabel="tokens", ylabel="images per second, training", xscale="log", yscale="log")
    right.set(xlabel="tokens", ylabel="ms per image, forward", xscale="log", yscale="log")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HOME / "cost.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
