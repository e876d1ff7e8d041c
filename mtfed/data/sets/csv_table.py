"""Read the CSV tables that come with data sets."""

from __future__ import annotations

import csv
from pathlib import Path

from ...errors import MtfedError


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
