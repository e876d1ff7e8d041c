"""``mtfed site init``: what is understood of a folder, and what is left for a person."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.slices import dicom
from PIL import Image
from pydicom.uid import generate_uid

from mtfed.cli import main
from mtfed.data.federation import site_folder
from mtfed.errors import MtfedError
from mtfed.site.draft.columns import guess, widened
from mtfed.site.draft.draft import Draft, draft
from mtfed.site.draft.names import is_mask, pair_masks, patient_in, read_places
from mtfed.site.draft.scan import scan
from mtfed.site.draft.write import manifest_text, site_text
from mtfed.site.site_file import read_site_file


def picture(path: Path, seed: int = 0, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, values: tuple[int, ...] = (0, 1), side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (side, side))).save(path)
    return path


def rows(found: Draft) -> list[dict[str, str]]:
    return list(csv.DictReader(manifest_text(found).splitlines()))


@pytest.mark.parametrize(
    ("stem", "patient"),
    [("patient-001_left", "patient-001"), ("sub-01_T1w", "sub-01"), ("pt_1", "pt_1"), ("person12_virus_3", "person12"),
     ("x_person7", "person7"), ("p0042_CC", "p0042"), ("IM-0115-0001", ""), ("patient", ""), ("spot12", ""),
     ("export12", "")],
)  # fmt: skip
def test_patients_are_found_where_a_name_plainly_holds_one(stem: str, patient: str) -> None:
    assert patient_in(stem) == patient


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("x_mask.png", True), ("x_seg.nii.gz", True), ("masks/x.png", True), ("labelsTr/x.nii.gz", True),
     ("seg-x.nrrd", True), ("x_mask_1.png", True), ("leftMask/x.png", True), ("x.png", False), ("images/x.png", False),
     ("masked_man/x.png", False), ("segovia/x.png", False), ("x_labelled.png", False)],
)  # fmt: skip
def test_masks_are_known_by_name_or_folder(name: str, is_one: bool) -> None:
    assert is_mask(name) == is_one


@pytest.mark.parametrize(
    ("image", "held", "structure"),
    [("x.png", "x_mask.png", "mask"), ("a/x.png", "a/x_lungs_mask.png", "lungs"),
     ("images/x.png", "masks/x.png", "mask"), ("x.dcm", "seg_x.png", "mask"),
     ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", "mask"), ("brain_image.nrrd", "brain_label.nrrd", "mask"),
     ("x.png", "leftMask/x.png", "left"), ("images/x.png", "masks/lungs/x.png", "lungs"),
     ("train/images/x.png", "train/masks/x.png", "mask"),
     ("benign/benign (1).png", "benign/benign (1)_mask.png", "mask")],
)  # fmt: skip
def test_a_mask_finds_its_image(image: str, held: str, structure: str) -> None:
    assert pair_masks([image, "other.png"], [held]).columns == {structure: {image: held}}


def test_masks_without_an_image_and_second_masks_are_told() -> None:
    pairs = pair_masks(["x.png"], ["x_mask.png", "x_mask_1.png", "y_mask.png"])
    assert (pairs.columns, pairs.further, pairs.alone) == (
        {"mask": {"x.png": "x_mask.png"}},
        ["x_mask_1.png"],
        ["y_mask.png"],
    )


def test_folders_tell_split_class_and_patient() -> None:
    images = [
        f"{split}/{kind}/patient{i}/a.png"
        for split in ("train", "test")
        for kind in ("NORMAL", "SICK")
        for i in range(4)
    ]
    places = read_places(images)
    assert places.splits[images[0]] == "train" and places.splits[images[-1]] == "test"
    assert places.patients[images[3]] == "patient3"
    assert [set(level.values()) for level in places.classes] == [{"NORMAL", "SICK"}]
    many = read_places([f"A{i:04}/x.png" for i in range(30)])  # a folder a patient
    assert not many.classes and many.patients["A0003/x.png"] == "A0003"


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["yes", "no"] * 5, "classification", ("no", "yes")),
        (["0", "1"] * 5, "classification", ("0", "1")),
        (["0.0", "1.0", "2.0"] * 4, "classification", ("0", "1", "2")),
        ([f"{x / 7:.2f}" for x in range(20)], "regression", ()),
        ([str(x) for x in range(20)], "", ()),  # the numbers of rows
        (["same"] * 9, "", ()),
        ([f"word {x}" for x in range(20)], "", ()),
        (["effusion|mass", "No Finding", "mass", "effusion"] * 2, "multi-label", ("effusion", "mass")),
    ],
)
def test_columns_are_guessed_by_what_stands_in_them(cells: list[str], kind: str, classes: tuple[str, ...]) -> None:
    found = guess("Some Column", {f"{i}.png": cell for i, cell in enumerate(cells)}, "here")
    assert (found.column, found.kind, found.classes) == ("some-column", kind, classes)
    if kind == "multi-label":
        assert found.cells["0.png"] == "effusion; mass" and found.cells["1.png"] == "none"


@pytest.mark.parametrize(("held", "ends"), [([3.2, 87], (0, 90)), ([-1000, 900], (-1000, 1000)), ([5, 5], (5, 6))])
def test_ranges_end_in_round_numbers(held: list[float], ends: tuple[float, float]) -> None:
    low, high = widened(held)
    assert (low, high) == ends and low <= min(held) and high >= max(held)


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
    said = capsys.readouterr().out
    for told in (
        "12 pictures",
        "6, from a table",
        "lungs: segmentation of 6",
        "patient_name",
        "readme.txt",
        "To decide",
    ):
        assert told in said
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
        held = {row["image"]: row for row in csv.DictReader(file)}
    row = held["train/PNEUMONIA/1.png"]
    assert (row["patient"], row["split"], row["class"], row["age"]) == ("P0", "train", "PNEUMONIA", "31.5")
    assert row["boxes"] == "2,3,4,5" and held["train/NORMAL/0.png"]["boxes"] == "none"
    assert row["lungs"] == "train/PNEUMONIA/1_lungs_mask.png" and "Doe" not in str(held)
    from mtfed.config import Config
    from mtfed.data.shard import load_shard

    config = Config.model_validate({"tasks": site.tasks, "image-size": 16})
    assert load_shard(site_folder(folder, "s", config), config, "train").count("lungs") > 0
    before = (folder / "manifest.csv").read_bytes()
    assert main(["site", "init", str(folder)]) == 2
    assert "manifest.csv exists already; --force" in capsys.readouterr().err
    assert main(["site", "init", str(folder), "--force"]) == 0
    assert (folder / "manifest.csv").read_bytes() == before  # nothing that we wrote is taken for a table


def test_dicom_series_are_volumes_or_single_images(tmp_path: Path) -> None:
    for who in ("a", "b"):
        series = generate_uid()
        for k in range(5):
            dicom(tmp_path / who / f"{k}", series, 2.0 * k, PatientID=f"id-{who}")
    dicom(tmp_path / "a" / "plan.dcm", Modality="RTSTRUCT")
    found = draft(tmp_path)
    assert found.lying.dimensions == 3 and found.modality == "CT"
    assert [(row["image"], row["patient"]) for row in rows(found)] == [("a", "id-a"), ("b", "id-b")]
    assert found.lying.others == ["a/plan.dcm"]
    flat = draft(tmp_path, 2)
    assert len(flat.images) == 10 and set(flat.patients.values()) == {"id-a", "id-b"}


def test_a_folder_with_two_series_is_told(tmp_path: Path) -> None:
    for k in range(4):
        dicom(tmp_path / "one" / f"{k}.dcm", "1.2.3", 2.0 * k)
        dicom(tmp_path / "two" / f"{k}.dcm", "1.2.4" if k % 2 else "1.2.5", 2.0 * k)
    found = draft(tmp_path, 3)
    assert found.images == ["one"] and found.lying.mixed == {"two": 2}
    assert any("two holds 2 series" in told for told in found.decide)


@pytest.mark.parametrize(
    ("place", "series", "match"),
    [("", 1, "this folder itself holds a series right at the top; put"), ("", 2, "this folder itself holds 2 series"),
     ("ct", 2, "ct holds 2 series; put each series into a folder of its own, or run with --dimensions 2")],
)  # fmt: skip
def test_of_nothing_but_mixed_series_it_is_told_what_to_do(tmp_path: Path, place: str, series: int, match: str) -> None:
    for k in range(8):
        dicom(tmp_path / place / f"{k}.dcm", f"1.2.{k % series}", 2.0 * k)
    with pytest.raises(MtfedError, match=match):
        draft(tmp_path)
    assert len(draft(tmp_path, 2).images) == 8


@pytest.mark.parametrize("tags", [{"Modality": "MG"}, {"ImagePositionPatient": None}])
def test_views_are_no_slices_of_a_volume(tmp_path: Path, tags: dict[str, object]) -> None:
    for view in ("LCC", "LMLO", "RCC", "RMLO"):
        dicom(tmp_path / "study" / f"{view}.dcm", "1.2.3", **tags)
    for dimensions, drafted in ((None, 2), (2, 2), (3, 3)):
        lying = scan(tmp_path, dimensions)
        assert (lying.dimensions, len(lying.images), lying.mixed) == (drafted, 4, {})


def test_a_file_of_many_frames_is_a_volume(tmp_path: Path) -> None:
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
        held = (values > 0).astype(np.uint8) * (1 + (values > 1))
        nibabel.save(nibabel.Nifti1Image(held.astype(np.uint8), np.eye(4)), tmp_path / "labelsTr" / f"x{i}.nii.gz")
    volumes = draft(tmp_path)
    assert volumes.lying.dimensions == 3 and volumes.tasks[0].classes == ("background", "class-1", "class-2")
    assert rows(volumes)[0]["mask"] == "labelsTr/x0.nii.gz" and set(volumes.splits.values()) == {"train"}
    found = draft(tmp_path, 2)
    slices, task = rows(found), found.tasks[0]
    assert task.classes == volumes.tasks[0].classes and len(task.cells) == 10
    assert not any("Cannot read" in told for told in found.decide)
    assert [row["image"] for row in slices[:2]] == ["imagesTr/x0_0000.nii.gz#0", "imagesTr/x0_0000.nii.gz#1"]
    assert slices[7]["mask"] == "labelsTr/x1.nii.gz#2" and len(slices) == 10


def test_what_cannot_be_known_is_left_to_a_person(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    mask(tmp_path / "0_mask.png", (0, 77, 200))
    (tmp_path / "notes.csv").write_text("who,what\na,b\n")
    found = draft(tmp_path)
    told = " ".join(found.decide)
    for part in ("nothing says whose the images are", "such as 0, 77, 200", "no column of notes.csv names the images"):
        assert part in told
    site = tomllib.loads(site_text(found))
    assert "mask" in site["task"]
    with pytest.raises(MtfedError, match="Expected images in"):
        draft(picture(tmp_path / "empty" / "x_mask.png").parent)
    with pytest.raises(MtfedError, match="Expected a folder"):
        draft(tmp_path / "nowhere")


def test_lines_of_another_length_are_told(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "t.csv").write_text("image,label\n0.png,a\n1.png,b,\n\n2.png\n")
    assert "2 lines of t.csv with more or fewer cells than its header, as line 3" in " ".join(draft(tmp_path).decide)


def test_patients_in_two_splits_are_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "person1_virus.jpeg", len(split))
    assert any("1 patient in two splits" in told for told in draft(tmp_path).decide)


def test_hidden_files_and_our_own_are_not_looked_at(tmp_path: Path) -> None:
    for name in (".hidden/x.png", "__MACOSX/x.png", "check.html", "manifest.csv", "a.png"):
        picture(tmp_path / "a.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name != "a.png":
            (tmp_path / name).write_bytes(b"x")
    lying = scan(tmp_path, None)
    assert lying.images == ["a.png"] and not lying.tables and not lying.others


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("key = 3", "key should be a text in quotes, it is 3"),
        ("kye = 'x'", "did you mean 'key'"),
        ("key = ''", "key should be the site's name"),
        ("share-class-counts = 'yes'", "should be true or false"),
        ("dimensions = 4", "dimensions should be 2 for pictures or 3"),
        ("[task.x]\nkind = 'clasification'\nclasses = 'a, b'", "task.x.kind: expected 'classification'"),
        ("[task.x]\nkind = 'classification'\nclass = 'a, b'", "did you mean 'task.x.classes'"),
        ("[task.x]\nkind = 'regression'\nclasses = 'a'", "task.x.range"),
        ("[task]\nx = 3", "task.x should be a table"),
        ("key = ", "is not valid TOML"),
    ],
)
def test_a_wrong_site_file_is_told_by_key(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(MtfedError, match=match):
        read_site_file(tmp_path / "site.toml")


def test_the_client_goes_by_the_site_file_and_the_node_config_overrides_it(tmp_path: Path) -> None:
    from conftest import SMALL, TASKS
    from flwr.app import Context, RecordDict
    from mtfed.clients.site import open_site

    from mtfed.config import read_config

    picture(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text("image,patient,pneumonia\na.png,1,normal\n")
    (tmp_path / "site.toml").write_text("key = 'st-mary'\nmodality = 'CT'\nshare-class-counts = true\n")
    config = read_config(TASKS | SMALL)
    for given, key, shares in (({}, "st-mary", True), ({"site": "other", "share-class-counts": False}, "other", False)):
        context = Context(1, 1, {"data-path": str(tmp_path)} | given, RecordDict(), {})
        assert open_site(context, config).key == key
        assert context.node_config["share-class-counts"] is shares and context.node_config["modality"] == "CT"
