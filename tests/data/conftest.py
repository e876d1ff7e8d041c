"""Fixtures of the tests of data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mtfed.data import cache


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep each site's cache in its own folder, and forget open stores afterwards."""
    monkeypatch.delenv("MTFED_CACHE", raising=False)
    cache._unwritable.clear()
    yield
    cache._open.clear()
