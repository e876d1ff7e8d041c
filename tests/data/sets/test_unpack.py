"""Archives are unpacked, and those that would do harm are refused."""

from __future__ import annotations

import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtfed.data.sets import unpack
from mtfed.data.sets.unpack import unpack as open_archive
from mtfed.errors import MtfedError

CONTENT = np.random.default_rng(0).bytes(300_000)


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
    "up": (lambda f: zipped(f / "a.zip", **{"ok": b"", "../out": b"x"}), "contains '../out', which would be"),
    "deep up": (lambda f: zipped(f / "a.zip", **{"a/../../out": b"x"}), "would be written outside its folder"),
    "absolute": (lambda f: zipped(f / "a.zip", **{"/tmp/out": b"x"}), "would be written outside its folder"),
    "a drive": (lambda f: zipped(f / "a.zip", **{"C:\\out": b"x"}), "would be written outside its folder"),
    "backslashes": (lambda f: zipped(f / "a.zip", **{"..\\out": b"x"}), "would be written outside its folder"),
    "a zip's link": (lambda f: linked(f / "a.zip"), "contains the link 'away'"),
    "a tar's up": (lambda f: tarred(f / "a.tgz", (entry("../out"), b"x")), "would be written outside its folder"),
    "a tar's link": (lambda f: tarred(f / "a.tgz", (entry("l", tarfile.SYMTYPE, "/etc"), b"")), "the link 'l'"),
    "a hard link": (lambda f: tarred(f / "a.tgz", (entry("l", tarfile.LNKTYPE, "/etc/x"), b"")), "the link 'l'"),
    "a device": (lambda f: tarred(f / "a.tgz", (entry("d", tarfile.CHRTYPE), b"")), "'d', which is not a regular file"),
    "a bomb": (lambda f: zipped(f / "a.zip", a=bytes(3_000_000)), "unpacks to more than 0.00 GiB"),
    "a tar bomb": (lambda f: tarred(f / "a.tgz", (entry("a"), bytes(3_000_000))), "unpacks to more than 0.00 GiB"),
    "many files": (lambda f: zipped(f / "a.zip", **{str(i): b"" for i in range(60)}), "or 50 files"),
    "no archive": (lambda f: _write(f / "a.zip", b"none"), "is not a readable archive"),
    "no tar": (lambda f: _write(f / "a.tgz", b"none"), "is not a readable archive"),
    "a cut zip": (lambda f: _cut(zipped(f / "a.zip", a=CONTENT)), "is not a readable archive"),
    "a cut tar": (lambda f: _cut(tarred(f / "a.tgz", (entry("a"), CONTENT))), "is not a readable archive"),
    "a broken zip": (lambda f: _spoil(zipped(f / "a.zip", a=CONTENT)), "is not a readable archive"),
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
def test_hostile_archives_are_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MIN_LIMIT", 2_000_000)
    monkeypatch.setattr(unpack, "MAX_FILES", 50)
    make, message = HOSTILE[case]
    (tmp_path / "work").mkdir()
    archive = make(tmp_path / "work")
    with pytest.raises(MtfedError, match=re.escape(message)) as error:
        open_archive(archive, tmp_path / "work" / "out")
    assert str(archive) in str(error.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [archive.name]  # no other file is left


def test_a_declared_size_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MIN_LIMIT", 2_000_000)
    path = zipped(tmp_path / "a.zip", a=bytes(3_000_000))
    content = path.read_bytes().replace((3_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(MtfedError, match=r"is not a readable archive|unpacks to more than"):
        open_archive(path, tmp_path / "out")
