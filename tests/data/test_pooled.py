"""A pooled federation is one site with the rows of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.manifests import CONFIG, png, write
from mtfed.data.loading import load_shard
from mtfed.data.manifest import check_patients
from mtfed.data.simulated_sites import default_sites, export_sample, simulated_site, site_folder
from mtfed.data.simulated_sites import test_data as server_test_data
from mtfed.errors import MtfedError
from mtfed.federation.simulate import check_simulation

POOLED = CONFIG.model_copy(update={"pooled": True})


def test_the_pooled_sample_has_the_rows_of_all_sites() -> None:
    parts = [simulated_site(CONFIG, i, 8) for i in range(default_sites(CONFIG))]
    assert default_sites(POOLED) == check_simulation(POOLED, None) == 1
    pool = simulated_site(POOLED, 0, 1)
    assert pool.key == "pooled"
    assert pool.rows == tuple(replace(row, patient=f"{p.key}/{row.patient}") for p in parts for row in p.rows)
    for split in ("train", "val", "test"):
        assert len(pool.part(split).rows) == sum(len(part.part(split).rows) for part in parts)
    own, pooled = load_shard(parts[7].part("val"), CONFIG), load_shard(pool.part("val"), POOLED)
    assert pooled.images[-len(own) :].equal(own.images)  # the last site's images are the last
    assert server_test_data(POOLED).rows == server_test_data(CONFIG).rows


def test_pooled_folders_keep_patients_and_files_apart(tmp_path: Path) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,{},1,m.png\nb.png,2,{},0,\nc.png,3,test,1,\n"
    for i, splits in enumerate((("train", "val"), ("val", "train"))):  # patient 1 trains in one, validates in the other
        files = {f"{name}.png": png(value=10 * i + n) for n, name in enumerate("abc")} | {"m.png": png(value=i)}
        write(tmp_path / "sites" / f"h{i}", text.format(*splits), files)
    write(tmp_path / "sites" / "test", "image,patient,pneumonia\na.png,1,0\n", {"a.png": png()})
    config = POOLED.model_copy(update={"data": str(tmp_path / "sites")})
    assert default_sites(config) == check_simulation(config, None) == 1
    pool = simulated_site(config, 0, 1)
    assert [(row.image, row.patient, row.split, row.labels) for row in pool.rows] == [
        ("h0/a.png", "h0/1", "train", {"pneumonia": "1", "lungs": "h0/m.png"}),
        ("h0/b.png", "h0/2", "val", {"pneumonia": "0"}),
        ("h0/c.png", "h0/3", "test", {"pneumonia": "1"}),
        ("h1/a.png", "h1/1", "val", {"pneumonia": "1", "lungs": "h1/m.png"}),
        ("h1/b.png", "h1/2", "train", {"pneumonia": "0"}),
        ("h1/c.png", "h1/3", "test", {"pneumonia": "1"}),
    ]
    check_patients(list(pool.rows), "pool")
    train = load_shard(pool.part("train"), config)
    assert train.images[:, 0, 16, 16].tolist() == [0, 11] and train.labels["lungs"].values[0, 16, 16] == 0
    assert load_shard(pool.part("val"), config).labels["lungs"].values[0, 16, 16] == 1


def test_pooled_folders_keep_their_splits(tmp_path: Path) -> None:
    dict(export_sample(CONFIG, 3, tmp_path / "sites"))
    config = CONFIG.model_copy(update={"data": str(tmp_path / "sites")})
    parts = [simulated_site(config, i, 3) for i in range(3)]
    pool = simulated_site(config.model_copy(update={"pooled": True}), 0, 1)
    assert [row.split for row in pool.rows] == [row.split for part in parts for row in part.rows]


def test_a_pooled_federation_is_one_simulated_site(tmp_path: Path) -> None:
    for sites in (0, 2, 8):
        with pytest.raises(MtfedError, match=f"Config key pooled: a pooled federation is one site, got {sites}"):
            simulated_site(POOLED, 0, sites)
    folder = write(tmp_path / "site", "image,patient,pneumonia\na.png,1,0\n", {"a.png": png()})
    with pytest.raises(MtfedError, match="Config key pooled: site h is not simulated, and its images cannot leave it"):
        site_folder(folder, "h", POOLED)


def test_pooled_images_keep_what_their_site_file_says(tmp_path: Path) -> None:
    manifest = "image,patient,pneumonia\n" + "".join(f"{i}.png,{i},{i % 2}\n" for i in range(32))
    for name, modality in (("a", "CT"), ("b", "MR")):
        write(tmp_path / "sites" / name, manifest, {"site.toml": f"modality = '{modality}'".encode()})
    tasks = {"pneumonia": CONFIG.tasks["pneumonia"]}
    config = POOLED.model_copy(update={"data": str(tmp_path / "sites"), "tasks": tasks})
    modalities = [row.others for row in simulated_site(config, 0, 1).rows]
    assert modalities == [{"modality": "CT"}] * 32 + [{"modality": "MR"}] * 32
    divided = config.model_copy(update={"data": str(tmp_path / "sites" / "b")})
    assert all(row.others == {"modality": "MR"} for row in simulated_site(divided, 0, 1).rows)
