"""The forms of images and volumes in one run, and the dimensions of tasks."""

from __future__ import annotations

from typing import Any

import pytest

from mtfed.config import Form, RunConfigValue, flatten, read_config
from mtfed.errors import MtfedError
from mtfed.models.build import build_model
from mtfed.models.encoders import EncoderSettings

FLAT = {"task.grade.kind": "classification", "task.grade.classes": "no, yes"}
DEEP = {"task.liver.kind": "segmentation", "task.liver.classes": "outside, liver", "task.liver.dimensions": 3}
BOTH: dict[str, RunConfigValue] = FLAT | DEEP

FORMS: list[tuple[dict[str, Any], list[Form]]] = [
    (FLAT, [Form(2, 64, 1)]),
    (FLAT | {"image-size": 32, "channels": 3}, [Form(2, 32, 3)]),
    (FLAT | {"dimensions": 3}, [Form(3, 64, 1)]),
    (FLAT | {"dimensions": 3, "volume-size": 16, "channels": 3}, [Form(3, 16, 3)]),  # volumes of three channels
    (DEEP, [Form(3, 64, 1)]),
    (DEEP | {"channels": 3}, [Form(3, 64, 1)]),  # of a run on images, which are in colour
    (BOTH, [Form(2, 64, 1), Form(3, 64, 1)]),
    (BOTH | {"volume-size": 32, "channels": 3}, [Form(2, 64, 3), Form(3, 32, 1)]),
    (BOTH | {"dimensions": 3, "volume-size": 32, "image-size": 96}, [Form(3, 32, 1)]),
    (
        BOTH | {"dimensions": 3, "task.grade.dimensions": 2, "volume-size": 32, "channels": 3},
        [Form(2, 64, 3), Form(3, 32, 3)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "forms"), FORMS)
def test_forms_are_those_that_tasks_need(keys: dict[str, RunConfigValue], forms: list[Form]) -> None:
    config = read_config(keys)
    assert list(config.forms) == forms
    assert [form.shape for form in forms] == [(f.channels, *[f.size] * f.dimensions) for f in config.forms]
    for task in config.tasks.values():
        assert config.form_of(task.name).dimensions == task.dimensions in (2, 3)
    for form in forms:
        own = config.with_form(form)
        assert own.forms == (form,) and own.with_form(form) is own
        assert (own.dimensions, own.image_size, own.channels, own.volume_size) == (*form, 0) or own is config
        assert own.tasks == {name: task for name, task in config.tasks.items() if task.dimensions == form.dimensions}
        assert own.seed == config.seed and own.key == read_config(flatten(own)).key


@pytest.mark.parametrize(("keys", "forms"), FORMS)
def test_the_config_reads_back(keys: dict[str, RunConfigValue], forms: list[Form]) -> None:
    config = read_config(keys)
    again = read_config(flatten(config))
    assert again == config and hash(again) == hash(config) and list(again.forms) == forms
    assert all(flatten(config)[f"task.{name}.dimensions"] == task.dimensions for name, task in config.tasks.items())


def test_the_config_of_a_form_may_name_tasks_of_others() -> None:
    config = read_config(BOTH | {"weighting": "tasks", "task-weights": "liver=2, grade=1"})
    flat, deep = (config.with_form(form) for form in config.forms)
    assert list(flat.tasks) == ["grade"] and list(deep.tasks) == ["liver"] and flat != deep
    assert config.with_form(config.forms[0]) is flat  # built once


WRONG = [
    ({"task.liver.dimensions": 4}, "Config key task.liver.dimensions: expected 0, 2 or 3, got 4."),
    ({"task.liver.dimensions": "flat"}, "Config key task.liver.dimensions: expected 0, 2 or 3, got 'flat'."),
    ({"task.liver.dimension": 3}, "Unknown config key 'task.liver.dimension'; did you mean 'task.liver.dimensions'?"),
    ({"dimensions": 4}, "Config key dimensions: expected 2 or 3, got 4."),
    ({"volume-size": -8}, "Config key volume-size: expected greater than or equal to 0, got -8."),
    ({"volume-size": 1024}, "Config key volume-size: expected less than or equal to 512, got 1024."),
    ({"volume_size": 8}, "Unknown config key 'volume_size'; did you mean 'volume-size'?"),
    ({"volumesize": 8}, "Unknown config key 'volumesize'; did you mean 'volume-size'?"),
]


@pytest.mark.parametrize(("keys", "sentence"), WRONG)
def test_an_error_names_the_wrong_key(keys: dict[str, RunConfigValue], sentence: str) -> None:
    with pytest.raises(MtfedError) as error:
        read_config(BOTH | keys)
    assert str(error.value) == sentence


@pytest.mark.parametrize("model", ["mtmedformer", "hard-sharing", "single-task", "mtan", "ctan"])
def test_other_models_take_images_or_volumes(model: str) -> None:
    message = (
        "Config key model: expected tasks of one dimensionality, got tasks of images and of volumes; set model = 'm"
    )
    with pytest.raises(MtfedError, match=message):
        build_model(read_config(BOTH | {"model": model, "volume-size": 16}))
    with pytest.raises(MtfedError, match=message):
        EncoderSettings("resnet_nano", (Form(2, 32), Form(3, 32))).build()
    build_model(read_config(DEEP | {"model": model, "image-size": 16, "encoder": "vit3d_mini_patch8"}))
