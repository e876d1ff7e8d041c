"""Write seven public sets of images and volumes as one site folder each, for a model that is trained on all of them.

python -m benchmarks.joint_images --source FOLDER --out images/joint

For FOLDER see :mod:`benchmarks.images`; it also contains ``hippocampus3d``, and ``pneumoniamnist`` in its official
form. A set becomes ``OUT/SET/`` with a manifest and a site file that names modality, body part and dimensions. Test
images keep the split ``test``. The names of tasks are unique over the sets.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtfed.data.sets import find_set
from mtfed.data.sets.prepare import prepare
from mtfed.data.site_file import SITE_FILE, write_site_file

from .fixtures.copies import BUSI, COVID_CXR, ISIC2017, MIAS, OPENKBP3D
from .fixtures.reencoded import Copy, IndexRow, volume_writer


def hippocampus_volume(row: IndexRow, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return image, mask of both parts of the hippocampus, and voxel spacing in mm, axes z, y, x."""
    image, mask = (arrays[name].transpose(2, 1, 0) for name in ("image", "label"))
    return {"image": image, "mask": mask, "spacing": np.ones(3)}


HIPPOCAMPUS3D = Copy(
    {"hippocampus": lambda row: f"{row['id']}.npz", "volume": lambda row: row["vol_total_mm3"]},
    write=volume_writer(hippocampus_volume),
)


@dataclass(frozen=True)
class JointSet:
    """A set, what its images are, and its tasks: name here -> name in the copy."""

    copy: Copy
    about: Mapping[str, str | int]
    tasks: Mapping[str, str]


SETS = {
    "isic2017": JointSet(ISIC2017, {"modality": "dermatoscopy", "body-part": "skin"}, {"melanoma": "melanoma"}),
    "busi": JointSet(
        BUSI, {"modality": "ultrasound", "body-part": "breast"}, {"tumour": "lesion", "tumour-outline": "outline"}
    ),
    "covid_cxr": JointSet(COVID_CXR, {"modality": "x-ray", "body-part": "chest"}, {"covid": "covid", "lungs": "lungs"}),
    "mias": JointSet(MIAS, {"modality": "mammography", "body-part": "breast"}, {"density": "density"}),
    "hippocampus3d": JointSet(
        HIPPOCAMPUS3D, {"modality": "mri", "body-part": "brain", "dimensions": 3},
        {"hippocampus": "hippocampus", "volume": "volume"},
    ),
    "openkbp3d": JointSet(
        OPENKBP3D, {"modality": "ct", "body-part": "head-neck", "dimensions": 3},
        {"organs": "structures", "dose": "dose"},
    ),
}  # fmt: skip
OFFICIAL = "pneumoniamnist"


def main() -> None:
    """Read the sources and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the re-encoded sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    for name, joint in SETS.items():
        count = write(name, joint, arguments.source / name, arguments.out / name)
        print(f"{name:16} {count:5} images")
    prepared = prepare(find_set(OFFICIAL), arguments.source / OFFICIAL, out=arguments.out / OFFICIAL)
    print(f"{OFFICIAL:16} {sum(prepared.splits.values()):5} images")


def write(name: str, joint: JointSet, source: Path, out: Path) -> int:
    """Write the images, labels, manifest and site file of one set, and return the number of its images."""
    rows = []
    for row, image in joint.copy.write(source, joint.copy.rows(source), lambda row: (out, out)):
        cells = [joint.copy.cells[cell](row) for cell in joint.tasks.values()]
        rows.append([image, row[joint.copy.patient], joint.copy.split(row), *cells])
    with open(out / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "patient", "split", *joint.tasks], *rows])
    write_site_file(out / SITE_FILE, {"key": name.replace("_", "-"), **joint.about})
    return len(rows)


if __name__ == "__main__":
    main()
