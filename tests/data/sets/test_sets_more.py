"""The second half of the named data sets: their official forms train, and what is not their form says so."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import disc, grey, inside, prepared, shards, text

from mtfed.config import Config, read_config
from mtfed.data.manifest import SiteData, read_site
from mtfed.data.sets import find_set
from mtfed.data.sets.decathlon import PARTS
from mtfed.data.sets.openkbp import SHAPE
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import read_app

RNG = np.random.default_rng(0)
BOX = (6, 10, 12)  # of small volumes, z, y, x
HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"


def ham10000(folder: Path) -> None:
    rows = [("HAM_0000001", 0, "bkl", "80.0"), ("HAM_0000001", 1, "bkl", "80.0"), ("HAM_0000002", 2, "nv", "")]
    table = [f"{lesion},ISIC_002430{i},{dx},histo,{age},male,scalp,vidir_modern" for lesion, i, dx, age in rows]
    text(folder / "HAM10000_metadata.csv", HAM + "\n".join(table) + "\n")
    for i in range(3):
        grey(folder / f"HAM10000_images_part_{i // 2 + 1}/ISIC_002430{i}.jpg", (24, 32, 3))
        # As its archive unpacks, with a folder of its own.
        masks = folder / "HAM10000_segmentations_lesion_tschandl/HAM10000_segmentations_lesion_tschandl"
        disc(masks / f"ISIC_002430{i}_segmentation.png", (24, 32))
    tabs = HAM.replace(",", "\t") + '"HAM_0000009"\t"ISIC_0034524"\t"mel"\t"histo"\t"40.0"\t"female"\t"back"\t""\n'
    text(folder / "ISIC2018_Task3_Test_GroundTruth.tab", tabs)
    grey(folder / "ISIC2018_Task3_Test_Images/ISIC_0034524.jpg", (24, 32, 3))


def isic2017(folder: Path) -> None:
    for k, part in enumerate(("Training", "Validation", "Test_v2")):
        data, name = folder / f"ISIC-2017_{part}_Data", f"ISIC_000000{k}"
        grey(data / f"{name}.jpg", (24, 32, 3))
        grey(data / f"{name}_superpixels.png", (24, 32, 3))
        text(data / f"ISIC-2017_{part}_Data_metadata.csv", f"image_id,age_approximate,sex\n{name},{55 + k},female\n")
        disc(folder / f"ISIC-2017_{part}_Part1_GroundTruth/{name}_segmentation.png", (24, 32))
        truth = f"image_id,melanoma,seborrheic_keratosis\n{name},{k % 2}.0,0.0\n"
        text(folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv", truth)


def isic2018(folder: Path) -> None:
    for k, part in enumerate(("Training", "Validation", "Test")):
        name = f"ISIC_000000{k}"
        grey(folder / f"ISIC2018_Task1-2_{part}_Input/{name}.jpg", (24, 32, 3))
        disc(folder / f"ISIC2018_Task1_{part}_GroundTruth/{name}_segmentation.png", (24, 32))
        place = folder / f"ISIC2018_Task2_{part}_GroundTruth{'_v3' if part == 'Training' else ''}"
        for attribute in ("globules", "milia_like_cyst", "negative_network", "pigment_network", "streaks"):
            disc(place / f"{name}_attribute_{attribute}.png", (24, 32), 255 * (attribute != "streaks"))


def isic2018_diagnosis(folder: Path) -> None:
    head = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    for part, names in {"Training": (0, 1), "Validation": (2,), "Test": (3,)}.items():
        rows = [f"ISIC_000000{k}," + ",".join(f"{int(i == k)}.0" for i in range(7)) for k in names]
        place = folder / f"ISIC2018_Task3_{part}_GroundTruth"
        text(place / f"ISIC2018_Task3_{part}_GroundTruth.csv", head + "\n".join(rows) + "\n")
        for k in names:
            grey(folder / f"ISIC2018_Task3_{part}_Input/ISIC_000000{k}.jpg", (24, 32, 3))
    groups = "image,lesion_id,diagnosis_confirm_type\nISIC_0000000,HAM_1,histopathology\nISIC_0000001,HAM_1,x\n"
    text(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", groups)


def sparse(path: Path, places: np.ndarray, values: np.ndarray | None = None) -> None:
    """Write a table as OpenKBP's: a voxel's place, and its value unless it is a mask."""
    cells = [""] * len(places) if values is None else values.tolist()
    text(path, ",data\n" + "".join(f"{place},{cell}\n" for place, cell in zip(places, cells, strict=True)))


def openkbp(folder: Path) -> None:
    grid = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    body = grid[40:50, 60:68, 20:30].ravel()  # y, x, z
    for part, patient in {"train-pats": "pt_1", "valid-pats": "pt_201", "test-pats": "pt_241"}.items():
        place = folder / "provided-data" / part / patient
        sparse(place / "ct.csv", body, 1024.0 + np.arange(len(body)) % 50)
        sparse(place / "dose.csv", body[::2], np.full(len(body[::2]), 41.5))
        sparse(place / "possible_dose_mask.csv", body)
        text(place / "voxel_dimensions.csv", "3.906e+00\n3.906e+00\n2.5e+00\n")
        sparse(place / "Mandible.csv", grid[40:42, 60:68, 20:30].ravel())
        sparse(place / "PTV70.csv", grid[44:48, 62:66, 20:22].ravel())


def stoic(folder: Path) -> None:
    import SimpleITK

    rows = ["0,0,0", "1,1,0", "2,1,1"]
    text(folder / "metadata/reference.csv", "PatientID,probCOVID,probSevere\n" + "\n".join(rows) + "\n")
    (folder / "data/mha").mkdir(parents=True)
    for row in rows:
        image = SimpleITK.GetImageFromArray(RNG.integers(-1000, 500, BOX).astype(np.int16))
        image.SetSpacing((0.7, 0.7, 1.5))
        SimpleITK.WriteImage(image, str(folder / f"data/mha/{row.split(',')[0]}.mha"), useCompression=True)


def nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> None:
    """Write an array with the axes x, y, z (and channels)."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1.0])), path)


def decathlon(name: str) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        part = next(part for part in PARTS if part.task == name)
        base, training = folder / part.folder, []
        for i in range(2):
            shape = (*BOX[::-1], len(part.channels)) if part.channels else BOX[::-1]
            nifti(base / f"imagesTr/case_{i:03d}.nii.gz", RNG.integers(0, 900, shape).astype(np.int16))
            mask = (RNG.integers(0, len(part.classes), BOX[::-1])).astype(np.uint8)
            nifti(base / f"labelsTr/case_{i:03d}.nii.gz", mask)
            training.append({"image": f"./imagesTr/case_{i:03d}.nii.gz", "label": f"./labelsTr/case_{i:03d}.nii.gz"})
        about = {
            "name": name,
            "labels": {str(i): label for i, label in enumerate(part.classes)},
            "numTraining": 2,
            "training": training,
            "test": ["./imagesTs/case_009.nii.gz"],
        }
        text(base / "dataset.json", json.dumps(about))

    return lay


def drive(folder: Path) -> None:
    for part, number in (("training", "21"), ("test", "01")):
        grey(folder / f"{part}/images/{number}_{part}.tif", (40, 38, 3))
        disc(folder / f"{part}/1st_manual/{number}_manual1.gif", (40, 38))
        disc(folder / f"{part}/mask/{number}_{part}_mask.gif", (40, 38))


def prostate_ct(folder: Path) -> None:
    for patient in ("p1", "p2"):
        nifti(folder / patient / "ct.nii.gz", RNG.integers(-1000, 500, BOX[::-1]).astype(np.int16))
        for name, radius in (("Body", 0.48), ("PTV", 0.3), ("Bladder", 0.2)):
            nifti(folder / patient / f"structures/{name}.nii.gz", inside(BOX[::-1], radius).astype(np.uint8))
    nifti(folder / "p1/dose.nii.gz", (inside(BOX[::-1], 0.48) * 60.0).astype(np.float32))
    text(folder / "patients.csv", "patient,split,site\np1,train,north\np2,val,south\n")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "ham10000": ham10000,
    "isic2017": isic2017,
    "isic2018": isic2018,
    "isic2018-diagnosis": isic2018_diagnosis,
    "openkbp": openkbp,
    "stoic": stoic,
    **{f"msd-{part.task}": decathlon(part.task) for part in PARTS},
    "drive": drive,
    "prostate-ct": prostate_ct,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_form_trains(name: str, tmp_path: Path) -> None:
    config, data = prepared(name, tmp_path / name, LAYOUTS[name])
    shards(config, data)


@pytest.mark.parametrize("name", ["ham10000", "openkbp", "drive", "msd-prostate", "msd-spleen"])
def test_a_set_is_prepared_beside_the_folder_that_it_lies_in(name: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    LAYOUTS[name](source)
    before = sorted(source.rglob("*"))
    for _ in range(2):
        prepare(find_set(name), source, out=out)
        assert sorted(source.rglob("*")) == before
        shards(*opened(name, out))


def opened(name: str, folder: Path, side: int = 32) -> tuple[Config, SiteData]:
    """Return the config of the app beside a prepared set, and its rows."""
    config = read_config(read_app(folder / "experiment").run_config | {"image-size": side})
    return config, read_site(folder, name, list(config.tasks))


def test_official_splits_are_kept(tmp_path: Path) -> None:
    for name in ("ham10000", "isic2017", "isic2018", "isic2018-diagnosis", "openkbp", "drive"):
        _, data = prepared(name, tmp_path / name, LAYOUTS[name])
        held = {row.split for row in data.rows}
        assert held == ({"train", "test"} if name in ("ham10000", "drive") else {"train", "val", "test"}), name


def test_lesions_stand_for_patients(tmp_path: Path) -> None:
    for name in ("ham10000", "isic2018-diagnosis"):
        _, data = prepared(name, tmp_path / name, LAYOUTS[name])
        patients = [row.patient for row in data.rows if row.split == "train"]
        assert len(set(patients)) == len(patients) - 1, name


def test_what_is_unknown_is_no_label(tmp_path: Path) -> None:
    _, data = prepared("ham10000", tmp_path / "ham", ham10000)
    assert [row.labels.get("age") for row in data.rows] == ["80.0", "80.0", None, "40.0"]
    assert [row.others.get("site") for row in data.rows] == ["vidir_modern"] * 3 + [None]
    _, data = prepared("stoic", tmp_path / "stoic", stoic)
    assert [row.labels.get("severe") for row in data.rows] == [None, "no", "yes"]
    _, data = prepared("prostate-ct", tmp_path / "prostate", prostate_ct)
    assert [sorted(row.labels) for row in data.rows] == [["dose", "structures"], ["structures"]]
    drive(tmp_path / "drive")
    shutil.rmtree(tmp_path / "drive/test/1st_manual")  # as newer releases come
    _, data = prepared("drive", tmp_path / "drive", lambda folder: None)
    assert [row.patient for row in data.rows] == ["21"]


def test_openkbp_lies_with_the_head_up_and_the_face_forward(tmp_path: Path) -> None:
    _, data = prepared("openkbp", tmp_path, openkbp)
    with np.load(tmp_path / data.rows[0].image) as file:
        arrays = dict(file)
    assert arrays["image"].shape == arrays["dose"].shape == SHAPE
    assert arrays["spacing"].tolist() == [2.5, 3.906, 3.906]  # z first
    body = np.zeros(SHAPE, bool)
    body[128 - 30 : 128 - 20, 40:50, 60:68] = True
    assert (arrays["possible"] == body).all() and (arrays["image"][~body] == -1024).all()
    assert arrays["image"][body].min() == 0 and arrays["dose"].max() == np.float32(41.5)
    where = np.argwhere(arrays["PTV70"])
    assert where.min(0).tolist() == [128 - 22, 44, 62] and where.max(0).tolist() == [127 - 20, 47, 65]
    assert "Larynx" not in arrays


def test_one_channel_of_several_is_taken(tmp_path: Path) -> None:
    import nibabel

    _, data = prepared("msd-prostate", tmp_path, LAYOUTS["msd-prostate"])
    assert data.rows[0].image == "labels/case_000_T2.nii.gz"
    given = nibabel.load(tmp_path / "Task05_Prostate/imagesTr/case_000.nii.gz")
    taken = nibabel.load(tmp_path / data.rows[0].image)
    assert (np.asarray(given.dataobj)[..., 0] == np.asarray(taken.dataobj)).all()
    assert (given.affine == taken.affine).all()


def test_contours_lie_over_the_ct_whichever_way_it_was_stored(tmp_path: Path) -> None:
    """A CT whose axes run another way, and masks over it: both come out alike."""
    import nibabel

    prostate_ct(tmp_path)
    for path in [tmp_path / "p1/ct.nii.gz", tmp_path / "p1/structures/PTV.nii.gz"]:
        image = nibabel.load(path)
        nibabel.save(image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]])), path)
    _, data = prepared("prostate-ct", tmp_path, lambda folder: None)
    with np.load(tmp_path / data.rows[0].labels["structures"]) as file:
        assert (file["PTV"] == inside(BOX, 0.3)).all()
        assert file["spacing"].tolist() == [2.0, 1.0, 1.0]


def _unlink(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: text(folder / name, content) and None


WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    ("ham10000", _unlink("HAM10000_metadata.csv"), "HAM10000_metadata"),
    ("ham10000", _unlink("HAM10000_images_part_2/ISIC_0024302.jpg"), "names the image ISIC_0024302.jpg"),
    ("ham10000", _write("HAM10000_metadata.csv", HAM + "HAM_1,ISIC_0024300,wart,x,1,m,back,\n"), "diagnosis 'wart'"),
    ("ham10000", _write("HAM10000_metadata.csv", "image_id,dx\n"), "lacks the column 'lesion_id'"),
    (
        "ham10000",
        lambda folder: next(folder.rglob("ISIC_0024301_segmentation.png")).write_bytes(b"no picture") and None,
        "Cannot read the mask .*ISIC_0024301_segmentation.png",
    ),
    ("isic2017", _unlink("ISIC-2017_Training_Part3_GroundTruth.csv"), "Part3_GroundTruth.csv was not found"),
    (
        "isic2017",
        _write("ISIC-2017_Test_v2_Part3_GroundTruth.csv", "image_id,melanoma,seborrheic_keratosis\nISIC_0000002,x,0\n"),
        "holds 'x'",
    ),
    (
        "isic2018-diagnosis",
        _write(
            "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
            "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_0000003,1.0,1.0,0.0,0.0,0.0,0.0,0.0\n",
        ),
        "should have one diagnosis, it has 2",
    ),
    (
        "isic2018-diagnosis",
        _write("ISIC2018_Task3_Training_LesionGroupings.csv", "image,lesion_id\nISIC_0000000,HAM_1\n"),
        "does not say which lesion ISIC_0000001 shows",
    ),
    ("openkbp", _unlink("provided-data/valid-pats/pt_201/dose.csv"), "Cannot read .*dose.csv"),
    ("openkbp", _write("provided-data/train-pats/pt_1/ct.csv", ",data\n2097152,7.0\n"), "outside a grid of 128 x 128"),
    ("openkbp", _write("provided-data/train-pats/pt_1/dose.csv", ",data\n1,many\n"), "is no table of numbers"),
    ("openkbp", _write("provided-data/train-pats/pt_1/voxel_dimensions.csv", "1\n2\n"), "three numbers above 0"),
    ("stoic", _unlink("data/mha/2.mha"), "1 of 3 files are missing, the first is data/mha/2.mha"),
    (
        "stoic",
        _write("metadata/reference.csv", "PatientID,probCOVID,probSevere\n0,2,0\n"),
        "should be 0 or 1, it is '2'",
    ),
    ("msd-spleen", _write("Task09_Spleen/dataset.json", "{}"), "is not the table of a Decathlon set"),
    (
        "msd-spleen",
        _write("Task09_Spleen/dataset.json", '{"training": [], "labels": {"0": "background"}}'),
        "should name the labels 0 to 1",
    ),
    (
        "msd-spleen",
        _write(
            "Task09_Spleen/dataset.json", '{"training": [{"image": "../../up.nii", "label": "a.nii"}], "labels": {}}'
        ),
        "leads out of its folder",
    ),
    (
        "stoic",
        lambda folder: text(folder / "metadata/reference.csv", "PatientID,probCOVID,probSevere\n../../../up,1,0\n"),
        "leads out of its folder",
    ),
    ("msd-spleen", _unlink("Task09_Spleen/labelsTr/case_001.nii.gz"), "1 of 4 files are missing"),
    (
        "msd-prostate",
        lambda folder: nifti(folder / "Task05_Prostate/imagesTr/case_001.nii.gz", np.zeros((4, 4, 4), np.int16)),
        "should have the 2 channels T2, ADC",
    ),
    (
        "msd-prostate",
        lambda folder: (folder / "Task05_Prostate/imagesTr/case_001.nii.gz").write_bytes(b"broken") and None,
        "Cannot read .*case_001.nii.gz",
    ),
    ("drive", _unlink("training/1st_manual/21_manual1.gif"), "21_manual1.gif|_manual1.gif was not found"),
    ("prostate-ct", _unlink("p1/structures/Body.nii.gz"), "structures/Body"),
    ("prostate-ct", _unlink("p1/ct.nii.gz"), "Expected one ct.nii.gz"),
    (
        "prostate-ct",
        lambda folder: nifti(folder / "p1/structures/Rectum.nii.gz", np.zeros((3, 3, 3), np.uint8)),
        "should have the voxels of p1/ct.nii.gz",
    ),
    (
        "prostate-ct",
        lambda folder: nifti(folder / "p1/structures/Rectum.nii.gz", np.zeros(BOX[::-1], np.uint8), (1.0, 1.0, 3.0)),
        "mm away from its image",
    ),
    ("prostate-ct", lambda folder: nifti(folder / "p2/structures/Heart.nii.gz", np.zeros((3, 3, 3))), "holds Heart"),
    ("prostate-ct", _write("patients.csv", "patient,split\np1,dev\n"), "it is 'dev'"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), WRONG)
def test_what_is_not_the_official_form_says_so(
    name: str, spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(MtfedError, match=message):
        prepare(find_set(name), tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_is_told_what_to_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(MtfedError, match=r"in its official form.*was not found") as error:
        prepare(find_set(name), tmp_path)
    for line in find_set(name).place.strip().splitlines():
        assert line in str(error.value)


def test_nifti_contours_lie_over_a_dicom_series(tmp_path: Path) -> None:
    import nibabel

    from mtfed.data.formats import read_picture
    from mtfed.data.root import Root

    given = os.environ.get("MTFED_SHARED_DATA")
    source = (Path(given) if given else Path(__file__).parents[4] / "shared" / "data") / "formats3d" / "dicom_ct"
    if not source.is_dir():
        pytest.skip("formats3d is absent: MTFED_SHARED_DATA is not set and there is no ../shared/data")
    (tmp_path / "p1").mkdir()
    shutil.copytree(source, tmp_path / "p1/ct")
    ct = read_picture(SiteData("a", Root(tmp_path), ()), "p1/ct", "image", 3)
    bone = ct.values > 200
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ct.affine
    (tmp_path / "p1/structures").mkdir()
    for name, mask in (("CTV", bone), ("Body", ct.values > -500)):
        image = nibabel.Nifti1Image(mask.T.astype(np.uint8), ras)
        nibabel.save(image, tmp_path / f"p1/structures/{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(bone.T * np.float32(70), ras), tmp_path / "p1/dose.nii.gz")
    prepare(find_set("prostate-ct"), tmp_path)
    config, data = opened("prostate-ct", tmp_path, 160)  # of eight slices, less would leave but one
    with np.load(tmp_path / data.rows[0].labels["dose"]) as file:
        assert (file["CTV"] == bone).all() and file["spacing"].tolist() == list(ct.spacing)
    shards(config, data)
