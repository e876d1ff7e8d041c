"""Make thirteen hospitals from two public sets of chest X-rays, as folders that `mtfed simulate chest` trains on.

python -m benchmarks.hospitals --source FOLDER --out hospitals

Eight hospitals have lung masks, because the collection's images come from eight places (4 to 66 training images each).
Five have pneumonia labels, divided among them by Dirichlet(0.3), so that one has almost no healthy child and another
few ill ones. No hospital has both. The source folders are those that `benchmarks.fixtures.sample` describes
(pneumoniamnist, and covid_cxr with its columns has_mask and client). The licences of most masks forbid passing them on,
so the folders stay where they are made.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # pixels
LABELLED = 800  # images with a pneumonia label, divided among the hospitals
SITES = 5
ALPHA = 0.3
VALIDATION = 0.15
COLUMNS = ("image", "patient", "split", "pneumonia", "lungs")

Rows = list[tuple[str, ...]]


def main() -> None:
    """Read the sources and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the two sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    hospitals: dict[str, Rows] = {}
    lungs(arguments.source / "covid_cxr", arguments.out, hospitals)
    pneumonia(arguments.source / "pneumoniamnist", arguments.out, hospitals)
    for name, rows in sorted(hospitals.items()):
        with open(arguments.out / name / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        print(f"{name:20} {len(rows):4} images")


def lungs(source: Path, out: Path, hospitals: dict[str, Rows]) -> None:
    """Add the images that have a lung mask, one hospital per place; the collection's test split is the server's."""
    with (
        open(source / "index.csv", newline="", encoding="utf-8") as index,
        zipfile.ZipFile(source / "images.zip") as images,
        zipfile.ZipFile(source / "masks.zip") as masks,
    ):
        for row in csv.DictReader(index):
            if row["has_mask"] != "1":
                continue
            name = "test" if row["split"] == "test" else "lungs-" + row["client"].lower().replace(" ", "-")
            image = Image.open(io.BytesIO(images.read(row["file"]))).convert("L").resize((SIDE, SIDE), 2)
            mask = np.asarray(Image.open(io.BytesIO(masks.read(f"{row['id']}.png"))).resize((SIDE, SIDE), 0)) > 0
            paths = [f"{row['id']}.png", f"{row['id']}-lungs.png"]
            for path, picture in zip(paths, (image, Image.fromarray(mask.astype(np.uint8))), strict=True):
                save(picture, out / name / path)
            hospitals.setdefault(name, []).append((paths[0], f"c{row['patient']}", row["split"], "", paths[1]))


def pneumonia(source: Path, out: Path, hospitals: dict[str, Rows]) -> None:
    """Add labelled images of children; each class is divided by shares drawn from a Dirichlet distribution."""
    generator = np.random.default_rng(0)
    arrays = np.load(source / "pneumoniamnist.npz")
    images, labels = arrays["train_images"], arrays["train_labels"].ravel()
    chosen = generator.permutation(len(images))[:LABELLED]
    shares = generator.dirichlet([ALPHA] * SITES, 2)
    for label in (0, 1):
        indices = generator.permutation(chosen[labels[chosen] == label])
        cuts = (np.cumsum(shares[label])[:-1] * len(indices)).astype(int)
        for site, part in enumerate(np.split(indices, cuts)):
            name = f"pneumonia-{site + 1}"
            for number in part.tolist():
                split = "val" if generator.random() < VALIDATION else "train"
                save(Image.fromarray(images[number]), out / name / f"p{number}.png")
                hospitals.setdefault(name, []).append((f"p{number}.png", f"p{number}", split, str(label), ""))
    for number, label in enumerate(arrays["test_labels"].ravel().tolist()):
        save(Image.fromarray(arrays["test_images"][number]), out / "test" / f"t{number}.png")
        hospitals.setdefault("test", []).append((f"t{number}.png", f"t{number}", "test", str(label), ""))


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


if __name__ == "__main__":
    main()
