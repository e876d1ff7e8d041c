"""Write five public sets of images as site folders, which the experiments of the models train on.

python -m benchmarks.images --source FOLDER --out images

FOLDER holds one folder a set, each with an ``index.csv`` (one row an image, column ``split``), ``images.zip`` and
``masks.zip``; of OpenKBP, ``volumes/ID.npz`` at 64^3: the copies of :mod:`mtfed.data.sets.copies`. A set becomes
``images/SET/SITE/`` with a manifest; test images go to ``images/SET/test``, which is the server's. Licences of these
sets mostly forbid passing images on, so the folders stay where they are made.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from mtfed.data.sets.copies import BUSI, COVID_CXR, ISIC2017, MIAS, OPENKBP3D
from mtfed.data.sets.reencoded import Copy, Row

COPIES = {"covid_cxr": COVID_CXR, "busi": BUSI, "isic2017": ISIC2017, "mias": MIAS, "openkbp3d": OPENKBP3D}


def main() -> None:
    """Read the sources and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = parser.parse_args()
    for name, copy in COPIES.items():
        write(name, copy, given.source / name, given.out / name)


def write(name: str, copy: Copy, source: Path, out: Path) -> None:
    """Write images, labels and manifests of one set, each image and its labels into its site's folder."""

    def place(row: Row) -> tuple[Path, Path]:
        return out / site_of(row, copy), out / site_of(row, copy)

    lines: dict[str, list[list[str]]] = {}
    for row, image in copy.files(source, copy.rows(source), place):
        cells = [cell(row) for cell in copy.cells.values()]
        lines.setdefault(site_of(row, copy), []).append([image, row[copy.patient], copy.split(row), *cells])
    for site, own in lines.items():
        with open(out / site / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "patient", "split", *copy.cells], *own])
        print(f"{name:12} {site:16} {len(own):5} images")


def site_of(row: Row, copy: Copy) -> str:
    """Return the folder that a row goes to."""
    return "test" if row["split"] == "test" else copy.site(row) or "hospital"


if __name__ == "__main__":
    main()
