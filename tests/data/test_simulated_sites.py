"""The data of a simulated federation: a set that is divided, or a folder of site folders."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import ROOT, SMALL
from helpers.divided_sets import GRADE, KEYS, check_division, set_rows, to_divide, write_set
from helpers.manifests import CONFIG, parquet, write
from mtfed.config import read_config
from mtfed.data.loading import load_shard
from mtfed.data.manifest import Row, read_site
from mtfed.data.partition import Options, partition
from mtfed.data.partition import default_sites as sites_of_set
from mtfed.data.simulated_sites import default_sites, division, export_sample, simulated_site, site_folder
from mtfed.data.simulated_sites import test_data as server_test_data
from mtfed.errors import MtfedError
from mtfed.federation.simulate import check_simulation


@pytest.mark.parametrize("scheme", ["tasks + dirichlet", "column", "modality + quantity"])
def test_the_server_gets_the_test_rows_of_a_set(tmp_path: Path, scheme: str) -> None:
    rows = set_rows(3)
    folder = write_set(tmp_path / "set", rows)
    config = read_config(KEYS | {"data": str(folder), "partition": scheme})
    sites = default_sites(config)
    parts = [simulated_site(config, i, sites) for i in range(sites)]
    test = server_test_data(config)
    assert test is not None and {row.image for row in test.rows} == {row.image for row in rows if row.split == "test"}
    seen = Counter(patient for part in parts for patient in {row.patient for row in part.rows})
    assert set(seen.values()) == {1} and not seen.keys() & {row.patient for row in test.rows}
    assert {row.split for part in parts for row in part.rows} == {"train", "val"}
    own = {row.patient for row in rows if row.split == "val"} & seen.keys()
    assert own <= {row.patient for part in parts for row in part.part("val").rows}
    for part in parts:
        train, val = ({row.patient for row in part.part(split).rows} for split in ("train", "val"))
        assert train and not train & val
        assert all(part.pool[row.number].image == row.image for row in part.rows)
    again = config.model_copy(update={"seed": 9, "model": "ctan"})
    assert parts == [simulated_site(again, i, sites) for i in range(sites)]
    pool = simulated_site(config.model_copy(update={"pooled": True}), 0, 1)
    assert sorted(row.image for row in pool.rows) == sorted(row.image for part in parts for row in part.rows)
    other = config.model_copy(update={"partition_seed": 1})
    if scheme != "column":
        assert [p.rows for p in parts] != [simulated_site(other, i, sites).rows for i in range(sites)]


def test_public_hospitals() -> None:
    index = ROOT.parent / "shared/data/covid_cxr/index.csv"
    if not index.exists():
        pytest.skip("needs a public set")
    with open(index, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [
        Row(line["file"], line["patient"], line["split"], {"grade": "no"}, i, {"site": line["client"]})
        for i, line in enumerate(lines)
    ]
    tasks = read_config(SMALL | GRADE).tasks
    sites = sites_of_set(to_divide(rows), tasks, Options("column"))
    divided_set = partition(to_divide(rows), tasks, sites, Options("column"))
    check_division(rows, divided_set, sites, "")
    assert {"americas", "eastasia"} <= set(divided_set.names) and not divided_set.left_out


NO_DATA: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda path: None,
        r"expected 'sample', a folder of site folders \(each with a manifest.csv or manifest.parquet",
    ),
    (lambda path: path.mkdir(), "or a folder or zip with a manifest of its own, a set to divide; got "),
    (lambda path: path.write_text("no zip"), "expected 'sample'"),
]


@pytest.mark.parametrize(("make", "sentence"), NO_DATA)
def test_data_that_is_neither_set_nor_sites(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(MtfedError, match=sentence):
        default_sites(read_config(KEYS | {"data": str(tmp_path / "data")}))


def test_a_manifest_takes_precedence_over_folders(tmp_path: Path) -> None:
    write_set(tmp_path / "set" / "originals", set_rows(7))
    config = read_config(KEYS | {"data": str(tmp_path / "set"), "partition": "column"})
    assert division(config, 1) is None and default_sites(config) == 1
    write_set(tmp_path / "whole", set_rows(6))
    write_set(tmp_path / "whole" / "originals", set_rows(7))
    config = read_config(KEYS | {"data": str(tmp_path / "whole"), "partition": "column"})
    assert division(config, 4) is not None and default_sites(config) == 4
    assert len(read_site(tmp_path / "whole", "s", list(config.tasks)).rows) == len(set_rows(6))


def test_site_folders_may_have_parquet_and_be_zipped_sets(tmp_path: Path) -> None:
    write(tmp_path / "sites" / "a", "image,patient,pneumonia\na.png,1,0\n")
    parquet(tmp_path / "sites" / "b", {"image": ["b.png"], "patient": ["1"], "pneumonia": [1]})
    parquet(tmp_path / "sites" / "test", {"image": ["t.png"], "patient": ["1"], "pneumonia": [1]})
    config = CONFIG.model_copy(update={"data": str(tmp_path / "sites")})
    assert default_sites(config) == 2 and simulated_site(config, 1, 2).rows[0].labels == {"pneumonia": "1"}
    test = server_test_data(config)
    assert test is not None and [row.image for row in test.rows] == ["t.png"]
    lines = [f"{i}.png,p{i},{'test' if i % 5 == 0 else ''},{i % 2},m.png" for i in range(60)]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("manifest.csv", "image,patient,split,pneumonia,lungs\n" + "\n".join(lines))
    config = CONFIG.model_copy(update={"data": str(tmp_path / "set.zip")})
    parts = [simulated_site(config, i, 3) for i in range(3)]
    assert sum(len({row.patient for row in part.rows}) for part in parts) == 48
    test = server_test_data(config)
    assert test is not None and len(test.rows) == 12 and parts[0].key == "hospital-1"


def test_tasks_without_validation_images_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,train,0,m.png\nb.png,2,val,0,{}\n"
    for name, mask in (("h0", ""), ("h1", "m.png")):
        write(tmp_path / name, text.format(mask))
    config = CONFIG.model_copy(update={"data": str(tmp_path)})
    assert check_simulation(config, 1) == 1
    assert "No site has validation images of lungs, so no round" in capsys.readouterr().out
    assert check_simulation(config, 2) == 2 and not capsys.readouterr().out


def test_missing_data_is_refused() -> None:
    with pytest.raises(MtfedError, match=r"got 'images/covid_cxr'; .* README"):
        check_simulation(CONFIG.model_copy(update={"data": "images/covid_cxr"}), None)


def test_an_exported_site_equals_the_simulated_one(tmp_path: Path) -> None:
    folders = dict(export_sample(CONFIG, 8, tmp_path / "sites"))
    assert sorted(path.name for path in folders) == [f"hospital-{i}" for i in range(1, 9)] + ["test"]
    config = CONFIG.model_copy(update={"data": str(tmp_path / "sites")})
    assert default_sites(config) == 8
    for i in (1, 2):
        simulated, real = (
            simulated_site(CONFIG, i, 8),
            site_folder(tmp_path / "sites" / f"hospital-{i + 1}", f"hospital-{i + 1}", config),
        )
        assert simulated.rows == real.rows == simulated_site(config, i, 8).rows
        assert load_shard(simulated.part("train"), CONFIG).images.equal(load_shard(real.part("train"), config).images)
    with pytest.raises(MtfedError, match="at most 8 sites"):
        simulated_site(config, 0, 9)
    with pytest.raises(MtfedError, match="empty or new folder"):
        list(export_sample(CONFIG, 8, tmp_path / "sites"))


def test_a_set_with_the_file_name_of_the_sample_is_not_the_sample(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cxr.zip", "w") as archive:
        archive.writestr("manifest.csv", "image,patient,split,pneumonia\na.png,1,test,0\nb.png,2,,1\n")
    for data, key in ((str(tmp_path / "cxr.zip"), "cxr"), ("sample", "sample")):
        test = server_test_data(CONFIG.model_copy(update={"data": data}))
        assert test is not None and test.key == key
