"""Round time, start-up time, fixed cost per site, and memory of the in-process engine.

python -m benchmarks federation
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from mtfed.config import RunConfigValue, read_config
from mtfed.cores import usable_cores
from mtfed.federation.app_folder import AppFolder

from .processes import ROOT

# The runs: random grey images with one classification task.
CONFIG: dict[str, RunConfigValue] = {
    "name": "bench", "encoder": "vit_nano_patch8", "image-size": 32, "batch-size": 32, "schedule": "constant",
    "balancing": "equal", "test-every": 0, "evaluate-every": 0,
    "task.finding.kind": "classification", "task.finding.classes": "no, yes",
}  # fmt: skip
APP = AppFolder(Path(__file__).parent, {"serverapp": "mtfed.server:app", "clientapp": "mtfed.clients.app:app"}, CONFIG)
# torchvision, which timm imports, may need the repair; the compiler is loaded as by plain imports.
IMPORTS = "import torch._dynamo; from mtfed.startup import import_torchvision; import_torchvision(); import timm"
BARE = """
import json, sys
from benchmarks.bare import seconds_per_round
from mtfed.config import read_config
config, sites, rounds, processes = json.load(sys.stdin)
print(json.dumps(seconds_per_round(read_config(config), sites, rounds, processes)))
"""


def measure() -> dict[str, Any]:
    """Print and return all figures."""
    read_config(CONFIG)  # an outdated key fails here instead of in a subprocess
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures["round"] = round_time(write_sites(root / "ten", 10, 128), 10, 12, repeats=3)
        figures["first round"] = first_round(root / "ten", 10)
        for sites, rounds in ((100, 10), (1000, 4)):
            figures[f"fixed cost, {sites} sites"] = fixed_cost(write_sites(root / str(sites), sites, 1), sites, rounds)
        figures["memory"] = memory(root / "ten", 10)
    return figures


def write_sites(folder: Path, sites: int, images: int) -> Path:
    """Write site folders with so many random training images each and one for validation; return the folder."""
    rng = np.random.default_rng(0)
    for site in range(sites):
        site_folder = folder / f"site-{site:04d}"
        site_folder.mkdir(parents=True)
        lines = ["image,patient,split,finding"]
        for i in range(images + 1):
            Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(site_folder / f"{i}.png")
            lines.append(f"{i}.png,{i},{'val' if i == images else 'train'},{int(rng.integers(2))}")
        (site_folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def round_time(data: Path, sites: int, rounds: int, repeats: int) -> dict[str, float]:
    """Return the median seconds per round of mtfed and of the bare loop, measured alternately."""
    mtfed, bare = [], []
    for _ in range(repeats):
        bare.append(median(bare_seconds(data, sites, rounds)[2:]))
        mtfed.append(median([line["train_seconds"] for line in simulate(data, sites, rounds)[1]][2:]))
    figures = {"mtfed": median(mtfed), "bare loop": median(bare), "ratio": median(mtfed) / median(bare), "target": 1.05}
    times = f"{figures['mtfed']:.4f} s, bare loop {figures['bare loop']:.4f} s"
    print(f"round, {sites} sites: {times}, ratio {figures['ratio']:.3f} (target 1.05)")
    return figures


def first_round(data: Path, sites: int, repeats: int = 5) -> dict[str, float]:
    """Return seconds from the command to the end of the first of two rounds (evaluation comes after the last).

    ``ratio`` compares them with the plain import of torch and timm, measured alternately.
    """
    seconds, imports = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        imports.append(time.perf_counter() - start)
        seconds.append(simulate(data, sites, 2)[0])
    figures = {"median": median(seconds), "fastest": min(seconds), "target": 4.5, "imports": median(imports)}
    figures["ratio"] = figures["median"] / figures["imports"]
    print(
        f"first round done after {figures['median']:.2f} s (fastest {figures['fastest']:.2f}, target 4.5), "
        f"{figures['ratio']:.2f} times the {figures['imports']:.2f} s that importing torch and timm takes"
    )
    return figures


def fixed_cost(data: Path, sites: int, rounds: int) -> dict[str, float]:
    """Return milliseconds per site and round beyond the bare loop; both take one step with one image per site."""
    bare = median(bare_seconds(data, sites, rounds)[1:])
    mtfed = median([line["train_seconds"] for line in simulate(data, sites, rounds)[1]][1:])
    figures = {"mtfed": mtfed, "bare loop": bare, "ms a site": 1000 * (mtfed - bare) / sites}
    figures["target"] = 0.5 if sites <= 100 else 2.0
    print(f"fixed cost, {sites} sites: {figures['ms a site']:.3f} ms per site and round (target {figures['target']})")
    return figures


def memory(data: Path, sites: int) -> dict[str, float]:
    """Return the server process's growth in MiB between round 10 and round 60."""
    sizes: list[int] = []

    def watch(pid: int, server_round: int) -> None:
        if server_round in (10, 60):
            sizes.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096)

    simulate(data, sites, 60, watch, **{"local-steps": 1})
    size, growth = sizes[0] / 2**20, (sizes[1] - sizes[0]) / 2**20
    print(f"server memory: {size:.0f} MiB, {growth:+.1f} MiB over 50 rounds")
    return {"MiB after round 10": size, "growth over 50 rounds": growth}


def simulate(data: Path, sites: int, rounds: int, watch: Any = None, **settings: Any) -> tuple[float, list[dict]]:
    """Run mtfed as a user does; return the seconds until the first round was done, and the record of rounds."""
    with tempfile.TemporaryDirectory() as out:
        config = CONFIG | {"data": str(data), "rounds": rounds, "out": out} | settings
        script = (
            "import json, sys; from mtfed.federation.simulate import simulate; from benchmarks.federation import APP; "
            "sys.exit(simulate(APP, json.loads(sys.argv[1]), int(sys.argv[2]), 'local', None))"
        )
        start, first = time.perf_counter(), 0.0
        command = [sys.executable, "-c", script, json.dumps(config), str(sites)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("round "):
                    first = first or time.perf_counter() - start
                    if watch is not None:
                        watch(process.pid, int(line.split()[1].partition("/")[0]))
        if process.returncode:
            raise RuntimeError(f"The run failed with exit code {process.returncode}.")
        (record,) = Path(out).glob("*/rounds.jsonl")
        return first, [json.loads(line) for line in record.read_text().splitlines()]


def bare_seconds(data: Path, sites: int, rounds: int) -> list[float]:
    """Run the bare loop in a separate process; return the seconds of each round."""
    work = json.dumps([CONFIG | {"data": str(data)}, sites, rounds, usable_cores()])
    command = [sys.executable, "-c", BARE]
    process = subprocess.run(command, cwd=ROOT, input=work, capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])
