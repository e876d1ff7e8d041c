"""Round time, start-up, fixed cost a site, and memory of the in-process engine.

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

from mtfed.config import read_config
from mtfed.cores import usable_cores

from .work import APP, CONFIG, write_sites

ROOT = Path(__file__).parents[1]
BARE = """
import json, sys
from benchmarks.bare import seconds_per_round
from mtfed.config import read_config
config, sites, rounds, processes = json.load(sys.stdin)
print(json.dumps(seconds_per_round(read_config(config), sites, rounds, processes)))
"""


def measure() -> dict[str, Any]:
    """Return every figure, after printing it."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures["round"] = round_time(write_sites(root / "ten", 10, 128), 10, 12, repeats=3)
        figures["first round"] = first_round(root / "ten", 10)
        for sites, rounds in ((100, 10), (1000, 4)):
            figures[f"fixed cost, {sites} sites"] = fixed_cost(write_sites(root / str(sites), sites, 1), sites, rounds)
        figures["memory"] = memory(root / "ten", 10)
    return figures


def round_time(data: Path, sites: int, rounds: int, repeats: int) -> dict[str, float]:
    """Return median seconds a round of mtfed and of the bare loop, measured in turn."""
    ours, bare = [], []
    for _ in range(repeats):
        bare.append(median(bare_seconds(data, sites, rounds)[2:]))
        ours.append(median([line["train_seconds"] for line in simulate(data, sites, rounds)[1]][2:]))
    told = {"mtfed": median(ours), "bare loop": median(bare), "ratio": median(ours) / median(bare), "target": 1.05}
    times = f"{told['mtfed']:.4f} s, bare loop {told['bare loop']:.4f} s"
    print(f"round, {sites} sites: {times}, ratio {told['ratio']:.3f} (target 1.05)")
    return told


def first_round(data: Path, sites: int, repeats: int = 5) -> dict[str, float]:
    """Return seconds from the command to the end of the first of two rounds (evaluation comes after the last)."""
    seconds = sorted(simulate(data, sites, 2)[0] for _ in range(repeats))
    told = {"median": median(seconds), "fastest": seconds[0], "target": 4.5}
    print(f"first round done after {told['median']:.2f} s (fastest {told['fastest']:.2f}, target 4.5)")
    return told


def fixed_cost(data: Path, sites: int, rounds: int) -> dict[str, float]:
    """Return milliseconds a site a round beyond the bare loop, which does the same one step of one image a site."""
    bare = median(bare_seconds(data, sites, rounds)[1:])
    ours = median([line["train_seconds"] for line in simulate(data, sites, rounds)[1]][1:])
    told = {
        "mtfed": ours,
        "bare loop": bare,
        "ms a site": 1000 * (ours - bare) / sites,
        "target": 0.5 if sites <= 100 else 2.0,
    }
    print(f"fixed cost, {sites} sites: {told['ms a site']:.3f} ms a site a round (target {told['target']})")
    return told


def memory(data: Path, sites: int) -> dict[str, float]:
    """Return the server process's growth in MiB between round 10 and round 60."""
    grown: list[int] = []

    def watch(pid: int, server_round: int) -> None:
        if server_round in (10, 60):
            grown.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096)

    simulate(data, sites, 60, watch, {"local-steps": 1})
    told = {"MiB after round 10": grown[0] / 2**20, "growth over 50 rounds": (grown[1] - grown[0]) / 2**20}
    print(
        f"server memory: {told['MiB after round 10']:.0f} MiB, {told['growth over 50 rounds']:+.1f} MiB over 50 rounds"
    )
    return told


def simulate(
    data: Path, sites: int, rounds: int, watch: Any = None, extra: dict | None = None
) -> tuple[float, list[dict]]:
    """Run mtfed as a user does; return seconds until its first round was done, and its record of rounds."""
    with tempfile.TemporaryDirectory() as out:
        config = CONFIG | {"data": str(data), "rounds": rounds, "out": out} | (extra or {})
        script = (
            "import json, sys; from mtfed.federation.simulate import simulate; from benchmarks.work import APP; "
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
            raise RuntimeError(f"the run failed with exit code {process.returncode}")
        (record,) = Path(out).glob("*/rounds.jsonl")
        return first, [json.loads(line) for line in record.read_text().splitlines()]


def bare_seconds(data: Path, sites: int, rounds: int) -> list[float]:
    """Run the bare loop in a process of its own; return seconds a round."""
    work = json.dumps([CONFIG | {"data": str(data)}, sites, rounds, usable_cores()])
    told = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, input=work, capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout.splitlines()[-1])


read_config(CONFIG)  # a stale key fails here, not in a subprocess
assert APP.run_config is CONFIG
