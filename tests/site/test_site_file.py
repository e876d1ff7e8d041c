"""The site file: what is accepted, and how the client uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfed.errors import MtfedError
from mtfed.site.site_file import read_site_file


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


def test_the_client_uses_the_site_file_and_the_node_config_overrides_it(tmp_path: Path) -> None:
    from flwr.app import Context, RecordDict

    from helpers import SMALL, TASKS
    from mtfed.clients.site import open_site
    from mtfed.config import read_config

    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text("image,patient,pneumonia\na.png,1,normal\n")
    (tmp_path / "site.toml").write_text("key = 'st-mary'\nmodality = 'CT'\nshare-class-counts = true\n")
    config = read_config(TASKS | SMALL)
    for given, key, shares in (({}, "st-mary", True), ({"site": "other", "share-class-counts": False}, "other", False)):
        context = Context(1, 1, {"data-path": str(tmp_path)} | given, RecordDict(), {})
        assert open_site(context, config).key == key
        assert context.node_config["share-class-counts"] is shares and context.node_config["modality"] == "CT"
