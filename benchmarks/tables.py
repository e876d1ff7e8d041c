"""Tables in Markdown, and the generated parts of READMEs: those from ``<!-- figures: NAME -->`` to ``<!-- end -->``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line per row."""
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in (head, *rows)]
    return "\n".join([lines[0], "| --- " * len(head) + "|", *lines[1:]]) + "\n"


def mean_and_deviation(values: list[float], digits: int = 3) -> str:
    """Return mean and standard deviation as a table cell."""
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def replace_marked(file: Path, texts: Mapping[str, str]) -> None:
    """Replace the marked parts of a file by texts, by the names of the markers."""
    content = file.read_text()
    for name, text in texts.items():
        marker, end = f"<!-- figures: {name} -->\n", "<!-- end -->"
        before, match, after = content.partition(marker)
        if not match or end not in after:
            raise LookupError(f"{file} has no part {marker.strip()} ... {end}; add it.")
        content = before + marker + text + after[after.index(end) :]
    file.write_text(content)
