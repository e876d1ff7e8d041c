"""Downloads that are cut, changed and refused, from a server of the tests."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from helpers.layouts import LAYOUTS
from mtfed.cli import main
from mtfed.data.sets import all_sets, download, find_set
from mtfed.data.sets.dataset import RemoteFile
from mtfed.data.sets.download import download as get
from mtfed.data.sets.fetch import fetch, files_to_download
from mtfed.data.sets.meter import Meter
from mtfed.errors import MtfedError

CONTENT = np.random.default_rng(0).bytes(300_000)

MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server sends, how it behaves, and which requests it received."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)  # lengths in bytes to which the next replies are cut
    statuses: list[int] = field(default_factory=list)  # statuses of the next replies, instead of files
    ranges: bool = True  # whether it supports range requests
    sends_length: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    ranges_asked: list[str] = field(default_factory=list)  # the Range header of every request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "RETRY_DELAY", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server(files={"/a.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.ranges_asked.append(self.headers.get("Range", ""))
            if self.path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            code = state.statuses.pop(0) if state.statuses else 200 if self.path in state.files else 404
            if code != 200:
                self.send_error(code)
                return
            content = state.files[self.path]
            start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if state.ranges else None
            begin = int(start[1]) if start else 0
            if begin and begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Type", state.content_type)
            if state.sends_length:
                self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin : begin + state.cut.pop(0)] if state.cut else content[begin:])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def a_file(server: Server, **changes: object) -> RemoteFile:
    return RemoteFile(**{"name": "a.bin", "url": f"{server.address}/a.bin", "md5": MD5, "size": len(CONTENT)} | changes)


def test_a_file_is_fetched_and_checked(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = get(a_file(server, sha256=SHA256), tmp_path / "new" / "folder", lambda done, of: seen.append((done, of)))
    assert path.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]
    get(a_file(server), path.parent)  # exists, so it is not fetched again
    assert server.ranges_asked == [""]


@pytest.mark.parametrize(("cut", "asked"), [([1000, 70_000], ["", "bytes=1000-", "bytes=71000-"]), ([0, 0], [""] * 3)])
def test_a_cut_download_is_resumed(server: Server, cut: list[int], asked: list[str], tmp_path: Path) -> None:
    server.cut = list(cut)
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges_asked == asked


def test_a_later_call_resumes(server: Server, tmp_path: Path) -> None:
    server.cut, server.statuses = [5000], [200, *[503] * download.MAX_FAILURES]
    with pytest.raises(MtfedError, match=r"Cannot fetch a.bin from http://.*: its server answers 503"):
        get(a_file(server), tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 5000 and not (tmp_path / "a.bin").exists()
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges_asked[-1] == "bytes=5000-" and not (tmp_path / "a.bin.part").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_of_another_file_is_discarded(server: Server, ranges: bool, tmp_path: Path) -> None:
    server.ranges = ranges
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    if not ranges:  # the server begins again, and so does the download
        assert get(a_file(server), tmp_path).read_bytes() == CONTENT
        return
    with pytest.raises(MtfedError, match=f"should have the md5 checksum {MD5}, it has .*; it has been removed"):
        get(a_file(server), tmp_path)
    assert not list(tmp_path.iterdir())
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_complete_or_longer(server: Server, extra: int, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x" * extra)
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT


def test_a_missing_length_is_tolerated(server: Server, tmp_path: Path) -> None:
    server.sends_length, server.cut = False, [100]
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT
    server.cut = [100]
    cut_file = a_file(server, name="b.bin", size=0, md5="")
    assert get(cut_file, tmp_path).stat().st_size == 100  # the end of the file cannot be recognised


# Changes to the file, behaviour of the server, error message.
BAD: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "wrong md5": ({"md5": "0" * 32}, {}, "should have the md5 checksum 00.*, it has .*; it has been removed"),
    "wrong sha256": ({"sha256": "0" * 64}, {}, "should have the sha256 checksum 00"),
    "too long": ({"size": 1000, "md5": ""}, {}, "it is longer than the 1000 bytes that it should have"),
    "too short": ({"size": len(CONTENT) + 1, "md5": ""}, {}, "Cannot fetch|should have 300001 bytes"),
    "not there": ({"url": "{}/none"}, {}, "its server answers 404"),
    "not for us": ({}, {"statuses": [403]}, "its server answers 403"),
    "always busy": ({}, {"statuses": [429] * 9}, "its server answers 429"),
    "a page": ({}, {"content_type": "text/html; charset=utf-8"}, "its server sends a page instead of the file"),
    "to a file": ({"url": "{}/to"}, {"redirects": {"/to": "file:///etc/hostname"}}, "Cannot fetch|not safe to follow"),
    "to ftp": ({"url": "{}/to"}, {"redirects": {"/to": "ftp://127.0.0.1/a"}}, "not safe to follow"),
    "in a circle": ({"url": "{}/to"}, {"redirects": {"/to": "/to"}}, "Cannot fetch a.bin"),
    "a file": ({"url": "file:///etc/hostname"}, {}, "Expected an address that begins with https"),
    "no server": ({"url": "http://127.0.0.1:9/a.bin"}, {}, "Cannot fetch a.bin from http://127.0.0.1:9/a.bin: "),
}


@pytest.mark.parametrize("case", BAD)
def test_a_failed_download_names_the_reason(case: str, server: Server, tmp_path: Path) -> None:
    file, behaviour, message = BAD[case]
    for name, value in behaviour.items():
        setattr(server, name, value)
    changed = {key: value.format(server.address) if key == "url" else value for key, value in file.items()}  # type: ignore[attr-defined]
    with pytest.raises(MtfedError, match=message):
        get(a_file(server, **changed), tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_a_redirect_is_followed_but_not_from_https(server: Server, tmp_path: Path) -> None:
    server.redirects = {"/to": "/a.bin"}
    assert get(a_file(server, url=f"{server.address}/to"), tmp_path).read_bytes() == CONTENT
    request = download.request.Request("https://example.org/a.bin")
    with pytest.raises(MtfedError, match=r"redirects to http://example\.org/a\.bin, which is not safe to follow"):
        download._SafeRedirects().redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/a.bin")


def busi_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve BUSI's archive, and change the set's address to it; return the folder for the set."""
    LAYOUTS["busi"](tmp_path / "made")
    archive = tmp_path / "Dataset_BUSI.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "made").rglob("*.png"):
            file.write(path, path.relative_to(tmp_path / "made"))
    server.files["/busi.zip"] = archive.read_bytes()
    dataset = find_set("busi")
    file = replace(
        dataset.files[0], url=f"{server.address}/busi.zip", md5=hashlib.md5(archive.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(all_sets(), "busi", replace(dataset, files=(file,)))
    return tmp_path / "data" / "busi"


def test_the_command_downloads_unpacks_and_prepares(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = busi_server(server, tmp_path, monkeypatch)
    server.cut = [2000]
    assert main(["data", "get", "busi", "--folder", str(folder), "--yes"]) == 0
    assert "9 images of 9 patients" in capsys.readouterr().out
    assert (folder / "manifest.csv").exists() and not (folder / "Dataset_BUSI.zip").exists()
    asked = len(server.ranges_asked)
    assert main(["data", "get", "busi", "--folder", str(folder)]) == 0  # nothing is fetched, so --yes is not needed
    assert len(server.ranges_asked) == asked == 2


def test_an_archive_that_was_placed_is_unpacked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = busi_server(server, tmp_path, monkeypatch)
    folder.mkdir(parents=True)
    (folder / "Dataset_BUSI.zip").write_bytes(server.files["/busi.zip"])
    dataset = find_set("busi")
    assert not files_to_download(dataset, folder)
    fetch(dataset, folder, Meter)
    assert not dataset.missing(folder) and not server.ranges_asked
    (folder / "Dataset_BUSI.zip").write_bytes(b"another file")
    with pytest.raises(MtfedError, match=r"md5 checksum .*; it is not the file that its owners provide"):
        fetch(dataset, folder, Meter)
    assert (folder / "Dataset_BUSI.zip").read_bytes() == b"another file"  # the user's file is not removed


def test_files_may_be_placed_if_the_download_fails(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = busi_server(server, tmp_path, monkeypatch)
    server.files.clear()
    assert main(["data", "get", "busi", "--folder", str(folder), "--yes"]) == 2
    error = capsys.readouterr().err
    assert "its server answers 404" in error and f"{folder}/\n  Dataset_BUSI_with_GT/" in error
    LAYOUTS["busi"](folder)
    assert main(["data", "get", "busi", "--folder", str(folder)]) == 0


@pytest.mark.parametrize(("unit", "amount"), [("bytes", "1.0 of 2.0 MiB"), ("images", "1048576 of 2097152 images")])
def test_a_meter_prints_lines_without_a_terminal(
    unit: str, amount: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mtfed.data.sets.meter.LINE_INTERVAL", 0.0)
    with Meter("a.bin", unit) as on_progress:
        on_progress(2**20, 2**21)
        on_progress(2**20, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a.bin: {amount}" and "of" not in lines[1]
