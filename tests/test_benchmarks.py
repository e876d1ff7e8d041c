"""The benchmarks' own loops still fit the code that they are timed against."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import ROOT

from mtfed.config import read_config

sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks import bare, work
from benchmarks.systems_cost import TASKS, VOLUMES, Step


def test_the_bare_loop_trains(tmp_path: Path) -> None:
    folder = work.write_sites(tmp_path / "sites", 2, 4)
    config = read_config(work.CONFIG | {"data": str(folder)})
    assert len(bare.seconds_per_round(config, 2, 1, 1)) == 1


def test_the_step_that_is_timed_has_every_task() -> None:
    for encoder, tasks in (("resnet_mini", TASKS), ("resnet3d_mini", VOLUMES)):
        step = Step("ctan", encoder, tasks)
        step.run()
        assert set(step.forward()) == set(tasks)
