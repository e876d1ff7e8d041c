"""Manifests, partitions and shards: what is read, what is refused, who holds what."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL, TASKS
from PIL import Image

from mtfed.config import read_config
from mtfed.data.export import export_sample
from mtfed.data.federation import default_sites, simulated_site, site_folder
from mtfed.data.federation import test_data as server_test_data
from mtfed.data.manifest import Row, check_patients, read_site, write_site
from mtfed.data.partition import MIN_PATIENTS, hold_out
from mtfed.data.shard import load_shard, standardise
from mtfed.errors import MtfedError
from mtfed.federation.checks import check_simulation

CONFIG = read_config(TASKS | SMALL)
TASK_NAMES = list(CONFIG.tasks)
GRADED = {"kind": "classification", "classes": "no, yes"}


def png(size: tuple[int, int] = (40, 30), value: int | None = None, mode: str = "L") -> bytes:
    rng = np.random.default_rng(0)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    pixels = rng.integers(0, 255, shape) if value is None else np.full(shape, value)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), mode).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, manifest: str, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").write_text(manifest, encoding="utf-8")
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_and_a_zip_read_alike(tmp_path: Path) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,,pneumonia,m.png\nb.png,2,test,0,\nc.png,3,val,,\n"
    folder = write(tmp_path / "site", text, {"a.png": png(), "b.png": png(mode="RGB"), "m.png": png(value=1)})
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    for path in (folder, tmp_path / "site.zip"):
        data = read_site(path, "s", TASK_NAMES)
        assert [row.split for row in data.rows] == ["train", "test", "val"]
        assert data.count("pneumonia") == 2 and data.count("lungs") == 1
        one = replace(data, rows=tuple(replace(row, split="train") for row in data.rows))
        shard = load_shard(one, CONFIG)  # c.png has no label, and is not read
        assert shard.images.shape == (2, 1, 32, 32)
        assert shard.labels["pneumonia"].values.tolist() == [1, 0]
        assert shard.labels["lungs"].rows.tolist() == [0]
        mask = shard.labels["lungs"].values[0]
        assert mask[4:-4].min() == 1 and mask[:4].max() == 0  # padded to a square as its image is


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_contrast(tmp_path: Path, channels: int) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32), (32, 1))
    for name, values in (("a.png", ramp.astype(np.uint16)), ("b.tif", ramp.astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
    data = read_site(write(tmp_path, "image,patient,pneumonia\na.png,1,0\nb.tif,2,1\n"), "s", TASK_NAMES)
    images = load_shard(data, CONFIG.model_copy(update={"channels": channels})).images.float()
    reference = np.linspace(0, 255, 32)
    assert all(abs(image[0, 7].numpy() - reference).max() <= 1 for image in images)


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ("image,who\na.png,1\n", "lacks the column patient; .* separated by commas, it names 'image', 'who'"),
        ("image;patient;lungs\na.png;1;m.png\n", "lacks the column image and patient; .* 'image;patient;lungs'"),
        ("", "lacks the column image and patient; .* it names none"),
        ("image,patient,lungs,lungs\na.png,1,,\n", "has two columns 'lungs'; rename or remove one"),
        ("image,patient,lungs , lungs\na.png,1,,\n", "has two columns 'lungs'"),
        ("image,patient,blobs\na.png,1,1,2,3,4\n", "line 2 has 6 cells, the first line names 3; put cells with commas"),
        ("image,patient,lungs\n\n\na.png,1\n", "line 4 has 2 cells, the first line names 3"),
        ('image,patient,lungs\n"a\nb.png",1,\na.png,1\n', "line 4 has 2 cells"),
        ("image,patient,split\n\na.png,1,trian\n", "line 3: split should be"),
        ('image,patient,lungs\na.png,1,"m.png\nb.png,2,m.png\n', "line 3 is not CSV: .*; look at its quotes"),
        ("image,patient\na.png,1\na.png,2\n", "image 'a.png' is of patient '1' and of patient '2'"),
        ("image,patient,split\na.png,1,train\n./a.png,2,test\n", "image './a.png' is of patient '1' and of"),
        ("image,patient,split\na.png,1,trian\n", "line 2: split should be train, val or test, it is 'trian'"),
        ("image,patient\na.png,\n", "line 2: image and patient must not be empty"),
        ("image,patient\nct/1.dcm,1\nct,2\n", "image 'ct/1.dcm' is of patient '1', and the folder .* of patient '2'"),
        ("image,patient,split\na.png,7,train\nb.png,7,test\n", "patient '7' is in train and in test"),
    ],
)
def test_bad_manifests(tmp_path: Path, manifest: str, sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        read_site(write(tmp_path, manifest), "s", TASK_NAMES)


@pytest.mark.parametrize(
    ("row", "files", "sentence"),
    [
        ("a.png,1,sick,", {"a.png": png()}, "label 'sick' of task pneumonia should be one of normal, pneumonia"),
        ("a.png,1,2,", {"a.png": png()}, "label '2' of task pneumonia"),
        ("a.png,1,0,", {}, "Cannot read image a.png of site s"),
        ("a.png,1,0,", {"a.png": b"no image"}, "Cannot read image a.png of site s"),
        ("a.png,1,0,", {"a.png": png()[:60]}, "Cannot read image a.png of site s"),
        ("a.png,1,,m.png", {"a.png": png(), "m.png": png()[:50]}, "Cannot read mask m.png of site s"),
        ("a.png,1,,m.png", {"a.png": png(), "m.png": png(value=2)}, "below 2 .background, lung."),
        (
            "a.png,1,,m.png",
            {"a.png": png(), "m.png": png(value=255)},
            "type uint8 and values up to 255; save class indices, as 0 and 1",
        ),
        ("a.png,1,,m.png", {"a.png": png(), "m.png": png(value=1, mode="RGB")}, "one channel of class indices"),
        (
            "a.png,1,,m.png",
            {"a.png": png(), "m.png": png((30, 30), 1)},
            "m.png of site s should be 40 x 30 pixels, as its image a.png is",
        ),
        ("../a.png,1,0,", {}, "Expected a path inside"),
        ("/etc/hostname,1,0,", {}, "Expected a path inside"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, row: str, files: dict[str, bytes], sentence: str) -> None:
    folder = write(tmp_path, f"image,patient,pneumonia,lungs\n{row}\n", files)
    with pytest.raises(MtfedError, match=sentence):
        load_shard(read_site(folder, "s", TASK_NAMES), CONFIG)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_manifest_may_be_written_by_hand(tmp_path: Path, newline: str) -> None:
    lines = ["", "image, patient ,,, pneumonia", "", 'a.png , 1,x,y, "0"', "b.png,2,,,", "", ""]
    (tmp_path / "manifest.csv").write_bytes(newline.join(lines).encode("utf-8-sig"))
    data = read_site(tmp_path, "s", TASK_NAMES)
    assert [(row.image, row.patient, row.labels) for row in data.rows] == [
        ("a.png", "1", {"pneumonia": "0"}),
        ("b.png", "2", {}),
    ]


def test_a_site_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(MtfedError, match=r"Expected a site folder with a manifest\.csv"):
        read_site(tmp_path, "s", TASK_NAMES)


def parquet(folder: Path, columns: dict[str, object], **types: object) -> Path:
    """Write a manifest of typed columns."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    arrays = [pyarrow.array(cells, types.get(name)) for name, cells in columns.items()]
    parquet.write_table(pyarrow.table(arrays, list(columns)), folder / "manifest.parquet")
    return folder


def test_parquet_reads_as_csv_does(tmp_path: Path) -> None:
    import datetime

    import pyarrow

    columns: dict[str, object] = {
        "image": ["a.png", " b.png ", "c.png"],
        "patient": [7, 8, 9],
        "split": ["train", None, "val"],
        "number": [1.0, 2.5, float("nan")],
        "narrow": [0.1, 3.0, None],
        "sick": [True, False, None],
        "boxes": [[[1.5, 2.0, 3.0, 4.0, 0.0]], [], None],
        "signs": [["dark", "edge"], [], None],
        "sizes": [[1, 2], [3], None],
        "kind": pyarrow.array(["x", "y", None]).dictionary_encode(),
        "empty": pyarrow.nulls(3),
        "day": [datetime.date(2026, 1, 2), None, None],
    }
    folder = parquet(tmp_path / "p", columns, narrow=pyarrow.float32())
    text = (
        "image,patient,split,number,narrow,sick,boxes,signs,sizes,kind,empty,day\n"
        'a.png,7,train,1,0.1,yes,"[[1.5, 2.0, 3.0, 4.0, 0.0]]",dark; edge,1; 2,x,,2026-01-02\n'
        "b.png,8,,2.5,3,no,none,none,3,y,,\nc.png,9,val,,,,,,,,,\n"
    )
    tasks = ["number", "sick", "boxes", "signs", "sizes"]
    found, expected = read_site(folder, "s", tasks), read_site(write(tmp_path / "c", text), "s", tasks)
    assert found.rows == expected.rows and [r.others for r in found.rows] == [r.others for r in expected.rows]
    assert [row.number for row in found.rows] == [0, 1, 2] and found.pool == found.rows
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(folder / "manifest.parquet", "manifest.parquet")
    assert read_site(tmp_path / "p.zip", "s", tasks).rows == found.rows


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"image": ["a.png"]}, r"manifest.parquet lacks the column patient; it has 'image'"),
        ({"image": ["a", "b"], "patient": ["1", None]}, "manifest.parquet, row 2: image and patient must not be empty"),
        ({"image": ["a"], "patient": [1], "split": ["trian"]}, "row 1: split should be train, val or test"),
        ({"image": ["a"], "patient": [1], "lungs": [b"x"]}, "column 'lungs' holds binary; write it as text or numbers"),
        ({"image": ["a"], "patient": [1], "lungs": [{"x": 1}]}, "column 'lungs' holds struct"),
        ({"image": ["a"], "patient": [1], "lungs": [[b"x"]]}, "column 'lungs' holds lists of binary"),
        ({"image": ["a"], "patient": [1], "lungs ": ["x"], "lungs": ["y"]}, "has two columns 'lungs'"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, object], sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        read_site(parquet(tmp_path, columns), "s", TASK_NAMES)


def test_a_manifest_is_one_file_that_can_be_read(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "both", {"image": ["a.png"], "patient": ["1"]})
    write(folder, "image,patient\na.png,1\n")
    with pytest.raises(MtfedError, match=r"holds a manifest.csv and a manifest.parquet; remove the one"):
        read_site(folder, "s", TASK_NAMES)
    (folder / "manifest.csv").unlink()
    whole = (folder / "manifest.parquet").read_bytes()
    for broken in (b"", b"PAR1", whole[:-9], b"image,patient\na.png,1\n"):
        (folder / "manifest.parquet").write_bytes(broken)
        with pytest.raises(
            MtfedError, match=r"manifest.parquet is no Parquet file that can be read: .*; write it again"
        ):
            read_site(folder, "s", TASK_NAMES)
    (tmp_path / "m" / "manifest.csv").mkdir(parents=True)
    with pytest.raises(MtfedError, match=r"Cannot read .*manifest.csv: .*; mend or remove it"):
        read_site(tmp_path / "m", "s", TASK_NAMES)


def test_slices_and_folders_are_images(tmp_path: Path) -> None:
    text = "image,patient,split,note\nv.nii#1,1,train,x\nv.nii#2,1,,\nct,2,val,\n"
    folder = write(tmp_path / "site", text, {"v.nii": b"volume"})
    (folder / "ct").mkdir()
    for name in ("1", "2"):
        (folder / "ct" / name).write_bytes(name.encode())
    data = read_site(folder, "s", TASK_NAMES)
    write_site(data, tmp_path / "copy", CONFIG.tasks)
    copied = sorted(
        str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()
    )
    assert copied == ["ct/1", "ct/2", "manifest.csv", "v.nii"]
    again = read_site(tmp_path / "copy", "s", TASK_NAMES)
    assert again.rows == data.rows and [row.others for row in again.rows] == [{"note": "x"}, {}, {}]
    for second in ("v.nii#2", "./v.nii"):
        with pytest.raises(MtfedError, match="is of patient '1' and of patient '2'"):
            read_site(write(tmp_path / "two", f"image,patient\nv.nii#1,1\n{second},2\n"), "s", TASK_NAMES)


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


@pytest.mark.parametrize("sites", [1, 2, 8, 25])
def test_patients_are_dealt_whole_and_once(sites: int) -> None:
    parts = [simulated_site(CONFIG, i, sites) for i in range(sites)]
    patients = [row.patient for part in parts for row in part.rows]
    by_site = [{row.patient for row in part.rows} for part in parts]
    assert len(set(patients)) == sum(map(len, by_site))  # no patient at two sites
    assert len({row.image for part in parts for row in part.rows}) == len(patients) == 1665
    test_patients = {row.patient for row in server_test_data(CONFIG).rows}
    assert not test_patients & set(patients)
    for part in parts:
        train, held = ({row.patient for row in part.part(split).rows} for split in ("train", "val"))
        assert train and held and not train & held
        for task in {task for row in part.rows for task in row.labels}:
            assert len({row.patient for row in part.rows if task in row.labels}) >= MIN_PATIENTS
    assert parts == [simulated_site(CONFIG, i, sites) for i in range(sites)]


def test_the_default_federation_is_skewed_and_mixed() -> None:
    parts = [simulated_site(CONFIG, i, 8) for i in range(default_sites(CONFIG))]
    held = [frozenset(t for row in part.rows for t in row.labels) for part in parts]
    assert len(parts) == 8 and sum(len(tasks) == 2 for tasks in held) >= 2
    shares = [
        np.mean([row.labels["pneumonia"] == "1" for row in p.rows if "pneumonia" in row.labels])
        for p in parts
        if p.count("pneumonia")
    ]
    assert max(shares) - min(shares) > 0.3


def test_too_many_sites() -> None:
    with pytest.raises(MtfedError, match=r"lungs to at most 17 sites .* but 33 of 50 sites hold it"):
        simulated_site(CONFIG, 0, 50)


def test_hold_out_keeps_a_manifests_own_choice() -> None:
    rows = [Row("a.png", "1", "train", {"pneumonia": "0"}), Row("b.png", "2", "val", {"pneumonia": "0"})]
    assert hold_out(rows, CONFIG.tasks, 0.5, "x") == tuple(rows)


def test_patients_of_whom_each_is_a_kind_of_its_own_are_held_out_together() -> None:
    tasks = read_config({f"task.t{i}.{k}": v for i in range(6) for k, v in GRADED.items()}).tasks
    labels = [{f"t{bit}": "0" for bit in range(6) if number >> bit & 1} for number in range(1, 51)]
    rows = [Row(f"{i}.png", f"p{i}", "train", held) for i, held in enumerate(labels)]
    found = hold_out(rows, tasks, 0.2, "x")
    assert sum(row.split == "val" for row in found) == 10 and found == hold_out(rows[::-1], tasks, 0.2, "x")[::-1]
    more = [Row(f"m{i}.png", f"m{i}", "train", labels[0]) for i in range(9)]  # one kind has ten, 49 are alone
    split = {row.patient: row.split for row in hold_out(rows + more, tasks, 0.2, "x")}
    assert sum(split[patient] == "val" for patient in ("p0", *(row.patient for row in more))) == 2
    assert list(split.values()).count("val") == 2 + 10


def test_files_are_copied_by_the_kind_of_task(tmp_path: Path) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,train,n/a,m.png\nb.png,2,val,0,\n"
    folder = write(tmp_path / "site", text, {"a.png": png(), "b.png": png(), "m.png": png(value=1)})
    data, tasks = read_site(folder, "s", TASK_NAMES), CONFIG.tasks
    write_site(data, tmp_path / "copy", tasks)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["a.png", "b.png", "m.png", "manifest.csv"]
    assert read_site(tmp_path / "copy", "s", TASK_NAMES).rows == data.rows
    (folder / "m.png").unlink()
    with pytest.raises(MtfedError, match=r"Cannot read label m.png of site s: there is no such file"):
        write_site(data, tmp_path / "again", tasks)
    astray = replace(data, rows=(Row("../out/a.png", "1", "train", {}),))
    with pytest.raises(MtfedError, match="Expected a path inside"):
        write_site(astray, tmp_path / "again", tasks)
    assert not (tmp_path / "out").exists()


def test_tasks_that_no_site_can_validate_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,train,0,m.png\nb.png,2,val,0,{}\n"
    for name, mask in (("h0", ""), ("h1", "m.png")):
        write(tmp_path / name, text.format(mask))
    config = CONFIG.model_copy(update={"data": str(tmp_path)})
    assert check_simulation(config, 1) == 1
    assert "No site has validation images of lungs, so no round" in capsys.readouterr().out
    assert check_simulation(config, 2) == 2 and not capsys.readouterr().out


def test_data_that_is_not_there() -> None:
    with pytest.raises(MtfedError, match=r"got 'images/covid_cxr'; .* README"):
        check_simulation(CONFIG.model_copy(update={"data": "images/covid_cxr"}), None)


def test_an_exported_site_is_the_simulated_one(tmp_path: Path) -> None:
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


POOLED = CONFIG.model_copy(update={"pooled": True})


def test_the_pool_of_the_sample_is_its_sites() -> None:
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


def test_a_pool_of_folders_keeps_patients_and_files_apart(tmp_path: Path) -> None:
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


def test_a_pool_of_folders_splits_as_its_sites_do(tmp_path: Path) -> None:
    dict(export_sample(CONFIG, 3, tmp_path / "sites"))
    config = CONFIG.model_copy(update={"data": str(tmp_path / "sites")})
    parts = [simulated_site(config, i, 3) for i in range(3)]
    pool = simulated_site(config.model_copy(update={"pooled": True}), 0, 1)
    assert [row.split for row in pool.rows] == [row.split for part in parts for row in part.rows]


def test_a_pool_is_one_simulated_site(tmp_path: Path) -> None:
    for sites in (0, 2, 8):
        with pytest.raises(MtfedError, match=f"Config key pooled: a pooled federation is one site, got {sites}"):
            simulated_site(POOLED, 0, sites)
    folder = write(tmp_path / "site", "image,patient,pneumonia\na.png,1,0\n", {"a.png": png()})
    with pytest.raises(MtfedError, match="Config key pooled: site h is not simulated, and its images cannot leave it"):
        site_folder(folder, "h", POOLED)


def test_batches_carry_the_labels_that_there_are() -> None:
    shard = load_shard(simulated_site(CONFIG, 2, 8).part("train"), CONFIG)
    lungs = shard.labels["lungs"]
    order = lungs.rows[[2, 0]].new_tensor([*lungs.rows[[2, 0]], shard.labels["pneumonia"].rows[5]])
    (batch,) = shard.batches(8, order)
    assert batch.labels["lungs"].rows.tolist() == [0, 1] and batch.labels["pneumonia"].rows.tolist() == [2]
    assert batch.labels["lungs"].values.equal(lungs.values[[2, 0]].long())
    (batch,) = shard.batches(8, order, ["pneumonia"])
    assert list(batch.labels) == ["pneumonia"]


def test_standardise() -> None:
    import torch

    images = torch.randint(0, 255, (3, 1, 16, 16), dtype=torch.uint8)
    out = standardise(images)
    reference = (images.double() - images.double().mean((1, 2, 3), True)) / images.double().std(
        (1, 2, 3), correction=0, keepdim=True
    )
    torch.testing.assert_close(out.double(), reference, atol=1e-5, rtol=1e-5)
    assert standardise(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)).abs().max() == 0  # a blank image stays finite
