"""covid-chestxray-dataset: chest X-rays of COVID-19 and other pneumonia, collected from publications and hospitals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .tables import read_csv, root_of

HOME = "https://github.com/ieee8023/covid-chestxray-dataset"
REPOSITORY_FOLDER = "covid-chestxray-dataset-master"
SCORE_TABLE = "annotations/covid-severity-scores.csv"
CLASSES = ("no finding", "COVID-19", "other pneumonia")
FRONTAL_VIEWS = ("PA", "AP", "AP Supine", "AP Erect")  # the others are lateral views or CT
COLUMNS = ("patientid", "finding", "view", "modality", "location", "folder", "filename", "license")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the frontal X-rays."""
    root = root_of(folder, REPOSITORY_FOLDER)
    scores: dict[str, str] = {}
    if (root / SCORE_TABLE).exists():
        rows = read_csv(root / SCORE_TABLE, ("filename", "geographic_mean", "opacity_mean"))
        scores = {row["filename"]: f"{row['geographic_mean']}; {row['opacity_mean']}" for row in rows}
    seen = set()
    for row in read_csv(root / "metadata.csv", COLUMNS):
        name = row["filename"]
        if row["modality"] != "X-ray" or row["view"] not in FRONTAL_VIEWS or row["folder"] != "images" or name in seen:
            continue
        seen.add(name)
        if not row["patientid"] or Path(name).name != name:
            raise MtfedError(
                f"{root / 'metadata.csv'}: {name!r} lacks its patient, or is not a file name; get the table again."
            )
        cells = {"finding": _class(row["finding"]), "severity": scores.get(name, ""), "age": _age(row.get("age", ""))}
        extra = {"view": row["view"], "location": row["location"], "licence": row["license"]}
        site = row["location"].rsplit(",", 1)[-1].strip()  # the country, because each hospital has only a few images
        path = (root / "images" / name).relative_to(folder).as_posix()
        yield Sample(path, row["patientid"], cells, site=site, extra=extra)


def _class(finding: str) -> str:
    """Return the class of a finding such as "Pneumonia/Viral/COVID-19"; empty if it belongs to none of the classes."""
    words = finding.split("/")
    if "COVID-19" in words:
        return "COVID-19"
    if words[0] == "Pneumonia" or words[-1] in ("SARS", "MERS-CoV"):
        return "other pneumonia"
    return "no finding" if finding == "No Finding" else ""


def _age(text: str) -> str:
    try:
        return text if 0 <= float(text) <= 120 else ""
    except ValueError:
        return ""


SETS = (DataSet(
    name="covid-chestxray", title="COVID-19 image data collection",
    images=866,  # X-rays in its last table, including lateral views
    dimensions=2, channels=1, modality="chest X-ray", body_part="chest",
    licence="per image",
    terms="Each image has its own licence, in the column license of metadata.csv (CC BY, CC BY-NC-SA, Apache 2.0, or "
    "none stated); check it before you redistribute an image. The severity scores are CC BY-SA.",
    home=HOME,
    citation="Cohen JP, Morrison P, Dao L, Roth K, Duong TQ, Ghassemi M. COVID-19 image data collection: prospective "
    "predictions are the future. Journal of Machine Learning for Biomedical Imaging 2020:002, 2020. Severity: Cohen JP "
    "et al., Cureus 12(7):e9448, 2020.",
    layout="""
covid-chestxray-dataset-master/
  metadata.csv
  images/  auntminnie-a-2020_01_28_23_51_6665_2020_01_28_Vietnam_coronavirus.jpeg, ...
  annotations/covid-severity-scores.csv  optional, for the task severity""",
    required=(f"{REPOSITORY_FOLDER}/metadata.csv|metadata.csv", f"{REPOSITORY_FOLDER}/images/*|images/*"),
    tasks={
        "finding": {"kind": "classification", "classes": ", ".join(CLASSES)},
        "severity": {"kind": "regression", "classes": "extent, opacity", "range": "0, 8"},
        "age": {"kind": "regression", "classes": "years", "range": "0, 120"},
    },
    read=read,
    # The archive of a repository's current state has no fixed checksum.
    files=(RemoteFile("covid-chestxray-dataset.zip", f"{HOME}/archive/refs/heads/master.zip", unpack_to=""),),
    note="The column site contains the country. Images with the same finding often come from one source, so a model "
    "may learn the source instead of the finding.",
),)  # fmt: skip
