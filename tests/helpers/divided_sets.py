"""Sets to be divided among simulated sites, and checks of a division."""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers import SMALL, TASKS
from mtfed.config import read_config
from mtfed.data.manifest import Row
from mtfed.data.partition import MIN_PATIENTS, Division

GRADE = {"task.grade.kind": "classification", "task.grade.classes": "no, yes, maybe"}

MASK = {"task.mask.kind": "segmentation", "task.mask.classes": "background, blob"}

STAGE = {"task.stage.kind": "ordinal", "task.stage.classes": "low, high"}

KEYS: dict[str, Any] = SMALL | GRADE | MASK | STAGE

CONFIG = read_config(KEYS)

SAMPLE = read_config(TASKS | SMALL)

HOSPITALS = ("Ost", "West", "Süd", "Nord")


def set_rows(seed: int, patients: int = 160, splits: str = "ttttttvs") -> list[Row]:
    """Draw the rows of a set: patients with one to three images, each with labels of some tasks."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for patient in range(patients):
        split = {"t": "train", "v": "val", "s": "test"}[rng.choice(splits)]
        others = {"site": rng.choices(HOSPITALS, (8, 4, 2, 2))[0], "modality": rng.choice(["CT", "MR"])}
        for image in range(rng.choice([1, 1, 2, 3])):
            name = f"{patient}-{image}"
            labels = {"grade": rng.choice(["no", "yes", "2"]), "mask": f"{name}m.png", "stage": rng.choice("01")}
            labels = {task: label for task, label in labels.items() if rng.random() < 0.6}
            rows.append(Row(f"{name}.png", f"p{patient}", split, labels, len(rows), others))
    return rows


def to_divide(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.split != "test"]


def site_of(divided: Division) -> dict[str, int]:
    """Return where each patient is; fail if any is at two sites."""
    places: dict[str, set[int]] = defaultdict(set)
    for site, part in enumerate(divided.parts):
        for row in part:
            places[row.patient].add(site)
    assert all(len(sites) == 1 for sites in places.values())
    return {patient: min(sites) for patient, sites in places.items()}


def write_set(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "split", *CONFIG.tasks, "site", "modality"])
        for row in rows:
            cells = [row.labels.get(task, "") for task in CONFIG.tasks]
            table.writerow([row.image, row.patient, row.split, *cells, row.others["site"], row.others["modality"]])
    return folder


def check_division(rows: list[Row], divided: Division, sites: int, scheme: str) -> None:
    assert len(divided.parts) == len(divided.names) == len(set(divided.names)) == sites
    places = site_of(divided)
    labelled = {row.patient for row in rows if row.labels and row.split != "test"}
    assert places.keys() | set(divided.left_out) == labelled and not places.keys() & set(divided.left_out)
    if not any(word in scheme for word in ("column", "modality", "flwr")):
        assert not divided.left_out
    whole = {row.image: row for row in rows}
    for site, part in enumerate(divided.parts):
        site_tasks = {task for row in part for task in row.labels}
        assert site_tasks and [row.patient for row in part if row.split == "test"] == []
        for row in part:
            labels = {task: label for task, label in whole[row.image].labels.items() if task in site_tasks}
            assert row == replace(whole[row.image], labels=labels)
        own = {patient for patient, place in places.items() if place == site}
        images = {row.image for row in rows if row.patient in own and row.labels.keys() & site_tasks}
        assert {row.image for row in part} == images  # all images of its patients that it has labels for
        for task in site_tasks:
            assert len({row.patient for row in part if task in row.labels and row.split == "train"}) >= MIN_PATIENTS
    for key in [key for key in ("column", "modality") if key in scheme]:
        cells = [Counter(row.others[key.replace("column", "site")] for row in part) for part in divided.parts]
        assert (scheme.startswith("column") and sites < len(HOSPITALS)) or all(len(values) == 1 for values in cells)


def graded(count: int = 1200) -> list[Row]:
    """Return one image per patient, of three classes."""
    return [Row(f"{i}.png", f"p{i:04d}", "train", {"grade": ("no", "yes", "maybe")[i % 3]}) for i in range(count)]
