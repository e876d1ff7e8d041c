"""A task kind, a file format, a model and a strategy that are registered from outside take part in a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers import ROOT, mtfed

TOY_APP = ROOT / "tests/helpers/toy_app"


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """Two sites and the server's test images, all in the toy format."""
    rng = np.random.default_rng(0)
    for name in ("north", "south", "test"):
        folder = tmp_path / "sites" / name
        folder.mkdir(parents=True)
        with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", "patient", "light", "side"])
            for i in range(12):
                level = rng.uniform(0.2, 0.8)
                grid = (rng.uniform(0, 255 * level, (16, 16))).astype(int)
                (folder / f"{i}.grid").write_text("\n".join(" ".join(map(str, row)) for row in grid))
                table.writerow([f"{i}.grid", f"p{i}", f"{level:.3f}", "bright" if level > 0.5 else "dark"])
    return tmp_path / "sites"


def test_a_run_with_everything_from_outside(tmp_path: Path, sites: Path) -> None:
    arguments = ("simulate", TOY_APP, "--sites", 2, "--out", tmp_path / "runs", "-c", f"data={sites}")
    result = mtfed(*arguments)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "Distance" in result.stdout  # the metric's title in the table
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    light = [line for line in lines if line["task"] == "light"]
    assert [line["round"] for line in light] == [1, 2]
    figures = [(line["loss"], line["validation"]["distance"], line["test"]["distance"]) for line in light]
    assert np.isfinite(figures).all()
    weights = load_file(run / "checkpoints/last.safetensors")
    assert "encoder.factor" in weights and weights["encoder.factor"] != 1
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "HalfStep" in page and "Light" in page and "mean distance from the true brightness" in page


def test_the_strategy_moves_halfway_to_the_average(tmp_path: Path, sites: Path) -> None:
    def weights(strategy: str, *settings: str) -> dict[str, np.ndarray]:
        """Return the model after one round."""
        out = tmp_path / "-".join((strategy, *settings))
        pairs = (f"data={sites}", f"strategy={strategy}", "rounds=1", *settings)
        options = [word for pair in pairs for word in ("-c", pair)]
        result = mtfed("simulate", TOY_APP, "--sites", 2, "--out", out, *options)
        assert result.returncode == 0, result.stderr + result.stdout
        (path,) = out.glob("*/checkpoints/last.safetensors")
        return {name: values for name, values in load_file(path).items() if "@" not in name}  # without other records

    initial = weights("fedavg", "learning-rate=1e-20")  # too small a step to change a float32
    average, half = weights("fedavg"), weights("half-step")
    assert any(not np.allclose(average[name], initial[name], atol=1e-4) for name in initial)
    for name, values in half.items():
        np.testing.assert_allclose(values, (initial[name] + average[name]) / 2, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_name_is_registered_once() -> None:
    from mtfed.data.formats import FORMATS, register_format
    from mtfed.errors import MtfedError
    from mtfed.models.specs import MODEL_SPECS, register_model
    from mtfed.strategies import TaskFedAvg, register_strategy
    from mtfed.tasks import KIND_SPECS, Task, kind_of, register_kind

    finding = Task(name="finding", kind="classification", classes=("a", "b"))
    with pytest.raises(ValueError, match="new name for TaskFedAvg, got 'fedavg'"):
        register_strategy("fedavg", TaskFedAvg)
    with pytest.raises(MtfedError, match=r"got 'ctan', which is mtfed\.models\.ctan"):
        register_model("ctan", MODEL_SPECS["ctan"])
    with pytest.raises(MtfedError, match="new format, got NIfTI"):
        register_format(FORMATS["NIfTI"])
    with pytest.raises(MtfedError, match="new name for a kind of task, got 'classification'"):
        register_kind("classification", KIND_SPECS["classification"], kind_of(finding))
