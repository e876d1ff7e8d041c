"""Work in isolated processes: a process that dies is reported, and the rest of the work is done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from helpers.checked_site import check, make_site
from mtfed.site.check.isolated_pool import run_isolated


def square(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), 9)
    return number * number


@pytest.mark.parametrize(("count", "jobs"), [(0, 2), (1, 4), (50, 1), (50, 3)])
def test_every_item_has_one_result(count: int, jobs: int) -> None:
    results = dict(run_isolated(square, count, jobs))
    assert sorted(results) == list(range(count))
    assert all(results[n] == n * n for n in results if n != 5)
    assert count < 6 or str(results[5]) == "signal SIGKILL"


def test_a_file_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtfed.site.check.label_content import RecordingSource

    read = RecordingSource.pixels

    def deadly(self: RecordingSource, channels: int) -> np.ndarray:
        if self.image in ("3.png", "8.png"):
            os._exit(7)
        return read(self, channels)

    monkeypatch.setattr(RecordingSource, "pixels", deadly)
    folder = make_site(tmp_path)
    for jobs in ("1", "3"):
        code, findings = check(folder, "--jobs", jobs)
        assert code == 1 and [item["name"] for item in findings["killed"]["items"]] == ["3.png", "8.png"]
        assert "exit code 7" in findings["killed"]["items"][0]["said"]
        assert set(findings) <= {"killed", "too-many-unreadable", "few-patients"}
