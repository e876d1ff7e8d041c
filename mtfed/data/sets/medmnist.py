"""MedMNIST v2: eighteen small sets with official splits, each one .npz of arrays.

Each set comes in several sizes. The arrays are unpacked to one small file per image (a .png, or an .npy of a volume),
row by row, so that the large versions need no more memory than the small ones. The facts are from the ``medmnist``
package, version 3.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample

SPLITS = ("train", "val", "test")
SIZES = (28, 64, 128, 224)  # pixels per side, the smallest first; of volumes there are only two
RECORD = "https://zenodo.org/records/10519652"
CITATION = (
    "Yang J, Shi R, Wei D, Liu Z, Zhao L, Ke B, Pfister H, Ni B. MedMNIST v2: a large-scale lightweight benchmark for "
    "2D and 3D biomedical image classification. Scientific Data 10:41, 2023. Cite the source of this subset, too: see "
    "https://medmnist.com."
)


class Subset(NamedTuple):
    """The facts in which the sets differ; names of sets of volumes end in 3d."""

    title: str
    task: str  # unlike the names of the classes, unique, so that several sets can be in one run
    modality: str
    body_part: str
    channels: int
    images: int


SUBSETS = {subset.title.lower(): subset for subset in (
    Subset("PathMNIST", "path", "colon pathology", "colon", 3, 107180),
    Subset("ChestMNIST", "chest", "chest X-ray", "chest", 1, 112120),
    Subset("DermaMNIST", "derma", "dermatoscopy", "skin", 3, 10015),
    Subset("OCTMNIST", "oct", "retinal OCT", "retina", 1, 109309),
    Subset("PneumoniaMNIST", "pneumonia", "chest X-ray", "chest", 1, 5856),
    Subset("RetinaMNIST", "retina", "fundus", "retina", 3, 1600),
    Subset("BreastMNIST", "breast", "breast ultrasound", "breast", 1, 780),
    Subset("BloodMNIST", "blood", "blood smear", "blood", 3, 17092),
    Subset("TissueMNIST", "tissue", "kidney microscopy", "kidney", 1, 236386),
    Subset("OrganAMNIST", "organ-a", "abdominal CT", "abdomen", 1, 58830),
    Subset("OrganCMNIST", "organ-c", "abdominal CT", "abdomen", 1, 23583),
    Subset("OrganSMNIST", "organ-s", "abdominal CT", "abdomen", 1, 25211),
    Subset("OrganMNIST3D", "organ-3d", "abdominal CT", "abdomen", 1, 1742),
    Subset("NoduleMNIST3D", "nodule-3d", "chest CT", "chest", 1, 1633),
    Subset("AdrenalMNIST3D", "adrenal-3d", "shape from abdominal CT", "adrenal", 1, 1584),
    Subset("FractureMNIST3D", "fracture-3d", "chest CT", "ribs", 1, 1370),
    Subset("VesselMNIST3D", "vessel-3d", "shape from brain MRA", "brain", 1, 1908),
    Subset("SynapseMNIST3D", "synapse-3d", "electron microscopy", "brain", 1, 1759),
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

STRIDE = 32  # the encoders divide an image by this, so the apps enlarge it to a multiple
DIGESTS = {  # MD5 of the files, by size
    "pathmnist": (
        "a8b06965200029087d5bd730944a56c1",
        "55aa9c1e0525abe5a6b9d8343a507616",
        "ac42d08fb904d92c244187169d1fd1d9",
        "2c51a510bcdc9cf8ddb2af93af1eadec",
    ),
    "chestmnist": (
        "02c8a6516a18b556561a56cbdd36c4a8",
        "9de6cd0b934ebb5b7426cfba5efbae16",
        "db107e5590b27930b62dbaf558aebee3",
        "45bd33e6f06c3e8cdb481c74a89152aa",
    ),
    "dermamnist": (
        "0744692d530f8e62ec473284d019b0c7",
        "b70a2f5635c6199aeaa28c31d7202e1f",
        "2defd784463fa5243564e855ed717de1",
        "8974907d8e169bef5f5b96bc506ae45d",
    ),
    "octmnist": (
        "c68d92d5b585d8d81f7112f81e2d0842",
        "e229e9440236b774d9f0dfef9d07bdaf",
        "0a97e76651ace45c5d943ee3f65b63ae",
        "abc493b6d529d5de7569faaef2773ba3",
    ),
    "pneumoniamnist": (
        "28209eda62fecd6e6a2d98b1501bb15f",
        "8f4eceb4ccffa70c672198ea285246c6",
        "05b46931834c231683c68f40c47b2971",
        "d6a3c71de1b945ea11211b03746c1fe1",
    ),
    "retinamnist": (
        "bd4c0672f1bba3e3a89f0e4e876791e4",
        "afda852cc34dcda56f86ad2b2457dbcc",
        "e48e916a24454daf90583d4e6efb1a18",
        "eae7e3b6f3fcbda4ae613ebdcbe35348",
    ),
    "breastmnist": (
        "750601b1f35ba3300ea97c75c52ff8f6",
        "742edef2a1fd1524b2efff4bd7ba9364",
        "363e4b3f8d712e9b5de15470a2aaadf1",
        "b56378a6eefa9fed602bb16d192d4c8b",
    ),
    "bloodmnist": (
        "7053d0359d879ad8a5505303e11de1dc",
        "2b94928a2ae4916078ca51e05b6b800b",
        "adace1e0ed228fccda1f39692059dd4c",
        "b718ff6835fcbdb22ba9eacccd7b2601",
    ),
    "tissuemnist": (
        "ebe78ee8b05294063de985d821c1c34b",
        "123ece2eba09d0aa5d698fda57103344",
        "61b955355d7425a89687b06cca3ce0c2",
        "b077128c4a949f0a4eb01517f9037b9c",
    ),
    "organamnist": (
        "68e3f8846a6bd62f0c9bf841c0d9eacc",
        "2dcccc29b88e6da5a01161ef20cda288",
        "eeae80d0a227a8d099027e1b3cfd3b60",
        "50747347e05c87dd3aaf92c49f9f3170",
    ),
    "organcmnist": (
        "b9ceb9546e10131b32923c5bbeaea2b1",
        "3ce34a8724ea6f548e6db4744d03b6a9",
        "773c1f009daa3fe5d9a2a201b2a7ed94",
        "050f5e875dc056f6768abf94ec9995d1",
    ),
    "organsmnist": (
        "9ab87b696fb54e2a387ebe992d6ed5f1",
        "53a6d115339d874c25e309a994ff46d3",
        "ded0c5fa01a95dc4978b956f613e9b8e",
        "b354719e553fbbb2513d5533f52a4cb1",
    ),
    "organmnist3d": (
        "a0c5a1ff56af4f155c46d46fbb45a2fe",
        "58a2205adf14a9d0a189cb06dc78bf10",
    ),
    "nodulemnist3d": (
        "8755a7e9e05a4d9ce80a24c3e7a256f3",
        "c47c5b7d457bf6332200d2ea6d64ecd8",
    ),
    "adrenalmnist3d": (
        "bbd3c5a5576322bc4cdfea780653b1ce",
        "17721accfe9fb005146a47d33bc54b2f",
    ),
    "fracturemnist3d": (
        "6aa7b0143a6b42da40027a9dda61302f",
        "f01d7e6316aedf4210da0da5b7437b42",
    ),
    "vesselmnist3d": (
        "b41fd4f7e7e2feedddb201585ecafa1b",
        "6bb274a8846e1097066dcd64e2c4520f",
    ),
    "synapsemnist3d": (
        "1235b78a3cd6280881dd7850a78eadb6",
        "43bd14ebf3af9d3dd072446fedc14d5e",
    ),
}


def read(name: str, file_name: str, folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of one version of a set, unpacked into ``images/``."""
    task, dimensions = SUBSETS[name].task, _dimensions(name)
    path = folder / file_name
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
    versions = {size: _version(name, size) for size in SIZES[: len(DIGESTS[name])]}
    first, *larger = [version.required[0] for version in versions.values()]
    return replace(
        versions[SIZES[0]],
        title=SUBSETS[name].title,
        layout=f"{first}{' ' * 6}or {', '.join(larger)}",
        required=("|".join((first, *larger)),),
        versions=versions,
    )


def _version(name: str, size: int) -> DataSet:
    """Return a set with images of one size."""
    subset, dimensions = SUBSETS[name], _dimensions(name)
    is_free = name != "dermamnist"
    file_name = f"{name}.npz" if size == SIZES[0] else f"{name}_{size}.npz"
    digest = DIGESTS[name][SIZES.index(size)]
    return DataSet(
        name=name, title=f"{subset.title}, {size} pixels",
        images=subset.images, dimensions=dimensions, channels=subset.channels,
        modality=subset.modality, body_part=subset.body_part,
        licence="CC BY 4.0" if is_free else "CC BY-NC 4.0",
        terms=f"May be used{', sold' if is_free else ''} and redistributed{'' if is_free else ', not sold'}; its "
        "authors must be named.",
        home="https://medmnist.com", citation=CITATION,
        layout=file_name, required=(file_name,),
        tasks={subset.task: {"kind": TASK_KINDS.get(name, "classification"), "classes": CLASSES[name]}},
        read=partial(read, name, file_name),
        # The size is unknown; the checksum is sufficient.
        files=(RemoteFile(file_name, f"{RECORD}/files/{file_name}?download=1", md5=digest),),
        settings={"image-size": -(-size // STRIDE) * STRIDE},
        note="Patients are not identified, so every image counts as a separate patient. Without --size, the largest "
        "version in the folder is read.",
    )  # fmt: skip


SETS = tuple(_set(name) for name in SUBSETS)
