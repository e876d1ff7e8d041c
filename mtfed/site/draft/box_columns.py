"""Boxes in a label table: columns such as x, y, w, h, with one row per box."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from .columns import Candidate, parse_numbers

BOX_CLASS_COLUMN = re.compile(r"(class|label|category|finding|lesion|type)[-_ ]?(name|type)?", re.IGNORECASE)
BOX_COLUMNS = (  # four columns of a box, and whether the last two are its size (else its second corner)
    (("x", "y", "w", "h"), True),
    (("x", "y", "width", "height"), True),
    (("bbox-x", "bbox-y", "bbox-w", "bbox-h"), True),
    (("bbox-x", "bbox-y", "bbox-width", "bbox-height"), True),
    (("xmin", "ymin", "xmax", "ymax"), False),
    (("x-min", "y-min", "x-max", "y-max"), False),
    (("x1", "y1", "x2", "y2"), False),
)


def read_boxes(
    table: str, rows: Mapping[str, Sequence[Mapping[str, str]]], columns: Sequence[str]
) -> tuple[Candidate | None, set[str]]:
    """Return the boxes in a table, given by its name, rows by image, and columns; and the columns with the boxes.

    They are ``None`` and an empty set if no columns look like boxes.
    """
    originals = {re.sub(r"[-_ ]+", "-", column.lower()): column for column in columns}
    layout = next(((names, has_size) for names, has_size in BOX_COLUMNS if set(names) <= originals.keys()), None)
    if layout is None:
        return None, set()
    names, has_size = layout
    corners = [originals[name] for name in names]
    class_column = _class_column(rows, [column for column in columns if column not in corners])
    boxes: dict[str, list[tuple[str, str]]] = {image: [] for image in rows}  # image -> (corner and size, class)
    for image, image_rows in rows.items():
        for row in image_rows:
            numbers = parse_numbers([row[corner] for corner in corners])
            if len(numbers) == 4 and all(map(math.isfinite, numbers)):
                x, y, w, h = numbers if has_size else (*numbers[:2], numbers[2] - numbers[0], numbers[3] - numbers[1])
                name = re.sub(r"[,;]", " ", row[class_column]) if class_column else ""
                boxes[image].append((",".join(f"{number:.6g}" for number in (x, y, w, h)), name))
    classes = sorted({name for image_boxes in boxes.values() for _, name in image_boxes if name})
    used = set(corners)
    if len(classes) > 1 and any(len(image_boxes) > 1 for image_boxes in boxes.values()):
        used.add(class_column)  # if no image has more than one box, the class may also be the image's own
    cells = {
        image: "; ".join(f"{box},{name}" if len(classes) > 1 else box for box, name in image_boxes) or "none"
        for image, image_boxes in boxes.items()
    }
    question = ""
    if empty := sum(cell == "none" for cell in cells.values()):
        question = (
            f"{empty} images have rows without a box in {table}; they are labelled 'none' (nothing to find). Empty "
            "their cells if nobody looked for boxes."
        )
    source = f"columns {', '.join(corners)} of {table}"
    return Candidate("boxes", "detection", cells, tuple(classes) or ("finding",), None, source, question), used


def _class_column(rows: Mapping[str, Sequence[Mapping[str, str]]], columns: Sequence[str]) -> str:
    """Return the column with the classes of the boxes, preferably of words rather than numbers; "" if there is none."""
    matches = [column for column in columns if BOX_CLASS_COLUMN.fullmatch(column)]
    all_rows = [row for image_rows in rows.values() for row in image_rows]
    cells = {column: [row[column] for row in all_rows if row[column]] for column in matches}
    return min(matches, key=lambda column: bool(parse_numbers(cells[column])), default="")
