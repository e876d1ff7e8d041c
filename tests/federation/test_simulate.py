"""Simulated federations with tasks of every kind, in two and three dimensions, with several models and real files."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from helpers import ROOT
from helpers.hospitals import TASKS, keys, write_site
from mtfed.clients.app import app
from mtfed.config import RunConfigValue, read_config
from mtfed.errors import MtfedError
from mtfed.federation.simulate import check_simulation, simulate
from mtfed.learning.parts import numpy_parts
from mtfed.models.build import build_model
from mtfed.record.run import Run
from mtfed.strategies import wire

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # as Flower sets them in its processes
HALVES = list(TASKS)[:4], list(TASKS)[4:]


def federation(path: Path, dimensions: int = 2, side: int = 32) -> dict[str, RunConfigValue]:
    """Write three sites, two with half of the tasks each and one with all, and test images; return their config."""
    for seed, (name, tasks) in enumerate(
        [("a", HALVES[0]), ("b", HALVES[1]), ("c", list(TASKS)), ("test", list(TASKS))]
    ):
        write_site(path / "data" / name, tasks, 8, dimensions, side, seed)
    return {
        "name": "all", "data": str(path / "data"), "out": str(path / "runs"), "dimensions": dimensions,
        "image-size": side, "encoder": "resnet_nano", "model": "hard-sharing", "decoder-width": 8, "batch-size": 4,
        "local-steps": 2, "rounds": 2, "curvature-samples": 4, **keys(),
    }  # fmt: skip


def run(config: dict[str, RunConfigValue]) -> Run:
    from mtfed.federation.app_folder import read_app

    assert simulate(read_app(ROOT / "experiments" / "pneumonia"), config, None, "local", 1) == 0
    (folder,) = Path(str(config["out"])).glob("*/summary.json")
    return Run.open(folder.parent)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("mtmedformer", {"encoder": "pvt_mini", "strategy": "bayesian"}),
        ("ctan", {"strategy": "bayesian", "balancing": "gradnorm"}),
        ("mtan", {"strategy": "fedavg", "balancing": "dwa"}),
        ("single-task", {"balancing": "pcgrad", "accumulate": 2}),
    ],
)
def test_a_federation_of_every_kind_of_task(model: str, settings: dict[str, RunConfigValue], tmp_path: Path) -> None:
    done = run(federation(tmp_path) | {"model": model} | settings)
    summary = done.read_json("summary.json")
    assert summary["failures"] == 0 and summary["rounds"] == 2
    for name, task in summary["tasks"].items():
        assert math.isfinite(task["test"][task["metric"]]), name
    losses = [line["loss"] for line in done.lines("metrics.jsonl")]
    assert len(losses) == 2 * len(TASKS) and all(map(math.isfinite, losses))
    page = (done.folder / "report.html").read_text()
    assert all(f">{name.capitalize()}" in page for name in TASKS)
    # Site c has all tasks; a and b have one half each, so only tasks of different halves can be compared.
    compared = {", ".join(sorted(pair)) for pair in product(*HALVES)} if model != "single-task" else set()
    for line in done.lines("rounds.jsonl"):
        agreement = line.get("agreement", {})
        assert agreement.keys() == compared
        assert all({"all", "encoder", "encoder.body.layer1.0"} <= own.keys() for own in agreement.values()) or (
            settings.get("encoder") == "pvt_mini"
        )
        measured = compared if settings.get("strategy") == "bayesian" else set()
        assert line.get("weighted_agreement", {}).keys() == measured
    assert ("Agreement of the tasks" in page) == bool(compared)


def test_a_federation_of_volumes(tmp_path: Path) -> None:
    config = federation(tmp_path, dimensions=3, side=16) | {"encoder": "resnet3d_mini", "model": "ctan", "rounds": 1}
    summary = run(config).read_json("summary.json")
    assert summary["failures"] == 0
    assert set(summary["tasks"]) == set(TASKS)


def test_a_site_returns_only_the_parts_of_its_tasks(tmp_path: Path) -> None:
    """Streams of tasks that a site does not have are sent to it as context, and are not returned."""
    config = federation(tmp_path) | {"model": "ctan", "data": "sample"}
    model = build_model(read_config(config))
    arrays = wire.pack(numpy_parts(model))
    parts = [f"decoder.{task}" for task in HALVES[0]]
    sent = wire.select(arrays, [part for part in model.parts() if not part.startswith("decoder.")] + parts)

    content = RecordDict({"arrays": sent, "config": ConfigRecord({"server-round": 1, "precision": "fisher"})})
    context = Context(1, 2, {"data-path": str(tmp_path / "data" / "a")}, RecordDict(), config)
    reply = app(Message(content, dst_node_id=2, message_type="train"), context)
    assert "failure" not in reply.content, reply.content["failure"]
    returned = {wire.part_of(key) for key in reply.content["arrays"] if key != wire.MANIFEST}
    expected = {"encoder", *(f"{kind}.{task}" for task in HALVES[0] for kind in ("cross", "decoder"))}
    assert returned == expected
    assert {wire.part_of(key) for key in reply.content["precision"] if key != wire.MANIFEST} <= expected


BAD = [
    ({"model": "mtmedformr"}, "Unknown model 'mtmedformr'; did you mean 'mtmedformer'?"),
    ({"model": "mtmedformer"}, "mtmedformer expects a transformer .*which resnet_nano is not"),
    ({"encoder": "resnet_nan"}, "nearest.*resnet_nano"),
    ({"encoder": "vit_nano_patch8", "image-size": 12}, "cannot take images of 12 px"),
    ({"model": "mtan", "encoder": "efficientnet_b0"}, "efficientnet_b0.*shows no maps inside its stages"),
    ({"task.grade.loss": "focall"}, "Config key task.grade.loss: .*did you mean 'focal'"),
    ({"task.grade.kind": "clasification"}, "Config key task.grade.kind: expected 'classification'"),
    ({"weights": "nowhere.safetensors"}, "nowhere.safetensors"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_a_model_that_cannot_be_built_is_refused(
    settings: dict[str, RunConfigValue], message: str, tmp_path: Path
) -> None:
    config = {"image-size": 32, "encoder": "resnet_nano", "model": "hard-sharing", **keys(), **settings}
    with pytest.raises(MtfedError, match=message):
        build_model(read_config(config), pretrained=True)


def test_weights_that_cannot_be_read_are_reported_before_ray_starts(tmp_path: Path) -> None:
    from mtfed.federation.app_folder import read_app

    write_site(tmp_path / "data" / "a", ["grade"], 4)
    config = {"image-size": 32, "encoder": "resnet_nano", "model": "hard-sharing", **keys("grade")}
    with pytest.raises(MtfedError, match=r"nowhere\.safetensors is not a file"):
        simulate(
            read_app(ROOT / "experiments" / "pneumonia"),
            config | {"data": str(tmp_path / "data"), "weights": "nowhere.safetensors"},
            None,
            "ray",
            1,
        )


@pytest.mark.parametrize(
    ("task", "cell", "message"),
    [
        ("grade", "2", "label '2' of task grade should be one of no, yes or an index below 2"),
        ("stage", "highest", "label 'highest' of task stage should be one of low, middle, high"),
        ("outline", "0.png", "Mask 0.png of site a should be one channel of class indices below 2"),
        ("outline", "small.npy", "Mask small.npy of site a should be 32 x 32 pixels"),
    ],
)
def test_an_impossible_label_is_refused(task: str, cell: str, message: str, tmp_path: Path) -> None:
    from mtfed.data.loading import load_shard
    from mtfed.data.simulated_sites import site_folder

    folder = write_site(tmp_path / "a", [task], 4)
    np.save(folder / "small.npy", np.zeros((8, 8), np.uint8))
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    lines = (folder / "manifest.csv").read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:3], cell])
    (folder / "manifest.csv").write_text("\n".join(lines))
    config = read_config({"image-size": 32, **keys(task)})
    with pytest.raises(MtfedError, match=message):
        load_shard(site_folder(folder, "a", config).part("train"), config)


def test_a_task_that_no_site_has_is_refused_before_any_work(tmp_path: Path) -> None:
    write_site(tmp_path / "data" / "a", ["grade"], 4)
    with pytest.raises(
        MtfedError, match=r"No site holds task 'blobs' to train it on; .*; label it in a manifest\.csv, or remove "
    ):
        check_simulation(read_config({"data": str(tmp_path / "data"), **keys("grade", "blobs")}), None)
