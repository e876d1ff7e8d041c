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
from mtfed.errors import MtfedError
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task


def test_every_set_is_described_completely(tmp_path: Path) -> None:
    sets = all_sets()
    path = tmp_path / "site.toml"
    assert list(sets)[:18] == list(SUBSETS)
    for name, dataset in sets.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        texts = [dataset.title, dataset.licence, dataset.terms, dataset.citation, dataset.layout, dataset.modality]
        assert all(texts) and dataset.home.startswith(("https://", "http://")) and dataset.required, name
        assert dataset.is_downloadable or dataset.access, f"{name}: it does not say how to get it"
        for task, declared in dataset.tasks.items():
            assert Task(name=task, **declared).kind in KIND_SPECS
        path.write_text(render_site_file(dataset), encoding="utf-8")
        site = read_site_file(path)
        assert (site.key, site.dimensions) == (name, dataset.dimensions)
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


def test_nothing_is_downloaded_without_a_yes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "get", "breastmnist", "--folder", str(tmp_path / "b")]) == 2
    assert "--yes` accepts the licence" in capsys.readouterr().err and not (tmp_path / "b").exists()
