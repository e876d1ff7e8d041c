"""The table and chart of each site's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import mtfed
from helpers.divided_sets import (
    KEYS,
    set_rows,
    write_set,
)
from mtfed.config import read_config
from mtfed.data.simulated_sites import simulated_site
from mtfed.federation.holdings import holdings, table
from mtfed.federation.holdings_chart import draw


def test_the_table_and_the_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write_set(tmp_path / "set", set_rows(5))
    config = read_config(KEYS | {"data": str(folder), "partition": "column + tasks"})
    sites, test = holdings(config, 4)
    lines = table(sites, test, config.tasks).splitlines()
    assert lines[0].split("  ")[-1] == "stage (low/high)" and len(lines) == 1 + 4 + 2
    assert [line.split()[0] for line in lines[1:5]] == ["nord", "ost", "sud", "west"]
    for i, holding in enumerate(sites):
        data = simulated_site(config, i, 4)
        assert holding.images == len(data.rows) and all(
            holding.count(task) == data.count(task) for task in config.tasks
        )
        assert holding.counts["grade"].keys() <= {"no", "yes", "maybe"}  # by name, as by index
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        draw(sites, config.tasks, tmp_path / f"holdings{suffix}")
        assert (tmp_path / f"holdings{suffix}").read_bytes().startswith(start)
    assert "nord" in (tmp_path / "holdings.svg").read_text() and "maybe" in (tmp_path / "holdings.svg").read_text()


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    done = mtfed("data", "partition", "--num-supernodes", 3, "-c", "partition=tasks + quantity")
    assert done.returncode == 0 and "hospital-3" in done.stdout and "server's test" in done.stdout
    for arguments, sentence in (
        (("-c", "partition=task"), "unknown scheme 'task'; did you mean 'tasks'?"),
        (("--out", tmp_path / "holdings.gif"), "Expected --out to end with .png, .svg, .pdf"),
    ):
        done = mtfed("data", "partition", *arguments)
        assert done.returncode == 2 and sentence in done.stderr
