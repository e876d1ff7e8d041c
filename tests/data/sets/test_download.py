"""Downloads that are cut, changed and refused, and archives that would harm: against a server of our own."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import LAYOUTS

from mtfed.cli import main
from mtfed.data.sets import all_sets, download, find_set, unpack
from mtfed.data.sets.dataset import RemoteFile
from mtfed.data.sets.download import download as get
from mtfed.data.sets.fetch import fetch, to_fetch
from mtfed.data.sets.meter import Meter
from mtfed.data.sets.unpack import unpack as open_archive
from mtfed.errors import MtfedError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server sends, how it behaves, and what it was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)  # bytes after which the next answers end, each
    answers: list[int] = field(default_factory=list)  # codes of the next answers, instead of files
    ranges: bool = True  # whether it knows of parts
    told: bool = True  # whether it tells the length
    leads_to: dict[str, str] = field(default_factory=dict)  # redirects
    kind: str = "application/octet-stream"
    asked: list[str] = field(default_factory=list)  # the Range of every request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server(files={"/a.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.headers.get("Range", ""))
            if self.path in state.leads_to:
                self.send_response(302)
                self.send_header("Location", state.leads_to[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            code = state.answers.pop(0) if state.answers else 200 if self.path in state.files else 404
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
            self.send_header("Content-Type", state.kind)
            if state.told:
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


def a_file(server: Server, **more: object) -> RemoteFile:
    return RemoteFile(**{"name": "a.bin", "url": f"{server.address}/a.bin", "md5": MD5, "size": len(CONTENT)} | more)


def test_a_file_is_fetched_and_checked(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = get(a_file(server, sha256=SHA256), tmp_path / "new" / "folder", lambda done, of: seen.append((done, of)))
    assert path.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [found.name for found in path.parent.iterdir()] == ["a.bin"]
    get(a_file(server), path.parent)  # is there, and is not fetched again
    assert server.asked == [""]


@pytest.mark.parametrize(("cut", "asked"), [([1000, 70_000], ["", "bytes=1000-", "bytes=71000-"]), ([0, 0], [""] * 3)])
def test_a_cut_connection_is_gone_on_with(server: Server, cut: list[int], asked: list[str], tmp_path: Path) -> None:
    server.cut = list(cut)
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == asked


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut, server.answers = [5000], [200, *[503] * download.TRIES]
    with pytest.raises(MtfedError, match=r"Cannot fetch a.bin from http://.*: its server answers 503"):
        get(a_file(server), tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 5000 and not (tmp_path / "a.bin").exists()
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=5000-" and not (tmp_path / "a.bin.part").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_part_of_another_file_is_found_out(server: Server, ranges: bool, tmp_path: Path) -> None:
    server.ranges = ranges
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    if not ranges:  # the server begins again, and so do we
        assert get(a_file(server), tmp_path).read_bytes() == CONTENT
        return
    with pytest.raises(MtfedError, match=f"should have the md5 checksum {MD5}, it has .*; it has been removed"):
        get(a_file(server), tmp_path)
    assert not list(tmp_path.iterdir())
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_whole_or_longer(server: Server, extra: int, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x" * extra)
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT


def test_a_length_that_is_not_told(server: Server, tmp_path: Path) -> None:
    server.told, server.cut = False, [100]
    assert get(a_file(server), tmp_path).read_bytes() == CONTENT
    server.cut = [100]
    assert get(a_file(server, name="b.bin", size=0, md5=""), tmp_path).stat().st_size == 100  # nobody can know better


# What the file should be, what the server does, and what the error says.
BAD: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "wrong md5": ({"md5": "0" * 32}, {}, "should have the md5 checksum 00.*, it has .*; it has been removed"),
    "wrong sha256": ({"sha256": "0" * 64}, {}, "should have the sha256 checksum 00"),
    "too long": ({"size": 1000, "md5": ""}, {}, "it is longer than the 1000 bytes that it should have"),
    "too short": ({"size": len(CONTENT) + 1, "md5": ""}, {}, "Cannot fetch|should have 300001 bytes"),
    "not there": ({"url": "{}/none"}, {}, "its server answers 404"),
    "not for us": ({}, {"answers": [403]}, "its server answers 403"),
    "always busy": ({}, {"answers": [429] * 9}, "its server answers 429"),
    "a page": ({}, {"kind": "text/html; charset=utf-8"}, "its server sends a page instead of the file"),
    "to a file": ({"url": "{}/to"}, {"leads_to": {"/to": "file:///etc/hostname"}}, "Cannot fetch|not safe to follow"),
    "to ftp": ({"url": "{}/to"}, {"leads_to": {"/to": "ftp://127.0.0.1/a"}}, "not safe to follow"),
    "in a circle": ({"url": "{}/to"}, {"leads_to": {"/to": "/to"}}, "Cannot fetch a.bin"),
    "a file": ({"url": "file:///etc/hostname"}, {}, "Expected an address that begins with https"),
    "no server": ({"url": "http://127.0.0.1:9/a.bin"}, {}, "Cannot fetch a.bin from http://127.0.0.1:9/a.bin: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_fetched_is_named(case: str, server: Server, tmp_path: Path) -> None:
    file, behaviour, message = BAD[case]
    for name, value in behaviour.items():
        setattr(server, name, value)
    changed = {key: value.format(server.address) if key == "url" else value for key, value in file.items()}  # type: ignore[attr-defined]
    with pytest.raises(MtfedError, match=message):
        get(a_file(server, **changed), tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_a_redirect_is_followed_but_not_from_https(server: Server, tmp_path: Path) -> None:
    server.leads_to = {"/to": "/a.bin"}
    assert get(a_file(server, url=f"{server.address}/to"), tmp_path).read_bytes() == CONTENT
    request = download.Request("https://example.org/a.bin")
    with pytest.raises(MtfedError, match=r"leads on to http://example\.org/a\.bin, which is not safe to follow"):
        download._Redirects().redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/a.bin")


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def linked(path: Path) -> Path:
    link = zipfile.ZipInfo("away")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc")
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def test_archives_are_unpacked(tmp_path: Path) -> None:
    folder = entry("in", tarfile.DIRTYPE)
    for archive in (
        zipped(tmp_path / "a.zip", **{"in/": b"", "in/one.txt": b"1", "two.txt": b"22"}),
        tarred(tmp_path / "a.tar.gz", (folder, b""), (entry("in/one.txt"), b"1"), (entry("two.txt"), b"22")),
    ):
        out = tmp_path / f"of {archive.name}"
        seen: list[int] = []
        assert open_archive(archive, out, lambda done, of, seen=seen: seen.append(done)) == 2  # type: ignore[misc]
        assert (out / "in/one.txt").read_bytes() == b"1" and (out / "two.txt").read_bytes() == b"22" and seen[-1] == 3
        assert sorted(path.name for path in out.iterdir()) == ["in", "two.txt"]


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "up": (lambda f: zipped(f / "a.zip", **{"ok": b"", "../out": b"x"}), "holds '../out', which would be written outs"),
    "deep up": (lambda f: zipped(f / "a.zip", **{"a/../../out": b"x"}), "would be written outside its folder"),
    "absolute": (lambda f: zipped(f / "a.zip", **{"/tmp/out": b"x"}), "would be written outside its folder"),
    "a drive": (lambda f: zipped(f / "a.zip", **{"C:\\out": b"x"}), "would be written outside its folder"),
    "backslashes": (lambda f: zipped(f / "a.zip", **{"..\\out": b"x"}), "would be written outside its folder"),
    "a zip's link": (lambda f: linked(f / "a.zip"), "holds the link 'away'"),
    "a tar's up": (lambda f: tarred(f / "a.tgz", (entry("../out"), b"x")), "would be written outside its folder"),
    "a tar's link": (lambda f: tarred(f / "a.tgz", (entry("l", tarfile.SYMTYPE, "/etc"), b"")), "holds the link 'l'"),
    "a hard link": (lambda f: tarred(f / "a.tgz", (entry("l", tarfile.LNKTYPE, "/etc/x"), b"")), "holds the link 'l'"),
    "a device": (lambda f: tarred(f / "a.tgz", (entry("d", tarfile.CHRTYPE), b"")), "'d', which is no ordinary file"),
    "a bomb": (lambda f: zipped(f / "a.zip", a=bytes(3_000_000)), "unpacks to more than 0.00 GiB"),
    "a tar bomb": (lambda f: tarred(f / "a.tgz", (entry("a"), bytes(3_000_000))), "unpacks to more than 0.00 GiB"),
    "many files": (lambda f: zipped(f / "a.zip", **{str(i): b"" for i in range(60)}), "or 50 files"),
    "no archive": (lambda f: _write(f / "a.zip", b"none"), "is no archive that can be read"),
    "no tar": (lambda f: _write(f / "a.tgz", b"none"), "is no archive that can be read"),
    "a cut zip": (lambda f: _cut(zipped(f / "a.zip", a=CONTENT)), "is no archive that can be read"),
    "a cut tar": (lambda f: _cut(tarred(f / "a.tgz", (entry("a"), CONTENT))), "is no archive that can be read"),
    "a broken zip": (lambda f: _spoil(zipped(f / "a.zip", a=CONTENT)), "is no archive that can be read"),
}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _cut(path: Path) -> Path:
    return _write(path, path.read_bytes()[:-5000])


def _spoil(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[1000:1010] = bytes(10)
    return _write(path, bytes(content))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_do_no_harm(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MIN_LIMIT", 2_000_000)
    monkeypatch.setattr(unpack, "MAX_FILES", 50)
    make, message = HOSTILE[case]
    (tmp_path / "here").mkdir()
    archive = make(tmp_path / "here")
    with pytest.raises(MtfedError, match=re.escape(message)) as error:
        open_archive(archive, tmp_path / "here" / "out")
    assert str(archive) in str(error.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [archive.name]  # nothing is left of it


def test_a_declared_size_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MIN_LIMIT", 2_000_000)
    path = zipped(tmp_path / "a.zip", a=bytes(3_000_000))
    content = path.read_bytes().replace((3_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(MtfedError, match=r"is no archive that can be read|unpacks to more than"):
        open_archive(path, tmp_path / "out")


def busi_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve BUSI's archive, and let the set point to it; return the folder that it goes to."""
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
    asked = len(server.asked)
    assert main(["data", "get", "busi", "--folder", str(folder)]) == 0  # nothing to accept, as nothing is fetched
    assert len(server.asked) == asked == 2


def test_an_archive_that_was_placed_is_unpacked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = busi_server(server, tmp_path, monkeypatch)
    folder.mkdir(parents=True)
    (folder / "Dataset_BUSI.zip").write_bytes(server.files["/busi.zip"])
    dataset = find_set("busi")
    assert not to_fetch(dataset, folder)
    fetch(dataset, folder, Meter)
    assert not dataset.missing(folder) and not server.asked
    (folder / "Dataset_BUSI.zip").write_bytes(b"another file")
    with pytest.raises(MtfedError, match=r"should have the md5 checksum .*; it is not the file that its owners give"):
        fetch(dataset, folder, Meter)
    assert (folder / "Dataset_BUSI.zip").read_bytes() == b"another file"  # whoever placed it may want it


def test_what_cannot_be_downloaded_may_be_placed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = busi_server(server, tmp_path, monkeypatch)
    server.files.clear()
    assert main(["data", "get", "busi", "--folder", str(folder), "--yes"]) == 2
    told = capsys.readouterr().err
    assert "its server answers 404" in told and f"{folder}/\n  Dataset_BUSI_with_GT/" in told
    LAYOUTS["busi"](folder)
    assert main(["data", "get", "busi", "--folder", str(folder)]) == 0


@pytest.mark.parametrize(("unit", "told"), [("bytes", "1.0 of 2.0 MiB"), ("images", "1048576 of 2097152 images")])
def test_a_meter_tells_in_lines_where_there_is_no_terminal(
    unit: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mtfed.data.sets.meter.EVERY", 0.0)
    with Meter("a.bin", unit) as tell:
        tell(2**20, 2**21)
        tell(2**20, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a.bin: {told}" and "of" not in lines[1]
