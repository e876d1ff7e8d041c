"""What it costs to feed a training from decoded images on the disk instead of in memory.

``steps`` are training steps a second from a cached shard over those from the same tensors in memory, taken in turns in
one process: a median over turns, and at 1 it costs nothing. ``warm`` is what a later process needs on a site of 100,000
pictures until its first batch: ``manifest`` to read the rows, ``first batch`` for all that follows, and in it ``stat``
for the sizes and times of the files; in seconds of the processor and of the clock, medians over turns. ``memory`` is
what a process that goes over all images, and trains, comes to hold beyond one that trains on a few in memory, in MB,
beside the size of the images: ``rows``, the manifest's, and ``growth``, all the rest at its peak; pages of mapped files
are no part of it.
"""

from __future__ import annotations

import json
import os
import subprocess
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

PICTURES, FEW, SIDE = 100_000, 8_000, 28
VOLUMES, DEPTH = 500, 64
TURNS = 7
TASK = {"model": "hard-sharing", "task.finding.kind": "classification", "task.finding.classes": "no, yes"}
KINDS: dict[str, dict[str, RunConfigValue]] = {
    "pictures": {"encoder": "resnet_mini", "image-size": 32},
    "volumes": {"encoder": "resnet3d_mini", "image-size": DEPTH, "dimensions": 3, "batch-size": 2},
    "resnet_mini, 64 px": {"encoder": "resnet_mini", "image-size": 64, "batch-size": 16},
    "resnet3d_mini, 32 px": {"encoder": "resnet3d_mini", "image-size": 32, "dimensions": 3, "batch-size": 4},
}


def measure() -> dict[str, Any]:
    """Return all figures; every one of a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        sites = {"pictures": Path(home, "pictures"), "volumes": Path(home, "volumes")}
        write_pictures(sites["pictures"], PICTURES)
        write_volumes(sites["volumes"], VOLUMES, DEPTH)
        write_pictures(Path(home, "few"), FEW)
        imported = {name: run("imported", name, folder) for name, folder in sites.items()}
        warm = [run("warm", "pictures", sites["pictures"]) for _ in range(TURNS)]
        return {
            "steps": {
                "resnet_mini, 64 px": run("steps", "resnet_mini, 64 px", Path(home, "few")),
                "resnet3d_mini, 32 px": run("steps", "resnet3d_mini, 32 px", sites["volumes"]),
            },
            "import": imported,
            "warm": {name: median(turn[name] for turn in warm) for name in warm[0]},
            "memory": {name: run("memory", name, folder) for name, folder in sites.items()},
        }


def run(what: str, name: str, folder: Path) -> Any:
    """Return a figure, of a process of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline", what, name, str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={name: value for name, value in os.environ.items() if name != "MTFED_CACHE"} | {"OMP_NUM_THREADS": "1"},
    )
    if told.returncode:
        sys.exit(f"{what} of {name} failed:\n{told.stderr[-2000:]}")
    print(what, name, told.stdout.splitlines()[-1], flush=True)
    return json.loads(told.stdout.splitlines()[-1])


def write_pictures(folder: Path, count: int) -> None:
    """Write a site of random grey pictures, a thousand a folder; the last tenth is held out."""
    rng = np.random.default_rng(0)
    names = [f"{i // 1000:03d}/{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        if i % 1000 == 0:
            (folder / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE), np.uint8)).save(folder / name, compress_level=1)
    write_manifest(folder, names)


def write_volumes(folder: Path, count: int, side: int) -> None:
    """Write a site of random volumes; the last tenth is held out."""
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
    """Return how long the first import takes, in microseconds an image, and how much the processor works for it."""
    from mtfed.data.federation import site_folder
    from mtfed.data.shard import load_shard

    data = site_folder(folder, "site", config)
    start, worked = time.perf_counter(), time.process_time()
    load_shard(data, config, "train")
    each = 1e6 / len(data.pool)
    return {
        "us an image": round((time.perf_counter() - start) * each),
        "of the processor": round((time.process_time() - worked) * each),
    }


def warm(config: Config, folder: Path) -> dict[str, float]:
    """Return seconds of the processor, and of the clock, from the manifest to the first batch."""
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
    told = {}
    for name, then, now in zip(("manifest", "first batch", "stat"), clock, clock[1:], strict=False):
        told |= {name: round(now[0] - then[0], 3), f"{name}, clock": round(now[1] - then[1], 3)}
    return told


def steps(config: Config, folder: Path) -> float:
    """Return steps a second from the cache over those from memory."""
    from mtfed.data.federation import site_folder
    from mtfed.data.shard import Labels, Shard, load_shard
    from mtfed.learning.train import train
    from mtfed.models.build import build_model

    config = config.model_copy(update={"local_steps": 40})
    mapped = load_shard(site_folder(folder, "site", config), config, "train")
    part = Shard(mapped.images, {task: Labels(held.rows, held.values) for task, held in mapped.labels.items()})
    model, ratios = build_model(config), []
    for shard in (mapped, part):  # as they are, for the first time
        train(model, shard, ["finding"], config, seed=0, learning_rate=1e-3)
    for turn in range(2 * TURNS):
        seconds = {}
        for shard in (mapped, part) if turn % 2 else (part, mapped):
            seconds[shard is mapped] = train(model, shard, ["finding"], config, seed=turn, learning_rate=1e-3).seconds
        ratios.append(seconds[False] / seconds[True])
    return round(median(ratios), 3)


def memory(config: Config, folder: Path) -> dict[str, float]:
    """Return the MB that a process comes to hold, not counting the pages of files that it shares with others."""
    import torch
    from mtfed.clients.site import site_of_folder

    from mtfed.data.shard import Labels, Shard
    from mtfed.learning.train import train
    from mtfed.models.build import build_model

    model, size = build_model(config), config.image_size
    few = torch.randint(0, 255, (20, 1, *(size,) * config.dimensions), dtype=torch.uint8)
    shard = Shard(few, {"finding": Labels(torch.arange(20), torch.arange(20) % 2)})
    train(model, shard, ["finding"], config, seed=0, learning_rate=1e-3)
    before = own_megabytes()
    site = site_of_folder(folder, "site", config)
    rows, peak, done = own_megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_megabytes())

    watching = threading.Thread(target=watch)
    watching.start()
    kept = site.shard("train")
    for _ in kept.batches(config.batch_size, torch.randperm(len(kept))):
        pass
    few_steps = config.model_copy(update={"local_steps": 5})
    train(model, kept, ["finding"], few_steps, seed=0, learning_rate=1e-3)
    done.set()
    watching.join()
    data = len(site.data.pool) * size**config.dimensions / 2**20
    return {"images": round(data, 1), "rows": round(rows - before, 1), "growth": round(peak[0] - rows, 1)}


def own_megabytes() -> float:
    """Return the memory that is this process's alone: not the pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    chosen = read_config({**KINDS[sys.argv[2]], **TASK})
    print(json.dumps(globals()[sys.argv[1]](chosen, Path(sys.argv[3]))))
