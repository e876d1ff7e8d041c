"""A manifest's cells as text, of a ``manifest.csv`` or a ``manifest.parquet``.

CSV is UTF-8. The columns of a Parquet file may be of any plain type; their cells become what would stand in the CSV:
whole numbers without a decimal point, true and false as ``yes`` and ``no``, nulls and NaN as nothing, lists as
``a; b`` (``none`` if empty), lists of lists, as of boxes, as JSON.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MtfedError
from .root import Root

if TYPE_CHECKING:
    import pyarrow

MANIFEST = "manifest.csv"
PARQUET = "manifest.parquet"
NAMES = f"{MANIFEST} or {PARQUET}"  # for errors


@dataclass(frozen=True)
class ManifestTable:
    """The cells of a manifest, row by row, and where each row stands in its file."""

    path: Path  # of the file, for errors
    columns: list[str]
    rows: list[list[str]]
    places: list[str]  # of the rows, as "line 7"

    def where(self, row: int) -> str:
        """Say for errors where a row stands."""
        return f"{self.path}, {self.places[row]}"


def has_manifest(path: Path) -> bool:
    """Return whether a folder or a zip holds a manifest of its own."""
    return path.exists() and bool(_present(Root(path)))


def read_manifest_table(root: Root) -> ManifestTable:
    """Read a site's manifest; raise :class:`MtfedError` where there is none, or what it holds is no table."""
    present = _present(root)
    if not present:
        raise MtfedError(f"Expected a site folder with a {NAMES}, found none in {root.path}.")
    if len(present) > 1:
        raise MtfedError(f"{root.path} holds a {' and a '.join(present)}; remove the one that is not meant.")
    path = root.path / present[0]
    try:
        content = root.read(present[0])
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise MtfedError(f"Cannot read {path}: {error}; mend or remove it.") from None
    table = _read_csv(content, path) if present[0] == MANIFEST else _read_parquet(content, path)
    missing = {"image", "patient"} - set(table.columns)
    if missing:
        named = ", ".join(map(repr, table.columns)) or "none"
        first = "its first line must name the columns, separated by commas, it names"
        there = f"{first if present[0] == MANIFEST else 'it has'} {named}"
        raise MtfedError(f"{path} lacks the column {' and '.join(sorted(missing))}; {there}.")
    twice = [name for name in table.columns if name and table.columns.count(name) > 1]
    if twice:
        raise MtfedError(f"{path} has two columns {twice[0]!r}; rename or remove one.")
    for number, cells in enumerate(table.rows):
        if len(cells) != len(table.columns):
            raise MtfedError(
                f"{path}: {table.places[number]} has {len(cells)} cells, the first line names {len(table.columns)}; "
                "put cells with commas in quotes."
            )
    return table


def _present(root: Root) -> list[str]:
    found = []
    for name in (MANIFEST, PARQUET):
        try:
            root.stamp(name)
        except (OSError, KeyError, zipfile.BadZipFile):
            continue
        found.append(name)
    return found


def _read_csv(content: bytes, path: Path) -> ManifestTable:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MtfedError(f"{path} is not UTF-8 text; save it as CSV in UTF-8.") from None
    table = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        lines = [(table.line_num, [cell.strip() for cell in cells]) for cells in table if cells]
    except csv.Error as error:
        raise MtfedError(f"{path}: line {table.line_num} is not CSV: {error}; look at its quotes.") from None
    columns = lines[0][1] if lines else []
    return ManifestTable(
        path, columns, [cells for _, cells in lines[1:]], [f"line {number}" for number, _ in lines[1:]]
    )


def _read_parquet(content: bytes, path: Path) -> ManifestTable:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MtfedError(
            f"{path} needs pyarrow to be read; install it (pip install pyarrow), or save the manifest as {MANIFEST}."
        ) from None
    try:
        found = parquet.read_table(pyarrow.BufferReader(content))
        columns = [_texts(found.column(i), f"{path}: column {name!r}") for i, name in enumerate(found.column_names)]
    except (pyarrow.ArrowException, OSError) as error:
        raise MtfedError(f"{path} is no Parquet file that can be read: {error}; write it again.") from None
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    names = [name.strip() for name in found.column_names]
    return ManifestTable(path, names, rows, [f"row {number}" for number in range(1, len(rows) + 1)])


def _texts(column: pyarrow.ChunkedArray, where: str) -> list[str]:
    """Return the cells of a column of any plain type as text."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, said = column.type, _said(column.type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _said(kind.value_type)
        nested = types.is_nested(kind.value_type)
        if inner is None and not nested:
            raise MtfedError(f"{where} holds lists of {kind.value_type}; write them as text.")
        return [_list(value, None if nested else inner) for value in column.to_pylist()]
    if said is None:
        raise MtfedError(f"{where} holds {kind}; write it as text or numbers.")
    if types.is_float32(kind) or types.is_float16(kind):  # 0.1 of 32 bits is 0.1, not what it is in 64
        return [said(value) for value in column.to_numpy()]
    return ["" if value is None else said(value) for value in column.to_pylist()]


def _said(kind: pyarrow.DataType) -> Callable[[Any], str] | None:
    """Return what writes a value of a type as text; ``None`` for a type that has no plain way to be written."""
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return str.strip
    if types.is_boolean(kind):
        return lambda value: "yes" if value else "no"
    if types.is_floating(kind):
        return lambda value: "" if value != value else str(value).removesuffix(".0")
    if types.is_integer(kind) or types.is_decimal(kind) or types.is_temporal(kind) or types.is_null(kind):
        return str
    return None


def _list(value: list[Any] | None, said: Callable[[Any], str] | None) -> str:
    if value is None:
        return ""
    if not value:
        return "none"
    return json.dumps(value) if said is None else "; ".join(said(item) for item in value if item is not None)
