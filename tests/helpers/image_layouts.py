"""Official forms of the sets of grey images, each with a few drawn files."""

from __future__ import annotations

import json
import plistlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from helpers.drawings import RNG, SIDE, ball, draw_disc, draw_noise, write_dicom, write_film, write_text
from mtfed.data.sets.medmnist import SUBSETS as MEDMNIST


def busi(folder: Path) -> None:
    for kind in ("normal", "benign", "malignant"):
        for i in (1, 2, 10):
            draw_noise(folder / f"Dataset_BUSI_with_GT/{kind}/{kind} ({i}).png", (24, SIDE, 3))
            draw_disc(
                folder / f"Dataset_BUSI_with_GT/{kind}/{kind} ({i})_mask.png", (24, SIDE), 255 * (kind != "normal")
            )
    draw_disc(folder / "Dataset_BUSI_with_GT/benign/benign (10)_mask_1.png", (24, SIDE), radius=0.45)


def medmnist(name: str, folder: Path) -> None:
    volume, rgb = name.endswith("3d"), MEDMNIST[name].channels == 3
    classes = 14 if name == "chestmnist" else 2
    arrays = {}
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        shape = (count, 28, 28, 28) if volume else (count, 28, 28, 3) if rgb else (count, 28, 28)
        arrays[f"{split}_images"] = RNG.integers(0, 255, shape).astype(np.uint8)
        labels = np.arange(count)[:, None] % 2
        arrays[f"{split}_labels"] = (labels if classes == 2 else np.eye(classes)[:count]).astype(np.uint8)
    np.savez_compressed(folder / f"{name}.npz", **arrays)


INFO = """\
INFORMATION:

1st column: MIAS database reference number.
               G - Fatty-glandular

mdb001 G CIRC B 15 25 7
mdb002 G CIRC B 12 20 5
mdb002 G CALC M 22 10 4
mdb003 D NORM
mdb004 D NORM
mdb005 F CALC M *NOTE 3*
mdb006 F NORM \n"""


def mias(folder: Path) -> None:
    write_text(folder / "Info.txt", INFO)
    for i in range(1, 7):
        draw_noise(folder / f"mdb{i:03d}.pgm")


CBIS = (
    "patient_id,{density},left or right breast,image view,abnormality id,abnormality type,{features},assessment,"
    "pathology,subtlety,image file path,cropped image file path,ROI mask file path\n"
)


def cbis_ddsm(folder: Path) -> None:
    """Lay out CBIS-DDSM; P_00005 is in two splits, and paths in cells end in a line break."""
    tables = {
        ("mass", "train"): [("P_00001", "LEFT", "CC", 1, 3, "MALIGNANT"), ("P_00001", "LEFT", "CC", 2, 3, "BENIGN")],
        ("mass", "test"): [("P_00005", "RIGHT", "MLO", 1, 2, "BENIGN_WITHOUT_CALLBACK")],
        ("calc", "train"): [("P_00005", "RIGHT", "CC", 1, 2, "BENIGN"), ("P_00007", "LEFT", "CC", 1, 0, "BENIGN")],
        ("calc", "test"): [("P_00038", "LEFT", "MLO", 1, 4, "MALIGNANT")],
    }
    for (kind, split), rows in tables.items():
        word = {"mass": "breast_density", "calc": "breast density"}[kind]
        table = CBIS.format(density=word, features={"mass": "mass shape,mass margins", "calc": "calc type,x"}[kind])
        for patient, side, view, number, density, pathology in rows:
            name = f"{kind.title()}-{'Training' if split == 'train' else 'Test'}_{patient}_{side}_{view}"
            table += f"{patient},{density},{side},{view},{number},{kind},OVAL,ROUND,4,{pathology},4,"
            paths = (f"{name}/1.3/1.4/000000.dcm", f"{name}_{number}/1/2/000000.dcm", f"{name}_{number}/1/2/000001.dcm")
            table += '{},{},"{}\n"\n'.format(*paths)
            write_film(folder / f"CBIS-DDSM/{name}/07-20-2016-DDSM-NA-1/1.000000-full mammogram images-1/1-1.dcm")
            lesion = folder / f"CBIS-DDSM/{name}_{number}/07-20-2016-DDSM-NA-2"
            # The table's crop is the mask; the mask of the second abnormality is two rows too high.
            mask = np.roll(ball((40 + 2 * (number - 1), SIDE)), 6 * number, 1).astype(np.uint8) * 255
            write_dicom(lesion / "1.000000-ROI mask images-3/1-1.dcm", mask)
            write_film(lesion / "1.000000-cropped images-4/1-1.dcm", (10, 12))
        write_text(folder / f"{kind}_case_description_{split}_set.csv", table)


def inbreast(folder: Path) -> None:
    folder = folder / "INbreast Release 1.0"
    lines = ["Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"]
    rows = (
        ("100", "aa01", "R", "CC", "2", "1"),
        ("101", "aa01", "L", "MLO", " ", "4a"),
        ("102", "bb02", "L", "CC", "4", "5"),
        ("103", "cc03", "R", "CC", "1", "2"),
    )
    for number, patient, side, view, density, birads in rows:
        lines.append(f"removed;removed;{side};{view};201001;{number};{density};{birads}")
        write_film(folder / f"AllDICOMs/{number}_{patient}_MG_{side}_{view}_ANON.dcm")
    write_text(folder / "INbreast.csv", "\n".join([*lines, ";;;;;;;", "Remark;;;;;;;"]))
    square = ["(5.000000, 6.000000)", "(15.5, 6.0)", "(15.5, 16.25)", "(5.0, 16.25)"]
    for number, rois in {
        "101": [("Mass", square), ("Calcification", ["(20.0, 30.0)"])],
        "102": [("Calcifications", square), ("Espiculated Region", square), ("Unnamed", [])],
    }.items():
        contours = [{"Name": name, "NumberOfPoints": len(points), "Point_px": points} for name, points in rois]
        (folder / "AllXML").mkdir(exist_ok=True)
        content = {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(contours), "ROIs": contours}]}
        (folder / f"AllXML/{number}.xml").write_bytes(plistlib.dumps(content))


def vindr_mammo(folder: Path) -> None:
    head = "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,"
    breasts, findings = [head + "split"], [head + "finding_categories,finding_birads,xmin,ymin,xmax,ymax,split"]
    for i, (split, density) in enumerate((("training", "B"), ("training", "C"), ("test", "D"))):
        for view in ("CC", "MLO"):
            row = f"study{i},series{i},{i}{view},L,{view},40,32,BI-RADS {i + 1},DENSITY {density},"
            breasts.append(row + split)
            write_film(folder / f"images/study{i}/{i}{view}.dicom")
            if i:
                findings.append(row + f"\"['Mass']\",BI-RADS 4,-1.5,4.25,12,16,{split}")
                findings.append(row + f"\"['Suspicious Calcification', 'Mass']\",BI-RADS 5,10,10,20,30,{split}")
            else:
                findings.append(row + f"['No Finding'],,,,,,{split}")
    write_text(folder / "breast-level_annotations.csv", "\n".join(breasts) + "\n")
    write_text(folder / "finding_annotations.csv", "\n".join(findings) + "\n")


def rsna_pneumonia(folder: Path) -> None:
    boxes, kinds = "patientId,x,y,width,height,Target\n", "patientId,class\n"
    for i, kind in enumerate(("Normal", "No Lung Opacity / Not Normal", "Lung Opacity", "Lung Opacity")):
        image_boxes = ["4.0,5.0,10.0,12.0,1", "18.0,6.0,9.0,12.0,1"] if kind == "Lung Opacity" else [",,,,0"]
        boxes += "".join(f"img-{i},{box}\n" for box in image_boxes)
        kinds += f"img-{i},{kind}\n" * len(image_boxes)
        write_dicom(
            folder / f"stage_2_train_images/img-{i}.dcm", RNG.integers(0, 255, (SIDE, SIDE)).astype(np.uint8), "CR"
        )
    write_text(folder / "stage_2_train_labels.csv", boxes)
    write_text(folder / "stage_2_detailed_class_info.csv", kinds)
    mapping = [{"subset_img_id": f"img-{i}", "img_id": f"0000000{i // 2}_00{i}.png"} for i in range(4)]
    write_text(folder / "pneumonia-challenge-dataset-mappings_2018.json", json.dumps(mapping))


def kermany(folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("IM-0115-0001", "NORMAL2-IM-0381-0001", "NORMAL2-IM-0381-0001-0002"):
            draw_noise(folder / f"chest_xray/{split}/NORMAL/{name}.jpeg")
        for name in ("person1_bacteria_1", "person1_bacteria_2", "person1_virus_7", "person3_virus_12"):
            draw_noise(folder / f"chest_xray/{split}/PNEUMONIA/{name}.jpeg", (20, SIDE))


COVID = """\
patientid,offset,sex,age,finding,view,modality,location,folder,filename,license,other_notes,
2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,"Cho Ray Hospital, Ho Chi Minh City, Vietnam",images,a.jpeg,,x,
2,3,M,65,Pneumonia/Viral/COVID-19,AP,X-ray,"Cho Ray Hospital, Ho Chi Minh City, Vietnam",images,b.png,,x,
3,4,,,Pneumonia/Viral/SARS,AP Supine,X-ray,,images,c.jpg,CC BY,,
4,4,F,52,No Finding,PA,X-ray,"Toronto, Canada",images,d.png,,,
5,4,F,70,todo,PA,X-ray,"Toronto, Canada",images,e.png,,,
6,4,F,70,Pneumonia/Viral/COVID-19,L,X-ray,"Toronto, Canada",images,side.png,,,
6,4,F,70,Pneumonia/Viral/COVID-19,Axial,CT,"Toronto, Canada",volumes,ct.nii.gz,,,
"""


def covid_chestxray(folder: Path) -> None:
    folder = folder / "covid-chestxray-dataset-master"
    write_text(folder / "metadata.csv", COVID)
    for name in ("a.jpeg", "b.png", "c.jpg", "d.png", "e.png"):
        draw_noise(folder / "images" / name)
    scores = "## Scores\n## License: CC BY-SA\nfilename,geographic_mean,opacity_mean\na.jpeg,6.0,4.0\n"
    write_text(folder / "annotations/covid-severity-scores.csv", scores)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    **{name: partial(medmnist, name) for name in MEDMNIST},
    "busi": busi,
    "mias": mias,
    "cbis-ddsm": cbis_ddsm,
    "inbreast": inbreast,
    "vindr-mammo": vindr_mammo,
    "rsna-pneumonia": rsna_pneumonia,
    "kermany": kermany,
    "covid-chestxray": covid_chestxray,
}
