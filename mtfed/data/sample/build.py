"""Build the embedded sample `cxr.zip` and its `ATTRIBUTION.md` from local copies of the two source sets.

    python -m mtfed.data.sample.build --source FOLDER --out cxr.zip

FOLDER/pneumoniamnist/pneumoniamnist.npz: `{train,test}_{images,labels}`, uint8, 28x28, label 1 = pneumonia, as MedMNIST
publishes it (https://medmnist.com). Images are chosen by the hash of their pixels, so the order in the file is free.

FOLDER/covid_cxr/: chest X-rays of https://github.com/ieee8023/covid-chestxray-dataset with the lung masks of V7 Labs
(https://github.com/v7labs/covid-19-xray-dataset), padded to a square and resized to 224x224, the mask with its image:
- `index.csv`, UTF-8: id, file, orig_file, split (train/val/test, by patient), patient, location, license, doi, url;
- `images.zip`: a grey JPEG for each `file`, copied byte for byte;
- `masks.zip`: `{id}.png` for the images that have one, 0 outside and 1 in the lungs, copied byte for byte.

Only images whose own licence is CC BY are taken. The same sources give the same bytes: names are sorted, time stamps
fixed and nothing depends on the version of a compressor.
"""

import argparse
import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import MtfedError

SEED = b"mtfed-1:"  # goes before the pixels of an image in the hash that decides whether it is chosen
PER_CLASS = {"train": 800, "test": 200}
SPLITS = {"train": "train", "val": "test", "test": "test"}  # a smoke-size sample needs no third part
OPEN_LICENCES = ("CC BY", "CC BY 3.0", "CC BY 4.0")  # exact: NC, SA and ND may not be shipped
HUFFMAN_ONLY = 2  # zlib strategy; unlike the default, zlib and zlib-ng then write the same bytes, and no more of them

# Slips of the collection's table: a lost accent, and the DOI of another article (the URL beside it was right).
LOCATION_FIXES = {"Centro M?dico Imbanaco": "Centro Médico Imbanaco"}
DOI_FIXES = dict.fromkeys(
    ("10.11909/j.issn.1671-5411.2020.04.005", "10.11909/j.issn.1671-5411.2020.04.005-0"), "10.1186/s41182-020-00203-0"
)

WORKS = {  # doi: the work to credit
    "10.6084/m9.figshare.12275009": "Winther HB, Laser H, Gerbel S, Maschke SK, Hinrichs JB, Vogel-Claussen J, "
    "Wacker FK, Höper MM, Meyer BC. COVID-19 Image Repository. Hannover Medical School, figshare, 2020",
    "10.1186/s12941-020-00358-y": "Successful recovery of COVID-19 pneumonia in a patient from Colombia after "
    "receiving chloroquine and clarithromycin. Ann Clin Microbiol Antimicrob 2020; 19:16, authors as named at the DOI",
    "10.1186/s40779-020-0233-6": "Jin YH et al. A rapid advice guideline for the diagnosis and treatment of 2019 novel "
    "coronavirus (2019-nCoV) infected pneumonia (standard version). Mil Med Res 2020; 7:4",
    "10.1186/s41182-020-00203-0": "Edrada EM et al. First COVID-19 infections in the Philippines: a case report. "
    "Trop Med Health 2020; 48:21",
    "10.7150/thno.46465": "Theranostics 2020; 10:5641, authors as named at the DOI",
}

ATTRIBUTION = """# Attribution of the embedded sample

Made by `mtfed/data/sample/build.py`, which writes this file too. `cxr.zip` holds {pneumonia} images of PneumoniaMNIST
and {lungs} chest X-rays with a lung mask. All are under a Creative Commons Attribution licence,
[CC BY 3.0](https://creativecommons.org/licenses/by/3.0/) or [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/),
which asks for the credit below wherever they are passed on. For tests and demonstrations, not for diagnosis.

## PneumoniaMNIST (`pm-…`), CC BY 4.0

Yang J, Shi R, Wei D, Liu Z, Zhao L, Ke B, Pfister H, Ni B. MedMNIST v2 – A large-scale lightweight benchmark for 2D and
3D biomedical image classification. Scientific Data 2023; 10:41. https://doi.org/10.1038/s41597-022-01721-8,
https://medmnist.com

Made from: Kermany DS, Goldbaum M, Cai W, et al. Identifying medical diagnoses and treatable diseases by image-based
deep learning. Cell 2018; 172(5):1122–1131. https://doi.org/10.1016/j.cell.2018.02.010. Data: Kermany D, Zhang K,
Goldbaum M. Mendeley Data, 2018, CC BY 4.0. https://doi.org/10.17632/rscbjbr9sj.2. The patients were children of one to
five years at Guangzhou Women and Children's Medical Center. The images carry no attribution of their own, so they have
this one entry.

Changes: MedMNIST cropped the images to the centre and resized them to 28x28. Here a class-balanced choice was made from
its training and test parts, without exact repeats, and saved as PNG; pixels are unchanged.

No patient ids are published, so each image counts as a patient of its own. That no patient is in both splits rests on
the official split, which Kermany et al. made between independent patients. Several images of one patient may be in the
training part, and so with several simulated hospitals.

## Chest X-rays with lung masks (`cx-…`), CC BY 3.0 or CC BY 4.0 as in the table

Images, gathered in: Cohen JP, Morrison P, Dao L. COVID-19 image data collection. arXiv:2003.11597, 2020. Cohen JP,
Morrison P, Dao L, Roth K, Duong TQ, Ghassemi M. COVID-19 image data collection: prospective predictions are the future.
arXiv:2006.11988, 2020. https://github.com/ieee8023/covid-chestxray-dataset. The collection's own documents are under
CC BY-NC-SA 4.0; taken from them are only the facts of origin in the table and which images are of one patient.

Masks: V7 Labs, COVID-19 X-ray dataset, annotated with CloudFactory, CC BY 4.0.
https://github.com/v7labs/covid-19-xray-dataset, as passed on by TorchXRayVision
(https://github.com/mlmed/torchxrayvision). By its rules a lung includes the part behind the heart, and devices such as
pacemakers and printed marks are left out.

Changes: the images were padded to a square, resized to 224x224 and saved as grey JPEG; the masks were moved with them
by nearest neighbour. Only images under CC BY that have a mask were chosen; val and test images of the source are test
images here. Corrected: a lost accent in the name of Centro Médico Imbanaco, and the DOI of the images from San Lazaro
Hospital.

Works the images come from:

{works}

| id | original file | licence | work | url | place |
| --- | --- | --- | --- | --- | --- |
{table}
"""


@dataclass(frozen=True)
class Row:
    """Describe one image: a line of `manifest.csv`, whose columns are these fields in this order."""

    id: str
    image: str  # path in the archive
    patient: str  # unique over both sources
    split: str  # train or test
    pneumonia: str  # 0, 1 or empty: not labelled for this task
    lungs: str  # path of the mask in the archive, or empty
    hospital: str
    source: str
    licence: str
    url: str
    doi: str


Part = tuple[list[Row], dict[str, bytes]]  # manifest lines and the files they name


def pneumonia_images(folder: Path) -> Part:
    """Choose a class-balanced part of PneumoniaMNIST; official test images stay test images.

    Images are ranked by a salted hash of their pixels: a fixed random choice that depends neither on the order of the
    file nor on a random generator, and that takes exact repeats for one image.
    """
    rows: list[Row] = []
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}  # by hash
    with np.load(folder / "pneumoniamnist.npz") as arrays:
        for split, count in PER_CLASS.items():
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()  # (N, 28, 28), (N,)
            found = {sha256(SEED + image.tobytes()).hexdigest(): n for n, image in enumerate(images)}
            chosen: list[str] = []
            for label in (0, 1):
                ranked = sorted(digest for digest, n in found.items() if labels[n] == label)
                if len(ranked) < count:
                    raise MtfedError(
                        f"{folder}: expected {count} different {split} images of class {label}, got {len(ranked)}"
                    )
                chosen += ranked[:count]
            for number, digest in enumerate(sorted(chosen), 1):
                name = f"pm-{split}-{number:04d}"
                if names.setdefault(digest, name) != name:
                    raise MtfedError(f"{folder}: {names[digest]} and {name} are the same image")
                row = Row(
                    id=name,
                    image=f"images/{name}.png",
                    patient=name,
                    split=split,
                    pneumonia=str(labels[found[digest]]),
                    lungs="",
                    hospital="Guangzhou Women and Children's Medical Center",
                    source="PneumoniaMNIST",
                    licence="CC BY 4.0",
                    url="https://medmnist.com",
                    doi="10.1038/s41597-022-01721-8",
                )
                files[row.image] = _png(images[found[digest]])
                rows.append(row)
    return rows, files


def lung_images(folder: Path) -> Part:
    """Take every chest X-ray under CC BY that has a lung mask, image and mask byte for byte."""
    rows: list[Row] = []
    files: dict[str, bytes] = {}
    splits: dict[str, set[str]] = defaultdict(set)  # by patient, whether chosen or not
    with zipfile.ZipFile(folder / "images.zip") as images, zipfile.ZipFile(folder / "masks.zip") as masks:
        for entry in _index(folder):
            splits[entry["patient"]].add(SPLITS[entry["split"]])
            if entry["license"] not in OPEN_LICENCES or f"{entry['id']}.png" not in masks.namelist():
                continue
            name = f"cx-{entry['id']}"
            row = Row(
                id=name,
                image=f"images/{name}.jpg",
                patient=f"cx-{entry['patient']}",
                split=SPLITS[entry["split"]],
                pneumonia="",
                lungs=f"masks/{name}.png",
                hospital=_location(name, entry["location"]),
                source="covid-chestxray-dataset",
                licence=entry["license"],
                url=entry["url"],
                doi=DOI_FIXES.get(entry["doi"], entry["doi"]),
            )
            if row.doi not in WORKS:
                raise MtfedError(f"{name}: no work to credit for doi {row.doi!r}; add it to WORKS")
            files[row.image] = images.read(entry["file"])
            files[row.lungs] = masks.read(f"{entry['id']}.png")
            _check_mask(name, files[row.image], files[row.lungs])
            rows.append(row)
    for patient, parts in splits.items():
        if len(parts) > 1:
            raise MtfedError(f"{folder}: patient {patient} is in both train and test")
    return rows, files


def build(source: Path, out: Path) -> None:
    """Write the archive to `out` and `ATTRIBUTION.md` beside it."""
    pneumonia, files = pneumonia_images(source / "pneumoniamnist")
    lungs, more = lung_images(source / "covid_cxr")
    files |= more | {"manifest.csv": _manifest(pneumonia + lungs)}
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # 1980-01-01, stored: images are compressed already
            info.create_system, info.external_attr = 3, 0o644 << 16  # else the platform's own
            archive.writestr(info, files[name])
    originals = {f"cx-{entry['id']}": entry["orig_file"] for entry in _index(source / "covid_cxr")}
    text = ATTRIBUTION.format(
        pneumonia=f"{len(pneumonia):,}",
        lungs=len(lungs),
        works="\n".join(f"- {WORKS[doi]}. https://doi.org/{doi}" for doi in sorted({row.doi for row in lungs})),
        table="\n".join(
            f"| {row.id} | {originals[row.id]} | {row.licence} | {row.doi} | {row.url} | {row.hospital} |"
            for row in lungs
        ),
    )
    (out.parent / "ATTRIBUTION.md").write_text(text, encoding="utf-8", newline="\n")


def _index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda entry: entry["id"])


def _location(name: str, text: str) -> str:
    for wrong, right in LOCATION_FIXES.items():
        text = text.replace(wrong, right)
    if "?" in text or "\ufffd" in text:
        raise MtfedError(f"{name}: {text!r} lost a character; add it to LOCATION_FIXES")
    return text


def _check_mask(name: str, image: bytes, mask: bytes) -> None:
    size, pixels = Image.open(io.BytesIO(image)).size, np.asarray(Image.open(io.BytesIO(mask)))
    if pixels.shape != size[::-1] or not np.array_equal(np.unique(pixels), [0, 1]):
        raise MtfedError(f"{name}: a {size} mask of 0 and 1 expected, got {pixels.shape} with {np.unique(pixels)[:5]}")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_type=HUFFMAN_ONLY)
    return buffer.getvalue()


def _manifest(rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in sorted(rows, key=lambda row: row.id))
    return text.getvalue().encode()


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with pneumoniamnist/ and covid_cxr/")
    parser.add_argument("--out", type=Path, required=True, help="archive to write; ATTRIBUTION.md goes beside it")
    options = parser.parse_args()
    try:
        build(options.source, options.out)
    except (MtfedError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
