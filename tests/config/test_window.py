"""The window of a config."""

from __future__ import annotations

from typing import Any

import pytest

from mtfed.config import read_config
from mtfed.errors import MtfedError


@pytest.mark.parametrize(
    ("window", "ends"), [("40, 400", (-160, 240)), ("", None), ("0.5,1", (0, 1)), ("-600 , 1500", (-1350, 150))]
)
def test_the_window_of_a_config(window: str, ends: Any) -> None:
    config = read_config({"task.a.kind": "classification", "task.a.classes": "n, y", "window": window})
    assert config.window_ends == ends


@pytest.mark.parametrize("window", ["40", "40, 0", "40, -1", "a, b", "1, 2, 3", "nan, 5", "5, inf", ","])
def test_a_bad_window_is_named(window: str) -> None:
    with pytest.raises(MtfedError, match=r"Config key window: expected a level and a width above 0, such as '40, 400'"):
        read_config({"task.a.kind": "classification", "task.a.classes": "n, y", "window": window})
