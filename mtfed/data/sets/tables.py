"""Read the tables that come with data sets, and find the files that they name."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ...errors import MtfedError

YES_NO = {"0": "no", "1": "yes", "0.0": "no", "1.0": "yes"}  # values for decode


def read_csv(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV file by column.

    White space around cells and column names is removed; lines that begin with # are skipped.

    Args:
        path: the file.
        columns: names of the columns that must be present.
        delimiter: between cells.

    Raises:
        MtfedError: the file cannot be read, or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader((line for line in file if not line.startswith("#")), delimiter=delimiter)
            names = [name.strip() for name in next(table, [])]
            if missing := [column for column in columns if column not in names]:
                raise MtfedError(
                    f"{path} lacks the column {missing[0]!r}, it has {', '.join(names) or 'none'}; "
                    "replace it by the table that the set's owners provide."
                )
            # Cells that are missing at the end of a line are empty; cells beyond the last name are dropped.
            rows = [[*cells, *[""] * (len(names) - len(cells))] for cells in table if any(cells)]
            return [dict(zip(names, map(str.strip, cells), strict=False)) for cells in rows]
    except OSError as error:
        raise MtfedError(f"Cannot read {path}: {error.strerror or error}; put the file there again.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise MtfedError(f"{path} is not a CSV table in UTF-8: {error}; get it again from the set's owners.") from None


def decode(row: Mapping[str, str], column: str, values: Mapping[str, str], table: Path) -> str:
    """Return the value that a cell stands for; refuse a cell that, in lower case, is not among ``values``."""
    cell, name = row[column], next(iter(row.values()))
    if cell.lower() not in values:
        expected = ", ".join(values)
        raise MtfedError(f"{table}: {column} of {name} should be one of {expected}, it is {cell!r}; get it again.")
    return values[cell.lower()]


def root_of(folder: Path, name: str) -> Path:
    """Return the folder with this name in a set's folder, or the set's folder itself if it contains the files."""
    return folder / name if (folder / name).is_dir() else folder


def files_by_stem(folder: Path, pattern: str, ending: str) -> dict[str, Path]:
    """Return files by their names without the ending.

    Args:
        folder: the set's folder.
        pattern: a glob pattern of folders in it, such as "HAM10000_images*"; they are searched recursively.
        ending: end of the file names, such as "_segmentation.png", in upper or lower case.
    """
    return {
        path.name[: -len(ending)]: path
        for subfolder in sorted(folder.glob(pattern))
        for path in sorted(subfolder.rglob("*"))
        # Archives that were made on a Mac contain a "._NAME" for every NAME.
        if path.name.lower().endswith(ending.lower()) and not path.name.startswith(".")
    }
