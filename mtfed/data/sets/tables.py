"""Tables as sets come with: CSV, read whole, with the columns that are needed checked by name."""

from __future__ import annotations

import csv
from pathlib import Path

from ...errors import MtfedError


def read_csv(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV file by column, cells and column names stripped; lines of remarks (#) are passed over.

    Args:
        path: of the file.
        columns: that must be there.
        delimiter: between cells.

    Raises:
        MtfedError: it cannot be read, or lacks a column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader((line for line in file if not line.startswith("#")), delimiter=delimiter)
            names = [name.strip() for name in next(table, [])]
            if lacking := [column for column in columns if column not in names]:
                raise MtfedError(
                    f"{path} lacks the column {lacking[0]!r}, it has {', '.join(names) or 'none'}; "
                    "put the table there that the set's owners give."
                )
            # Cells left out at the end of a line are empty; more cells than names have none to be called by.
            rows = [[*cells, *[""] * (len(names) - len(cells))] for cells in table if any(cells)]
            return [dict(zip(names, map(str.strip, cells), strict=False)) for cells in rows]
    except OSError as error:
        raise MtfedError(f"Cannot read {path}: {error.strerror or error}; put it there again.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise MtfedError(f"{path} is not a CSV table in UTF-8: {error}; get it again from the set's owners.") from None
