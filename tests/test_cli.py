"""The command as users run it: a run and its record, resuming after a crash, and one clear sentence for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from helpers import ROOT, mtfed, only_run, pairs
from mtfed.config import read_config
from mtfed.data.simulated_sites import export_sample
from mtfed.federation.app_folder import find_app
from mtfed.federation.simulate import simulate
from mtfed.record.run import Run


def test_a_run_leaves_its_record(small: dict) -> None:
    result = mtfed(
        "simulate",
        "pneumonia",
        "--num-supernodes",
        4,
        "--seed",
        5,
        *pairs(small | {"test-every": 1, "share-class-counts": True}),
    )
    assert result.returncode == 0, result.stderr
    assert "round 1/2  4 sites  loss" in result.stdout and "before training  trained" in result.stdout
    assert "failure" not in result.stdout
    run = only_run(small["out"])
    summary = run.read_json("summary.json")
    assert summary["strategy"] == "fedavg" and summary["rounds"] == 2 and summary["seconds_per_round"] > 0
    assert set(summary["tasks"]["lungs"]["test"]) == {"dice", "iou"} and set(summary["tasks"]["pneumonia"]["test"]) == {
        "auc",
        "accuracy",
    }
    assert run.config().seed == run.read_json("environment.json")["seed"] == 5
    lines = run.lines("metrics.jsonl")
    assert [(line["round"], line["task"]) for line in lines] == [(r, t) for r in (1, 2) for t in ("lungs", "pneumonia")]
    assert all(line["validation"] and line["test"] and line["loss"] > 0 for line in lines)
    (round_1, _) = run.lines("rounds.jsonl")
    assert round_1["asked"] == round_1["answered"] == 4 and round_1["bytes_up"] > 100_000
    cards = run.read_json("sites.json")
    assert [card["key"] for card in cards] == [f"hospital-{i}" for i in range(1, 5)]
    assert cards[1]["counts"]["class.pneumonia.normal"] > 0
    assert (run.folder / "report.html").stat().st_size > 10_000
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"best.safetensors", "last.safetensors"}
    page = mtfed("report", run.folder, "--out", run.folder / "again.html")
    assert page.returncode == 0 and (run.folder / "again.html").exists()


def test_resuming_after_kill_ends_with_the_same_weights(small: dict, tmp_path: Path) -> None:
    config = small | {"rounds": 5, "patience": 5}
    assert mtfed("simulate", "--sites", 3, *pairs(config)).returncode == 0
    whole = only_run(small["out"])

    out = tmp_path / "killed"
    command = [sys.executable, "-m", "mtfed.cli", "simulate", "--sites", "3", *pairs(config | {"out": str(out)})]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 2/"):
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    deadline = time.monotonic() + 20
    while any(
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in workers
    ):
        assert time.monotonic() < deadline, "a worker outlived the killed run"
        time.sleep(0.1)
    killed = only_run(out)
    with open(killed.folder / "metrics.jsonl", "a") as file:
        file.write('{"round": 3, "task": "lun')  # as if the crash had happened in the middle of a line

    result = mtfed(
        "simulate", "--resume", killed.folder
    )  # as in the README: the run folder contains its settings and sites
    assert result.returncode == 0, result.stderr
    assert only_run(out).folder == killed.folder and "round 1/" not in result.stdout
    for name in ("last", "best"):
        a, b = (load_file(run.folder / "checkpoints" / f"{name}.safetensors") for run in (whole, killed))
        assert a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)
    assert killed.lines("metrics.jsonl") == whole.lines("metrics.jsonl")
    assert killed.read_json("summary.json")["tasks"] == whole.read_json("summary.json")["tasks"]

    for options, sentence in (
        (["-c", "learning-rate=0.5"], "Config key learning-rate: the run to resume has 0.001, the config has 0.5"),
        (["-c", "rounds=9"], "Config key rounds"),
        (["--sites", 4], "Expected the 3 sites that began the run"),
    ):
        result = mtfed("simulate", "--resume", killed.folder, *options)
        assert result.returncode == 2 and sentence in result.stderr.splitlines()[-1]


def test_comparing_strategies_and_seeds(small: dict) -> None:
    result = mtfed(
        "simulate", "--sites", 3, "--strategies", "fedavg", "fedprox", "alone", *pairs(small | {"local-steps": 3})
    )
    assert result.returncode == 0, result.stderr
    runs = [Run.open(path.parent) for path in sorted(Path(small["out"]).glob("*/config.json"))]
    assert sorted(run.read_json("summary.json")["strategy"] for run in runs) == ["alone", "fedavg", "fedprox"]
    first_losses = {
        json.dumps([line["loss"] for line in run.lines("metrics.jsonl") if line["round"] == 1]) for run in runs
    }
    assert len(first_losses) == 2  # the same start and batches; in the first round only FedProx's pull differs
    alone = next(run for run in runs if run.config().strategy == "alone").read_json("summary.json")
    assert set(alone["per_site"]) == {"hospital-1", "hospital-2", "hospital-3"}
    (page,) = Path(small["out"]).glob("*-comparison.html")
    assert "fedprox" in page.read_text()


def test_early_stopping(small: dict) -> None:
    simulate(find_app("pneumonia"), small | {"rounds": 30, "patience": 1, "learning-rate": 1e-9}, 3, "local", None)
    summary = only_run(small["out"]).read_json("summary.json")
    assert (
        summary["rounds"] < 30
        and summary["stopped"] == "no improvement in 1 evaluations"
        and summary["chosen_round"] >= 1
    )


def test_a_task_can_stop_by_itself(small: dict) -> None:
    config = small | {"rounds": 8, "patience": 1, "stop-per-task": True, "learning-rate": 1e-9}
    simulate(find_app("pneumonia"), config, 3, "local", None)
    trained: dict[int, set[str]] = {}
    for line in only_run(small["out"]).lines("metrics.jsonl"):
        trained.setdefault(line["round"], set()).update({line["task"]} if line["loss"] is not None else ())
    assert trained[1] == {"pneumonia", "lungs"} and len(trained) < 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["simulate", "pnuemonia"], "Unknown app 'pnuemonia'; did you mean 'pneumonia'?"),
        (["simulate", "-c", "ronds=3"], "Unknown config key 'ronds'; did you mean 'rounds'?"),
        (["simulate", "-c", "rounds=many"], "Config key rounds: expected a valid integer"),
        (["simulate", "-c", "strategy=fedagv"], "Unknown strategy 'fedagv'; did you mean 'fedavg'?"),
        (
            ["simulate", "-c", "encoder=vit_minni_patch8"],
            "Unknown encoder 'vit_minni_patch8'; nearest in timm: vit_mini_patch8",
        ),
        (["simulate", "--num-supernodes", "60"], "The data can serve lungs to at most 17 sites"),
        (["simulate", "--num-supernodes", "0"], "expected a whole number above 0, got '0'"),
        (
            ["simulate", "-c", "task.heart.kind=segmentation", "-c", "task.heart.classes=no,yes"],
            "No site holds task 'heart'",
        ),
        (["simulate", "-c", "data=/nowhere"], "Config key data: expected 'sample', a folder of site folders"),
        (["simulate", "--resume", "."], "Expected a run folder (with config.json)"),
        (["simulate", "--strategies", "fedavg", "fedagv"], "Unknown strategy 'fedagv'"),
        (["simulate", "-c", "device=mps"], "Config key device: 'mps' asks for a GPU, this machine has none"),
        (["simulate", "-c", "min-sites=9"], "9 sites must join, but 8 are simulated"),
        (["simulate", "-c", "seed=18446744073709551616"], "Config key seed: expected less than"),
        (["simulate", "-c", "task.type.kind=segmentation", "-c", "task.type.classes=a,b"], "No site holds task 'type'"),
        (["report", "."], "Expected a run folder"),
        (["export", "."], "Expected an empty or new folder"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    extra = ["-c", f"out={tmp_path / 'runs'}"] if arguments[0] == "simulate" else []
    result = mtfed(*arguments, *extra)
    assert result.returncode == 2
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr and not (tmp_path / "runs").exists()


def damaged(small: dict, tmp_path: Path) -> dict:
    """Return a config for three site folders; the second has an image that cannot be read."""
    list(export_sample(read_config(small), 3, tmp_path / "sites"))
    site = tmp_path / "sites" / "hospital-2"
    next(site.rglob("images/*.png")).write_bytes(b"not an image")
    return small | {"data": str(tmp_path / "sites")}


def test_a_failing_site_is_named_and_the_round_goes_on(small: dict, tmp_path: Path) -> None:
    config = damaged(small, tmp_path)
    result = mtfed("simulate", *pairs(config))
    assert result.returncode == 0, result.stderr
    assert "site hospital-2 failed to train: MtfedError: Cannot read 1 of " in result.stdout + result.stderr
    assert "round 1/2  2 of 3 sites  loss" in result.stdout
    assert "2 failures at hospital-2; rounds.jsonl has the reasons." in result.stdout
    run = only_run(small["out"])
    (failure, *_) = run.lines("rounds.jsonl")[0]["failures"]
    assert failure["site"] == "hospital-2" and "Traceback" in failure["traceback"]
    assert run.lines("rounds.jsonl")[0]["answered"] == 2


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"on-failure": "fail"}, "Site hospital-2 failed to train in round 1"),
        ({"quorum": 1.0}, "at least 3 of 3 sites"),
    ],
)
def test_policies_end_the_run(policy: dict, sentence: str, small: dict, tmp_path: Path) -> None:
    result = mtfed("simulate", *pairs(damaged(small, tmp_path) | policy))
    assert result.returncode == 1 and sentence in result.stderr.splitlines()[-1]
    assert ".; " not in result.stderr.splitlines()[-1]


def test_help_teaches() -> None:
    result = mtfed("--help")
    assert result.returncode == 0 and "mtfed simulate pneumonia --strategies" in result.stdout
    assert "--num-supernodes" in mtfed("simulate", "--help").stdout
    assert "learning-rate" in mtfed("config").stdout
    assert os.path.exists(ROOT / "experiments" / "pneumonia" / "pyproject.toml")
