import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtfed import startup

# Each runs in its own interpreter, once with what startup offers and once with plain imports: same output.
LIBRARIES = """
from mtfed.lean import lean_import
from mtfed.startup import import_timm, import_torchvision

torch.manual_seed(0)
logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 3, 8, 8))
if light:
    timm = import_timm()
    losses, metrics = lean_import("monai.losses"), lean_import("monai.metrics")
    classification = lean_import("torchmetrics.classification")
else:
    import_torchvision()
    import timm
    from monai import losses, metrics
    from torchmetrics import classification
auroc = classification.MultilabelAUROC(3)
show("auroc", auroc(logits, masks))
show("dice loss", losses.DiceLoss(sigmoid=True)(logits, masks))
show("dice and cross entropy", losses.DiceCELoss(sigmoid=True)(logits, masks.float()))
loaded = {"matplotlib", "scipy.ndimage", "torch._dynamo"} & set(sys.modules)
assert not (light and loaded), loaded
show("surface", metrics.compute_average_surface_distance(logits > 0, masks, include_background=True))

import monai
import torchmetrics
from monai.networks.blocks import MaxAvgPool
from torchmetrics.text import TranslationEditRate

show("depend on order", [MaxAvgPool.__module__, TranslationEditRate.__module__])
for name in (
    "monai.__version__ monai.losses.HausdorffDTLoss monai.metrics.DiceMetric monai.transforms.Compose "
    "monai.networks.nets.UNet monai.networks.blocks.Convolution monai.data.DataLoader monai.data.MetaTensor "
    "monai.utils.optional_import monai.inferers.SlidingWindowInferer monai.nothing torchmetrics.__version__ "
    "torchmetrics.AUROC torchmetrics.functional.accuracy torchmetrics.functional.classification.accuracy "
    "torchmetrics.nothing"
).split():
    value = sys.modules[name.partition(".")[0]]
    for part in name.split(".")[1:]:
        value = getattr(value, part, "missing")
    show(name, getattr(value, "__qualname__", value))
show("transform", monai.transforms.ScaleIntensity()(torch.arange(4.0)))
show("models", timm.list_models())
for model in "pvt_v2_b0", "naflexvit_base_patch16_gap":
    show(model, sum(p.numel() for p in timm.create_model(model).parameters()))
show("plot", [axis.get_ylim() for axis in auroc.plot()[0].axes])
"""

OPTIMIZERS = """
from mtfed.startup import make_optimizers_light

if light:
    make_optimizers_light()
    make_optimizers_light()
for kind in torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    optimizer = kind(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    steps = [optimizer.step] * 2
    if kind is torch.optim.RMSprop:  # the last, from which on the compiler is there
        assert not light or "torch._dynamo" not in sys.modules
        import torch._dynamo
        steps += [optimizer.step, torch.compile(optimizer.step, backend="eager")]
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        step()
        schedule.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert torch.is_grad_enabled()
    show(kind.__name__, [p.tolist() for p in model.parameters()])
show("compiled", torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.ones(2)))
"""

FIRST_STEP = """
from mtfed.lean import lean_import
from mtfed.startup import import_timm, make_optimizers_light

make_optimizers_light()
model = import_timm().create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=2)
optimizer = torch.optim.AdamW(model.parameters())
loss = lean_import("monai.losses").DiceCELoss(sigmoid=True)
auroc = lean_import("torchmetrics.classification").BinaryAUROC()
output = model(torch.randn(2, 3, 32, 32))
loss(output[..., None, None], torch.ones(2, 2, 1, 1)).backward()
optimizer.step()
auroc.update(output[:, 0], torch.tensor([0, 1]))
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
import torchvision
torchvision.ops.box_iou(torch.ones(1, 4), torch.ones(1, 4))
"""

FALLBACK = """
from mtfed import lean

def fail(*_):
    raise LookupError

lean._read_origins = fail
lean.lean_import("torchmetrics.classification").BinaryAUROC()
assert type(sys.modules["torchmetrics"]) is type(sys)
"""


def run(snippet: str, light: bool) -> dict[str, object]:
    """Give what a snippet shows in an interpreter of its own."""
    head = f"import json, sys, torch\nlight, shown = {light}, {{}}\n"
    head += "def show(name, value): shown[name] = value.tolist() if hasattr(value, 'tolist') else str(value)\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", head + snippet + "\nprint(json.dumps(shown))"],
        env={**os.environ, "MPLBACKEND": "agg"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return shown


@pytest.mark.parametrize("snippet", [LIBRARIES, OPTIMIZERS], ids=["libraries", "optimizers"])
def test_same_as_plain(snippet: str) -> None:
    with ThreadPoolExecutor() as threads:
        light, plain = threads.map(run, [snippet, snippet], [True, False])
    assert light == plain


@pytest.mark.parametrize("snippet", [FIRST_STEP, FALLBACK], ids=["first step", "fallback"])
def test_snippet(snippet: str) -> None:
    run(snippet, light=True)


REGISTER = "import torch\ntorch.library.register_fake('torchvision::{}')(lambda x: x)\n"


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
def test_torchvision(source: str, error: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/part.py").touch()
    (tmp_path / "torchvision/__init__.py").write_text("import torchvision.part\n" + source)
    for name in [*sys.modules]:
        if name.partition(".")[0] == "torchvision":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    if error is None:
        assert startup.import_torchvision() is startup.import_torchvision() is sys.modules["torchvision"]
    else:
        with pytest.raises(RuntimeError, match=error):
            startup.import_torchvision()
        assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
