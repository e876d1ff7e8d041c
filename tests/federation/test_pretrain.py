"""Pretraining without labels: the tasks of its run, its record, and a run with labels that starts from its weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from helpers import mtfed, only_run, pairs
from mtfed.config import read_config
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import find_app
from mtfed.federation.pretrain import DEFAULT_KINDS, command_of_later_run, pretext_config, pretrain, read_terms

APP = find_app("pneumonia")


def test_the_tasks_of_an_app_are_replaced() -> None:
    given: dict[str, Any] = APP.run_config | {"weighting": "tasks", "task-weights": "lungs=2", "min-sites": 3}
    given["augment"] = "mirror"
    config = read_config(pretext_config(given, DEFAULT_KINDS, federated=False))
    assert {name: task.loss for name, task in config.tasks.items()} == {
        "orientation": "cross-entropy", "reconstruction": "l1", "views": "nt-xent",
    }  # fmt: skip
    assert config.pooled and config.balancing == "equal" and config.name == "pneumonia-pretrain"
    assert config.augment == "none"
    assert config.encoder == read_config(given).encoder
    alone = pretext_config(given | {"strategy": "alone"}, DEFAULT_KINDS, federated=False)
    assert read_config(alone).strategy == "fedavg"
    federated = read_config(pretext_config(given, "0.25*views+2*orientation", federated=True))
    assert {name: task.loss for name, task in federated.tasks.items()} == {
        "orientation": "2*cross-entropy", "views": "0.25*nt-xent",
    }  # fmt: skip
    assert not federated.pooled and federated.min_sites == 3


def test_each_dimensionality_has_its_tasks() -> None:
    volumes = {"task.heart.kind": "classification", "task.heart.classes": "a, b", "task.heart.dimensions": 3}
    mixed = read_config(pretext_config(APP.run_config | volumes, "reconstruction + views", federated=False))
    assert {name: task.dimensions for name, task in mixed.tasks.items()} == {
        "reconstruction": 2, "reconstruction-3d": 3, "views": 2, "views-3d": 3,
    }  # fmt: skip
    alone = {key: value for key, value in APP.run_config.items() if not key.startswith("task.")} | volumes
    only = read_config(pretext_config(alone, "views", federated=False))
    assert {name: task.dimensions for name, task in only.tasks.items()} == {"views": 3}


@pytest.mark.parametrize("tasks", ["", "views +", "0*views", "views + views", "2 views", "classification", "view"])
def test_a_wrong_sum_is_refused(tasks: str) -> None:
    with pytest.raises(MtfedError, match=r"Expected --kinds to be a sum|Unknown kind of task without labels"):
        read_terms(tasks)


def test_a_strategy_without_common_weights_is_refused() -> None:
    message = "Config key strategy: expected one that trains common weights, from which a run can start, got alone"
    for sites in (None, 3):
        with pytest.raises(MtfedError, match=message):
            pretrain("pneumonia", ["strategy=alone"], DEFAULT_KINDS, sites, "local", 1)


def test_the_encoder_is_trained_even_if_the_app_freezes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = find_app("pneumonia").run_config | {"encoder-rate": 0.0}
    config = read_config(pretext_config(frozen, "views", federated=False))
    assert config.encoder_rate == 1 and not config.is_encoder_frozen
    with pytest.raises(MtfedError, match="expected above 0 for pre-training"):
        pretrain("pneumonia", ["encoder-rate=0"], "views", None, "local", 1)


def test_overrides_precede_the_settings_of_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[dict] = []
    monkeypatch.setattr("mtfed.federation.pretrain.simulate", lambda app, run_config, *rest: used.append(run_config))
    pretrain("pneumonia", ["balancing=dwa", "name=xray", "task.views.loss=vicreg"], "views", None, "local", 1)
    config = read_config(used[0])
    assert (config.balancing, config.name, config.tasks["views"].loss) == ("dwa", "xray-pretrain", "vicreg")


def test_the_command_of_the_later_run_repeats_what_it_needs() -> None:
    needed = ["data=my sets/a", "volume-size=32", "channels=3", "partition-seed=2", "model=medformer", "encoder=vit"]
    others = ["rounds=3", "learning-rate=0.1", "name=x", "seed=1", "balancing=dwa", "task.views.loss=vicreg", "out=o"]
    command = command_of_later_run("pneumonia", [*others, *needed, "weights=old"], Path("new"), None)
    expected = ["mtfed", "simulate", "pneumonia", *(w for pair in [*needed, "weights=new"] for w in ("-c", pair))]
    assert shlex.split(command) == expected
    assert "-c 'data=my sets/a' " in command
    federated = command_of_later_run("pneumonia", ["rounds=3", " decoder-width = 8"], Path("new"), 4)
    assert federated == "mtfed simulate pneumonia --num-supernodes 4 -c 'decoder-width = 8' -c weights=new"
    some = command_of_later_run("medformer", [], Path("new"), None, ["melanoma", "lungs"])
    assert some == "mtfed simulate medformer --tasks melanoma lungs -c weights=new"


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ((), {"views", "views-3d"}),
        (("melanoma",), {"views"}),
        (("organs",), {"views"}),
        (("lungs", "organs"), {"views", "views-3d"}),
    ],
)
def test_weights_are_for_the_dimensionalities_of_the_chosen_tasks(
    monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...], names: set[str]
) -> None:
    used: list[dict] = []
    monkeypatch.setattr("mtfed.federation.pretrain.simulate", lambda app, run_config, *rest: used.append(run_config))
    pretrain("medformer", [], "views", None, "local", 1, tasks)
    assert set(read_config(used[0]).tasks) == names
    with pytest.raises(MtfedError, match="did you mean 'lungs'"):
        pretrain("medformer", [], "views", None, "local", 1, ["lung"])


@pytest.mark.parametrize("sites", [0, 3])
def test_a_run_starts_from_the_weights(small: dict, sites: int, tmp_path: Path) -> None:
    options = ["--num-supernodes", sites] if sites else []
    out = str(tmp_path / "pretrained")
    given = {key: value for key, value in small.items() if not key.startswith("task.")} | {"rounds": 1, "out": out}
    changes = pairs(given | {"task.views.loss": "simsiam"})
    result = mtfed("pretrain", *options, "--kinds", "reconstruction + views", *changes)
    assert result.returncode == 0, result.stderr
    run = only_run(out)
    weights = run.folder / "checkpoints" / "best.safetensors"
    assert f"-c weights={weights}" in result.stdout
    assert len(run.read_json("sites.json")) == (sites or 1)
    assert run.config().tasks["views"].loss == "simsiam"
    assert set(run.read_json("summary.json")["tasks"]) == {"reconstruction", "views"}
    (repeated,) = (line for line in result.stdout.splitlines() if line.startswith("to use them: "))
    assert "encoder=vit_nano_patch8" in repeated and "rounds" not in repeated
    tuned = small | {"rounds": 1, "learning-rate": 1e-12, "weight-decay": 0, "weights": str(weights)}
    result = mtfed("simulate", "--num-supernodes", 3, *pairs(tuned | {"label-share": 0.3}))
    assert result.returncode == 0, result.stderr
    folders = (run.folder, only_run(small["out"]).folder)
    before, after = (load_file(folder / "checkpoints" / "best.safetensors") for folder in folders)
    body = [name for name in before if name.startswith("encoder.body.")]
    assert body and all(abs(before[name] - after[name]).max() < 1e-6 for name in body)
