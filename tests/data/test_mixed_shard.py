"""Images and volumes in one shard, and sites that have both."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from helpers.mixed import CUBE, FLAT, KEYS, PRETEXT, config, rewrite, rows_of, write_mixed, write_sites
from mtfed.clients.site import open_site
from mtfed.data import cache
from mtfed.data.every_image import EVERY_IMAGE
from mtfed.data.loading import load_shard
from mtfed.data.shard import Labels, MixedShard, Shard
from mtfed.data.simulated_sites import default_sites, export_sample, simulated_site, site_folder
from mtfed.data.simulated_sites import test_data as server_test_data
from mtfed.errors import MtfedError

pytestmark = pytest.mark.usefixtures("own_cache")


def shards(counts: tuple[int, ...] = (5, 4)) -> list[Shard]:
    """Return a shard of images and one of volumes, whose pixels are all different."""
    made = []
    for i, (count, size) in enumerate(zip(counts, ((8, 8), (4, 4, 4)), strict=True)):
        pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, *[1] * len(size)) * 20 + torch.randint(
            0, 10, (count, 1, *size), generator=torch.Generator().manual_seed(i)
        ).to(torch.uint8)
        index = torch.arange(count)
        labels = {f"whole{i}": Labels(index, index + 10 * i), f"some{i}": Labels(index[1::2], index[1::2] * 1.5)}
        made.append(Shard(pixels, labels, words=torch.stack([index, index + 100 * i], 1)))
    return made


ORDERS = [None, [0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 0, 7, 1, 6, 2, 5, 3, 4], [5, 6, 7, 8, 4, 3, 2, 1, 0], [3, 7, 3, 7, 7]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_batches_have_one_form_and_the_rows_of_the_separate_shards(order: list[int] | None, size: int) -> None:
    parts = shards()
    mixed = MixedShard(parts)
    expected = list(range(9)) if order is None else order
    seen: list[list[int]] = []
    for batch in mixed.batches(size, None if order is None else torch.tensor(order)):
        i = batch.images.ndim - 4
        assert batch.words is not None and len(batch.images) <= size
        own = batch.words[:, 0]  # the row in its shard
        assert (batch.words[:, 1] == own + 100 * i).all()
        (alone,) = parts[i].batches(99, own)
        assert batch.images.equal(alone.images) and list(batch.labels) == list(alone.labels)
        for task, labels in batch.labels.items():
            assert labels.rows.equal(alone.labels[task].rows) and labels.values.equal(alone.labels[task].values)
        seen.append((own + mixed.starts[i]).tolist())
    assert len(seen) == mixed.count_batches(size, torch.tensor(expected))
    for i in (0, 1):  # the rows of a form in order, in full batches except the last
        own_batches = [rows for rows in seen if (rows[0] >= 5) == i]
        own_rows = torch.tensor([row for row in expected if (row >= 5) == i])
        assert own_batches == [rows.tolist() for rows in own_rows.split(size) if len(rows)]
    if len(set(expected)) == len(expected):
        last = [expected.index(rows[-1]) for rows in seen]
        assert last == sorted(last)  # a batch comes where the last of its images stands in the order


def test_labels_and_images_of_a_mixed_shard() -> None:
    parts = shards()
    mixed = MixedShard(parts)
    assert len(mixed) == 9 and mixed.starts == [0, 5]
    assert {task: mixed.count(task) for task in mixed.labels} == {"whole0": 5, "some0": 2, "whole1": 4, "some1": 2}
    assert mixed.labels["some1"].rows.tolist() == [6, 8] and mixed.labels["some1"].values.tolist() == [1.5, 4.5]
    assert mixed.labelled(["some0", "whole1"]).tolist() == [1, 3, 5, 6, 7, 8]
    assert mixed.take(torch.tensor([7, 5])).equal(parts[1].take(torch.tensor([2, 0])))
    assert mixed.take(mixed.labels["some0"].rows).equal(parts[0].take(torch.tensor([1, 3])))
    assert mixed.take(torch.tensor([], dtype=torch.long)).shape == (0, 1, 8, 8)
    with pytest.raises(ValueError):
        mixed.take(torch.tensor([0, 7]))
    with pytest.raises(TypeError, match="Images of several forms are not one tensor; take those of one task"):
        _ = mixed.images
    (only,) = mixed.batches(99, tasks=["some1"], order=torch.tensor([5, 6, 8]))
    assert list(only.labels) == ["some1"] and only.labels["some1"].rows.tolist() == [1, 2]
    assert MixedShard.of(parts[:1]) is parts[0] and len(MixedShard.of([])) == 0
    assert [len(batch.images) for batch in MixedShard([parts[0], Shard.empty()]).batches(4)] == [4, 1]


@pytest.mark.parametrize("normalise", ["image", "site"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_folder_with_images_and_volumes(
    cached: bool, normalise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached:
        monkeypatch.setenv(cache.VARIABLE, "off")
    folder = write_mixed(tmp_path / "both")
    own = config(normalise=normalise, **PRETEXT)
    for split, counts in (("train", (6, 5, 6, 5)), ("val", (2, 2, 2, 2))):
        shard = load_shard(site_folder(folder, "both", own), own, split)
        assert isinstance(shard, MixedShard)
        assert {task: shard.count(task) for task in ("fill", "grade", "turn", "outline")} == dict(
            zip(("fill", "grade", "turn", "outline"), counts, strict=True)
        )
        assert [part.images.shape[1:] for part in shard.shards] == [(1, FLAT, FLAT), (1, CUBE, CUBE, CUBE)]
        for form, part in zip(own.forms, shard.shards, strict=True):
            alone = load_shard(site_folder(folder, "both", own.with_form(form)), own.with_form(form), split)
            assert alone.images.equal(part.images) and list(alone.labels) == list(part.labels)
            assert all(alone.labels[task].values.equal(x.values) for task, x in part.labels.items())
            assert (part.normalisation is None) == (normalise == "image")
            assert alone.normalisation is None or alone.normalisation.mean.equal(part.normalisation.mean)
    assert len(list((folder / cache.FOLDER).glob("*-*"))) == (2 if cached else 0)


@pytest.mark.parametrize("cached", [True, False])
def test_pooled_sites_with_images_and_volumes(cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setenv(cache.VARIABLE, "off")
    own = config(write_sites(tmp_path / "sites"), pooled=True, **PRETEXT)
    assert default_sites(own) == 1
    data = simulated_site(own, 0, 1)
    shard = load_shard(data, own, "train")
    assert {task: shard.count(task) for task in own.tasks} == {"fill": 12, "turn": 6, "grade": 6, "outline": 6}
    separate = [load_shard(simulated_site(config(tmp_path / "sites", **PRETEXT), i, 3), own, "train") for i in range(3)]
    assert isinstance(shard, MixedShard)
    assert shard.shards[0].images.equal(torch.cat([separate[0].images, separate[2].images]))
    assert shard.shards[1].images.equal(separate[1].images)
    test = server_test_data(own)
    assert test is not None and {task: load_shard(test, own).count(task) for task in own.tasks} == {
        "fill": 4, "turn": 4, "grade": 3, "outline": 3,
    }  # fmt: skip


def test_an_image_with_labels_of_both_dimensionalities_is_refused(tmp_path: Path) -> None:
    rows = rows_of(write_mixed(tmp_path / "both"))
    rows[1]["outline"] = "deep/1.npz"
    rewrite(tmp_path / "both", rows)
    with pytest.raises(
        MtfedError,
        match=r"Image flat/1.png has labels of grade, which is a task of 2 dimensions, and of outline, which is not; "
        r"correct task.outline.dimensions, or remove one of the labels",
    ):
        load_shard(site_folder(tmp_path / "both", "both", config()), config(), "train")


@pytest.mark.parametrize("cell", ["4", "2D", "3.0", "-", "512x512"])
def test_a_cell_of_other_dimensions_is_refused(cell: str, tmp_path: Path) -> None:
    rows = rows_of(write_mixed(tmp_path / "both"))
    rows[2]["dimensions"] = cell
    rewrite(tmp_path / "both", rows)
    message = rf"manifest.csv, line 4: dimensions should be 2 \(an image\) or 3 \(a volume\), it is '{cell}'"
    with pytest.raises(MtfedError, match=message):
        site_folder(tmp_path / "both", "both", config())


def node(folder: Path, **settings: Any) -> Context:
    return Context(1, 1, {"data-path": str(folder), **settings}, RecordDict(), dict(KEYS))


def test_a_site_or_node_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    folder = write_mixed(tmp_path / "both")
    for dimensions in (4, 0):
        message = rf"Node config key dimensions: expected 2 \(images\) or 3 \(volumes\), got '{dimensions}'"
        with pytest.raises(MtfedError, match=message):
            open_site(node(folder, dimensions=dimensions), config())
    assert open_site(node(folder, dimensions=3), config()).data.rows
    (folder / "site.toml").write_text("dimensions = 4\n")
    with pytest.raises(
        MtfedError, match=r"site.toml: expected dimensions to be 2 \(pictures\) or 3 \(volumes\), got 4"
    ):
        open_site(node(folder), config())


def test_an_image_without_labels_has_the_dimensions_of_its_cell_or_of_the_run(tmp_path: Path) -> None:
    rows = rows_of(write_mixed(tmp_path / "both"))
    for row in rows:
        row |= {"grade": "", "outline": "", "dimensions": "3" if row["image"].startswith("deep") else ""}
    rewrite(tmp_path / "both", rows)
    own = config(**PRETEXT)
    labels = {row.image[:4]: set(row.labels) for row in site_folder(tmp_path / "both", "both", own).rows}
    assert labels == {"flat": {"fill"}, "deep": {"turn"}}
    (tmp_path / "both" / "site.toml").write_text("dimensions = 3\n")  # now of the images, too
    labels = {row.image[:4]: set(row.labels) for row in site_folder(tmp_path / "both", "both", own).rows}
    assert labels == {"flat": {"turn"}, "deep": {"turn"}}


@pytest.mark.parametrize("withheld", [{"unlabelled": 0.5}, {"label_share": 0.3}])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("cached", [True, False])
def test_volumes_whose_labels_are_withheld_stay_volumes(
    withheld: dict[str, float], pooled: bool, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their manifests do not name their dimensions: these follow from the tasks that they had labels of."""
    if not cached:
        monkeypatch.setenv(cache.VARIABLE, "off")
    for name in ("a", "b"):
        rows = rows_of(write_mixed(tmp_path / "sites" / name))
        rewrite(tmp_path / "sites" / name, [row | {"dimensions": ""} for row in rows if row["grade"] or row["outline"]])
    own = config(tmp_path / "sites", pooled=pooled, **withheld, **PRETEXT)
    count = default_sites(own)
    data = [simulated_site(own, index, count) for index in range(count)]
    rows = [row for site in data for row in site.rows]
    assert any(cell == EVERY_IMAGE for row in rows for cell in row.labels.values())
    assert sum(not row.labels.keys() & own.labelled_tasks.keys() for row in rows) >= 4
    for row in rows:
        assert ("turn" in row.labels) == ("deep" in row.image) == ("fill" not in row.labels)
    shard = [load_shard(site, own, "train") for site in data]
    assert sum(part.count("turn") for part in shard) == sum("deep" in r.image for r in rows if r.split == "train")
    if not pooled:
        dict(export_sample(own, count, tmp_path / "out"))
        again = config(tmp_path / "out", **PRETEXT)
        for index, site in enumerate(data):
            exported = simulated_site(again, index, count)
            assert [set(row.labels) for row in exported.rows] == [set(row.labels) for row in site.rows]


@pytest.mark.parametrize("pooled", [False, True])
def test_a_patient_with_an_image_and_a_volume_is_divided(pooled: bool, tmp_path: Path) -> None:
    """A site without the task of the volume has the volume without its label, which determined its dimensions."""
    rows = [row | {"patient": row["patient"].split("-")[1]} for row in rows_of(write_mixed(tmp_path / "set", 24))]
    rewrite(tmp_path / "set", [row | {"dimensions": ""} for row in rows if row["grade"] or row["outline"]])
    own = config(tmp_path / "set", partition="tasks", pooled=pooled, **PRETEXT)
    data = [simulated_site(own, index, 1 if pooled else 2) for index in range(1 if pooled else 2)]
    rows_of_sites = [row for site in data for row in site.rows]
    assert any("deep" in row.image and row.labels.keys() == {"turn"} for row in rows_of_sites)
    assert all(("turn" in row.labels) == ("deep" in row.image) for row in rows_of_sites)
    assert sum(load_shard(site, own, "train").count("turn") for site in data)


def test_the_server_of_real_hospitals_needs_none_of_the_listed_folders(tmp_path: Path) -> None:
    assert server_test_data(config(f"{tmp_path}/a, {tmp_path}/b")) is None


def test_data_may_list_site_folders(tmp_path: Path) -> None:
    write_sites(tmp_path / "here", test=False), write_mixed(tmp_path / "there" / "d")
    paths = [str(tmp_path / path) for path in ("here/b", "there/d", "here/a")]
    own = config(" , ".join(paths) + ",")
    assert default_sites(own) == 3
    assert [simulated_site(own, index, 3).key for index in range(3)] == ["b", "d", "a"]
    assert server_test_data(own) is None
    pool = simulated_site(own.model_copy(update={"pooled": True}), 0, 1)
    assert {row.image.split("/")[0] for row in pool.rows} == {"here", "there"}
    assert load_shard(pool, own, "train").count("grade") == 11
    with pytest.raises(MtfedError, match=r"Expected at most 3 sites, one for each folder in .*, got 4"):
        simulated_site(own, 3, 4)


BAD_LISTS = [
    (
        "here/a, here/z",
        r"Config key data: expected folders with a manifest.csv or manifest.parquet, .*z has none; prepare",
    ),
    ("here, there/d", "Config key data: expected folders with a manifest.csv .*here has none"),
    ("here/a, there/a", "Config key data: two site folders are called a; rename one of them"),
    ("here/a, here/a", "Config key data: two site folders are called a"),
    (",", "Config key data: expected 'sample', a folder of site folders .*, several site folders with commas, or"),
]


@pytest.mark.parametrize(("paths", "message"), BAD_LISTS)
def test_a_wrong_list_is_refused(paths: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (
        write_sites(tmp_path / "here", test=False),
        write_mixed(tmp_path / "there" / "d"),
        write_mixed(tmp_path / "there" / "a"),
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MtfedError, match=message):
        default_sites(config(paths))


def test_test_rows_of_site_folders_are_the_servers(tmp_path: Path) -> None:
    write_sites(tmp_path / "sites", test=False)
    for name in ("a", "b"):
        path = tmp_path / "sites" / name / "manifest.csv"
        lines = list(csv.reader(path.open()))
        path.write_text(
            "\n".join(",".join(["test" if cell == "val" else cell for cell in line]) for line in lines) + "\n"
        )
    own = config(tmp_path / "sites", **PRETEXT)
    test = server_test_data(own)
    assert test is not None and test.key == "test"
    shard = load_shard(test, own)
    assert {task: shard.count(task) for task in own.tasks} == {"fill": 2, "turn": 2, "grade": 2, "outline": 2}
    parts = [simulated_site(own, index, 3) for index in range(3)]
    trained = {f"{part.key}/{row.image}" for part in parts for row in part.rows if row.split != "test"}
    assert not trained & {row.image for row in test.rows}
    write_mixed(tmp_path / "sites" / "test", 4)  # a folder of that name takes precedence
    again = server_test_data(own.model_copy(update={"seed": 1}))
    assert again is not None and all(row.image.startswith(("flat", "deep")) for row in again.rows)
