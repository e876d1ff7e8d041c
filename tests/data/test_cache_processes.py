"""Several processes that use one cache."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

from helpers.cached_site import graded, opened, stores
from mtfed.config import Config
from mtfed.data import decoding
from mtfed.data.manifest import Row, SiteData
from mtfed.data.store import Decoded

pytestmark = pytest.mark.usefixtures("own_cache")


def _decode_slowly(folder: Path, notes: Path, is_killed: bool = False) -> None:
    original = decoding.decode_row

    def decode_row(data: SiteData, row: Row, config: Config) -> Decoded | str:
        with open(notes, "a", encoding="utf-8") as file:
            file.write(row.image + "\n")
        if is_killed and row.image == "3.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(data, row, config)

    decoding.decode_row = decode_row  # type: ignore[assignment]
    assert opened(folder).images.shape == (4, 1, 16, 16)


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_processes_at_the_same_time_decode_once(tmp_path: Path, method: str) -> None:
    folder, notes = graded(tmp_path / "s"), tmp_path / "notes"
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_decode_slowly, args=(folder, notes)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(notes.read_text().split()) == sorted(f"{i}.png" for i in range(6)) and len(stores(folder)) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills a forked process")
def test_a_killed_process_leaves_no_store(tmp_path: Path) -> None:
    folder, notes = graded(tmp_path / "s"), tmp_path / "notes"
    process = multiprocessing.get_context("fork").Process(target=_decode_slowly, args=(folder, notes, True))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[:11] for path in (folder / ".mtfed-cache").glob("*-*")] == ["unfinished-"]
    assert len(opened(folder)) == 4 and len(stores(folder)) == 1 and "unfinished" not in stores(folder)[0]


def test_without_locks_the_first_store_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = graded(tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    original, inner = decoding.fill_arrays, []

    def fill(*given: object) -> dict[int, str]:
        if not inner:
            inner.append(True)
            inner.append(opened(folder))  # another process that is faster
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "fill_arrays", fill)
    assert opened(folder).images.equal(inner[1].images) and len(stores(folder)) == 1
