"""MedMNIST v2: eighteen small sets with official splits, each one .npz of arrays.

The arrays are unpacked to one small file per image (a .png, or an .npy of a volume), row by row, so that the larger
versions of 64 to 224 pixels need no more memory than the small ones. The facts are from the ``medmnist`` package,
version 3.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample

SPLITS = ("train", "val", "test")
SIZE_SUFFIXES = ("_224", "_128", "_64", "")  # suffixes of a set's files; the largest one that is present is read
RECORD = "https://zenodo.org/records/10519652"
CITATION = (
    "Yang J, Shi R, Wei D, Liu Z, Zhao L, Ke B, Pfister H, Ni B. MedMNIST v2: a large-scale lightweight benchmark for "
    "2D and 3D biomedical image classification. Scientific Data 10:41, 2023. Cite the source of this subset, too: see "
    "https://medmnist.com."
)


class Subset(NamedTuple):
    """The facts in which the sets differ; names of sets of volumes end in 3d."""

    title: str
    modality: str
    task: str
    channels: int
    images: int
    md5: str  # MD5 digest of NAME.npz


SUBSETS = {subset.title.lower(): subset for subset in (
    Subset("PathMNIST", "colon pathology", "tissue", 3, 107180, "a8b06965200029087d5bd730944a56c1"),
    Subset("ChestMNIST", "chest X-ray", "findings", 1, 112120, "02c8a6516a18b556561a56cbdd36c4a8"),
    Subset("DermaMNIST", "dermatoscopy", "lesion", 3, 10015, "0744692d530f8e62ec473284d019b0c7"),
    Subset("OCTMNIST", "retinal OCT", "retina", 1, 109309, "c68d92d5b585d8d81f7112f81e2d0842"),
    Subset("PneumoniaMNIST", "chest X-ray", "pneumonia", 1, 5856, "28209eda62fecd6e6a2d98b1501bb15f"),
    Subset("RetinaMNIST", "fundus", "retinopathy", 3, 1600, "bd4c0672f1bba3e3a89f0e4e876791e4"),
    Subset("BreastMNIST", "breast ultrasound", "malignancy", 1, 780, "750601b1f35ba3300ea97c75c52ff8f6"),
    Subset("BloodMNIST", "blood smear", "cell", 3, 17092, "7053d0359d879ad8a5505303e11de1dc"),
    Subset("TissueMNIST", "kidney microscopy", "cell", 1, 236386, "ebe78ee8b05294063de985d821c1c34b"),
    Subset("OrganAMNIST", "abdominal CT", "organ", 1, 58830, "68e3f8846a6bd62f0c9bf841c0d9eacc"),
    Subset("OrganCMNIST", "abdominal CT", "organ", 1, 23583, "b9ceb9546e10131b32923c5bbeaea2b1"),
    Subset("OrganSMNIST", "abdominal CT", "organ", 1, 25211, "9ab87b696fb54e2a387ebe992d6ed5f1"),
    Subset("OrganMNIST3D", "abdominal CT", "organ", 1, 1742, "a0c5a1ff56af4f155c46d46fbb45a2fe"),
    Subset("NoduleMNIST3D", "chest CT", "malignancy", 1, 1633, "8755a7e9e05a4d9ce80a24c3e7a256f3"),
    Subset("AdrenalMNIST3D", "shape from abdominal CT", "adrenal", 1, 1584, "bbd3c5a5576322bc4cdfea780653b1ce"),
    Subset("FractureMNIST3D", "chest CT", "fracture", 1, 1370, "6aa7b0143a6b42da40027a9dda61302f"),
    Subset("VesselMNIST3D", "shape from brain MRA", "aneurysm", 1, 1908, "b41fd4f7e7e2feedddb201585ecafa1b"),
    Subset("SynapseMNIST3D", "electron microscopy", "synapse", 1, 1759, "1235b78a3cd6280881dd7850a78eadb6"),
)}  # fmt: skip
TASK_KINDS = {"chestmnist": "multi-label", "retinamnist": "ordinal"}  # all other subsets: classification
ORGANS = (
    "bladder, femur-left, femur-right, heart, kidney-left, kidney-right, liver, lung-left, lung-right, pancreas, spleen"
)
# By index. Unlike those of the package ("normal, benign"), names contain no commas, which separate them in a config.
CLASSES = {
    **dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), ORGANS),
    "pathmnist": "adipose, background, debris, lymphocytes, mucus, smooth muscle, normal colon mucosa, "
    "cancer-associated stroma, colorectal adenocarcinoma epithelium",
    "chestmnist": "atelectasis, cardiomegaly, effusion, infiltration, mass, nodule, pneumonia, pneumothorax, "
    "consolidation, edema, emphysema, fibrosis, pleural, hernia",
    "dermamnist": "actinic keratoses and intraepithelial carcinoma, basal cell carcinoma, benign keratosis-like "
    "lesions, dermatofibroma, melanoma, melanocytic nevi, vascular lesions",
    "octmnist": "choroidal neovascularization, diabetic macular edema, drusen, normal",
    "pneumoniamnist": "normal, pneumonia",
    "retinamnist": "grade 0, grade 1, grade 2, grade 3, grade 4",
    "breastmnist": "malignant, normal or benign",
    "bloodmnist": "basophil, eosinophil, erythroblast, immature granulocyte, lymphocyte, monocyte, neutrophil, "
    "platelet",
    "tissuemnist": "collecting duct or connecting tubule, distal convoluted tubule, glomerular endothelial cells, "
    "interstitial endothelial cells, leukocytes, podocytes, proximal tubule segments, thick ascending limb",
    "organmnist3d": "liver, kidney-right, kidney-left, femur-right, femur-left, bladder, heart, lung-right, "
    "lung-left, spleen, pancreas",
    "nodulemnist3d": "benign, malignant",
    "adrenalmnist3d": "normal, hyperplasia",
    "fracturemnist3d": "buckle rib fracture, nondisplaced rib fracture, displaced rib fracture",
    "vesselmnist3d": "vessel, aneurysm",
    "synapsemnist3d": "inhibitory synapse, excitatory synapse",
}


def read(name: str, folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of a set, unpacked into ``images/``."""
    task, dimensions = SUBSETS[name].task, _dimensions(name)
    path = next(path for size in SIZE_SUFFIXES if (path := folder / f"{name}{size}.npz").exists())
    try:
        with np.load(path, allow_pickle=False) as file, zipfile.ZipFile(path) as archive:
            for split in SPLITS:
                cells = [_cell(row, name) for row in file[f"{split}_labels"]]
                images = labels.parent / "images" / split
                images.mkdir(parents=True, exist_ok=True)
                for i, pixels in enumerate(_images(archive, f"{split}_images.npy", len(cells), dimensions)):
                    image = images / f"{i:06d}{'.png' if dimensions == 2 else '.npy'}"
                    if dimensions == 2:
                        Image.fromarray(pixels).save(image, "PNG", compress_level=1)
                    else:
                        np.save(image, pixels)
                    # The sets do not identify patients; their splits are by patient if the source's are.
                    patient = f"{split}-{i:06d}"
                    yield Sample(f"images/{split}/{image.name}", patient, {task: cells[i]}, split)
    except (KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise MtfedError(
            f"{path} is not the file that MedMNIST provides: {error}; remove it and get it again."
        ) from None


def _cell(row: np.ndarray, name: str) -> str:
    """Return the manifest cell of an image's labels, (1,) or (K,)."""
    names = CLASSES[name].split(", ")
    if TASK_KINDS.get(name) == "multi-label":
        return "; ".join(name for name, present in zip(names, row, strict=True) if present) or "none"
    return names[int(row[0])]


def _images(archive: zipfile.ZipFile, member: str, count: int, dimensions: int) -> Iterator[np.ndarray]:
    """Yield the images of an array one by one, without reading the whole array into memory."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = header(file)
        if len(shape) not in (dimensions + 1, 4) or shape[0] != count or is_fortran or dtype != np.uint8:
            raise ValueError(f"{member} has shape {list(shape)} and type {dtype}, but there are {count} labels")
        size = int(np.prod(shape[1:]))
        for _ in range(count):
            content = file.read(size)
            if len(content) < size:
                raise EOFError(f"{member} ends early")
            yield np.frombuffer(content, np.uint8).reshape(shape[1:])


def _dimensions(name: str) -> int:
    return 3 if name.endswith("3d") else 2


def _set(name: str) -> DataSet:
    subset, dimensions = SUBSETS[name], _dimensions(name)
    is_free = name != "dermamnist"
    return DataSet(
        name=name, title=subset.title,
        images=subset.images, dimensions=dimensions, channels=subset.channels, modality=subset.modality,
        licence="CC BY 4.0" if is_free else "CC BY-NC 4.0",
        terms=f"May be used{', sold' if is_free else ''} and redistributed{'' if is_free else ', not sold'}; its "
        "authors must be named.",
        home="https://medmnist.com", citation=CITATION,
        layout=f"{name}.npz{' ' * 6}or {name}_64.npz{'' if dimensions == 3 else f', {name}_128.npz, {name}_224.npz'}",
        required=("|".join(f"{name}{size}.npz" for size in SIZE_SUFFIXES),),
        tasks={subset.task: {"kind": TASK_KINDS.get(name, "classification"), "classes": CLASSES[name]}},
        read=partial(read, name),
        # The size is unknown; the checksum is sufficient.
        files=(RemoteFile(f"{name}.npz", f"{RECORD}/files/{name}.npz?download=1", md5=subset.md5),),
        settings={"image-size": 32} if dimensions == 2 else {},
        note="28 pixels per side. Patients are not identified, so every image counts as a separate patient. The larger "
        f"versions are at {RECORD}; they are read instead if you place them in the folder.",
    )  # fmt: skip


SETS = tuple(_set(name) for name in SUBSETS)
