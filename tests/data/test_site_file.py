"""The site file: what is accepted, and which mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtfed.data.site_file import read_site_file
from mtfed.errors import MtfedError


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("key = 3", "expected key to be a text in quotes, got 3"),
        ("kye = 'x'", "did you mean 'key'"),
        ("key = ''", "expected key to be the site's name"),
        ("share-class-counts = 'yes'", "to be true or false"),
        ("dimensions = 4", "expected dimensions to be 2 \\(pictures\\) or 3"),
        ("[task.x]\nkind = 'clasification'\nclasses = 'a, b'", "task.x.kind: expected 'classification'"),
        ("[task.x]\nkind = 'classification'\nclass = 'a, b'", "did you mean 'task.x.classes'"),
        ("[task.x]\nkind = 'regression'\nclasses = 'a'", "task.x.range"),
        ("[task]\nx = 3", "expected task.x to be a table"),
        ("key = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_a_site_file_is_named_by_its_key(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(MtfedError, match=match):
        read_site_file(tmp_path / "site.toml")
