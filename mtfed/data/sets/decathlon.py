"""The Medical Segmentation Decathlon: ten sets of volumes with masks, all in the same form.

Models of volumes take one channel. If images have several (brain, prostate), the one named in :data:`SUBSETS` is
used: FLAIR shows the whole glioma, T2 the zones of the prostate. It is written to ``labels/`` as a separate file,
because the readers of image files cannot choose a channel. Test images have no masks and are excluded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .tables import root_of

SERVER = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
WINDOWS = {"abdominal CT": "40, 400", "chest CT": "-600, 1500"}  # level and width in HU, as used by radiologists
CITATION = (
    "Antonelli M, Reinke A, Bakas S, et al. The Medical Segmentation Decathlon. Nature Communications 13:4128, 2022; "
    "Simpson AL, Antonelli M, Bakas S, et al. A large annotated medical image dataset for the development and "
    "evaluation of segmentation algorithms. arXiv:1902.09063, 2019."
)


@dataclass(frozen=True)
class Subset:
    """One of the ten sets."""

    folder: str
    title: str
    images: int  # with masks
    modality: str
    body_part: str
    classes: tuple[str, ...]  # classes of a mask's values 0, 1, ...
    md5: str  # MD5 digest of the archive
    channels: tuple[str, ...] = ()  # names of the channels, if there are several
    channel: str = ""  # the one that is used

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.folder.split("_")[1].lower()

    def read(self, folder: Path, labels: Path) -> Iterator[Sample]:
        """Yield the images that have masks."""
        root = root_of(folder, self.folder)
        table = root / "dataset.json"
        try:
            description = json.loads(table.read_text(encoding="utf-8"))
            pairs = [[root / _safe_path(pair[key]) for key in ("image", "label")] for pair in description["training"]]
            label_values = description["labels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MtfedError(
                f"{table} is not the table of a Decathlon set ({error!r}); unpack its archive again."
            ) from None
        if sorted(label_values) != [str(value) for value in range(len(self.classes))]:
            raise MtfedError(
                f"{table} should name the labels 0 to {len(self.classes) - 1} ({', '.join(self.classes)}), it names "
                f"{', '.join(map(str, label_values)) or 'none'}; it belongs to another set."
            )
        for image, mask in pairs:
            name = image.name.removesuffix(".gz").removesuffix(".nii")
            path = self._extract_channel(image, labels / f"{name}_{self.channel}.nii.gz") if self.channel else image
            image_root = labels.parent if self.channel else folder
            cells = {self.task: mask.relative_to(folder).as_posix()}
            yield Sample(path.relative_to(image_root).as_posix(), name, cells)

    def _extract_channel(self, image: Path, path: Path) -> Path:
        """Write the channel that is used as a separate image, and return its path."""
        from nibabel.filebasedimages import ImageFileError
        from nibabel.nifti1 import Nifti1Image

        try:
            volume = Nifti1Image.from_filename(image)
            if volume.ndim != 4 or volume.shape[3] != len(self.channels):
                expected = f"{len(self.channels)} channels {', '.join(self.channels)}"
                shape = list(volume.shape)
                raise MtfedError(f"{image} should have the {expected}, its shape is {shape}; unpack its archive again.")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"part-{path.name}")
            volume.slicer[..., self.channels.index(self.channel)].to_filename(part)
        except (ImageFileError, OSError, ValueError, EOFError) as error:
            raise MtfedError(f"Cannot read {image}: {error}; unpack its archive again.") from None
        part.replace(path)
        return path


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leads out of its folder")
    return path


SUBSETS = (
    Subset("Task01_BrainTumour", "gliomas", 484, "brain MRI", "brain",
           ("background", "edema", "non-enhancing tumour", "enhancing tumour"),
           "240a19d752f0d9e9101544901065d872", ("FLAIR", "T1w", "T1gd", "T2w"), "FLAIR"),
    Subset("Task02_Heart", "left atrium", 20, "cardiac MRI", "heart",
           ("background", "left atrium"), "06ee59366e1e5124267b774dbd654057"),
    Subset("Task03_Liver", "liver and tumours", 131, "abdominal CT", "abdomen",
           ("background", "liver", "tumour"), "a90ec6c4aa7f6a3d087205e23d4e6397"),
    Subset("Task04_Hippocampus", "hippocampus", 260, "brain MRI", "brain",
           ("background", "anterior", "posterior"), "9d24dba78a72977dbd1d2e110310f31b"),
    Subset("Task05_Prostate", "prostate zones", 32, "prostate MRI", "prostate",
           ("background", "peripheral zone", "transition zone"),
           "35138f08b1efaef89d7424d2bcc928db", ("T2", "ADC"), "T2"),
    Subset("Task06_Lung", "lung cancer", 63, "chest CT", "chest",
           ("background", "cancer"), "8afd997733c7fc0432f71255ba4e52dc"),
    Subset("Task07_Pancreas", "pancreas and tumours", 281, "abdominal CT", "abdomen",
           ("background", "pancreas", "tumour"), "4f7080cfca169fa8066d17ce6eb061e4"),
    Subset("Task08_HepaticVessel", "vessels and tumours of the liver", 303, "abdominal CT", "abdomen",
           ("background", "vessel", "tumour"), "641d79e80ec66453921d997fbf12a29c"),
    Subset("Task09_Spleen", "spleen", 41, "abdominal CT", "abdomen",
           ("background", "spleen"), "410d4a301da4e5b2f6f86ec3ddba524e"),
    Subset("Task10_Colon", "colon cancer", 126, "abdominal CT", "abdomen",
           ("background", "cancer"), "bad7a188931dc2f6acf72b08eb6202d0"),
)  # fmt: skip

SETS = tuple(
    DataSet(
        name=f"msd-{subset.task}", title=f"Medical Segmentation Decathlon, {subset.folder}: {subset.title}",
        images=subset.images, dimensions=3, channels=1, modality=f"{subset.modality} {subset.channel}".strip(),
        body_part=subset.body_part,
        licence="CC BY-SA 4.0",
        terms="Free for any use with attribution; derived works must be distributed under the same licence.",
        home="http://medicaldecathlon.com", citation=CITATION,
        layout=f"""
{subset.folder}/
  dataset.json
  imagesTr/  NAME.nii.gz, ... ({subset.images}{f", channels {', '.join(subset.channels)}" if subset.channels else ""})
  labelsTr/  NAME.nii.gz, ...""",
        required=tuple(f"{subset.folder}/{name}|{name}" for name in ("dataset.json", "imagesTr/*", "labelsTr/*")),
        tasks={subset.task: {"kind": "segmentation", "classes": ", ".join(subset.classes)}},
        read=subset.read,
        note="Test images have no masks and are excluded."
        + (f" Of the channels {', '.join(subset.channels)} only {subset.channel} is used." if subset.channel else ""),
        settings={"window": WINDOWS[subset.modality]} if subset.modality in WINDOWS else {},
        files=(RemoteFile(f"{subset.folder}.tar", f"{SERVER}/{subset.folder}.tar", md5=subset.md5, unpack_to=""),),
    )
    for subset in SUBSETS
)  # fmt: skip
