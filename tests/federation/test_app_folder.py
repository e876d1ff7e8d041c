"""The folder of an app: it is found by name, and -c overrides its config."""

from __future__ import annotations

import pytest

from mtfed.config import KEYS, read_config
from mtfed.errors import MtfedError
from mtfed.federation.app_folder import find_app, override


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
