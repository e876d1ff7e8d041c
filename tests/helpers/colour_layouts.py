"""Official forms of the sets of colour images, each with a few drawn files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers.drawings import draw_disc, draw_noise, write_text

HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"


def ham10000(folder: Path) -> None:
    rows = [("HAM_0000001", 0, "bkl", "80.0"), ("HAM_0000001", 1, "bkl", "80.0"), ("HAM_0000002", 2, "nv", "")]
    table = [f"{lesion},ISIC_002430{i},{dx},histo,{age},male,scalp,vidir_modern" for lesion, i, dx, age in rows]
    write_text(folder / "HAM10000_metadata.csv", HAM + "\n".join(table) + "\n")
    for i in range(3):
        draw_noise(folder / f"HAM10000_images_part_{i // 2 + 1}/ISIC_002430{i}.jpg", (24, 32, 3))
        # The archive contains a folder of the same name.
        masks = folder / "HAM10000_segmentations_lesion_tschandl/HAM10000_segmentations_lesion_tschandl"
        draw_disc(masks / f"ISIC_002430{i}_segmentation.png", (24, 32))
    tabs = HAM.replace(",", "\t") + '"HAM_0000009"\t"ISIC_0034524"\t"mel"\t"histo"\t"40.0"\t"female"\t"back"\t""\n'
    write_text(folder / "ISIC2018_Task3_Test_GroundTruth.tab", tabs)
    draw_noise(folder / "ISIC2018_Task3_Test_Images/ISIC_0034524.jpg", (24, 32, 3))


def isic2017(folder: Path) -> None:
    for k, part in enumerate(("Training", "Validation", "Test_v2")):
        data, name = folder / f"ISIC-2017_{part}_Data", f"ISIC_000000{k}"
        draw_noise(data / f"{name}.jpg", (24, 32, 3))
        draw_noise(data / f"{name}_superpixels.png", (24, 32, 3))
        write_text(
            data / f"ISIC-2017_{part}_Data_metadata.csv", f"image_id,age_approximate,sex\n{name},{55 + k},female\n"
        )
        draw_disc(folder / f"ISIC-2017_{part}_Part1_GroundTruth/{name}_segmentation.png", (24, 32))
        truth = f"image_id,melanoma,seborrheic_keratosis\n{name},{k % 2}.0,0.0\n"
        write_text(folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv", truth)


def isic2018(folder: Path) -> None:
    for k, part in enumerate(("Training", "Validation", "Test")):
        name = f"ISIC_000000{k}"
        draw_noise(folder / f"ISIC2018_Task1-2_{part}_Input/{name}.jpg", (24, 32, 3))
        draw_disc(folder / f"ISIC2018_Task1_{part}_GroundTruth/{name}_segmentation.png", (24, 32))
        place = folder / f"ISIC2018_Task2_{part}_GroundTruth{'_v3' if part == 'Training' else ''}"
        for attribute in ("globules", "milia_like_cyst", "negative_network", "pigment_network", "streaks"):
            draw_disc(place / f"{name}_attribute_{attribute}.png", (24, 32), 255 * (attribute != "streaks"))


def isic2018_diagnosis(folder: Path) -> None:
    head = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    for part, names in {"Training": (0, 1), "Validation": (2,), "Test": (3,)}.items():
        rows = [f"ISIC_000000{k}," + ",".join(f"{int(i == k)}.0" for i in range(7)) for k in names]
        place = folder / f"ISIC2018_Task3_{part}_GroundTruth"
        write_text(place / f"ISIC2018_Task3_{part}_GroundTruth.csv", head + "\n".join(rows) + "\n")
        for k in names:
            draw_noise(folder / f"ISIC2018_Task3_{part}_Input/ISIC_000000{k}.jpg", (24, 32, 3))
    groups = "image,lesion_id,diagnosis_confirm_type\nISIC_0000000,HAM_1,histopathology\nISIC_0000001,HAM_1,x\n"
    write_text(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", groups)


def drive(folder: Path) -> None:
    for part, number in (("training", "21"), ("test", "01")):
        draw_noise(folder / f"{part}/images/{number}_{part}.tif", (40, 38, 3))
        draw_disc(folder / f"{part}/1st_manual/{number}_manual1.gif", (40, 38))
        draw_disc(folder / f"{part}/mask/{number}_{part}_mask.gif", (40, 38))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "ham10000": ham10000,
    "isic2017": isic2017,
    "isic2018": isic2018,
    "isic2018-diagnosis": isic2018_diagnosis,
    "drive": drive,
}
