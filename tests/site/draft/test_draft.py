"""``mtfed site init``: the draft of a folder, and the questions that remain for a person."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from helpers.slices import dicom
from mtfed.cli import main
from mtfed.data.simulated_sites import site_folder
from mtfed.data.site_file import read_site_file
from mtfed.errors import MtfedError
from mtfed.site.draft import Draft, draft
from mtfed.site.draft.scan import scan_folder
from mtfed.site.draft.write import manifest_text, site_text


def picture(path: Path, seed: int = 0, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, values: tuple[int, ...] = (0, 1), side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (side, side))).save(path)
    return path


def manifest_rows(drafted: Draft) -> list[dict[str, str]]:
    return list(csv.DictReader(manifest_text(drafted).splitlines()))


def test_a_whole_folder_is_drafted_and_can_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "St Mary"
    lines = ["file;patient_id;patient_name;age;bbox_x;bbox_y;bbox_w;bbox_h"]
    for i in range(12):
        kind = ("NORMAL", "PNEUMONIA")[i % 2]
        picture(folder / "train" / kind / f"{i}.png", seed=i)
        if i < 6:
            mask(folder / "train" / kind / f"{i}_lungs_mask.png", (0, 255))
        box = "2;3;4;5" if i % 3 else ";;;"
        lines.append(f"{i}.png;P{i // 2};Doe;{30.5 + i};{box}")
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "readme.txt").write_text("hello")
    assert main(["site", "init", str(folder)]) == 0
    output = capsys.readouterr().out
    for text in (
        "12 pictures",
        "6, from a table",
        "lungs: segmentation of 6",
        "patient_name",
        "readme.txt",
        "Please decide",
    ):
        assert text in output
    site = read_site_file(folder / "site.toml")
    assert site.key == "St-Mary" and site.dimensions == 2
    kinds = {name: (task.kind, task.classes, task.range) for name, task in site.tasks.items()}
    assert kinds == {
        "lungs": ("segmentation", ("background", "lungs"), ()),
        "class": ("classification", ("NORMAL", "PNEUMONIA"), ()),
        "boxes": ("detection", ("finding",), ()),
        "age": ("regression", ("age",), (30.0, 50.0)),
    }
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        by_image = {row["image"]: row for row in csv.DictReader(file)}
    row = by_image["train/PNEUMONIA/1.png"]
    assert (row["patient"], row["split"], row["class"], row["age"]) == ("P0", "train", "PNEUMONIA", "31.5")
    assert row["boxes"] == "2,3,4,5" and by_image["train/NORMAL/0.png"]["boxes"] == "none"
    assert row["lungs"] == "train/PNEUMONIA/1_lungs_mask.png" and "Doe" not in str(by_image)
    from mtfed.config import Config
    from mtfed.data.loading import load_shard

    config = Config.model_validate({"tasks": site.tasks, "image-size": 16})
    assert load_shard(site_folder(folder, "s", config), config, "train").count("lungs") > 0
    before = (folder / "manifest.csv").read_bytes()
    assert main(["site", "init", str(folder)]) == 2
    assert "manifest.csv exists already; use --force" in capsys.readouterr().err
    assert main(["site", "init", str(folder), "--force"]) == 0
    assert (folder / "manifest.csv").read_bytes() == before  # the files written before are not taken for tables


def test_dicom_series_are_volumes_or_single_images(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        series = generate_uid()
        for k in range(5):
            dicom(tmp_path / patient / f"{k}", series, 2.0 * k, PatientID=f"id-{patient}", BodyPartExamined="CHEST")
    dicom(tmp_path / "a" / "plan.dcm", Modality="RTSTRUCT")
    drafted = draft(tmp_path)
    assert drafted.scan.dimensions == 3 and (drafted.modality, drafted.body_part) == ("CT", "chest")
    assert [(row["image"], row["patient"]) for row in manifest_rows(drafted)] == [("a", "id-a"), ("b", "id-b")]
    assert drafted.scan.others == ["a/plan.dcm"]
    flat = draft(tmp_path, 2)
    assert len(flat.images) == 10 and set(flat.patients.values()) == {"id-a", "id-b"}


def test_a_folder_with_two_series_is_left_out_with_advice(tmp_path: Path) -> None:
    for k in range(4):
        dicom(tmp_path / "one" / f"{k}.dcm", "1.2.3", 2.0 * k)
        dicom(tmp_path / "two" / f"{k}.dcm", "1.2.4" if k % 2 else "1.2.5", 2.0 * k)
    drafted = draft(tmp_path, 3)
    assert drafted.images == ["one"] and drafted.scan.mixed == {"two": 2}
    assert any("two contains 2 series" in question for question in drafted.decide)


@pytest.mark.parametrize(
    ("place", "series", "match"),
    [("", 1, "this folder itself contains a series at the top level; put"),
     ("", 2, "this folder itself contains 2 series"),
     ("ct", 2, "ct contains 2 series; put each series into a folder of its own, or run init with --dimensions 2")],
)  # fmt: skip
def test_only_mixed_series_are_refused_with_advice(tmp_path: Path, place: str, series: int, match: str) -> None:
    for k in range(8):
        dicom(tmp_path / place / f"{k}.dcm", f"1.2.{k % series}", 2.0 * k)
    with pytest.raises(MtfedError, match=match):
        draft(tmp_path)
    assert len(draft(tmp_path, 2).images) == 8


@pytest.mark.parametrize("tags", [{"Modality": "MG"}, {"ImagePositionPatient": None}])
def test_views_are_not_slices_of_a_volume(tmp_path: Path, tags: dict[str, object]) -> None:
    for view in ("LCC", "LMLO", "RCC", "RMLO"):
        dicom(tmp_path / "study" / f"{view}.dcm", "1.2.3", **tags)
    for dimensions, drafted in ((None, 2), (2, 2), (3, 3)):
        scan = scan_folder(tmp_path, dimensions)
        assert (scan.dimensions, len(scan.images), scan.mixed) == (drafted, 4, {})


def test_a_file_with_several_frames_is_a_volume(tmp_path: Path) -> None:
    for k in range(3):
        dicom(tmp_path / f"{k}.dcm", NumberOfFrames=2, PixelData=bytes(2 * 16 * 16 * 2), ImagePositionPatient=None)
    for dimensions in (None, 3):
        assert draft(tmp_path, dimensions).images == ["0.dcm", "1.dcm", "2.dcm"]
    assert draft(tmp_path, 2).images[:3] == ["0.dcm#0", "0.dcm#1", "1.dcm#0"]


def test_volumes_can_be_drafted_slice_by_slice(tmp_path: Path) -> None:
    import nibabel

    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for i in range(2):
        values = np.random.default_rng(i).normal(size=(8, 8, 5)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "imagesTr" / f"x{i}_0000.nii.gz")
        labels = (values > 0).astype(np.uint8) * (1 + (values > 1))
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.eye(4)), tmp_path / "labelsTr" / f"x{i}.nii.gz")
    volumes = draft(tmp_path)
    assert volumes.scan.dimensions == 3 and volumes.tasks[0].classes == ("background", "class-1", "class-2")
    assert manifest_rows(volumes)[0]["mask"] == "labelsTr/x0.nii.gz" and set(volumes.splits.values()) == {"train"}
    drafted = draft(tmp_path, 2)
    slices, task = manifest_rows(drafted), drafted.tasks[0]
    assert task.classes == volumes.tasks[0].classes and len(task.cells) == 10
    assert not any("Cannot read" in question for question in drafted.decide)
    assert [row["image"] for row in slices[:2]] == ["imagesTr/x0_0000.nii.gz#0", "imagesTr/x0_0000.nii.gz#1"]
    assert slices[7]["mask"] == "labelsTr/x1.nii.gz#2" and len(slices) == 10


def test_what_cannot_be_guessed_becomes_a_question(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    mask(tmp_path / "0_mask.png", (0, 77, 200))
    (tmp_path / "notes.csv").write_text("name,value\na,b\n")
    drafted = draft(tmp_path)
    questions = " ".join(drafted.decide)
    for part in (
        "the patients of all images are unknown",
        "such as 0, 77, 200",
        "no column of notes.csv names the images",
    ):
        assert part in questions
    site = tomllib.loads(site_text(drafted))
    assert "mask" in site["task"]
    with pytest.raises(MtfedError, match="Expected images in"):
        draft(picture(tmp_path / "empty" / "x_mask.png").parent)
    with pytest.raises(MtfedError, match="Expected a folder"):
        draft(tmp_path / "nowhere")


def test_lines_of_another_length_are_reported(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "t.csv").write_text("image,label\n0.png,a\n1.png,b,\n\n2.png\n")
    assert "2 lines of t.csv with more or fewer cells than the header, such as line 3" in " ".join(
        draft(tmp_path).decide
    )


def test_patients_in_two_splits_are_reported(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "person1_virus.jpeg", len(split))
    assert any("1 patient in two splits" in question for question in draft(tmp_path).decide)


def test_hidden_files_and_files_of_mtfed_are_ignored(tmp_path: Path) -> None:
    for name in (".hidden/x.png", "__MACOSX/x.png", "check.html", "manifest.csv", "a.png"):
        picture(tmp_path / "a.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name != "a.png":
            (tmp_path / name).write_bytes(b"x")
    scan = scan_folder(tmp_path, None)
    assert scan.images == ["a.png"] and not scan.tables and not scan.others
