"""Make thirteen hospitals of two public sets of chest X-rays: folders that `mtfed simulate chest` trains on.

python -m benchmarks.hospitals --source FOLDER --out hospitals

Eight hold lung masks, as the collection's images come from eight places (4 to 66 to train on); five hold pneumonia
labels, divided among them by Dirichlet(0.3), so that one has next to no healthy child and another few ill ones. None
holds both. Source folders are as `mtfed.data.sample.build` describes them (pneumoniamnist, covid_cxr with its columns
has_mask and client); most masks' licences forbid passing them on, so the folders stay where they are made.
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
LABELLED = 800  # images with a pneumonia label that are divided
SITES = 5
ALPHA = 0.3
VALIDATION = 0.15
COLUMNS = ("image", "patient", "split", "pneumonia", "lungs")

Rows = list[tuple[str, ...]]


def main() -> None:
    """Read the sources and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the two sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = parser.parse_args()
    hospitals: dict[str, Rows] = {}
    lungs(given.source / "covid_cxr", given.out, hospitals)
    pneumonia(given.source / "pneumoniamnist", given.out, hospitals)
    for name, rows in sorted(hospitals.items()):
        with open(given.out / name / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        print(f"{name:20} {len(rows):4} images")


def lungs(source: Path, out: Path, hospitals: dict[str, Rows]) -> None:
    """Add the images that have a lung mask, a hospital for every place; the collection's test part is the server's."""
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
    """Add images of children, labelled; class by class they are divided by shares that a Dirichlet draws."""
    generator = np.random.default_rng(0)
    arrays = np.load(source / "pneumoniamnist.npz")
    images, labels = arrays["train_images"], arrays["train_labels"].ravel()
    chosen = generator.permutation(len(images))[:LABELLED]
    shares = generator.dirichlet([ALPHA] * SITES, 2)
    for label in (0, 1):
        own = generator.permutation(chosen[labels[chosen] == label])
        cuts = (np.cumsum(shares[label])[:-1] * len(own)).astype(int)
        for site, part in enumerate(np.split(own, cuts)):
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
