"""The loops and tables of the benchmarks still work with the current code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from mtfed.config import read_config

sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks import bare, federation, systems_tables
from benchmarks.systems_cost import IMAGE_TASKS, VOLUME_TASKS, Step


def test_the_bare_loop_trains(tmp_path: Path) -> None:
    folder = federation.write_sites(tmp_path / "sites", 2, 4)
    config = read_config(federation.CONFIG | {"data": str(folder)})
    assert len(bare.seconds_per_round(config, 2, 1, 1)) == 1


def test_the_step_that_is_timed_has_every_task() -> None:
    for encoder, tasks in (("resnet_mini", IMAGE_TASKS), ("resnet3d_mini", VOLUME_TASKS)):
        step = Step("ctan", encoder, tasks)
        step.run()
        assert set(step.forward()) == set(tasks)


def run_of(system: str, seed: int, age: float, auc: float, change: str = "") -> dict[str, Any]:
    validation = {"age": {"mae": age}, "melanoma": {"auc": auc}}
    figures = {"set": "skin", "system": system, "seed": seed, "rate": 0.001, "change": change, "parameters": 5e5}
    return figures | {"validation": validation}


def test_models_are_compared_with_their_single_task_seed_by_seed() -> None:
    runs = [run_of("Single task", 0, 10, 0.5), run_of("Single task", 1, 12, 0.8), run_of("Single task", 2, 9, 0.8)]
    runs += [run_of("CTAN", 0, 9, 0.6), run_of("CTAN", 1, 12, 0.64), run_of("CTAN", 7, 1, 0.9)]
    changed = [run_of("Single task", 0, 8, 0.8, "equal weights"), run_of("CTAN", 0, 8, 0.6, "equal weights")]
    results = {"blind": {"skin": {"age": {"mae": 11}, "melanoma": {"auc": 0.5}}}, "runs": runs, "changed": changed}
    assert systems_tables.deltas("CTAN", "skin", results) == pytest.approx([(10 + 20) / 2, (0 - 20) / 2])
    tables = dict(systems_tables.tables(results))
    assert tables["delta"].splitlines()[-1] == "| CTAN | 2.5 ± 17.7 | +2.5 |"
    # Over the same seeds.
    assert tables["changes"].splitlines()[-1] == "| skin | CTAN | equal weights | 15.0 | -12.5 | 1 |"
    assert "| mean label, without looking at an image | 11.000 | 0.500 | | | | |" in tables["skin"]
    results["blind"]["skin"]["age"]["mae"] = 10.0  # the mean of the single-task models is 10.33
    assert systems_tables.deltas("CTAN", "skin", results) == pytest.approx([20, -20])
    assert dict(systems_tables.tables(results))["skin"].endswith("does not learn it: age.\n")
    results["blind"]["skin"]["melanoma"]["auc"] = 0.75
    assert systems_tables.deltas("CTAN", "skin", results) == []
