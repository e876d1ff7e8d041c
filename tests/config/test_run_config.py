"""The config of a run: valid values read back, and errors name the wrong key."""

from __future__ import annotations

import pytest

from helpers import TASKS
from mtfed.config import flatten, read_config
from mtfed.errors import MtfedError


def test_flat_config_reads_back() -> None:
    config = read_config(TASKS | {"rounds": 3, "learning-rate": 0.01, "task.lungs.loss": "dice"})
    assert read_config(flatten(config)) == config
    assert config.tasks["lungs"].loss == "dice" and config.tasks["pneumonia"].loss == "cross-entropy"
    assert config.tasks["lungs"].classes == ("background", "lung")


@pytest.mark.parametrize("ends", ["-1024.125, 3071.875", "0, 80", "1e-7, 123456789.5", "-1e22, 1e300"])
def test_a_range_reads_back(ends: str) -> None:
    size = {"task.size.kind": "regression", "task.size.classes": "mm, cm", "task.size.range": ends}
    config = read_config(TASKS | size)
    assert config.tasks["size"].range == tuple(map(float, ends.split(",")))
    assert read_config(flatten(config)) == config


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", {}),
        ("lungs=4", {"lungs": 4.0}),
        ("lungs=4, pneumonia=1", {"lungs": 4.0, "pneumonia": 1.0}),
        (" pneumonia = 0.1,lungs=1e-3, ", {"pneumonia": 0.1, "lungs": 0.001}),
    ],
)
def test_task_weights_read_back(text: str, weights: dict[str, float]) -> None:
    config = read_config(TASKS | {"weighting": "tasks", "task-weights": text})
    assert config.task_weights == weights and read_config(flatten(config)) == config


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        *[
            ({"weighting": "tasks", "task-weights": text}, sentence)
            for text, sentence in [
                ("lung=4", "key task-weights: expected weights of the tasks lungs, pneumonia; there is no task 'lung'"),
                ("lungs=0", "Config key task-weights.lungs: expected greater than 0, got '0'"),
                ("lungs=-1", "Config key task-weights.lungs: expected greater than 0, got '-1'"),
                ("lungs=many", "Config key task-weights.lungs: expected a valid number"),
                ("lungs=nan", "Config key task-weights.lungs: expected a finite number, got 'nan'"),
                ("lungs=1=2", "Config key task-weights.lungs: expected a valid number"),
                (
                    "lungs",
                    "Config key task-weights: expected TASK=NUMBER once for each task, such as 'lungs=4, ",
                ),
                ("lungs=1, lungs=2", "Config key task-weights: expected TASK=NUMBER once for each task"),
                (4, "Config key task-weights: "),
            ]
        ],
        ({"task-weights": "lungs=4"}, 'Config key task-weights: expected weighting = "tasks" with it'),
        ({"server-learning-rate": 0}, "Config key server-learning-rate: expected greater than 0, got 0"),
        ({"server-beta1": 1}, "Config key server-beta1: expected less than 1, got 1"),
        ({"server-tau": 0}, "Config key server-tau: expected greater than 0, got 0"),
        ({"max-norm-ratio": -1}, "Config key max-norm-ratio: expected greater than or equal to 0, got -1"),
        ({"ronds": 3}, "Unknown config key 'ronds'; did you mean 'rounds'?"),
        ({"rounds": "many"}, "Config key rounds: expected a valid integer"),
        ({"rounds": 0}, "Config key rounds: expected greater than or equal to 1, got 0"),
        ({"rounds": 2.5}, "Config key rounds: expected a valid integer"),
        ({"fraction-train": 1.5}, "Config key fraction-train: expected less than or equal to 1, got 1.5"),
        ({"learning-rate": float("nan")}, "Config key learning-rate: expected a finite number"),
        ({"on-failure": "ignore"}, "Config key on-failure: expected 'skip', 'retry' or 'fail', got 'ignore'"),
        ({"device": "gpu"}, "Config key device"),
        ({"name": "../up"}, "Config key name"),
        ({"task.lungs.colour": "red"}, "Unknown config key 'task.lungs.colour'"),
        (
            {"task.lungs.kind": "segmentatoin"},
            "Config key task.lungs.kind: expected 'classification', 'multi-label', 'ordinal'",
        ),
        (
            {"task.lungs.classes": "lung"},
            "task.lungs.classes: classes of a segmentation task must be 2 or more different names, got 'lung'.",
        ),
        ({"task.lungs.loss": "dice - focal"}, "Config key task.lungs.loss: loss must be a sum of terms, as in"),
        ({"task.lungs.loss": "0*dice"}, "Config key task.lungs.loss: expected weights above 0; leave 'dice' out, got"),
        ({"task.lungs.decoder": "unett"}, "Config key task.lungs.decoder: unknown decoder of a segmentation task"),
        ({"task.lungs.kind": "regression"}, "Config key task.lungs.range: range of a regression task must be its "),
        (
            {"task.lungs.kind": "regression", "task.lungs.range": "0, inf"},
            "Config key task.lungs.range.1: expected a finite number, got 'inf'.",
        ),
        (
            {"start": "apart", "weights": "timm"},
            "Config key start: expected 'common' with pretrained weights, because sites that start apart ignore",
        ),
        (
            {"task.lungs.loss": "hinge"},
            "task.lungs.loss: unknown loss term of a segmentation task 'hinge'; expected one of: cross-entropy, di",
        ),
        (
            {"task.other.kind": "segmentation"},
            "Config key task.other.classes: classes of a segmentation task must be 2",
        ),
    ],
)
def test_an_error_names_the_wrong_key(wrong: dict, sentence: str) -> None:
    with pytest.raises(MtfedError) as error:
        read_config(TASKS | wrong)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_no_task_is_an_error() -> None:
    with pytest.raises(MtfedError, match="declares no task"):
        read_config({"rounds": 1})
