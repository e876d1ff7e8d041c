"""Prepared sets of images and volumes become one app, which trains one model on all of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from helpers import mtfed, only_run
from helpers.layouts import LAYOUTS
from mtfed.cli import main
from mtfed.config import read_config
from mtfed.data.loading import load_shard
from mtfed.data.sets import find_set
from mtfed.data.sets.join import join
from mtfed.data.sets.prepare import prepare
from mtfed.data.simulated_sites import default_sites, simulated_site
from mtfed.data.simulated_sites import test_data as server_data
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import find_app

SETS = ("pneumoniamnist", "bloodmnist", "nodulemnist3d")  # grey images, RGB images, volumes


def prepared_folders(path: Path, *names: str) -> list[Path]:
    for name in names:
        (path / name).mkdir()
        LAYOUTS[name](path / name)
        prepare(find_set(name), path / name)
    return [path / name for name in names]


def replace_in_app(folder: Path, old: str, new: str) -> None:
    file = folder / "experiment/pyproject.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_images_and_volumes_are_joined_and_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, app = prepared_folders(tmp_path, *SETS), tmp_path / "my-app"
    for _ in range(2):  # a second time changes nothing
        assert main(["data", "join", *map(str, folders), "--out", str(app)]) == 0
        output = capsys.readouterr().out
        assert "3 sets, images of side 32 and volumes of side 32; tasks: pneumonia (pneumoniamnist), blood" in output
        assert output.endswith(f"mtfed simulate {app}\n")
    assert "pooled = true  # all sets on one machine; false: a federation" in (app / "pyproject.toml").read_text()
    run_config = find_app(str(app)).run_config
    assert "window" not in run_config
    config = read_config(run_config)
    assert (config.model, config.encoder, config.channels, config.sampling) == ("medformer", "vit_mini_patch8", 3, 0.5)
    assert {name: task.dimensions for name, task in config.tasks.items()} == {
        "pneumonia": 2, "blood": 2, "nodule-3d": 3,
    }  # fmt: skip
    test = server_data(config)
    assert default_sites(config) == 1 and test and len(test.rows) == 12
    apart = read_config(run_config | {"pooled": False})
    assert [simulated_site(apart, index, 3).key for index in range(default_sites(apart))] == list(SETS)
    shard = load_shard(simulated_site(apart, 2, 3).part("train"), apart)
    assert shard.count("nodule-3d") == len(shard) == 6

    out = tmp_path / "runs"
    tiny = ("encoder=vit_nano_patch8", "decoder-width=8", "batch-size=4", "local-steps=3", "rounds=1")
    result = mtfed("simulate", app, "--out", out, "--workers", 1, *(word for pair in tiny for word in ("-c", pair)))
    assert result.returncode == 0, result.stderr
    summary = only_run(out).read_json("summary.json")
    assert set(summary["tasks"]) == set(config.tasks) and summary["failures"] == 0
    assert all(math.isfinite(task["test"][task["metric"]]) for task in summary["tasks"].values())


def test_volumes_alone_and_tasks_in_common(tmp_path: Path) -> None:
    volumes = join(prepared_folders(tmp_path, "nodulemnist3d", "organmnist3d"), tmp_path / "volumes").config
    assert (volumes.dimensions, volumes.channels, [form.size for form in volumes.forms]) == (3, 1, [32])
    images = join(prepared_folders(tmp_path, "busi", "isic2018"), tmp_path / "images")
    assert images.sets_by_task["outline"] == ["busi", "isic2018"] and images.sets_by_task["lesion"] == ["busi"]
    assert (images.config.dimensions, images.config.volume_size, images.config.channels) == (2, 0, 3)


def test_sizes_are_the_largest_in_whole_patches(tmp_path: Path) -> None:
    folders = prepared_folders(tmp_path, *SETS)
    for folder, size in zip(folders, (60, 40, 44), strict=True):
        replace_in_app(folder, "image-size = 32", f"image-size = {size}")
    config = join(folders, tmp_path / "app").config
    assert (config.image_size, config.volume_size) == (64, 48)


def test_a_window_is_used_if_all_sets_have_it(tmp_path: Path) -> None:
    ct = prepared_folders(tmp_path, "openkbp", "prostate-ct")
    for name in ("structures", "dose"):
        replace_in_app(ct[1], f"config.task.{name}]", f"config.task.prostate-{name}]")
    common = join(ct, tmp_path / "ct")
    assert common.config.window == "40, 400" and not common.has_own_windows
    mixed = join([*ct, *prepared_folders(tmp_path, "breastmnist")], tmp_path / "mixed")
    assert mixed.config.window == "" and mixed.has_own_windows


def test_what_cannot_be_joined_is_refused_by_name(tmp_path: Path) -> None:
    folders, app = prepared_folders(tmp_path, *SETS[:2]), tmp_path / "app"

    def assert_refused(message: str, *others: Path) -> None:
        with pytest.raises(MtfedError, match=message):
            join([*folders, *others], app)
        assert not app.exists()

    (tmp_path / "scans").mkdir()
    assert_refused(f"{re.escape(str(tmp_path / 'scans'))} is not one: it has no site.toml", tmp_path / "scans")
    assert_refused("absent is not one", tmp_path / "absent")
    assert_refused("Two of the folders are called bloodmnist", folders[1])
    (tmp_path / "a, b").mkdir()
    assert_refused("has a comma in its path", *prepared_folders(tmp_path / "a, b", "breastmnist"))
    with pytest.raises(MtfedError, match="Expected several sets to join, got bloodmnist alone"):
        join(folders[1:], app)
    (chest,) = prepared_folders(tmp_path, "breastmnist")
    replace_in_app(chest, "config.task.breast]", "config.task.pneumonia]")
    message = "pneumoniamnist and .*breastmnist declare task 'pneumonia' differently: classes 'normal, pneumonia' and "
    assert_refused(message, chest)
    replace_in_app(chest, "[tool.flwr.app.config", "[tool.flwr.other")
    assert_refused("Cannot read the settings in .*breastmnist", chest)
    (chest / "manifest.csv").unlink()
    assert_refused("breastmnist is not one: it has no manifest", chest)


def test_an_app_with_other_content_is_refused(tmp_path: Path) -> None:
    folders = prepared_folders(tmp_path, *SETS[:2])
    file = join(folders, tmp_path / "app").file
    text = file.read_text() + "# edited"
    file.write_text(text)
    for out in (tmp_path / "app", folders[0], file):
        with pytest.raises(MtfedError, match=r"Expected --out to be a new or empty folder, .* has other content"):
            join(folders, out)
    assert file.read_text() == text
