"""Bayesian matching on one core: a cost matrix, merges of a ViT-Small from ten sites, and their memory.

python -m benchmarks merging

Every merge takes updates one by one, as an engine delivers them. The reference is the averaging of Flower's own FedAvg
over the same arrays, in the same process. Seconds are processor time of one thread.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import repeat
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

from .processes import run_module

SITES = 10
NOISE = 0.01  # standard deviation of an update relative to that of the tensor, as in a round
PARTS = ("costs", "merges", "memory")


def measure() -> dict[str, Any]:
    """Return all figures; each part is measured in a separate process on one thread."""
    return {part: run_module("merging", part) for part in PARTS}


def costs(units: int = 768, columns: int = 769) -> dict[str, float]:
    """Return seconds for one client's cost matrix: row by row, as in PFNM's own code, and by two matrix products."""
    generator = np.random.default_rng(0)
    rows, atoms = generator.standard_normal((2, units, columns))
    precision, atom_precision = generator.uniform(0.5, 1.5, columns), generator.uniform(1, 5, (units, columns))
    weighted = atoms * atom_precision
    start = time.process_time()
    slow = np.stack([row_gains(row, precision, weighted, atom_precision) for row in rows])
    figures = {"row loop": time.process_time() - start}
    for name, dtype in (("float64", np.float64), ("float32", np.float32)):
        figures[name] = fastest(partial(map_gains, rows, precision, weighted, atom_precision, dtype), 10)
        error = abs(map_gains(rows, precision, weighted, atom_precision, dtype) - slow).max() / abs(slow).max()
        figures |= {f"{name} times faster": figures["row loop"] / figures[name], f"{name} error": float(error)}
    figures["target"] = 100
    times = ", ".join(f"{name} {figures[f'{name} times faster']:.0f} times faster" for name in ("float64", "float32"))
    print(f"cost matrix {units} x {units} x {columns}: row loop {figures['row loop']:.2f} s, {times} (target 100)")
    return figures


def row_gains(row: np.ndarray, precision: np.ndarray, weighted: np.ndarray, atom_precision: np.ndarray) -> np.ndarray:
    """Return what one unit adds to the objective at each atom, by the formula in section 3 of PFNM."""
    joined = np.square(weighted + precision * row) / (atom_precision + precision)
    return (joined - np.square(weighted) / atom_precision).sum(axis=1)


def merges() -> dict[str, Any]:
    """Return seconds for merges of ten sites' updates."""
    graph, start = vit_small()
    drifted = [drift(start, site) for site in range(SITES)]
    precisions = [draw_precision(start, site) for site in range(SITES)]
    shuffled = [shuffle(graph, tensors, site) for site, tensors in enumerate(drifted)]
    figures: dict[str, Any] = {"weights": sum(value.size for value in start.values()), "sites": SITES}
    metrics = MetricRecord({"num-examples": 100})
    contents = [RecordDict({"arrays": record(tensors), "metrics": metrics}) for tensors in drifted]
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "Flower's FedAvg": (lambda: aggregate_arrayrecords(contents, "num-examples"), 5),
        "TaskFedAvg": (lambda: merge(TaskFedAvg(), start, drifted), 5),
        "without precision": (lambda: merge(BayesianMatching(graph), start, drifted), 5),
        "with precision": (lambda: merge(BayesianMatching(graph), start, drifted, precisions), 5),
        "without axes, with precision": (lambda: merge(BayesianMatching(), start, drifted, precisions), 5),
        "all axes permuted": (lambda: merge(BayesianMatching(graph), start, shuffled, precisions), 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(5):  # alternate, so that other load on the machine affects all merges equally
        for name, (run, repeats) in runs.items():
            if turn < repeats:
                before = time.process_time()
                run()
                seconds[name].append(time.process_time() - before)
    for name, times in seconds.items():
        ratio = median(times) / median(seconds["Flower's FedAvg"])
        figures[name] = {"seconds": median(times), "times Flower's": ratio}
        print(f"merge, {name}: {median(times):.2f} s, {ratio:.2f} times Flower's FedAvg")
    return figures | {"target, nothing moves": 5.0, "target, seconds, all axes permuted": 60.0}


def memory() -> dict[str, Any]:
    """Return the peak memory of a merge in addition to the global model; updates are created one by one."""
    graph, start = vit_small()
    size = sum(value.nbytes for value in start.values())
    bound = 3 * size + 16 * sum(value.size for value in start.values())
    figures: dict[str, Any] = {}
    for name, is_permuted, has_precision in (
        ("nothing moves", False, True), ("without precision", False, False), ("all axes permuted", True, True)
    ):  # fmt: skip
        sites = range(2 if is_permuted else SITES)
        precisions = [draw_precision(start, site) for site in sites] if has_precision else None
        drifted = (drift(start, site) for site in sites)
        updates = map(shuffle, repeat(graph), drifted, sites) if is_permuted else drifted
        tracemalloc.start()
        merge(BayesianMatching(graph), start, updates, precisions)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        figures[name] = {"MB": peak / 1e6, "bound": bound / 1e6}
        print(f"memory, {name}: {peak / 1e6:.0f} MB (bound {bound / 1e6:.0f})")
    return figures


def merge(
    strategy: TaskFedAvg, start: Tensors, updates: Any, precision: list[dict[str, Precision]] | None = None
) -> dict[str, np.ndarray]:
    """Merge as a round does, but without messages and screening."""
    strategy.begin_merge(record(start))
    for site, tensors in enumerate(updates):
        strategy.add_to_merge(Update(str(site), tensors, 100.0, {}, precision[site] if precision else {}))
    return strategy.finish_merge()


def vit_small() -> tuple[AxisGraph, Tensors]:
    """Return the axes and the weights of timm's ViT-Small with 1,000 classes, randomly initialized."""
    import torch

    from mtfed.models.encoders import timm
    from mtfed.models.symmetry import derive_axes

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = timm.create_model("vit_small_patch16_224", pretrained=False)
    generator = np.random.default_rng(0)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, value in tensors.items():  # units could not be distinguished by biases of 0 and scales of 1
        tensors[name] = value + np.float32(0.02) * generator.standard_normal(value.shape, np.float32)
    return derive_axes(model), tensors


def drift(start: Tensors, site: int) -> Tensors:
    """Return a site's update: the start with a little noise."""
    generator = np.random.default_rng([site, 1])
    return {
        name: value + np.float32(NOISE * value.std()) * generator.standard_normal(value.shape, np.float32)
        for name, value in start.items()
    }


def draw_precision(start: Tensors, site: int) -> dict[str, Precision]:
    """Return a random precision, with one byte per weight."""
    generator = np.random.default_rng([site, 2])
    return {name: encode(generator.standard_exponential(value.shape, np.float32)) for name, value in start.items()}


def shuffle(graph: AxisGraph, tensors: Tensors, site: int) -> Tensors:
    """Return a network with the units of all axes in random order."""
    generator = np.random.default_rng([site, 3])
    return graph.permute(tensors, {label: axis.random_permutation(generator) for label, axis in graph.axes.items()})


def record(tensors: Tensors) -> ArrayRecord:
    """Return a record that shares the tensors' memory."""
    arrays = ArrayRecord()
    for name, value in tensors.items():  # the constructor would copy the memory
        arrays[name] = FlatArray(value)
    return arrays


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    print(json.dumps({"costs": costs, "merges": merges, "memory": memory}[sys.argv[1]]()))
