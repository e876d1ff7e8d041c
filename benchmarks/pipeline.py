"""Cost of training from decoded images in the disk cache instead of memory.

``steps`` are training steps per second from a cached shard, relative to the same tensors in memory: medians over
alternate repeats in one process. ``warm`` is the time that a later process needs on a site of 100,000 images until its
first batch: ``manifest`` to read the rows, ``first batch`` for everything after that, including ``stat`` for the sizes
and times of the files; medians in seconds of the processor and of the clock. ``memory`` is what a process that reads
all images and trains needs beyond one that trains on a few images in memory, in MB: ``rows`` for the manifest, and
``growth`` for the peak of everything else, next to the size of the ``images``. Pages of mapped files do not count.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from mtfed.config import Config, RunConfigValue, read_config

from .processes import run_module

IMAGES, FEW_IMAGES, SIDE = 100_000, 8_000, 28
VOLUMES, DEPTH = 500, 64
REPEATS = 7
TASK = {"model": "hard-sharing", "task.finding.kind": "classification", "task.finding.classes": "no, yes"}
SETTINGS: dict[str, dict[str, RunConfigValue]] = {
    "pictures": {"encoder": "resnet_mini", "image-size": 32},
    "volumes": {"encoder": "resnet3d_mini", "image-size": DEPTH, "dimensions": 3, "batch-size": 2},
    "resnet_mini, 64 px": {"encoder": "resnet_mini", "image-size": 64, "batch-size": 16},
    "resnet3d_mini, 32 px": {"encoder": "resnet3d_mini", "image-size": 32, "dimensions": 3, "batch-size": 4},
}


def measure() -> dict[str, Any]:
    """Return all figures, each measured in a separate process."""
    with tempfile.TemporaryDirectory() as home:
        sites = {"pictures": Path(home, "pictures"), "volumes": Path(home, "volumes")}
        write_images(sites["pictures"], IMAGES)
        write_volumes(sites["volumes"], VOLUMES, DEPTH)
        write_images(Path(home, "few"), FEW_IMAGES)
        imported = {name: run("imported", name, folder) for name, folder in sites.items()}
        warm = [run("warm", "pictures", sites["pictures"]) for _ in range(REPEATS)]
        trained = {"resnet_mini, 64 px": Path(home, "few"), "resnet3d_mini, 32 px": sites["volumes"]}
        return {
            "steps": {name: run("steps", name, folder) for name, folder in trained.items()},
            "import": imported,
            "warm": {name: median(seconds[name] for seconds in warm) for name in warm[0]},
            "memory": {name: run("memory", name, folder) for name, folder in sites.items()},
        }


def run(measurement: str, name: str, folder: Path) -> Any:
    """Return the figures of a measurement in a separate process."""
    figures = run_module("pipeline", measurement, name, str(folder))
    print(measurement, name, json.dumps(figures), flush=True)
    return figures


def write_images(folder: Path, count: int) -> None:
    """Write a site of random grey images, a thousand per folder; the last tenth is for validation."""
    rng = np.random.default_rng(0)
    names = [f"{i // 1000:03d}/{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        if i % 1000 == 0:
            (folder / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE), np.uint8)).save(folder / name, compress_level=1)
    write_manifest(folder, names)


def write_volumes(folder: Path, count: int, side: int) -> None:
    """Write a site of random volumes; the last tenth is for validation."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        np.save(folder / f"{i}.npy", rng.integers(0, 255, (side,) * 3, np.uint8))
    write_manifest(folder, [f"{i}.npy" for i in range(count)])


def write_manifest(folder: Path, names: list[str]) -> None:
    """Write a manifest with a label for each image."""
    last = len(names) - len(names) // 10
    rows = [f"{name},{i},{'train' if i < last else 'val'},{i % 2}" for i, name in enumerate(names)]
    (folder / "manifest.csv").write_text("\n".join(["image,patient,split,finding", *rows]) + "\n")


def imported(config: Config, folder: Path) -> dict[str, float]:
    """Return the microseconds per image that the first import takes, of the clock and of the processor."""
    from mtfed.data.loading import load_shard
    from mtfed.data.simulated_sites import site_folder

    data = site_folder(folder, "site", config)
    start, processor_start = time.perf_counter(), time.process_time()
    load_shard(data, config, "train")
    seconds = {"us an image": time.perf_counter() - start, "of the processor": time.process_time() - processor_start}
    return {name: round(1e6 * value / len(data.pool)) for name, value in seconds.items()}


def warm(config: Config, folder: Path) -> dict[str, float]:
    """Return the seconds of the processor and of the clock from the manifest to the first batch."""
    import torch

    from mtfed.clients.site import site_of_folder
    from mtfed.tasks.kind import kind_of

    kind_of(config.tasks["finding"])
    clock = [(time.process_time(), time.perf_counter())]
    site = site_of_folder(folder, "site", config)
    clock.append((time.process_time(), time.perf_counter()))
    shard = site.shard("train")
    next(iter(shard.batches(config.batch_size, torch.randperm(len(shard)))))
    clock.append((time.process_time(), time.perf_counter()))
    for row in site.data.pool:
        os.stat(f"{folder}/{row.image}")
    clock.append((time.process_time(), time.perf_counter()))
    seconds: dict[str, float] = {}
    for name, before, after in zip(("manifest", "first batch", "stat"), clock, clock[1:], strict=False):
        seconds |= {name: round(after[0] - before[0], 3), f"{name}, clock": round(after[1] - before[1], 3)}
    return seconds


def steps(config: Config, folder: Path) -> float:
    """Return the steps per second from the cache relative to those from memory."""
    from mtfed.data.loading import load_shard
    from mtfed.data.shard import Labels, Shard
    from mtfed.data.simulated_sites import site_folder
    from mtfed.learning.train import train
    from mtfed.models.build import build_model

    config = config.model_copy(update={"local_steps": 40})
    mapped = load_shard(site_folder(folder, "site", config), config, "train")
    labels_in_memory = {task: Labels(labels.rows, labels.values) for task, labels in mapped.labels.items()}
    in_memory = Shard(mapped.images, labels_in_memory)
    model, ratios = build_model(config), []
    for shard in (mapped, in_memory):  # warm up
        train(model, shard, ["finding"], config, seed=0, learning_rate=1e-3)
    for repeat in range(2 * REPEATS):
        seconds = {}
        for shard in (mapped, in_memory) if repeat % 2 else (in_memory, mapped):
            seconds[shard is mapped] = train(model, shard, ["finding"], config, seed=repeat, learning_rate=1e-3).seconds
        ratios.append(seconds[False] / seconds[True])
    return round(median(ratios), 3)


def memory(config: Config, folder: Path) -> dict[str, float]:
    """Return the growth of a process's memory in MB, without the pages of files that it shares with others."""
    import torch

    from mtfed.clients.site import site_of_folder
    from mtfed.data.shard import Labels, Shard
    from mtfed.learning.train import train
    from mtfed.models.build import build_model

    model, size = build_model(config), config.image_size
    images = torch.randint(0, 255, (20, 1, *(size,) * config.dimensions), dtype=torch.uint8)
    shard = Shard(images, {"finding": Labels(torch.arange(20), torch.arange(20) % 2)})
    train(model, shard, ["finding"], config, seed=0, learning_rate=1e-3)
    before = private_megabytes()
    site = site_of_folder(folder, "site", config)
    rows, peak, done = private_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], private_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    all_images = site.shard("train")
    for _ in all_images.batches(config.batch_size, torch.randperm(len(all_images))):
        pass
    few_steps = config.model_copy(update={"local_steps": 5})
    train(model, all_images, ["finding"], few_steps, seed=0, learning_rate=1e-3)
    done.set()
    watcher.join()
    data = len(site.data.pool) * size**config.dimensions / 2**20
    return {"images": round(data, 1), "rows": round(rows - before, 1), "growth": round(peak[0] - rows, 1)}


def private_megabytes() -> float:
    """Return the memory of this process alone, without the pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    config = read_config({**SETTINGS[sys.argv[2]], **TASK})
    print(json.dumps(globals()[sys.argv[1]](config, Path(sys.argv[3]))))
