"""``mtfed site check``: its page, its options, and correct data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.checked_site import MISSING, broken, check, content, drawn, make_site, row
from mtfed.cli import main
from mtfed.config import Config
from mtfed.data.decoding import decode_row
from mtfed.site.check.survey import survey_site

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_a_clean_site_has_no_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_site(tmp_path)
    code, findings = check(folder)
    assert code == 0 and not findings
    output = capsys.readouterr().out
    assert "st-mary: 12 images of 8 patients" in output and "0 errors" in output and "check.html" in output
    page = (folder / "check.html").read_text()
    assert "ready to train" in page and "stays at the site" in page and page.count("<image ") == 12
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)  # the page loads nothing


def test_a_fault_is_on_the_page_with_its_file_and_picture(tmp_path: Path) -> None:
    folder = make_site(tmp_path, row("x.png", MISSING, drawn(3)))
    assert check(folder)[0] == 1
    page = (folder / "check.html").read_text()
    assert "not ready to train" in page and "3.png and x.png" in page and 'href="#same-across"' in page
    assert page.index('id="same-across"') < page.index('class="pairs"')


def test_names_on_the_page_are_escaped(tmp_path: Path) -> None:
    folder = make_site(tmp_path, row("<b>.png", ["<script>", "train", "yes", "", "", ""]))
    check(folder)
    page = (folder / "check.html").read_text()
    assert "&lt;b&gt;.png" in page and "<b>.png" not in page and "<script>" not in page


def test_an_experiment_sets_the_tasks_and_how_much_may_be_unreadable(tmp_path: Path) -> None:
    folder = make_site(tmp_path, content("3.png", broken("3")))
    app = tmp_path / "app"
    app.mkdir()
    lines = ["[tool.flwr.app.components]", 'serverapp = "mtfed.server:app"', 'clientapp = "mtfed.clients.app:app"']
    lines += ["[tool.flwr.app.config]", "max-unreadable = 0.5", "[tool.flwr.app.config.task.ill]"]
    lines += ['kind = "classification"', 'classes = "no, yes"']
    (app / "pyproject.toml").write_text("\n".join(lines))
    code, findings = check(folder, "--app", str(app))
    assert code == 0 and findings["unreadable-allowed"]["severity"] == "warning" and "unreadable" not in findings


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nowhere"], "Expected a site folder with a manifest"),
        (["{site}", "--app", "pneumona"], "did you mean 'pneumonia'"),
        (["{bare}"], "Expected tasks whose labels can be checked"),
        (["{site}", "--out", "{site}/manifest.csv/x.html"], "Cannot write"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    folder, bare = make_site(tmp_path), tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "site.toml").unlink()
    words = [word.format(site=folder, bare=bare) for word in arguments]
    assert main(["site", "check", *words, "--jobs", "1"]) == 2
    assert match in capsys.readouterr().err


def test_volumes_with_masks_are_checked_and_shown(tmp_path: Path) -> None:
    from helpers.hospitals import TASKS, write_site

    folder = write_site(tmp_path / "site", list(TASKS), 8, dimensions=3, side=16)
    lines = ["dimensions = 3"]
    for name, table in TASKS.items():
        lines += [f"[task.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (folder / "site.toml").write_text("\n".join(lines))
    code, findings = check(folder)
    assert not [finding for finding in findings.values() if finding["severity"] == "error"], findings
    assert code == 0 and "Sample images" in (folder / "check.html").read_text()


@pytest.mark.parametrize(("proportions", "refused"), [("millimetres", "thin.npz"), ("pixels", "thick.npz")])
def test_the_images_that_training_refuses_are_refused(tmp_path: Path, proportions: str, refused: str) -> None:
    np.savez(tmp_path / "thin.npz", image=np.zeros((16, 64, 64), np.int16), spacing=[0.05, 0.7, 0.7])
    np.savez(tmp_path / "thick.npz", image=np.zeros((8, 64, 64), np.int16), spacing=[5, 0.7, 0.7])
    (tmp_path / "manifest.csv").write_text("image,patient,ill\nthin.npz,a,no\nthick.npz,b,no\n")
    tasks = {"ill": {"name": "ill", "kind": "classification", "classes": "no, yes"}}
    config = Config.model_validate({"tasks": tasks, "dimensions": 3, "image-size": 24, "proportions": proportions})
    result = survey_site(tmp_path, "s", config, 1)
    for image in result.examined:
        examined = result.rows[image.number]
        is_refused = isinstance(decode_row(result.data, examined, config), str)
        assert bool(image.fault) == is_refused == (examined.image == refused)


def test_the_exported_sample_is_clean(tmp_path: Path) -> None:
    assert main(["export", str(tmp_path / "sites"), "--sites", "20"]) == 0
    folder = next(path for path in sorted((tmp_path / "sites").iterdir()) if path.name != "test")
    code, findings = check(folder, "--app", "pneumonia")
    assert code == 0, findings


@pytest.mark.skipif(not (DATA / "formats3d").is_dir(), reason="needs the shared data")
def test_real_series_are_drafted_and_checked(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for name in ("dicom_ct", "dicom_mr"):
        (folder / name).mkdir(parents=True)
        for path in (DATA / "formats3d" / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    assert main(["site", "init", str(folder)]) == 0
    assert "PGBM" in (folder / "manifest.csv").read_text()
    with open(folder / "site.toml", "a") as file:
        file.write('[task.ill]\nkind = "classification"\nclasses = "no, yes"\n')
    _, findings = check(folder)
    assert {"PatientName", "AccessionNumber"} <= {item["name"] for item in findings["tags-person"]["items"]}
