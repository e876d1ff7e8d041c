"""A federation whose model has input parts: what sites report, are sent, train and return, and the server's test."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file

from helpers import ROOT
from helpers.worded import SITES, federation
from mtfed.clients.app import app
from mtfed.clients.site import site_of_folder
from mtfed.config import RunConfigValue, read_config
from mtfed.federation.app_folder import read_app
from mtfed.federation.evaluation import ServerTest
from mtfed.federation.simulate import simulate
from mtfed.learning.curvature import curvature
from mtfed.learning.parts import numpy_parts
from mtfed.learning.train import train
from mtfed.models.build import build_model
from mtfed.record.run import Run
from mtfed.strategies import wire

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # as Flower sets them in its processes
NUMBER = "encoder.numbers."  # prefix of the tensors of input parts
Config = dict[str, RunConfigValue]


def run(config: Config) -> Run:
    assert simulate(read_app(ROOT / "experiments" / "pneumonia"), config, None, "local", 1) == 0
    (folder,) = Path(str(config["out"])).glob("*/summary.json")
    done = Run.open(folder.parent)
    assert done.read_json("summary.json")["failures"] == 0
    return done


def ask(config: Config, site: str, message_type: str, content: RecordDict) -> RecordDict:
    context = Context(1, 1, {"partition-id": sorted(SITES).index(site), "num-partitions": 3}, RecordDict(), config)
    reply = cast(Message, app(Message(content, dst_node_id=1, message_type=message_type), context)).content
    assert "failure" not in reply, reply["failure"]
    return reply


def trained(config: Config, site: str, inputs: list[str], **settings: str) -> RecordDict:
    """Return the reply of a site that trains the initial model in round 1."""
    arrays = wire.pack(numpy_parts(build_model(read_config(config))))
    sent = wire.select(arrays, ["encoder", f"decoder.{SITES[site][0]}", *map(wire.input_part, inputs)])
    content = {"arrays": sent, "config": ConfigRecord({"server-round": 1, **settings})}
    return ask(config, site, "train", RecordDict(content))


def parts(record: object) -> set[str]:
    assert isinstance(record, ArrayRecord)
    return {wire.part_of(key) for key in record if key != wire.MANIFEST} - {""}


def test_a_card_reports_the_kinds_of_images_if_the_model_has_input_parts(tmp_path: Path) -> None:
    config = federation(tmp_path)
    cards = {site: ask(config, site, "query.describe", RecordDict())["site"] for site in SITES}
    assert {site: card["inputs"] for site, card in cards.items()} == {
        "a": ["2d", "chest", "ct"], "b": ["2d", "chest", "mri"], "c": ["2d", "chest", "ct", "x-ray"],
    }  # fmt: skip
    assert "inputs" not in ask(config | {"model": "hard-sharing"}, "a", "query.describe", RecordDict())["site"]


def test_a_site_returns_the_input_parts_that_its_training_images_pass_through(tmp_path: Path) -> None:
    config = federation(tmp_path)
    reply = trained(config, "c", ["2d", "ct", "x-ray"], precision="fisher")
    assert parts(reply["arrays"]) == {"encoder", "decoder.grade", "input.2d", "input.ct"}
    precision = reply["precision"]
    assert {key.rpartition("/")[0] or key for key in precision} == set(reply["arrays"]) - {wire.MANIFEST}
    assert all(float(precision[f"input.{name}:float32/largest"].numpy()) > 0 for name in ("2d", "ct"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strategy": "fedprox", "clip-norm": 1.0, "weight-decay": 0.5},
        {"strategy": "bayesian"},
        {"strategy": "bayesian", "start": "apart"},
        {"balancing": "pcgrad"},
    ],
)
def test_a_part_is_merged_over_its_sites(settings: Config, tmp_path: Path) -> None:
    config = federation(tmp_path) | {"strategy": "fedavg"} | settings
    done = run(config)
    cards = {card["key"]: card["inputs"] for card in done.read_json("sites.json")}
    assert cards["b"] == ["2d", "chest", "mri"]
    merged = load_file(done.folder / "checkpoints/last.safetensors")
    initial = {name: x for own in numpy_parts(build_model(read_config(config))).values() for name, x in own.items()}
    unused = {name for name in initial if name.startswith(NUMBER)} - {f"{NUMBER}{name}" for name in ("2d", "ct", "mri")}
    assert f"{NUMBER}3d" in unused and f"{NUMBER}x-ray" in unused
    for name in unused:
        assert merged[name].tobytes() == initial[name].tobytes(), name
    for name in ("2d", "ct", "mri"):
        assert merged[NUMBER + name] != initial[NUMBER + name]
    if config["strategy"] == "fedavg":
        own = {site: wire.unpack(trained(config, site, ["2d", "ct", "mri", "x-ray"])["arrays"]) for site in SITES}
        alone, pair = own["b"]["input.mri"], [own[site]["input.ct"][f"{NUMBER}ct"] for site in ("a", "c")]
        assert merged[f"{NUMBER}mri"].tobytes() == alone[f"{NUMBER}mri"].tobytes()
        np.testing.assert_allclose(merged[f"{NUMBER}ct"], np.mean(pair), rtol=1e-6)  # of equally many images


@pytest.mark.parametrize("settings", [{}, {"clip-norm": 0.1, "accumulate": 2}, {"balancing": "pcgrad"}])
def test_training_leaves_a_part_alone_that_no_image_passes_through(settings: Config, tmp_path: Path) -> None:
    config = read_config(federation(tmp_path) | {"weight-decay": 0.5} | settings)
    model, shard = build_model(config), site_of_folder(tmp_path / "data" / "a", "a", config).shard("train")
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    pull = dict.fromkeys(before, 0.3)
    train(model, shard, ["grade"], config, seed=0, learning_rate=0.01, proximal_mu=0.1, pull=pull)
    moved = {name.removeprefix(NUMBER) for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    assert {"2d", "ct"} <= moved and not {"3d", "mri", "x-ray"} & moved
    precision = curvature(model, shard, ["grade"], config, seed=0)
    assert all((precision[NUMBER + name] > 0) == (name in ("2d", "ct")) for name in ("2d", "3d", "ct", "mri"))


def test_sites_alone_have_models_of_their_own(tmp_path: Path) -> None:
    done = run(federation(tmp_path) | {"strategy": "alone"})
    assert set(done.read_json("summary.json")["tasks"]) == {"grade", "size"}


def test_the_server_tests_a_site_without_a_part_with_the_initial_one(tmp_path: Path) -> None:
    config = read_config(federation(tmp_path))
    model = build_model(config)
    initial = {part: {name: x.copy() for name, x in own.items()} for part, own in numpy_parts(model).items()}
    test = ServerTest(config, model)
    moved = {part: {name: x + np.asarray(1, x.dtype) for name, x in own.items()} for part, own in initial.items()}
    test.load(wire.pack(moved))  # of a site that has all parts
    own = {part: moved[part] for part in ("encoder", "input.ct", "decoder.grade")}
    loaded = numpy_parts(test.load(wire.pack(own)))
    for part in loaded:
        expected = moved if part in own or part.startswith("decoder") else initial
        for name, values in loaded[part].items():
            assert values.tobytes() == expected[part][name].tobytes(), name
