"""The data of a site, as its client opens it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Context, RecordDict
from PIL import Image

from helpers import SMALL, TASKS
from mtfed.clients.site import open_site
from mtfed.config import read_config


def test_the_client_uses_the_site_file_and_the_node_config_overrides_it(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text("image,patient,pneumonia\na.png,1,normal\n")
    (tmp_path / "site.toml").write_text("key = 'st-mary'\nmodality = 'CT'\nshare-class-counts = true\n")
    config = read_config(TASKS | SMALL)
    override = {"site": "other", "share-class-counts": False, "modality": "MR", "body-part": "brain"}
    for given, key, shares, others in (
        ({}, "st-mary", True, {"modality": "CT"}),
        (override, "other", False, {"modality": "MR", "body-part": "brain"}),
    ):
        context = Context(1, 1, {"data-path": str(tmp_path)} | given, RecordDict(), {})
        site = open_site(context, config)
        assert site.key == key and [row.others for row in site.data.rows] == [others]
        assert context.node_config["share-class-counts"] is shares
        assert context.node_config["modality"] == others["modality"]
