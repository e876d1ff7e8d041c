"""The same app on Flower's own engines: Ray with ``flwr run``, and a real deployment of processes on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers import ROOT, mtfed, only_run, pairs
from mtfed.config import read_config
from mtfed.data.simulated_sites import export_sample
from mtfed.federation.app_folder import find_app, read_app
from mtfed.federation.flower_simulation import end_group, flower_environment, flwr_run, free_port, superlink, write_app
from mtfed.federation.simulate import simulate
from mtfed.record.run import Run


def same_weights(a: Run, b: Run) -> None:
    left, right = (load_file(run.folder / "checkpoints" / "last.safetensors") for run in (a, b))
    assert left.keys() == right.keys() and left
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_flwr_run_on_ray_equals_the_local_engine(small: dict, tmp_path: Path) -> None:
    app = find_app("pneumonia")
    ray = small | {"out": str(tmp_path / "ray"), "share-tracebacks": True}
    with superlink(tmp_path / "home", simulation=True) as environment:
        folder = write_app(app, app.run_config | ray, tmp_path / "app")
        assert (
            flwr_run(folder, environment, ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]) == 0
        )
        # A config that fails: flwr run alone would report success.
        folder = write_app(app, app.run_config | ray | {"strategy": "fedagv"}, tmp_path / "wrong")
        assert (
            flwr_run(folder, environment, ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]) == 1
        )
    assert simulate(app, app.run_config | small, 3, "local", 2) == 0
    by_ray, local = only_run(tmp_path / "ray"), only_run(tmp_path / "runs")
    same_weights(by_ray, local)
    assert by_ray.lines("metrics.jsonl") == local.lines("metrics.jsonl")
    assert by_ray.read_json("summary.json")["tasks"] == local.read_json("summary.json")["tasks"]


def marked(mark: str) -> list[int]:
    """Return the processes with a mark in their environment, whatever their parent is by now."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes():
                pids.append(int(path.parent.name))
    return pids


def test_ending_a_run_on_ray_ends_everything(small: dict, tmp_path: Path) -> None:
    mark = f"MTFED_TEST_MARK={tmp_path}"
    command = [sys.executable, "-m", "mtfed.cli", "simulate", "--engine", "ray", "--sites", "2"]
    command += pairs(small | {"rounds": 500})
    environment = os.environ | dict([mark.split("=", 1)])
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "round 2/" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    deadline = time.monotonic() + 20
    while marked(mark):
        assert time.monotonic() < deadline, f"still running: {marked(mark)}"
        time.sleep(0.2)


@contextmanager
def supernode(link: str, folder: Path, home: Path) -> Iterator[None]:
    """Start a hospital's node; its config has only the path of its folder."""
    command = [
        "flower-supernode",
        "--insecure",
        "--superlink",
        link,
        "--port",
        str(free_port()),
        "--node-config",
        f'data-path="{folder}"',
    ]
    with open(home / f"{folder.name}.log", "w") as log:
        process = subprocess.Popen(
            command, env=flower_environment(home), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield
        finally:
            end_group(process)


def test_two_real_sites_equal_the_simulation(small: dict, tmp_path: Path) -> None:
    sites = tmp_path / "sites"
    app = read_app(ROOT / "experiments" / "pneumonia")
    for folder, _ in export_sample(read_config(app.run_config), 8, tmp_path / "all"):
        if folder.name in {"hospital-3", "hospital-6", "test"}:  # the first two have labels of both tasks
            folder.rename(sites.joinpath(folder.name)) if sites.exists() else (
                sites.mkdir(),
                folder.rename(sites / folder.name),
            )
    config = app.run_config | small | {"data": str(sites), "rounds": 1, "strategy": "bayesian"}
    real = config | {"out": str(tmp_path / "deployed"), "min-sites": 2, "join-timeout": 120.0}
    home = tmp_path / "home"
    with superlink(home, simulation=False) as environment:
        link = environment["MTFED_SUPERLINK"]
        with supernode(link, sites / "hospital-3", home), supernode(link, sites / "hospital-6", home):
            code = flwr_run(write_app(app, real, tmp_path / "app"), environment, [])
    logs = "".join(path.read_text()[-2000:] for path in home.glob("*.log"))
    assert code == 0, logs
    assert mtfed("simulate", "pneumonia", "--sites", 2, *pairs(config)).returncode == 0
    deployed, simulated = only_run(tmp_path / "deployed"), only_run(tmp_path / "runs")
    same_weights(deployed, simulated)
    cards = deployed.read_json("sites.json")
    assert [card["key"] for card in cards] == ["hospital-3", "hospital-6"]
    assert not {"pneumonia.1", "num-partitions"} & {str(key) for card in cards for key in card["about"]}


@pytest.mark.parametrize("value", ['a "quoted" word', "tab\there", "ünïcode", 3, 0.5, True, ""])
def test_an_app_is_copied_with_its_config_replaced(value: object, tmp_path: Path) -> None:
    app = find_app("pneumonia")
    written = read_app(write_app(app, {"name": value, "task.lungs.kind": "segmentation"}, tmp_path / "copy"))
    assert written.run_config == {"name": value, "task.lungs.kind": "segmentation"}
    assert written.components == app.components
    assert np.array_equal(sorted(app.components), ["clientapp", "serverapp"])
