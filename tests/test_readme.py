"""The app of the README, copied from it, runs under ``flwr run``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import ROOT
from mtfed.federation.flower_simulation import flwr_run, superlink

SECTION = "use the strategy in your own Flower app"


def blocks() -> dict[str, str]:
    """Return the section's code blocks by language; it has one of each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = (part for part in re.split(r"(?m)^## ", text) if SECTION in part.partition("\n")[0])
    matches = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", section)
    assert [language for language, _ in matches] == ["python", "toml", "bash"]
    return dict(matches)


def test_the_readmes_app_runs_and_learns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = blocks()
    app = tmp_path / "my-app"
    app.mkdir()
    (app / "app.py").write_text(code["python"], encoding="utf-8")
    (app / "pyproject.toml").write_text(code["toml"], encoding="utf-8")
    assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 flwr run . --stream" in code["bash"]
    (federation,) = re.findall(r'--federation-config "(.*?)"', code["bash"])
    with superlink(tmp_path / "home", simulation=True) as environment:
        assert flwr_run(app, environment, ["--federation-config", federation]) == 0
    output = capfd.readouterr().out
    losses = [float(loss) for loss in re.findall(r"round \d+: loss ([\d.]+), moved", output)]
    assert len(losses) == 5 and losses[-1] < 0.7 * losses[0], output[-3000:]
    assert "failed to" not in output  # the strategy's words for a site that failed
