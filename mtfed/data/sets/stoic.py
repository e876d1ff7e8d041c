"""STOIC: chest CT of patients with and without COVID-19, and whether they became severely ill within a month."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .dataset import DataSet, Sample
from .tables import YES_NO, decode, read_csv

REFERENCE_TABLE = "metadata/reference.csv"
COLUMNS = ("PatientID", "probCOVID", "probSevere")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the scans; as in the challenge, only patients with COVID-19 have a label for severity."""
    for row in read_csv(folder / REFERENCE_TABLE, COLUMNS):
        covid, severe = (decode(row, column, YES_NO, folder / REFERENCE_TABLE) for column in COLUMNS[1:])
        cells = {"covid": covid, "severe": severe if covid == "yes" else ""}
        yield Sample(f"data/mha/{row['PatientID']}.mha", row["PatientID"], cells)


SETS = (DataSet(
    name="stoic", title="STOIC2021, public training set",
    images=2000, dimensions=3, channels=1, modality="chest CT", body_part="chest",
    licence="CC BY-NC 4.0", terms="Not for commercial use; name the authors.",
    home="https://registry.opendata.aws/stoic2021-training/",
    citation="Revel MP, Boussouar S, de Margerie-Mellon C, et al. Study of Thoracic CT in COVID-19: The STOIC Project. "
    "Radiology 301(1):E361-E370, 2021.",
    layout="""
data/mha/               0.mha, ... (named by patient, 2000)
metadata/reference.csv  PatientID, probCOVID, probSevere""",
    required=(REFERENCE_TABLE, "data/mha/*.mha"),
    tasks={
        "covid": {"kind": "classification", "classes": "no, yes"},
        "severe": {"kind": "classification", "classes": "no, yes"},
    },
    read=read,
    access="The set is a public S3 bucket with one object per patient, some hundred GiB in all. Download it with the "
    "AWS command line, which needs no account: aws s3 sync s3://stoic2021-training/ FOLDER --no-sign-request",
    note="As in the challenge, only patients with COVID-19 have a label for severity. The public set has no test "
    "split.",
    settings={"window": "-600, 1500"},
),)  # fmt: skip
