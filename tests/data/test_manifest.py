"""Manifests: what is read, what is refused, and what is written."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.manifests import CONFIG, TASK_NAMES, png, write
from mtfed.data.loading import load_shard
from mtfed.data.manifest import Row, read_site, write_site
from mtfed.errors import MtfedError


def test_a_folder_and_a_zip_give_the_same_data(tmp_path: Path) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,,pneumonia,m.png\nb.png,2,test,0,\nc.png,3,val,,\n"
    folder = write(tmp_path / "site", text, {"a.png": png(), "b.png": png(mode="RGB"), "m.png": png(value=1)})
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    for path in (folder, tmp_path / "site.zip"):
        data = read_site(path, "s", TASK_NAMES)
        assert [row.split for row in data.rows] == ["train", "test", "val"]
        assert data.count("pneumonia") == 2 and data.count("lungs") == 1
        train = replace(data, rows=tuple(replace(row, split="train") for row in data.rows))
        shard = load_shard(train, CONFIG)  # c.png has no label, and is not read
        assert shard.images.shape == (2, 1, 32, 32)
        assert shard.labels["pneumonia"].values.tolist() == [1, 0]
        assert shard.labels["lungs"].rows.tolist() == [0]
        mask = shard.labels["lungs"].values[0]
        assert mask[4:-4].min() == 1 and mask[:4].max() == 0  # padded to a square like its image


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
def test_bad_manifests_are_refused(tmp_path: Path, manifest: str, sentence: str) -> None:
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
            "type uint8 and values up to 255; save class indices, such as 0 and 1",
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
def test_empty_lines_and_spaces_are_ignored(tmp_path: Path, newline: str) -> None:
    lines = ["", "image, patient ,,, pneumonia", "", 'a.png , 1,x,y, "0"', "b.png,2,,,", "", ""]
    (tmp_path / "manifest.csv").write_bytes(newline.join(lines).encode("utf-8-sig"))
    data = read_site(tmp_path, "s", TASK_NAMES)
    assert [(row.image, row.patient, row.labels) for row in data.rows] == [
        ("a.png", "1", {"pneumonia": "0"}),
        ("b.png", "2", {}),
    ]


def test_a_site_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MtfedError, match=r"Expected a site folder with a manifest\.csv"):
        read_site(tmp_path, "s", TASK_NAMES)


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


def test_the_site_file_fills_empty_cells_that_describe_an_image(tmp_path: Path) -> None:
    text = "image,patient,modality,note\na.png,1,MR,x\nb.png,2,,\nc.png,3,,\n"
    files = dict.fromkeys(("a.png", "b.png", "c.png"), png())
    site = "modality = 'CT'\nbody-part = 'brain'\ndimensions = 3\n"
    folder = write(tmp_path / "site", text, {**files, "site.toml": site.encode()})
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    expected = [{"modality": "MR", "note": "x"}, {"modality": "CT"}, {"modality": "CT"}]
    for path in (folder, tmp_path / "site.zip"):
        data = read_site(path, "s", TASK_NAMES)
        assert [row.others for row in data.rows] == [e | {"body-part": "brain", "dimensions": "3"} for e in expected]
        assert data.rows[1].others is data.rows[2].others  # there may be many rows
    own = read_site(folder, "s", [*TASK_NAMES, "body-part"], {"modality": "PET"})
    assert [row.others["modality"] for row in own.rows] == ["MR", "PET", "PET"]
    assert "body-part" not in own.rows[0].others  # it is a task

    write_site(data, tmp_path / "copy", CONFIG.tasks)
    copied = read_site(tmp_path / "copy", "s", TASK_NAMES)
    assert [row.others for row in copied.rows] == [row.others for row in data.rows]
    assert (tmp_path / "copy" / "manifest.csv").read_text().startswith("image,patient,split,modality,note\n")


def test_only_files_named_by_labels_are_copied(tmp_path: Path) -> None:
    text = "image,patient,split,pneumonia,lungs\na.png,1,train,n/a,m.png\nb.png,2,val,0,\n"
    folder = write(tmp_path / "site", text, {"a.png": png(), "b.png": png(), "m.png": png(value=1)})
    data, tasks = read_site(folder, "s", TASK_NAMES), CONFIG.tasks
    write_site(data, tmp_path / "copy", tasks)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["a.png", "b.png", "m.png", "manifest.csv"]
    assert read_site(tmp_path / "copy", "s", TASK_NAMES).rows == data.rows
    (folder / "m.png").unlink()
    with pytest.raises(MtfedError, match=r"Cannot read label m.png of site s: there is no such file"):
        write_site(data, tmp_path / "again", tasks)
    outside = replace(data, rows=(Row("../out/a.png", "1", "train", {}),))
    with pytest.raises(MtfedError, match="Expected a path inside"):
        write_site(outside, tmp_path / "again", tasks)
    assert not (tmp_path / "out").exists()
