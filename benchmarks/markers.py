"""Parts of a README between ``<!-- figures: NAME -->`` and ``<!-- end -->``, which are generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


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
