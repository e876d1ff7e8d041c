from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtfed import startup

# Run in an interpreter of its own, once with the deferral of the compiler and once with plain imports.
LIBRARIES = """
import json, sys, torch
from mtfed.startup import import_timm, import_torchvision

if deferred:
    timm = import_timm()
    assert "torch._dynamo" not in sys.modules
else:
    import torch._dynamo
    import_torchvision()
    import timm
models = {name: timm.create_model(name) for name in ("pvt_v2_b0", "naflexvit_base_patch16_gap")}
sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
import torchvision
torch.manual_seed(0)
boxes = torch.rand(4, 4).cumsum(1)
shown = [timm.list_models(), sizes, torchvision.ops.box_iou(boxes, boxes).tolist()]
assert "torch._dynamo.utils" not in sys.modules or not deferred
torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu")
torch.compiler.disable(len)([])
assert type(sys.modules["torch._dynamo.utils"].is_compile_supported("cpu")) is bool
print(json.dumps(shown))
"""


def run(deferred: bool) -> object:
    """Return what the snippet shows."""
    code = f"deferred = {deferred}\n{LIBRARIES}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_libraries_are_the_same_as_with_plain_imports() -> None:
    with ThreadPoolExecutor() as threads:
        deferred, plain = threads.map(run, [True, False])
    assert deferred == plain


REGISTER = "import torch\ntorch.library.register_fake('torchvision::{}')(lambda x: x)\n"


@pytest.fixture
def without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of another torchvision, which is imported next."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/part.py").touch()
    for name in [*sys.modules]:
        if name.partition(".")[0] == "torchvision":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "torchvision/__init__.py"


@pytest.mark.parametrize(
    "source, error",
    [
        ("", None),
        (REGISTER.format("mtfed_a") + REGISTER.format("mtfed_b"), None),
        ("raise RuntimeError('operator torchvision::mtfed_c does not exist')", "mtfed_c does not exist"),
        ("raise RuntimeError('operator other::mtfed_d does not exist')", "other::mtfed_d"),
        ("raise RuntimeError('CUDA versions differ')", "CUDA versions differ"),
    ],
    ids=["sound", "operators", "in vain", "another library's", "another error"],
)
def test_torchvision(
    source: str, error: str | None, without_torchvision: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_torchvision.write_text("import torchvision.part\n" + source)
    if error is None:
        with caplog.at_level(logging.INFO, "mtfed"):
            assert startup.import_torchvision() is startup.import_torchvision() is sys.modules["torchvision"]
        assert [record.args for record in caplog.records] == [("mtfed_a",), ("mtfed_b",)] * bool(source)
    else:
        with pytest.raises(RuntimeError, match=error):
            startup.import_torchvision()
        assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]


def test_a_torchvision_that_needs_more_of_the_compiler_is_imported_plainly(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("from torch._dynamo.utils import counters, is_compile_supported\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from mtfed.startup import import_torchvision; "
    code += "assert import_torchvision().counters is sys.modules['torch._dynamo.utils'].counters"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "is slower" in done.stderr, done.stderr
