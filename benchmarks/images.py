"""Write five public sets of images as site folders, which the experiments on the models train on.

python -m benchmarks.images --source FOLDER --out images

FOLDER contains one folder per set in the form that :mod:`benchmarks.fixtures.reencoded` describes: ``index.csv``,
``images.zip`` and ``masks.zip``, or ``volumes/ID.npz`` at 64^3 for OpenKBP. A set becomes ``images/SET/SITE/`` with a
manifest; the test images go to ``images/SET/test``, which is the server's folder. The licences of most of these sets
forbid passing images on, so the folders stay where they are made.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from .fixtures.copies import BUSI, COVID_CXR, ISIC2017, MIAS, OPENKBP3D
from .fixtures.reencoded import Copy, IndexRow

COPIES = {"covid_cxr": COVID_CXR, "busi": BUSI, "isic2017": ISIC2017, "mias": MIAS, "openkbp3d": OPENKBP3D}


def main() -> None:
    """Read the sources and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the re-encoded sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    for name, copy in COPIES.items():
        write(name, copy, arguments.source / name, arguments.out / name)


def write(name: str, copy: Copy, source: Path, out: Path) -> None:
    """Write images, labels and manifests of one set, each image and its labels into the folder of its site."""
    rows_by_site: dict[str, list[list[str]]] = {}
    for row, image in copy.write(source, copy.rows(source), lambda row: (out / site_of(row, copy),) * 2):
        cells = [cell(row) for cell in copy.cells.values()]
        rows_by_site.setdefault(site_of(row, copy), []).append([image, row[copy.patient], copy.split(row), *cells])
    for site, rows in rows_by_site.items():
        with open(out / site / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "patient", "split", *copy.cells], *rows])
        print(f"{name:12} {site:16} {len(rows):5} images")


def site_of(row: IndexRow, copy: Copy) -> str:
    """Return the name of the folder that a row goes to."""
    return "test" if row["split"] == "test" else copy.site(row) or "hospital"


if __name__ == "__main__":
    main()
