"""The progress bar."""

from __future__ import annotations

import sys

import pytest

from mtfed.progress import counted


def test_the_bar_is_shown_for_long_work_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert list(counted(iter("abc"), 3, "decoding", quiet=-1)) == ["a", "b", "c"]
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert list(counted(iter("abc"), 3, "decoding", quiet=60)) == ["a", "b", "c"]
    assert not capsys.readouterr().out
    assert list(counted(iter("abc"), 3, "decoding", quiet=-1)) == ["a", "b", "c"]
    assert "decoding" in capsys.readouterr().out
