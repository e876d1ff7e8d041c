"""Write a drafted manifest and site file, and summarise the draft for the terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from ...data.manifest import COLUMNS
from ...data.manifest_table import MANIFEST, PARQUET
from ...data.site_file import SITE_FILE
from ...errors import MtfedError
from .columns import Candidate
from .draft import Draft


def refuse_existing(folder: Path, force: bool) -> None:
    """Raise an error if a manifest or site file exists, unless ``force``, or in any case if it is a Parquet file."""
    for name in (MANIFEST, SITE_FILE):
        if (folder / name).exists() and not force:
            raise MtfedError(f"{folder / name} exists already; use --force to overwrite it.")
    if (folder / PARQUET).exists():
        raise MtfedError(f"{folder / PARQUET} exists already; move it away first, because a site has one manifest.")


def write_draft(draft: Draft) -> list[Path]:
    """Write ``manifest.csv`` and ``site.toml`` and return their paths."""
    contents = {draft.folder / MANIFEST: manifest_text(draft), draft.folder / SITE_FILE: site_text(draft)}
    for path, content in contents.items():
        try:
            path.write_text(content, encoding="utf-8", newline="")
        except OSError as error:
            raise MtfedError(f"Cannot write {path}: {error.strerror}.") from None
    return list(contents)


def manifest_text(draft: Draft) -> str:
    """Return the manifest as CSV: first the columns of the tasks, then the other columns."""
    columns = draft.tasks + [column for column in draft.columns if not column.kind]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(column.column for column in columns)])
    for image in draft.images:
        cells = [column.cells.get(image, "") for column in columns]
        writer.writerow([image, draft.patients[image], draft.splits.get(image, ""), *cells])
    return text.getvalue()


def site_text(draft: Draft) -> str:
    """Return the site file, with comments on what was guessed."""
    key = re.sub(r"[^A-Za-z0-9_.-]+", "-", draft.folder.resolve().name).strip("-.") or "site"
    modality = f"modality = {json.dumps(draft.modality)}" if draft.modality else '# modality = "X-ray"'
    body_part = f"body-part = {json.dumps(draft.body_part)}" if draft.body_part else '# body-part = "chest"'
    lines = [
        "# Drafted by `mtfed site init`. The values below are guesses: please check every line.",
        f"key = {json.dumps(key)}  # this site's name in the federation",
        f"{modality}  # of all images without a cell in a column modality; sent to the server, to show who has what",
        f"{body_part}  # the same for the part of the body",
        "share-class-counts = false  # whether the server may know how many images of each class this site has",
        "share-tracebacks = false  # whether the server may see complete error messages, which may contain file names",
        f"dimensions = {draft.scan.dimensions}  # 2: pictures, 3: volumes",
    ]
    for column in draft.tasks:
        lines += ["", *_task_lines(column)]
    if not draft.tasks:
        lines += ["", "# [task.pneumonia]", '# kind = "classification"', '# classes = "normal, pneumonia"']
    return "\n".join(lines) + "\n"


def _task_lines(column: Candidate) -> list[str]:
    names = list(column.classes or (column.column,))
    # Comma-separated text, as in a run config; a list only if a class name contains a comma itself.
    classes = names if any("," in name for name in names) else ", ".join(names)
    lines = [
        f"[task.{column.column}]  # {len(column.cells)} images, from {column.source}",
        f'kind = "{column.kind}"',
        f"classes = {json.dumps(classes, ensure_ascii=False)}",
    ]
    if column.range:
        lines.append(f'range = "{column.range[0]:g}, {column.range[1]:g}"')
    if column.doubt:
        lines.append(f"# {column.doubt[0].upper()}{column.doubt[1:]}")
    return [line.replace("\n", " ") for line in lines]


def summary(draft: Draft, paths: list[Path]) -> str:
    """Return for the terminal how the folder was understood, what a person must decide, and what was written."""
    lines = [f"{draft.folder}"]
    lines += [f"  {topic:10} {text}" for topic, text in draft.understood]
    if draft.decide:
        lines += ["", "Please decide or correct:"]
        lines += [f"  {number}. {text[0].upper()}{text[1:]}" for number, text in enumerate(draft.decide, 1)]
    names = " and ".join(path.name for path in paths)
    lines += ["", f"Wrote {names}. Check both files, then run: mtfed site check {draft.folder}"]
    return "\n".join(lines)
