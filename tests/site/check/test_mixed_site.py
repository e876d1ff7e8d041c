"""A site with images and volumes is checked as training reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.checked_site import check
from helpers.mixed import rewrite, rows_of, write_mixed

TASKS = """
[task.grade]
kind = "classification"
classes = "no, yes"
[task.outline]
kind = "segmentation"
classes = "background, blob"
dimensions = 3
"""


@pytest.mark.parametrize("dimensions", ["", "dimensions = 3\n[task.grade]\ndimensions = 2\n"])
def test_a_site_with_images_and_volumes(dimensions: str, tmp_path: Path) -> None:
    folder = write_mixed(tmp_path / "both")
    site_file = dimensions + (TASKS.replace("\n[task.grade]", "", 1) if dimensions else TASKS)
    (folder / "site.toml").write_text(site_file)
    code, findings = check(folder)
    assert not [finding for finding in findings.values() if finding["severity"] == "error"], findings
    page = (folder / "check.html").read_text()
    assert code == 0 and "Sizes, rows × columns or slices × rows × columns: " in page
    assert page.count("<svg") >= 16


def test_rows_that_training_refuses_are_errors(tmp_path: Path) -> None:
    folder = write_mixed(tmp_path / "both")
    rows = rows_of(folder)
    rows[1]["outline"] = "deep/1.npz"
    rows[2]["dimensions"] = "2D"
    rewrite(folder, [*rows, rows[-1] | {"image": "flat/3.png", "grade": "", "outline": "", "patient": "flat-p3"}])
    (folder / "site.toml").write_text(TASKS)
    code, findings = check(folder)
    assert code == 1
    said = {item["name"]: item["said"] for finding in findings.values() for item in finding["items"]}
    assert said["line 3"] == "it has labels of tasks on images and of tasks on volumes"
    assert said["line 4"] == "expected 2 or 3 in the column dimensions, got '2D'"
    assert [item["name"] for item in findings["unreadable-allowed"]["items"]] == ["flat/3.png"]  # it is no volume
