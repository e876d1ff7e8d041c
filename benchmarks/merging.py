"""Bayesian matching on one core: a cost matrix, whole merges of a ViT-Small from ten sites, and their memory.

python -m benchmarks merging

Every merge takes updates one by one, as an engine delivers them. What it is held against is the averaging of Flower's
own FedAvg over the same arrays, in the same process. Seconds are the processor's: one thread works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from mtfed.strategies import BayesianMatching, TaskFedAvg, Update
from mtfed.strategies.axes import AxisGraph, Tensors
from mtfed.strategies.matching import map_gains
from mtfed.strategies.precision import Precision, encode
from mtfed.strategies.wire import FlatArray

ROOT = Path(__file__).parents[1]
SITES = 10
NOISE = 0.01  # of an update, relative to a tensor's deviation: a round's drift
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
PARTS = ("costs", "merges", "memory")


def measure() -> dict[str, Any]:
    """Return every figure, after printing it; each part runs in a process of its own, on one thread."""
    figures = {}
    for part in PARTS:
        command = [sys.executable, "-c", f"from benchmarks import merging; merging.tell({part!r})"]
        told = subprocess.run(
            command, cwd=ROOT, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True
        )
        *lines, last = told.stdout.splitlines()
        print("\n".join(lines))
        figures[part] = json.loads(last)
    return figures


def tell(part: str) -> None:
    """Print the figures of one part, and on the last line all of them as JSON."""
    print(json.dumps({"costs": costs, "merges": merges, "memory": memory}[part]()))


def costs(units: int = 768, columns: int = 769) -> dict[str, float]:
    """Return seconds for one client's cost matrix: row by row, as PFNM's own code goes, and by two products."""
    generator = np.random.default_rng(0)
    rows, atoms = generator.standard_normal((2, units, columns))
    precision, surely = generator.uniform(0.5, 1.5, columns), generator.uniform(1, 5, (units, columns))
    weighted = atoms * surely
    start = time.process_time()
    slow = np.stack([row_gains(row, precision, weighted, surely) for row in rows])
    told = {"row loop": time.process_time() - start}
    for name, dtype in (("float64", np.float64), ("float32", np.float32)):
        told[name] = fastest(lambda dtype=dtype: map_gains(rows, precision, weighted, surely, dtype), 10)
        error = abs(map_gains(rows, precision, weighted, surely, dtype) - slow).max() / abs(slow).max()
        told |= {f"{name} times faster": told["row loop"] / told[name], f"{name} error": float(error)}
    told["target"] = 100
    print(
        f"cost matrix {units} x {units} x {columns}: row loop {told['row loop']:.2f} s, float64 "
        f"{told['float64 times faster']:.0f} times faster, float32 {told['float32 times faster']:.0f} (target 100)"
    )
    return told


def row_gains(row: np.ndarray, precision: np.ndarray, weighted: np.ndarray, surely: np.ndarray) -> np.ndarray:
    """Return what one unit adds to the objective at each atom: the formula of PFNM's section 3 as it stands."""
    joined = np.square(weighted + precision * row) / (surely + precision)
    return (joined - np.square(weighted) / surely).sum(axis=1)


def merges() -> dict[str, Any]:
    """Return seconds for whole merges of ten sites' updates."""
    graph, start = vit_small()
    drifted = [drift(start, site) for site in range(SITES)]
    codes = [said(start, site) for site in range(SITES)]
    shuffled = [shuffle(graph, tensors, site) for site, tensors in enumerate(drifted)]
    told: dict[str, Any] = {"weights": sum(value.size for value in start.values()), "sites": SITES}
    contents = [
        RecordDict({"arrays": record(tensors), "metrics": MetricRecord({"num-examples": 100})}) for tensors in drifted
    ]
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "Flower's FedAvg": (lambda: aggregate_arrayrecords(contents, "num-examples"), 5),
        "TaskFedAvg": (lambda: merge(TaskFedAvg(), start, drifted), 5),
        "without precision": (lambda: merge(BayesianMatching(graph), start, drifted), 5),
        "with precision": (lambda: merge(BayesianMatching(graph), start, drifted, codes), 5),
        "without axes, with precision": (lambda: merge(BayesianMatching(), start, drifted, codes), 5),
        "all axes permuted": (lambda: merge(BayesianMatching(graph), start, shuffled, codes), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(5):  # in turn, so that what else the machine does falls on all alike
        for name, (run, repeats) in runs.items():
            if turn < repeats:
                began = time.process_time()
                run()
                seconds[name].append(time.process_time() - began)
    for name, times in seconds.items():
        ratio = median(times) / median(seconds["Flower's FedAvg"])
        told[name] = {"seconds": median(times), "times Flower's": ratio}
        print(f"merge, {name}: {median(times):.2f} s, {ratio:.2f} times Flower's FedAvg")
    return told | {"target, nothing moves": 5.0, "target, seconds, all axes permuted": 60.0}


def memory() -> dict[str, Any]:
    """Return the peak of a merge's memory, beside the global model, with updates that are made as they are asked."""
    graph, start = vit_small()
    size = sum(value.nbytes for value in start.values())
    bound = 3 * size + 16 * sum(value.size for value in start.values())
    told: dict[str, Any] = {}
    for name, permuted, precise in (
        ("nothing moves", False, True), ("without precision", False, False), ("all axes permuted", True, True)
    ):  # fmt: skip

        def updates(permuted: bool = permuted) -> Iterator[Tensors]:
            for site in range(SITES if not permuted else 2):
                yield shuffle(graph, drift(start, site), site) if permuted else drift(start, site)

        codes = [said(start, site) for site in range(SITES if not permuted else 2)] if precise else None
        tracemalloc.start()
        merge(BayesianMatching(graph), start, updates(), codes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        told[name] = {"MB": peak / 1e6, "bound": bound / 1e6}
        print(f"memory, {name}: {peak / 1e6:.0f} MB (bound {bound / 1e6:.0f})")
    return told


def merge(
    strategy: TaskFedAvg, start: Tensors, updates: Any, precision: list[dict[str, Precision]] | None = None
) -> dict[str, np.ndarray]:
    """Run a merge as a round does, without the round: no messages, no screening."""
    strategy._arrays = record(start)
    strategy.begin_merge(strategy._arrays)
    for site, tensors in enumerate(updates):
        said = precision[site] if precision is not None else {}
        strategy.add_to_merge(Update(str(site), tensors, 100.0, {}, said))
    return strategy.finish_merge()


def vit_small() -> tuple[AxisGraph, Tensors]:
    """Return timm's ViT-Small with 1,000 classes at random, and its axes."""
    import torch

    from mtfed.models.encoders import timm
    from mtfed.models.symmetry import derive_axes

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = timm.create_model("vit_small_patch16_224", pretrained=False)
    generator = np.random.default_rng(0)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, value in tensors.items():  # biases at 0 and scales at 1 would tell no unit from another
        tensors[name] = value + np.float32(0.02) * generator.standard_normal(value.shape, np.float32)
    return derive_axes(model), tensors


def drift(start: Tensors, site: int) -> Tensors:
    """Return a site's update: the start, and a little noise."""
    generator = np.random.default_rng([site, 1])
    return {
        name: value + np.float32(NOISE * value.std()) * generator.standard_normal(value.shape, np.float32)
        for name, value in start.items()
    }


def said(start: Tensors, site: int) -> dict[str, Precision]:
    """Return a site's precision in one byte a weight."""
    generator = np.random.default_rng([site, 2])
    return {name: encode(generator.standard_exponential(value.shape, np.float32)) for name, value in start.items()}


def shuffle(graph: AxisGraph, tensors: Tensors, site: int) -> Tensors:
    """Return a network with the units of all axes in random orders."""
    generator = np.random.default_rng([site, 3])
    return graph.permute(tensors, {label: axis.random_permutation(generator) for label, axis in graph.axes.items()})


def record(tensors: Tensors) -> ArrayRecord:
    """Return a record over the tensors' own memory."""
    arrays = ArrayRecord()
    for name, value in tensors.items():
        arrays[name] = FlatArray(value)
    return arrays


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of some calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)
