"""Read a manifest, ``manifest.csv`` or ``manifest.parquet``, as a table of text.

CSV is UTF-8. The columns of a Parquet file may have any plain type; a cell becomes the text that it would have in a
CSV file: whole numbers without a decimal point, true and false as ``yes`` and ``no``, null and NaN as nothing, a list
as ``a; b`` (``none`` if empty), a list of lists, such as boxes, as JSON.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MtfedError
from .root import Root

if TYPE_CHECKING:
    import pyarrow

MANIFEST = "manifest.csv"
PARQUET = "manifest.parquet"
MANIFEST_NAMES = f"{MANIFEST} or {PARQUET}"  # for errors


@dataclass(frozen=True)
class ManifestTable:
    """The cells of a manifest by row, and the line of each row in its file."""

    path: Path  # path of the file, for errors
    columns: list[str]
    rows: list[list[str]]
    lines: list[str]  # where each row is, such as "line 7"

    def where(self, row: int) -> str:
        """Return the file and line of a row, for errors."""
        return f"{self.path}, {self.lines[row]}"


def has_manifest(path: Path) -> bool:
    """Return whether a folder or a zip contains a manifest."""
    return path.exists() and bool(_manifests(Root(path)))


def read_manifest_table(root: Root) -> ManifestTable:
    """Read a site's manifest; raise :class:`MtfedError` if there is none, or if it is not a table."""
    manifests = _manifests(root)
    if not manifests:
        raise MtfedError(f"Expected a site folder with a {MANIFEST_NAMES}, got {root.path} without one.")
    if len(manifests) > 1:
        raise MtfedError(f"{root.path} holds a {' and a '.join(manifests)}; remove one of them.")
    path = root.path / manifests[0]
    try:
        content = root.read(manifests[0])
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise MtfedError(f"Cannot read {path}: {error}; repair or remove it.") from None
    table = _read_csv(content, path) if manifests[0] == MANIFEST else _read_parquet(content, path)
    if missing := {"image", "patient"} - set(table.columns):
        columns = ", ".join(map(repr, table.columns)) or "none"
        first = "its first line must name the columns, separated by commas, it names"
        actual = f"{first if manifests[0] == MANIFEST else 'it has'} {columns}"
        raise MtfedError(f"{path} lacks the column {' and '.join(sorted(missing))}; {actual}.")
    if duplicates := [name for name in table.columns if name and table.columns.count(name) > 1]:
        raise MtfedError(f"{path} has two columns {duplicates[0]!r}; rename or remove one.")
    for number, cells in enumerate(table.rows):
        if len(cells) != len(table.columns):
            raise MtfedError(
                f"{path}: {table.lines[number]} has {len(cells)} cells, the first line names {len(table.columns)}; "
                "put cells with commas in quotes."
            )
    return table


def _manifests(root: Root) -> list[str]:
    names = []
    for name in (MANIFEST, PARQUET):
        with suppress(OSError, KeyError, zipfile.BadZipFile):
            root.stamp(name)
            names.append(name)
    return names


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
    (_, columns), *rows = lines or [(1, [])]
    return ManifestTable(path, columns, [cells for _, cells in rows], [f"line {number}" for number, _ in rows])


def _read_parquet(content: bytes, path: Path) -> ManifestTable:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MtfedError(
            f"{path} needs pyarrow to be read; install it (pip install pyarrow), or save the manifest as {MANIFEST}."
        ) from None
    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        columns = [_texts(table.column(i), f"{path}: column {name!r}") for i, name in enumerate(table.column_names)]
    except (pyarrow.ArrowException, OSError) as error:
        raise MtfedError(f"{path} cannot be read as Parquet: {error}; write it again.") from None
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    names = [name.strip() for name in table.column_names]
    return ManifestTable(path, names, rows, [f"row {number}" for number in range(1, len(rows) + 1)])


def _texts(column: pyarrow.ChunkedArray, where: str) -> list[str]:
    """Return the cells of a column of any plain type as text."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    dtype, text_of = column.type, _formatter(column.type)
    if types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        item_text = _formatter(dtype.value_type)
        nested = types.is_nested(dtype.value_type)
        if item_text is None and not nested:
            raise MtfedError(f"{where} holds lists of {dtype.value_type}; write them as text.")
        return [_list_text(value, None if nested else item_text) for value in column.to_pylist()]
    if text_of is None:
        raise MtfedError(f"{where} holds {dtype}; write it as text or numbers.")
    if types.is_float32(dtype) or types.is_float16(dtype):  # a 32-bit 0.1 is written as 0.1, not with 64-bit digits
        return [text_of(value) for value in column.to_numpy()]
    return ["" if value is None else text_of(value) for value in column.to_pylist()]


def _formatter(dtype: pyarrow.DataType) -> Callable[[Any], str] | None:
    """Return a function that writes values of a type as text; ``None`` for a type that has no plain text form."""
    from pyarrow import types

    if types.is_string(dtype) or types.is_large_string(dtype):
        return str.strip
    if types.is_boolean(dtype):
        return lambda value: "yes" if value else "no"
    if types.is_floating(dtype):
        return lambda value: "" if value != value else str(value).removesuffix(".0")
    if types.is_integer(dtype) or types.is_decimal(dtype) or types.is_temporal(dtype) or types.is_null(dtype):
        return str
    return None


def _list_text(value: list[Any] | None, item_text: Callable[[Any], str] | None) -> str:
    if value is None:
        return ""
    if not value:
        return "none"
    return json.dumps(value) if item_text is None else "; ".join(item_text(item) for item in value if item is not None)
