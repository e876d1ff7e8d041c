"""The cache's key depends on versions of decoders and the code that reads, but on no loss and no other kind."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hospitals import TASKS, keys
from mtfed.config import read_config
from mtfed.data import fingerprint
from mtfed.data.fingerprint import package_versions, settings_digest, used_code
from mtfed.data.formats import FORMATS, Format
from mtfed.tasks.kind import kind_of

CONFIG = read_config({"image-size": 16, **keys("grade", "outline")})
MODULES = {
    "reading": "WIDTH = 2\n\n\ndef read(cell, task, source):\n    return [helper(cell)] * WIDTH\n\n\n"
    "def helper(cell):\n    return shared.parse(cell)\n\n\ndef loss(outputs):\n    return outputs.mean()\n",
    "shared": "def parse(cell):\n    return int(cell, BASE)\n\n\nBASE = 10\n",
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    settings_digest.cache_clear()
    yield
    settings_digest.cache_clear()
    fingerprint._parse.cache_clear()


@pytest.mark.parametrize(
    "package",
    ["pydicom", "python-gdcm", "nibabel", "pynrrd", "SimpleITK", "pillow", "numpy", "torch", "pylibjpeg"],
)
def test_another_version_of_a_decoder_gives_another_key(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, plain = settings_digest(CONFIG), fingerprint.version
    monkeypatch.setattr(fingerprint, "version", lambda name: "99.0" if name == package else plain(name))
    settings_digest.cache_clear()
    assert settings_digest(CONFIG) != before


def test_the_versions_are_those_of_the_installed_packages() -> None:
    versions = dict(package_versions())
    assert re.fullmatch(r"\d+\.\d+.*", versions["torch"]) and re.fullmatch(r"\d+\.\d+.*", versions["pydicom"])
    assert {package for format in FORMATS.values() for package in format.packages} <= versions.keys()


def test_a_format_from_outside_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy_format.py").write_text("def read(file, dimensions): ...\n")
    before = settings_digest(CONFIG)
    monkeypatch.setitem(FORMATS, "toy", Format("toy", (".toy",), "toy_format:read", packages=("toy-decoder",)))
    keys_of_toy = set()
    for code in ("def read(file, dimensions): ...\n", "def read(file, dimensions): return 1\n"):
        (tmp_path / "toy_format.py").write_text(code)
        settings_digest.cache_clear()
        keys_of_toy.add(settings_digest(CONFIG))
    assert len(keys_of_toy) == 2 and before not in keys_of_toy


def code_of(folder: Path, **changes: tuple[str, str]) -> set[str]:
    """Return the code that counts for ``read`` of a toy package, after replacing texts in its modules."""
    package = f"toy_kinds_{len(sys.modules)}"
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    for name, code in MODULES.items():
        old, new = changes.get(name, ("", ""))
        assert old in code
        code = code.replace(old, new) if old else code
        start = "from . import shared\nimport math\n\n" if name == "reading" else ""
        (folder / package / f"{name}.py").write_text(start + code)
    module = __import__(f"{package}.reading", fromlist=["read"])
    return set(used_code(module.read))


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"reading": ("[helper(cell)]", "(helper(cell),)")}, True),
        ({"reading": ("WIDTH = 2", "WIDTH = 3")}, True),
        ({"shared": ("int(cell, BASE)", "float(cell)")}, True),
        ({"shared": ("BASE = 10", "BASE = 16")}, True),
        ({"reading": ("outputs.mean()", "outputs.sum()")}, False),
        ({"reading": ("WIDTH = 2", "WIDTH = 2  # columns")}, False),
        ({"reading": ("task, source):", "task: int, source):")}, False),
        ({"shared": ("(cell):", '(cell):\n    """Return a number."""')}, False),
    ],
)
def test_the_code_that_reads_labels_counts_and_a_loss_does_not(
    changes: dict[str, tuple[str, str]], counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert (code_of(tmp_path) != code_of(tmp_path, **changes)) == counts


@pytest.mark.parametrize("name", TASKS)
def test_the_readers_of_all_kinds_count_without_their_losses(name: str) -> None:
    kind = kind_of(read_config(keys(name)).tasks[name])
    code = "\n".join(used_code(kind.read))
    assert f"def {kind.read.__name__}(" in code
    assert not any(f"def {loss.__name__}(" in code for loss in kind.losses.values() if hasattr(loss, "__name__"))
    assert "KIND_SPECS" not in code  # its losses and metrics


def test_only_the_kinds_of_the_config_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before, plain = settings_digest(CONFIG), fingerprint.label_code
    for name, changed in (("dose", False), ("grade", True)):
        other = kind_of(read_config(keys(name)).tasks[name])
        monkeypatch.setattr(fingerprint, "label_code", lambda kind, o=other: b"new" if kind is o else plain(kind))
        settings_digest.cache_clear()
        assert (settings_digest(CONFIG) != before) == changed
