"""Write the drafted manifest and site file, and say what was understood."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from ...data.manifest import COLUMNS
from ...data.manifest_table import MANIFEST, PARQUET
from ...errors import MtfedError
from ..site_file import SITE_FILE
from .columns import Candidate
from .draft import Draft


def refuse_existing(folder: Path, force: bool) -> None:
    """Refuse to write over what is there, unless forced; a Parquet manifest is never written over."""
    for name in (MANIFEST, SITE_FILE):
        if (folder / name).exists() and not force:
            raise MtfedError(f"{folder / name} exists already; --force writes a new one in its place.")
    if (folder / PARQUET).exists():
        raise MtfedError(f"{folder / PARQUET} exists already; move it away first, as a site has one manifest.")


def write_draft(found: Draft) -> list[Path]:
    """Write ``manifest.csv`` and ``site.toml`` and return their paths."""
    contents = {found.folder / MANIFEST: manifest_text(found), found.folder / SITE_FILE: site_text(found)}
    for path, content in contents.items():
        try:
            path.write_text(content, encoding="utf-8", newline="")
        except OSError as error:
            raise MtfedError(f"Cannot write {path}: {error.strerror}.") from None
    return list(contents)


def manifest_text(found: Draft) -> str:
    """Return the manifest as CSV: the tasks' columns first, then what is carried along."""
    columns = found.tasks + [column for column in found.columns if not column.kind]
    written = io.StringIO(newline="")
    table = csv.writer(written, lineterminator="\n")
    table.writerow([*COLUMNS, *(column.column for column in columns)])
    for image in found.images:
        cells = [column.cells.get(image, "") for column in columns]
        table.writerow([image, found.patients[image], found.splits.get(image, ""), *cells])
    return written.getvalue()


def site_text(found: Draft) -> str:
    """Return the site file, with what was guessed beside it."""
    key = re.sub(r"[^A-Za-z0-9_.-]+", "-", found.folder.resolve().name).strip("-.") or "site"
    modality = f"modality = {json.dumps(found.modality)}" if found.modality else '# modality = "chest X-ray"'
    lines = [
        "# Drafted by `mtfed site init`: what stands here was guessed, look at every line.",
        f"key = {json.dumps(key)}  # this site's name in the federation",
        f"{modality}  # told to the server, so that it knows who sees what",
        "share-class-counts = false  # whether the server may know how many images of each class are here",
        "share-tracebacks = false  # whether it may see a whole error message, which may hold file names",
        f"dimensions = {found.lying.dimensions}  # 2: pictures, 3: volumes",
    ]
    for column in found.tasks:
        lines += ["", *_task_lines(column)]
    if not found.tasks:
        lines += ["", "# [task.pneumonia]", '# kind = "classification"', '# classes = "normal, pneumonia"']
    return "\n".join(lines) + "\n"


def _task_lines(column: Candidate) -> list[str]:
    classes = list(column.classes or (column.column,))
    # A comma-separated text as in a run config; a list only where a name itself holds a comma.
    named = classes if any("," in name for name in classes) else ", ".join(classes)
    lines = [f"[task.{column.column}]  # {len(column.cells)} images, from {column.source}"]
    lines += [f'kind = "{column.kind}"', f"classes = {json.dumps(named, ensure_ascii=False)}"]
    if column.range:
        lines.append(f'range = "{column.range[0]:g}, {column.range[1]:g}"')
    if column.doubt:
        lines.append("# " + column.doubt)
    return [line.replace("\n", " ") for line in lines]


def summary(found: Draft, written: list[Path]) -> str:
    """Return what was understood and what a person still must decide, for the console."""
    lines = [f"{found.folder}"]
    lines += [f"  {what:10} {told}" for what, told in found.understood]
    if found.decide:
        lines += ["", "To decide or to mend:"]
        lines += [f"  {number}. {told[0].upper()}{told[1:]}" for number, told in enumerate(found.decide, 1)]
    named = " and ".join(path.name for path in written)
    lines += ["", f"Wrote {named}. Look at both, then: mtfed site check {found.folder}"]
    return "\n".join(lines)
