"""mini-MIAS: digitised mammograms with density, and with type and position of abnormalities."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample

DENSITIES = {"F": "fatty", "G": "glandular", "D": "dense"}
SEVERITIES = {"B": "benign", "M": "malignant"}
ABNORMALITIES = {
    "CALC": "calcification", "CIRC": "circumscribed mass", "SPIC": "spiculated mass", "MISC": "other mass",
    "ARCH": "distortion", "ASYM": "asymmetry",
}  # fmt: skip
INFO_FILE = "Info.txt"
FILM_LINE = re.compile(r"(mdb(\d{3}))[a-z]*\s+([FGD])\s+([A-Z]{4})(.*)")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the films; the two films of a pair of breasts are of the same patient."""
    root = folder if (folder / INFO_FILE).exists() else folder / "all-mias"
    films: dict[str, list[re.Match[str]]] = {}
    for line in (root / INFO_FILE).read_text(encoding="latin-1").splitlines():
        if match := FILM_LINE.match(line.strip()):
            films.setdefault(match[1], []).append(match)
    for name, lines in sorted(films.items()):
        path = root / f"{name}.pgm"
        number = int(lines[0][2])
        abnormalities = [ABNORMALITIES[line[4]] for line in lines if line[4] in ABNORMALITIES]
        if len(abnormalities) < len(lines) and (abnormalities or any(line[4] != "NORM" for line in lines)):
            raise MtfedError(f"{root / INFO_FILE} has an unexpected entry for {name}; get the set again.")
        severities = {SEVERITIES[word] for line in lines for word in line[5].split()[:1] if word in SEVERITIES}
        worst = "malignant" if "malignant" in severities else "benign" if severities else ""
        cells = {
            "density": DENSITIES[lines[0][3]],
            "severity": worst if abnormalities else "normal",
            "abnormality": "; ".join(dict.fromkeys(abnormalities)) or "none",
            "lesions": _boxes(lines, path) if abnormalities else "none",
        }
        # Films are listed in pairs: even numbers are left breasts, odd ones right.
        extra = {"laterality": "right" if number % 2 else "left"}
        yield Sample(path.relative_to(folder).as_posix(), f"{(number + 1) // 2:03d}", cells, extra=extra)


def _boxes(lines: list[re.Match[str]], path: Path) -> str:
    """Return the boxes around the circles of a film's abnormalities; empty if one of them has no position."""
    try:
        with Image.open(path) as film:
            height = film.height
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise MtfedError(f"Cannot read {path}: {error}; get the set again.") from None
    boxes = []
    for line in lines:
        numbers = [word for word in line[5].split()[1:] if word.isdecimal()]
        if len(numbers) < 3:
            return ""
        x, y, radius = map(int, numbers[:3])
        boxes.append(f"{x - radius},{height - y - radius},{2 * radius},{2 * radius}")  # y is counted from the bottom
    return "; ".join(boxes)


SETS = (DataSet(
    name="mias", title="mini-MIAS database of mammograms",
    images=322, dimensions=2, channels=1, modality="mammogram", body_part="breast",
    licence="MIAS licence",
    terms="For research only; may not be sold, rented or leased. The licence is in the archive.",
    home="http://peipa.essex.ac.uk/info/mias.html",
    citation="Suckling J et al. The Mammographic Image Analysis Society digital mammogram database. Excerpta Medica, "
    "International Congress Series 1069:375-378, 1994.",
    layout="Info.txt\nmdb001.pgm, mdb002.pgm, ... mdb322.pgm",
    required=("Info.txt|all-mias/Info.txt", "mdb001.pgm|all-mias/mdb001.pgm"),
    tasks={
        "density": {"kind": "ordinal", "classes": ", ".join(DENSITIES.values())},
        "severity": {"kind": "classification", "classes": "normal, benign, malignant"},
        "abnormality": {"kind": "multi-label", "classes": ", ".join(ABNORMALITIES.values())},
        "lesions": {"kind": "detection", "classes": "lesion"},
    },
    read=read,
    # The owners provide no checksum, and no https address.
    files=(RemoteFile("all-mias.tar.gz", "http://peipa.essex.ac.uk/pix/mias/all-mias.tar.gz", unpack_to=""),),
    note="Abnormalities that are spread over the breast have no position in the list. Such films have no label for "
    "lesions, rather than 'none'.",
),)  # fmt: skip
