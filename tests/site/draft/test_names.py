"""Names of files and folders as ``mtfed site init`` reads them."""

from __future__ import annotations

import pytest

from mtfed.site.draft.names import is_mask, pair_masks, patient_in, read_names


@pytest.mark.parametrize(
    ("stem", "patient"),
    [("patient-001_left", "patient-001"), ("sub-01_T1w", "sub-01"), ("pt_1", "pt_1"), ("person12_virus_3", "person12"),
     ("x_person7", "person7"), ("p0042_CC", "p0042"), ("IM-0115-0001", ""), ("patient", ""), ("spot12", ""),
     ("export12", "")],
)  # fmt: skip
def test_a_patient_is_read_from_a_name_that_plainly_contains_one(stem: str, patient: str) -> None:
    assert patient_in(stem) == patient


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x_mask.png", True), ("x_seg.nii.gz", True), ("masks/x.png", True), ("labelsTr/x.nii.gz", True),
     ("seg-x.nrrd", True), ("x_mask_1.png", True), ("leftMask/x.png", True), ("x.png", False), ("images/x.png", False),
     ("masked_man/x.png", False), ("segovia/x.png", False), ("x_labelled.png", False)],
)  # fmt: skip
def test_masks_are_recognised_by_name_or_folder(name: str, expected: bool) -> None:
    assert is_mask(name) == expected


@pytest.mark.parametrize(
    ("image", "mask_path", "structure"),
    [("x.png", "x_mask.png", "mask"), ("a/x.png", "a/x_lungs_mask.png", "lungs"),
     ("images/x.png", "masks/x.png", "mask"), ("x.dcm", "seg_x.png", "mask"),
     ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", "mask"), ("brain_image.nrrd", "brain_label.nrrd", "mask"),
     ("x.png", "leftMask/x.png", "left"), ("images/x.png", "masks/lungs/x.png", "lungs"),
     ("train/images/x.png", "train/masks/x.png", "mask"),
     ("benign/benign (1).png", "benign/benign (1)_mask.png", "mask")],
)  # fmt: skip
def test_a_mask_is_matched_with_its_image(image: str, mask_path: str, structure: str) -> None:
    assert pair_masks([image, "other.png"], [mask_path]).columns == {structure: {image: mask_path}}


def test_masks_without_an_image_and_second_masks_are_separated() -> None:
    pairs = pair_masks(["x.png"], ["x_mask.png", "x_mask_1.png", "y_mask.png"])
    assert (pairs.columns, pairs.extra, pairs.unmatched) == (
        {"mask": {"x.png": "x_mask.png"}},
        ["x_mask_1.png"],
        ["y_mask.png"],
    )


def test_folder_names_give_split_class_and_patient() -> None:
    images = [
        f"{split}/{kind}/patient{i}/a.png"
        for split in ("train", "test")
        for kind in ("NORMAL", "SICK")
        for i in range(4)
    ]
    hints = read_names(images)
    assert hints.splits[images[0]] == "train" and hints.splits[images[-1]] == "test"
    assert hints.patients[images[3]] == "patient3"
    assert [set(level.values()) for level in hints.classes] == [{"NORMAL", "SICK"}]
    numbered = read_names([f"A{i:04}/x.png" for i in range(30)])  # a folder for each patient
    assert not numbered.classes and numbered.patients["A0003/x.png"] == "A0003"
