"""The Medical Segmentation Decathlon: ten sets of volumes with masks, all in one form.

Images of several channels (brain, prostate) give the one that :data:`PARTS` names, as a model here sees one: FLAIR
shows the whole of a glioma, T2 the zones of the prostate. It is written below ``labels/``, for a reader would not know
which to take. Test images come without masks and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample

SERVER = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
WINDOWS = {"abdominal CT": "40, 400", "chest CT": "-600, 1500"}  # level and width in HU, as radiologists look
CITATION = (
    "Antonelli M, Reinke A, Bakas S, et al. The Medical Segmentation Decathlon. Nature Communications 13:4128, 2022; "
    "Simpson AL, Antonelli M, Bakas S, et al. A large annotated medical image dataset for the development and "
    "evaluation of segmentation algorithms. arXiv:1902.09063, 2019."
)


@dataclass(frozen=True)
class Part:
    """One of the ten sets."""

    folder: str
    title: str
    images: int  # with masks
    modality: str
    classes: tuple[str, ...]  # of a mask's values, in their order
    md5: str  # of the archive
    channels: tuple[str, ...] = ()  # of images that have several
    channel: str = ""  # the one that is taken

    @property
    def task(self) -> str:
        """Return the name of its task."""
        return self.folder.split("_")[1].lower()

    def read(self, folder: Path, labels: Path) -> Iterator[Sample]:
        """Yield the images that have masks."""
        base = folder / self.folder if (folder / self.folder).is_dir() else folder
        table = base / "dataset.json"
        try:
            about = json.loads(table.read_text(encoding="utf-8"))
            pairs = [(base / _within(each["image"]), base / _within(each["label"])) for each in about["training"]]
            values = about["labels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MtfedError(
                f"{table} is not the table of a Decathlon set ({error!r}); unpack its archive again."
            ) from None
        if sorted(values) != [str(value) for value in range(len(self.classes))]:
            raise MtfedError(
                f"{table} should name the labels 0 to {len(self.classes) - 1} ({', '.join(self.classes)}), it names "
                f"{', '.join(map(str, values)) or 'none'}; it is that of another set."
            )
        for image, mask in pairs:
            name = image.name.removesuffix(".gz").removesuffix(".nii")
            path = self._channel(image, labels / f"{name}_{self.channel}.nii.gz") if self.channel else image
            root = labels.parent if self.channel else folder
            cells = {self.task: mask.relative_to(folder).as_posix()}
            yield Sample(path.relative_to(root).as_posix(), name, cells)

    def _channel(self, image: Path, path: Path) -> Path:
        """Write the channel that is taken as an image of its own, and return its path."""
        from nibabel.filebasedimages import ImageFileError
        from nibabel.nifti1 import Nifti1Image

        try:
            volume = Nifti1Image.from_filename(image)
            if volume.ndim != 4 or volume.shape[3] != len(self.channels):
                raise MtfedError(
                    f"{image} should have the {len(self.channels)} channels {', '.join(self.channels)}, its shape is "
                    f"{list(volume.shape)}; unpack its archive again."
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"part-{path.name}")
            volume.slicer[..., self.channels.index(self.channel)].to_filename(part)
        except (ImageFileError, OSError, ValueError, EOFError) as error:
            raise MtfedError(f"Cannot read {image}: {error}; unpack its archive again.") from None
        part.replace(path)
        return path


def _within(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leads out of its folder")
    return path


PARTS = (
    Part(
        "Task01_BrainTumour",
        "gliomas",
        484,
        "brain MRI",
        ("background", "edema", "non-enhancing tumour", "enhancing tumour"),
        "240a19d752f0d9e9101544901065d872",
        ("FLAIR", "T1w", "T1gd", "T2w"),
        "FLAIR",
    ),
    Part(
        "Task02_Heart",
        "left atrium",
        20,
        "cardiac MRI",
        ("background", "left atrium"),
        "06ee59366e1e5124267b774dbd654057",
    ),
    Part(
        "Task03_Liver",
        "liver and tumours",
        131,
        "abdominal CT",
        ("background", "liver", "tumour"),
        "a90ec6c4aa7f6a3d087205e23d4e6397",
    ),
    Part(
        "Task04_Hippocampus",
        "hippocampus",
        260,
        "brain MRI",
        ("background", "anterior", "posterior"),
        "9d24dba78a72977dbd1d2e110310f31b",
    ),
    Part(
        "Task05_Prostate",
        "prostate zones",
        32,
        "prostate MRI",
        ("background", "peripheral zone", "transition zone"),
        "35138f08b1efaef89d7424d2bcc928db",
        ("T2", "ADC"),
        "T2",
    ),
    Part("Task06_Lung", "lung cancer", 63, "chest CT", ("background", "cancer"), "8afd997733c7fc0432f71255ba4e52dc"),
    Part(
        "Task07_Pancreas",
        "pancreas and tumours",
        281,
        "abdominal CT",
        ("background", "pancreas", "tumour"),
        "4f7080cfca169fa8066d17ce6eb061e4",
    ),
    Part(
        "Task08_HepaticVessel",
        "vessels and tumours of the liver",
        303,
        "abdominal CT",
        ("background", "vessel", "tumour"),
        "641d79e80ec66453921d997fbf12a29c",
    ),
    Part("Task09_Spleen", "spleen", 41, "abdominal CT", ("background", "spleen"), "410d4a301da4e5b2f6f86ec3ddba524e"),
    Part(
        "Task10_Colon",
        "colon cancer",
        126,
        "abdominal CT",
        ("background", "cancer"),
        "bad7a188931dc2f6acf72b08eb6202d0",
    ),
)

SETS = tuple(
    DataSet(
        name=f"msd-{part.task}",
        title=f"Medical Segmentation Decathlon, {part.folder}: {part.title}",
        images=part.images,
        dimensions=3,
        channels=1,
        modality=f"{part.modality} {part.channel}".strip(),
        licence="CC BY-SA 4.0",
        terms="Free for any use with attribution; what is made of it must be passed on under the same licence.",
        home="http://medicaldecathlon.com",
        citation=CITATION,
        place=f"""
{part.folder}/
  dataset.json
  imagesTr/  NAME.nii.gz, ... ({part.images}{f", channels {', '.join(part.channels)}" if part.channels else ""})
  labelsTr/  NAME.nii.gz, ...
""",
        needs=tuple(f"{part.folder}/{name}|{name}" for name in ("dataset.json", "imagesTr/*", "labelsTr/*")),
        tasks={part.task: {"kind": "segmentation", "classes": ", ".join(part.classes)}},
        read=part.read,
        note="Test images come without masks and are left out."
        + (f" Of the channels {', '.join(part.channels)} it is {part.channel} that is taken." if part.channel else ""),
        settings={"window": WINDOWS[part.modality]} if part.modality in WINDOWS else {},
        files=(RemoteFile(f"{part.folder}.tar", f"{SERVER}/{part.folder}.tar", md5=part.md5, unpack=""),),
    )
    for part in PARTS
)
