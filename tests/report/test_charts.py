"""Charts: limits and ticks of axes, and values that are cut off."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import TASKS
from helpers.reports import AGE, make_run, read
from mtfed.record.run import Run
from mtfed.report.charts import limits, ticks

LIMITS = [  # figures, whether they are shares, the ends of the axis
    ([0.0, 0.4], True, (0, 0.42)),
    ([0.0], True, (0, 0.05)),
    ([0.5, 1.0], True, (0.475, 1)),
    ([0.5, 1.5], False, (0.45, 1.55)),
    ([-0.2, 0.8], True, (-0.25, 0.85)),
    ([-12_000.0, 0.5], True, (-1, 0.575)),
    ([-12_000.0, -300.0], True, (-1, 0.05)),
    ([7.0], False, (6.65, 7.35)),
]


@pytest.mark.parametrize(("drawn", "share", "ends"), LIMITS)
def test_axes_end_where_figures_can(drawn: list[float], share: bool, ends: tuple[float, float]) -> None:
    assert limits(drawn, share=share) == pytest.approx(ends)


TICKS = [
    ([-1.0, -0.5, 0.0], ["−1.0", "−0.5", "0.0"]),
    ([0.235, 0.2375, 0.24], ["0.2350", "0.2375", "0.2400"]),
    ([0.0, 12_500.0, 25_000.0], ["0.0", "12.5k", "25.0k"]),
    ([0.0, 200.0, 400.0], ["0", "200", "400"]),
    ([2e6, 4e6], ["2M", "4M"]),
    ([0.00025, 0.0005, 0.00075], ["0.25e−3", "0.50e−3", "0.75e−3"]),
]


@pytest.mark.parametrize(("values", "written"), TICKS)
def test_numbers_beside_an_axis_are_short(values: list[float], written: list[str]) -> None:
    assert ticks(values) == written
    assert max(map(len, written)) <= 7


def test_what_is_far_below_zero_is_cut_off(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", test={"age": 8.0}, validation={"age": 8.0}, tasks=AGE)
    metrics = (folder / "metrics.jsonl").read_text().replace('"r2": 8.0', '"r2": -4000.0')
    (folder / "metrics.jsonl").write_text(metrics)
    summary = Run(folder).read_json("summary.json")
    summary["tasks"]["age"]["untrained"] = {"mae": 40.0, "r2": -12_000.0}
    Run(folder).write_json("summary.json", summary)
    page = read(folder)
    assert "R² (values below −1 are not drawn)" in page
    drawn = re.findall(r"<figcaption>Age: R².*?</figure>", page)[0]
    assert ">−1.0</text>" in drawn and ">before training, test</text>" not in drawn
    assert "FedAvg, test: −4,000.000 in round 1" in drawn
    lungs = {key: value for key, value in TASKS.items() if key.startswith("task.lungs.")}
    own: dict[str, dict[str, float | None]] = {"north": {"lungs": -0.12}, "south": {"lungs": 0.3}}
    page = read(make_run(tmp_path / "b", "alone", {"lungs": 0.1}, own=own, tasks=lungs))
    assert "<span>−0.15</span>" in page and "-0.15<" not in page
