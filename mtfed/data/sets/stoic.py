"""STOIC: chest CT of patients with and without COVID-19, and who became severely ill within a month."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, Sample
from .tables import read_csv

TABLE = "metadata/reference.csv"
ANSWERS = {"0": "no", "1": "yes", "0.0": "no", "1.0": "yes"}


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the scans; as in the challenge, severity counts among those with COVID-19 only."""
    for row in read_csv(folder / TABLE, ("PatientID", "probCOVID", "probSevere")):
        for column in ("probCOVID", "probSevere"):
            if row[column] not in ANSWERS:
                raise MtfedError(
                    f"{folder / TABLE}: {column} of patient {row['PatientID']} should be 0 or 1, it is {row[column]!r}."
                )
        covid, severe = ANSWERS[row["probCOVID"]], ANSWERS[row["probSevere"]]
        cells = {"covid": covid, "severe": severe if covid == "yes" else ""}
        yield Sample(f"data/mha/{row['PatientID']}.mha", row["PatientID"], cells)


SETS = (
    DataSet(
        name="stoic",
        title="STOIC2021, public training set",
        images=2000,
        dimensions=3,
        channels=1,
        modality="chest CT",
        licence="CC BY-NC 4.0",
        terms="Not for commercial use; name the authors.",
        home="https://registry.opendata.aws/stoic2021-training/",
        citation="Revel MP, Boussouar S, de Margerie-Mellon C, et al. Study of Thoracic CT in COVID-19: The STOIC "
        "Project. Radiology 301(1):E361-E370, 2021.",
        place="""
data/mha/               0.mha, ... (called by the patient, 2000)
metadata/reference.csv  PatientID, probCOVID, probSevere
""",
        needs=(TABLE, "data/mha/*.mha"),
        tasks={
            "covid": {"kind": "classification", "classes": "no, yes"},
            "severe": {"kind": "classification", "classes": "no, yes"},
        },
        read=read,
        access="It is one object a patient in an open bucket of Amazon's, some hundred GiB in all; fetch it with their "
        "tool, which needs no account: aws s3 sync s3://stoic2021-training/ FOLDER --no-sign-request",
        note="As in the challenge, severity is a label of those with COVID-19 only. The public set has no test split.",
        settings={"window": "-600, 1500"},
    ),
)
