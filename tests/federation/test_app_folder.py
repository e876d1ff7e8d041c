"""The folder of an app: it is found by name, and -c overrides its config."""

from __future__ import annotations

import pytest

from mtfed.config import KEYS, read_config
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import find_app, only_tasks, override


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("rounds=3", 3),
        ("learning-rate=1e-3", 0.001),
        ("strategy=fedprox", "fedprox"),
        ("resume=''", ""),
        ("stop-per-task=true", True),
        ("name=2026", "2026"),  # the value of a text key, even if it looks like a number
        ("partition='iid'", "iid"),
    ],
)
def test_overrides_are_read_as_toml(pair: str, value: object) -> None:
    assert override({}, [pair])[pair.partition("=")[0]] == value


@pytest.mark.parametrize("pair", ["rounds", "ronds=3"])
def test_an_error_names_the_wrong_override(pair: str) -> None:
    with pytest.raises(MtfedError, match=pair.partition("=")[0]):
        override({"rounds": 1}, [pair])


def test_the_default_app_is_valid() -> None:
    app = find_app("pneumonia")
    assert set(KEYS) <= set(app.run_config)  # flwr run -c can only override keys of the app
    config = read_config(app.run_config)
    assert list(config.tasks) == ["lungs", "pneumonia"]  # sorted by name, on every engine
    with pytest.raises(MtfedError, match="did you mean 'pneumonia'"):
        find_app("pnuemonia")


def test_some_of_the_tasks() -> None:
    run_config = find_app("pneumonia").run_config
    kept = only_tasks(run_config, ["lungs"])
    assert {key for key in kept if key.startswith("task.")} == {"task.lungs.kind", "task.lungs.classes"}
    assert read_config(kept).tasks.keys() == {"lungs"} and kept["rounds"] == run_config["rounds"]
    with pytest.raises(MtfedError, match="Unknown task of the app 'lung'; did you mean 'lungs'"):
        only_tasks(run_config, ["lung"])
