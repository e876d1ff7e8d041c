"""A federation of images and volumes, with and without labels, whose sites train one Medformer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file

from helpers import ROOT
from helpers.mixed import KEYS, PRETEXT, write_sites
from mtfed.clients.app import app
from mtfed.config import RunConfigValue, read_config
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import read_app
from mtfed.federation.rounds import RunState
from mtfed.federation.simulate import simulate
from mtfed.learning.parts import numpy_parts
from mtfed.models.build import build_model
from mtfed.record.run import Run
from mtfed.strategies import wire

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # as Flower sets them in its processes
Settings = dict[str, RunConfigValue]
HELD = {"a": ["fill", "grade"], "b": ["outline", "turn"], "c": ["fill"]}
INPUTS = {
    "a": ["2d", "chest", "x-ray"], "b": ["3d", "ct", "other-body-part"], "c": ["2d", "brain", "mri"],
}  # fmt: skip


def federation(path: Path, **changes: RunConfigValue) -> Settings:
    if not (path / "data").exists():
        write_sites(path / "data")
    settings = {key.replace("_", "-"): value for key, value in changes.items()}
    fixed: Settings = {"name": "mixed", "local-steps": 3, "rounds": 2, "curvature-samples": 4, "patience": 0}
    places: Settings = {"data": str(path / "data"), "out": str(path / "runs")}
    return KEYS | PRETEXT | fixed | places | settings


def run(config: Settings, workers: int = 1) -> Run:
    assert simulate(read_app(ROOT / "experiments" / "pneumonia"), config, None, "local", workers) == 0
    (summary,) = Path(str(config["out"])).glob("*/summary.json")
    return Run.open(summary.parent)


def weights(done: Run, name: str = "last") -> dict[str, np.ndarray]:
    return load_file(done.folder / f"checkpoints/{name}.safetensors")


def trained(config: Settings, site: str, tasks: list[str]) -> tuple[dict[str, np.ndarray], int]:
    """Return the tensors that a site returns after it has trained the initial model in round 1, and its weight."""
    arrays = wire.pack(numpy_parts(build_model(read_config(config))))
    parts = ["encoder", *(f"decoder.{task}" for task in tasks), *map(wire.input_part, INPUTS[site])]
    content = RecordDict({"arrays": wire.select(arrays, parts), "config": ConfigRecord({"server-round": 1})})
    index = list(INPUTS).index(site)
    context = Context(1, index + 1, {"partition-id": index, "num-partitions": 3}, RecordDict(), config)
    reply = cast(Message, app(Message(content, dst_node_id=1, message_type="train"), context)).content
    assert "failure" not in reply, reply["failure"]
    record = reply["arrays"]
    assert isinstance(record, ArrayRecord)
    tensors = {name: values for own in wire.unpack(record).values() for name, values in own.items()}
    return tensors, cast(int, cast(Any, reply["metrics"])["num-examples"])


@pytest.mark.parametrize("strategy", ["fedavg", "bayesian", "alone"])
def test_a_federation_of_images_and_volumes(strategy: str, tmp_path: Path) -> None:
    done = run(federation(tmp_path, strategy=strategy))
    summary = done.read_json("summary.json")
    assert summary["failures"] == 0 and summary["rounds"] == 2
    assert set(summary["tasks"]) == {"grade", "outline", "fill", "turn"}
    for name, task in summary["tasks"].items():
        assert math.isfinite(task["test"][task["metric"]]), name
    cards = {card["key"]: card for card in done.read_json("sites.json")}
    assert {key: card["inputs"] for key, card in cards.items()} == INPUTS
    assert {key: sorted(card["tasks"]) for key, card in cards.items()} == HELD
    page = (done.folder / "report.html").read_text()
    assert all(f">{name}" in page for name in ("Grade", "Outline", "Fill", "Turn"))
    losses = [line["loss"] for line in done.lines("metrics.jsonl")]
    assert len(losses) == 8 and all(map(math.isfinite, losses))


def test_the_body_is_merged_and_an_input_part_is_that_of_its_sites(tmp_path: Path) -> None:
    config = federation(tmp_path, rounds=1)
    model = build_model(read_config(config))
    merged, initial = weights(run(config)), {name: x.numpy() for name, x in model.state_dict().items()}
    replies = {site: trained(config, site, tasks) for site, tasks in HELD.items()}
    own, counts = ({site: reply[i] for site, reply in replies.items()} for i in (0, 1))
    for name, values in merged.items():
        part = model.part(name)
        sites = [site for site in own if name in own[site]]
        if part == "encoder":
            assert len(sites) == 3 and not any(values.tobytes() == own[site][name].tobytes() for site in sites), name
        elif part == "input.2d":
            assert sites == ["a", "c"]
        elif part in ("input.3d", "input.ct", "input.other-body-part"):
            assert sites == ["b"] and values.tobytes() == own["b"][name].tobytes(), name
        elif part in ("input.x-ray", "input.chest", "input.mri", "input.brain"):
            assert len(sites) == 1 and values.tobytes() == own[sites[0]][name].tobytes(), name
        elif part.startswith("input."):
            assert not sites and values.tobytes() == initial[name].tobytes(), name
        if part in ("encoder", "input.2d") and values.dtype.kind == "f":
            mean = np.average([own[site][name] for site in sites], axis=0, weights=[counts[site] for site in sites])
            np.testing.assert_allclose(values, mean, rtol=1e-4, atol=1e-6, err_msg=name)
    for name in ("encoder.patches.3d.tokens.weight", "encoder.modality.ct", "encoder.dimensionality.3d"):
        assert not np.array_equal(merged[name], initial[name])


SAVE = RunState.save


def _interrupt() -> None:
    raise ConnectionError


@pytest.mark.parametrize("strategy", ["fedavg", "bayesian"])
def test_the_same_weights_with_two_workers_and_resumed(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(run(federation(tmp_path, strategy=strategy)))
    two = weights(run(federation(tmp_path, strategy=strategy, out=str(tmp_path / "two")), workers=2))
    config = federation(tmp_path, strategy=strategy, out=str(tmp_path / "half"))
    monkeypatch.setattr(RunState, "save", lambda *a, **k: SAVE(*a, **k) or _interrupt())
    with pytest.raises(ConnectionError):
        run(config)
    monkeypatch.undo()
    (half,) = (tmp_path / "half").glob("mixed-*")
    resumed = run(config | {"resume": str(half)})
    for other in (two, weights(resumed)):
        assert other.keys() == whole.keys()
        assert [name for name in whole if whole[name].tobytes() != other[name].tobytes()] == []


def test_a_run_on_images_without_labels_goes_on_with_volumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_sites(tmp_path / "data")
    tasks = {key: value for key, value in federation(tmp_path).items() if not key.startswith("task.")}
    first = run(tasks | {"task.fill.kind": "reconstruction", "data": f"{tmp_path}/data/a, {tmp_path}/data/c"})
    old = weights(first, "best")
    outline = {key: value for key, value in KEYS.items() if key.startswith("task.outline.")}
    path = str(first.folder / "checkpoints/best.safetensors")
    second = tasks | outline | {"weights": path, "data": f"{tmp_path}/data/b,", "out": str(tmp_path / "volumes")}
    model = build_model(read_config(second), pretrained=True)
    assert f"Weights file {path} lacks input.3d, decoder.outline; they start with initial values." in caplog.messages
    for name, values in model.state_dict().items():
        if model.part(name) == "encoder" or ".modality." in name:
            assert values.numpy().tobytes() == old[name].tobytes(), name
    done = run(second | {"rounds": 1})
    assert done.read_json("summary.json")["failures"] == 0
    assert "encoder.patches.2d.tokens.weight" not in weights(done)


def test_another_model_refuses_images_and_volumes_in_one_run(tmp_path: Path) -> None:
    message = (
        "Config key model: expected tasks of one dimensionality, got tasks of images and of volumes; set model = "
        "'medformer', or divide the tasks between two runs"
    )
    for model in ("mtmedformer", "hard-sharing", "single-task", "mtan", "ctan"):
        with pytest.raises(MtfedError, match=message):
            run(federation(tmp_path, model=model))
