"""Federations whose encoder is frozen: what is sent and recorded, all strategies, and a site with other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file, save_file

from helpers import ROOT, SMALL, TASKS
from mtfed.clients.app import app
from mtfed.config import read_config
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import read_app
from mtfed.federation.rounds import Federation
from mtfed.federation.simulate import simulate
from mtfed.learning.frozen import PROJECTIONS, check_frozen, write_projections
from mtfed.learning.parts import numpy_parts
from mtfed.models.build import build_model
from mtfed.record.run import Run
from mtfed.strategies import wire

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1  # as Flower sets them in its processes
torch.set_num_threads(1)


def settings(path: Path, **changes: Any) -> dict[str, Any]:
    own = {"out": str(path), "partition": "tasks + iid", "rounds": 1}
    return TASKS | SMALL | own | {key.replace("_", "-"): value for key, value in changes.items()}


def run(config: dict[str, Any], sites: int = 2) -> Run:
    before = set(Path(config["out"]).glob("*"))
    assert simulate(read_app(ROOT / "experiments" / "pneumonia"), config, sites, "local", 1) == 0
    (folder,) = set(Path(config["out"]).glob("*")) - before
    done = Run.open(folder)
    assert done.read_json("summary.json")["failures"] == 0
    return done


def pretrained(path: Path) -> Path:
    """Return a file with weights of the encoder that no seed gives."""
    body = build_model(read_config(settings(path, seed=99))).encoder.body
    save_file(body.state_dict(), path / "encoder.safetensors")
    return path / "encoder.safetensors"


@pytest.mark.parametrize("changes", [{"encoder_rate": 0.0}, {"lora_rank": 2}, {"encoder_rate": 0.0, "model": "mtan"}])
def test_a_checkpoint_is_complete_and_messages_are_small(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = pretrained(tmp_path)
    config = settings(tmp_path / "runs", weights=str(file), strategy="bayesian", **changes)
    done = run(config)
    saved, before = load_file(done.folder / "checkpoints" / "best.safetensors"), load_file(file)
    model = build_model(read_config(config))
    assert {name for name in saved if not name.startswith("strategy/")} == set(model.state_dict())
    frozen = {f"encoder.body.{name}": tensor for name, tensor in before.items() if f"encoder.body.{name}" in saved}
    assert len(frozen) == len(before) and all(saved[name].equal(tensor) for name, tensor in frozen.items())
    size = sum(v.nbytes for part in numpy_parts(model).values() for v in part.values())
    (line,) = done.lines("rounds.jsonl")
    assert 0 < line["bytes_down"] < 2 * size + 20_000 < sum(tensor.nbytes for tensor in before.values())
    assert done.read_json("summary.json")["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_run_is_resumed_with_the_same_weights(tmp_path: Path) -> None:
    config = settings(tmp_path, lora_rank=2, rounds=2, schedule="constant", strategy="bayesian")
    whole = run(config)
    first = run(config | {"rounds": 1})
    resumed = config | {"resume": str(first.folder)}
    assert simulate(read_app(ROOT / "experiments" / "pneumonia"), resumed, 2, "local", 1) == 0
    weights = [load_file(done.folder / "checkpoints" / "last.safetensors") for done in (whole, first)]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


def test_a_run_is_not_resumed_with_another_encoder(tmp_path: Path) -> None:
    file = pretrained(tmp_path)
    config = settings(tmp_path / "runs", weights=str(file), encoder_rate=0.0, rounds=2, schedule="constant")
    first = run(config | {"rounds": 1})
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file)
    resumed = config | {"resume": str(first.folder)}
    with pytest.raises(
        MtfedError, match=r"expected the frozen encoder of the run to resume, got another encoder\.body"
    ):
        simulate(read_app(ROOT / "experiments" / "pneumonia"), resumed, 2, "local", 1)


@pytest.mark.parametrize(
    ("changes", "is_warned"), [({}, False), ({"encoder_rate": 0.0}, True), ({"lora_rank": 2}, True)]
)
def test_a_random_frozen_encoder_is_warned_of(
    tmp_path: Path, changes: dict[str, Any], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Federation(cast(Any, None), read_config(settings(tmp_path, **changes)))
    assert is_warned == ("the frozen encoder keeps its random initial weights" in caplog.text)


@pytest.mark.parametrize("strategy", ["alone", "bayesian", "fedadam", "fedbn", "growing", "pfnm", "rebasin"])
def test_every_strategy_merges_what_is_trained(tmp_path: Path, strategy: str) -> None:
    changes = {"start": "apart", "apart_epochs": 1} if strategy in ("pfnm", "spahm") else {}
    done = run(settings(tmp_path, encoder_rate=0.0, strategy=strategy, **changes))
    saved = load_file(done.folder / "checkpoints" / "last.safetensors")
    model = build_model(done.config())
    for name, tensor in model.state_dict().items():
        if name in model.frozen and name in saved:  # a strategy without a common model saves one for each site
            assert saved[name].equal(tensor)


def ask(config: dict[str, Any], kind: str = "train", **node: Any) -> RecordDict:
    """Return what a site answers; ``node`` is added to its node config."""
    content = RecordDict()
    if kind == "train":
        settings = ConfigRecord({"server-round": 1, **node.pop("settings", {})})
        sent = wire.pack(numpy_parts(build_model(read_config(config | {"weights": ""}))))
        content = RecordDict({"arrays": sent, "config": settings})
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 2, **node}, RecordDict(), config)
    return cast(Message, app(Message(content, dst_node_id=1, message_type=kind), context)).content


def test_a_site_with_other_weights_fails_alone_and_reads_its_own_file(tmp_path: Path) -> None:
    file = pretrained(tmp_path)
    config = settings(tmp_path, encoder_rate=0.0, share_tracebacks=True)
    server = build_model(read_config(config | {"weights": str(file)}))
    sent = write_projections(server)
    assert list(sent) == [PROJECTIONS] and not write_projections(build_model(read_config(settings(tmp_path))))
    failure = ask(config, settings=sent)["failure"]
    assert "expected the frozen encoder of the server" in str(failure["reason"])
    absent = ask(config | {"weights": str(tmp_path / "servers.safetensors")}, **{"encoder-weights": str(tmp_path)})
    assert f"got none at {tmp_path}; copy it to the site" in str(absent["failure"]["reason"])
    reply = ask(config, settings=sent, **{"encoder-weights": str(file)})
    assert "failure" not in reply and isinstance(reply["arrays"], ArrayRecord)
    assert not any(wire.part_of(key) == "encoder" for key in reply["arrays"])


def test_any_other_tensor_is_noticed(tmp_path: Path) -> None:
    config = read_config(settings(tmp_path, lora_rank=2))
    sent = write_projections(build_model(config))
    for suffix in ("lora_a", "mlp.fc1.weight", "norm2.bias"):  # the factors A of all seeds have the same norms
        model = build_model(config)
        check_frozen(model, sent, "")
        other = build_model(config)
        name = next(name for name in sorted(other.frozen) if name.endswith(suffix))
        other.state_dict()[name].copy_(other.state_dict()[name].flip(0) + (0.01 if suffix == "norm2.bias" else 0))
        with pytest.raises(MtfedError, match="expected the frozen encoder of the server, got another from the random"):
            check_frozen(other, sent, "")


def test_decoders_start_apart_on_a_common_frozen_encoder(tmp_path: Path) -> None:
    """A site may bring decoders of its own, if it has trained them with the same encoder."""
    file = pretrained(tmp_path)
    start = {"start": "apart", "apart-epochs": 1, "strategy": "pfnm", "share-tracebacks": True}
    config = settings(tmp_path, encoder_rate=0.0, weights=str(file)) | start
    run(config | {"out": str(tmp_path / "runs")})
    moved = {"weights": str(tmp_path / "servers.safetensors")}
    assert "failure" not in ask(config | moved, **{"encoder-weights": str(file)})
    own = build_model(read_config(config)).state_dict()
    save_file(own, tmp_path / "own.safetensors")
    assert "failure" not in ask(config, weights=str(tmp_path / "own.safetensors"))
    save_file({name: tensor + 0.1 for name, tensor in own.items()}, tmp_path / "own.safetensors")
    failure = ask(config, weights=str(tmp_path / "own.safetensors"))["failure"]
    assert "expected decoders of the run's frozen encoder, but" in str(failure["reason"])


def test_a_card_names_no_kinds_of_images_that_are_not_needed(tmp_path: Path) -> None:
    config = settings(tmp_path, model="medformer", encoder="vit_nano_patch8")
    assert "inputs" in cast(ConfigRecord, ask(config, "query.describe")["site"])
    assert "inputs" not in cast(ConfigRecord, ask(config | {"encoder-rate": 0.0}, "query.describe")["site"])
