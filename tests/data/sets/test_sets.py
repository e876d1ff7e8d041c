"""The registry of the data sets, and the `mtfed data` commands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.layouts import LAYOUTS
from mtfed.cli import main
from mtfed.data.sets import all_sets, find_set, register_set
from mtfed.data.sets.medmnist import SUBSETS
from mtfed.data.sets.templates import render_site_file
from mtfed.data.site_file import read_site_file
from mtfed.data.vocabulary import words_of
from mtfed.errors import MtfedError
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task


def test_every_set_is_described_completely(tmp_path: Path) -> None:
    sets = all_sets()
    path = tmp_path / "site.toml"
    assert list(sets)[:18] == list(SUBSETS)
    sets |= {f"{name}-{size}": version for name in SUBSETS for size, version in sets[name].versions.items()}
    for name, dataset in sets.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        texts = [dataset.title, dataset.licence, dataset.terms, dataset.citation, dataset.layout]
        assert all(texts) and dataset.home.startswith(("https://", "http://")) and dataset.required, name
        assert dataset.is_downloadable or dataset.access, f"{name}: it does not say how to get it"
        for task, declared in dataset.tasks.items():
            assert Task(name=task, **declared).kind in KIND_SPECS
        path.write_text(render_site_file(dataset), encoding="utf-8")
        site = read_site_file(path)
        assert (site.key, site.dimensions) == (dataset.name, dataset.dimensions)
        assert site.cells["body-part"] == dataset.body_part
        cells = {"modality": dataset.modality}
        words = words_of(cells | {"body-part": dataset.body_part})
        assert not words[0].startswith("other-") and not words[1].startswith("other-"), name
        assert site.tasks.keys() == dataset.tasks.keys()
        for file in dataset.files:
            assert not file.md5 or re.fullmatch("[0-9a-f]{32}", file.md5)
            assert not file.sha256 or re.fullmatch("[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize(("name", "near"), [("busii", "busi"), ("cbis_ddsn", "cbis-ddsm"), ("medmnist", "pathmnist")])
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(MtfedError, match=f"Unknown data set '{name}'; did you mean '.*mnist.*|{near}'"):
        find_set(name)
    assert find_set("CBIS_DDSM").name == "cbis-ddsm"


def test_a_registered_set_is_found() -> None:
    toy = replace(find_set("busi"), name="toy")
    register_set(toy)
    try:
        assert find_set("toy") is toy
        with pytest.raises(MtfedError, match="already a data set 'toy'"):
            register_set(toy)
    finally:
        del all_sets()["toy"]


def test_the_commands_list_and_show_sets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["name", "images", "modality", "tasks", "licence", "get"]
    assert any("by hand" in line for line in listed) and len(listed) == len(all_sets()) + 1
    for words in (["show", "vindr-mammo"], ["list", "vindr-mammo"]):
        assert main(["data", *words]) == 0
        output = capsys.readouterr().out
        assert "Register at PhysioNet" in output and "finding_annotations.csv" in output and "10:277" in output
    assert main(["data", "get", "inbreast", "--folder", str(tmp_path)]) == 2
    assert "Ask its owners" in capsys.readouterr().err


def test_files_placed_by_hand_are_prepared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "my sets"
    folder.mkdir()
    LAYOUTS["vindr-mammo"](folder)
    assert main(["data", "get", "vindr-mammo", "--folder", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "6 images of 3 patients (train 4, test 2)" in output and "PhysioNet" in output
    assert f"mtfed simulate '{folder}/experiment'" in output


def test_the_tasks_of_medmnist_differ_so_that_its_sets_can_be_in_one_run() -> None:
    tasks = [task for name in SUBSETS for task in find_set(name).tasks]
    assert len(set(tasks)) == len(tasks) == 18


def test_a_version_is_downloaded_by_its_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = {size: version.files[0] for size, version in find_set("pathmnist").versions.items()}
    assert list(files) == [28, 64, 128, 224] and list(find_set("nodulemnist3d").versions) == [28, 64]
    assert files[28] == find_set("pathmnist").files[0] and len({file.md5 for file in files.values()}) == 4
    assert files[64].url == "https://zenodo.org/records/10519652/files/pathmnist_64.npz?download=1"
    for command, message in (
        (["pathmnist", "--size", "64"], "`mtfed data get pathmnist --size 64 --yes` accepts the licence"),
        (["pathmnist", "--size", "96"], "PathMNIST has no version with 96 pixels .* choose one of 28, 64, 128, 224"),
        (["nodulemnist3d", "--size", "128"], "choose one of 28, 64"),
        (["busi", "--size", "64"], "its images have one size, leave out --size"),
    ):
        assert main(["data", "get", *command, "--folder", str(tmp_path / "set")]) == 2
        assert re.search(message, capsys.readouterr().err)
    main(["data", "show", "pathmnist"])
    assert "28, 64, 128, 224 pixels per side" in capsys.readouterr().out


def test_nothing_is_downloaded_without_a_yes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "get", "breastmnist", "--folder", str(tmp_path / "b")]) == 2
    assert "--yes` accepts the licence" in capsys.readouterr().err and not (tmp_path / "b").exists()
