"""Sharing schemes: shapes, rows, what costs nothing, parts, foreign parts, and MTAN and CTAN against their formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.strategies.wire import task_of
from torch import Tensor, nn

from mtfed.errors import MtfedError
from mtfed.models.axes.builder import AxisGraphBuilder, describes
from mtfed.models.axes.sharing import label_sharing
from mtfed.models.build import assemble
from mtfed.models.ctan import CrossTaskAttention
from mtfed.models.encoders import Encoder, Features
from mtfed.models.mtan import TaskAttention
from mtfed.models.sharing import HardSharing, SeparateEncoders, Sharing
from mtfed.models.specs import MODEL_SPECS
from mtfed.models.symmetry import check_symmetry, derive_axes
from mtfed.models.system import MultiTaskModel
from mtfed.tasks.task import Task

torch.set_num_threads(1)
TASKS = ("lungs", "left-lung_2", "kind")
ROWS = {"lungs": [0, 1, 2], "kind": [1], "left-lung_2": [0, 2]}
ENCODERS = {  # name -> side, dimensions
    "resnet_nano": (32, 2),
    "vit_nano_patch8": (32, 2),
    "pvt_mini": (32, 2),
    "resnet3d_mini": (32, 3),
    "vit3d_mini_patch8": (16, 3),
}


def separate(encoder: Callable[[], Encoder], tasks: tuple[str, ...]) -> Sharing:
    return SeparateEncoders(encoder, tasks)


def over_one(kind: Any, **options: bool) -> Callable[[Callable[[], Encoder], tuple[str, ...]], Sharing]:
    return lambda encoder, tasks: kind(encoder(), tasks, **options)


SCHEMES = {
    "hard": over_one(HardSharing),
    "separate": separate,
    "mtan": over_one(TaskAttention),
    "ctan": over_one(CrossTaskAttention),
    "ctan, encoder only": over_one(CrossTaskAttention, at_bottleneck=False),
    "ctan, bottleneck only": over_one(CrossTaskAttention, in_encoder=False),
}
OVER_ONE = [name for name in SCHEMES if name != "separate"]
ALL = [(scheme, encoder) for scheme in SCHEMES for encoder in ENCODERS]


def build(scheme: str, encoder: str = "resnet_nano", tasks: tuple[str, ...] = TASKS, noise: bool = True) -> Sharing:
    """Return a scheme with noise on its weights, as what begins at zero would hide."""
    torch.manual_seed(0)
    side, dims = ENCODERS[encoder]
    model = SCHEMES[scheme](partial(Encoder, encoder, side, 1, dims), tasks)
    with torch.no_grad():
        for name, tensor in model.state_dict().items() if noise else ():
            if tensor.is_floating_point() and not name.startswith("body."):
                tensor += 0.1 * torch.rand(tensor.shape)
    return model


def image(encoder: str = "resnet_nano", count: int = 3) -> Tensor:
    side, dims = ENCODERS[encoder]
    return torch.randn(count, 1, *(side,) * dims, generator=torch.Generator().manual_seed(1))


def rows(of: dict[str, list[int]] = ROWS) -> dict[str, Tensor]:
    return {task: torch.tensor(index) for task, index in of.items()}


def close(left: Features, right: Features) -> None:
    for one, other in zip((*left.maps, left.pooled, left.image), (*right.maps, right.pooled, right.image), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scheme", "encoder"), ALL)
def test_features_are_those_of_the_rows_and_of_the_encoders_shape(scheme: str, encoder: str) -> None:
    model, x = build(scheme, encoder).eval(), image(encoder)
    everything = {task: torch.arange(len(x)) for task in TASKS}
    with torch.no_grad():
        some, whole = model(x, rows()), model(x, everything)
    assert list(some) == list(ROWS)
    reads = model.encoder
    side, dims = ENCODERS[encoder]
    for task, index in rows().items():
        close(some[task], whole[task].rows(index))
        assert some[task].pooled.shape == (len(index), reads.dim)
        sizes = [(len(index), c, *(side // s,) * dims) for c, s in zip(reads.channels, reads.strides, strict=True)]
        assert [tuple(level.shape) for level in some[task].maps] == sizes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_that_no_task_is_wanted_for_change_nothing(scheme: str) -> None:
    model, x = build(scheme).eval(), image()
    with torch.no_grad():
        one, two = model(x, rows({"kind": [1], "lungs": [2]})), model(x[1:], rows({"kind": [0], "lungs": [1]}))
        assert model(x, {}) == {}
    assert list(one) == ["kind", "lungs"]
    for task in one:
        close(one[task], two[task])


def calls(model: nn.Module, run: Callable[[], Any]) -> Counter[str]:
    """Count the images that every module sees."""
    seen: Counter[str] = Counter()
    for name, module in model.named_modules():
        if not list(module.children()):
            hook = lambda module, inputs, name=name: seen.update({name: len(inputs[0])})  # noqa: E731
            module.register_forward_pre_hook(hook)
    run()
    return seen


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_task_without_rows_costs_nothing_unless_others_attend_to_it(scheme: str) -> None:
    model = build(scheme).eval()
    seen = calls(model, lambda: model(image(), rows({"lungs": [1]})))
    foreign = {model.part(name) for name in seen} - {"encoder", "decoder.lungs", "cross.lungs"}
    # CTAE runs its layers as products of all tasks, which no hook sees; the bottleneck's modules are called.
    attended = {"cross.kind", "cross.left-lung_2"} if scheme in ("ctan", "ctan, bottleneck only") else set()
    assert foreign == attended
    assert {count for name, count in seen.items() if model.part(name) in attended} <= {1, 2}  # twice: two tasks ask


def test_streams_of_other_tasks_are_attended_to() -> None:
    for scheme, read in {"hard": False, "mtan": False, "ctan": True, "ctan, encoder only": True}.items():
        model, x = build(scheme).eval(), image()
        with torch.no_grad():
            before = model(x, rows({"lungs": [1]}))["lungs"].pooled
            for name, weight in model.named_parameters():
                if model.part(name).endswith(".kind"):
                    weight.mul_(1.5)
            after = model(x, rows({"lungs": [1]}))["lungs"].pooled
        assert torch.equal(before, after) != read, scheme


def test_a_bottleneck_asks_for_its_own_rows_only() -> None:
    model = build("ctan").eval()
    seen = calls(model, lambda: model(image(), rows()))
    for task, index in ROWS.items():
        assert seen[f"cross.{task}.bottleneck.embed"] == 3  # what others attend to
        assert seen[f"cross.{task}.bottleneck.attention.q"] == len(index)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tasks", [("kind",), ("kind", "lungs"), TASKS])
def test_any_number_of_tasks(scheme: str, tasks: tuple[str, ...]) -> None:
    model = build(scheme, tasks=tasks)
    features = model(image(), {task: torch.arange(3) for task in tasks})
    torch.stack([f.pooled.sum() + sum(level.sum() for level in f.maps) for f in features.values()]).sum().backward()
    assert list(features) == list(tasks)
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert unused == []


def test_attention_nowhere_is_refused() -> None:
    with pytest.raises(MtfedError, match="in the encoder, at the bottleneck, or both, got neither; use HardSharing"):
        CrossTaskAttention(Encoder("resnet_nano", 32, 1), TASKS, in_encoder=False, at_bottleneck=False)


# Names and parts.

NAMES = [  # scheme, how a tensor is called, the part it belongs to
    ("hard", "body.", "encoder"),
    ("separate", "own.kind.body.", "decoder.kind"),
    ("mtan", "body.", "encoder"),
    ("mtan", "attention.left-lung_2.3.", "decoder.left-lung_2"),
    ("mtan", "bottlenecks.2.residual.", "encoder"),
    ("ctan", "body.", "encoder"),
    ("ctan", "cross.left-lung_2.stages.0.own.", "cross.left-lung_2"),
    ("ctan", "cross.kind.bottleneck.attention.", "cross.kind"),
]


@pytest.mark.parametrize(("scheme", "prefix", "part"), NAMES)
def test_which_part_a_tensor_belongs_to(scheme: str, prefix: str, part: str) -> None:
    model = build(scheme)
    found = [name for name in model.state_dict() if name.startswith(prefix)]
    assert found and {model.part(name) for name in found} == {part}


OWN = {"hard": 0, "separate": 3, "mtan": 3, "ctan": 3, "ctan, encoder only": 3, "ctan, bottleneck only": 3}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_share_no_tensor_and_leave_none_out(scheme: str) -> None:
    model = build(scheme)
    storage = [tensor.data_ptr() for tensor in model.state_dict(keep_vars=True).values() if tensor.numel()]
    assert len(set(storage)) == len(storage)
    parts = {model.part(name) for name in model.state_dict()}
    assert len(parts - {"encoder"}) == OWN[scheme] and ("encoder" in parts) == (scheme != "separate")
    assert (
        set(model.state_dict()) >= {f"body.{name}" for name in model.encoder.body.state_dict()} or scheme == "separate"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_is_whole(scheme: str) -> None:
    model = build(scheme).eval()
    copy = deepcopy(model)
    with torch.no_grad():
        before = model(image(), rows())
        for weight in copy.parameters():
            weight.zero_()
        close(model(image(), rows())["lungs"], before["lungs"])
        assert all(not features.maps[-1].any() or scheme == "mtan" for features in copy(image(), rows()).values())


# What a site holds.


def hold(model: Sharing, task: str) -> None:
    """Let what a site with one task does not train take no gradients."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(task_of(model.part(name)) in ("", task))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.startswith("ctan")])
def test_foreign_parts_are_fixed_context(scheme: str) -> None:
    model = build(scheme).train()
    hold(model, "lungs")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = model(image(), rows({"lungs": [0, 2]}))["lungs"]
    (features.pooled.square().sum() + sum(level.square().sum() for level in features.maps)).backward()
    gradients = {model.part(name) for name, weight in model.named_parameters() if weight.grad is not None}
    assert gradients == {"encoder", "cross.lungs"}
    for name, tensor in model.state_dict().items():  # no statistics either
        assert torch.equal(tensor, before[name]) or model.part(name) == "encoder"


def test_gradients_reach_the_encoder_through_foreign_parts() -> None:
    model = build("ctan", "vit_nano_patch8")
    gradients = []
    for listens in (True, False):
        hold(model, "lungs")
        if not listens:
            stages = model.get_submodule("cross.lungs.stages")
            for name, weight in stages.named_parameters():
                weight.data.mul_(float(".heard" not in name))
            model.get_submodule("cross.lungs.bottleneck.out").weight.data.zero_()
        model.zero_grad()
        model(image("vit_nano_patch8"), rows({"lungs": [0]}))["lungs"].pooled.square().sum().backward()
        gradients.append(model.get_parameter("body.patch_embed.proj.weight").grad.clone())
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.startswith("ctan")])
@pytest.mark.parametrize("encoder", ["resnet_nano", "vit_nano_patch8"])
def test_ctan_begins_as_hard_sharing(scheme: str, encoder: str) -> None:
    cross, hard = (build(name, encoder, noise=False).eval() for name in (scheme, "hard"))
    hard.load_state_dict({name: x for name, x in cross.state_dict().items() if name.startswith("body.")})
    with torch.no_grad():
        ours, plain = cross(image(encoder), rows()), hard(image(encoder), rows())
    for task in ROWS:
        close(ours[task], plain[task])


def test_one_image_of_a_task_may_have_one_pixel() -> None:
    model = build("mtan").train()
    assert model(image(), rows({"kind": [0]}))["kind"].maps[-1].shape[2:] == (1, 1)
    assert all(x.isfinite().all() for x in model.state_dict().values())


# Slow references: the formulas of the modules' docstrings, in float64, image by image and with matrices for 1x1 layers.

State = dict[str, Tensor]


def pixelwise(state: State, name: str, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution (C', C, 1, ...) to (C, P)."""
    out = state[f"{name}.weight"].flatten(1) @ x
    return out + state[f"{name}.bias"][:, None] if f"{name}.bias" in state else out


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{k}"][:, None] for k in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def over_channels(state: State, name: str, x: Tensor, dim: int | None) -> Tensor:
    """Normalise (C, P) over its channels, or over everything."""
    mean = x.mean(dim, keepdim=True) if dim is not None else x.mean()
    var = (x - mean).square().mean(dim, keepdim=True) if dim is not None else (x - mean).square().mean()
    return (x - mean) / (var + 1e-5).sqrt() * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]


def halved(x: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Max-pool (C, P) from maps of one size to half of it, or leave it."""
    if old == new:
        return x
    assert old == tuple(2 * n for n in new)
    x = x.unflatten(1, tuple(k for n in new for k in (n, 2)))
    return x.amax(dim=tuple(range(2, x.ndim, 2))).flatten(1)


def slow_mtan(state: State, task: str, stages: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return a_1 to a_4 of one image, whose p_i and u_i are (C, *s)."""
    found: list[Tensor] = []
    sizes = [tuple(after.shape[1:]) for _, after in stages]
    for i, (before, after) in enumerate(stages):
        x = before.flatten(1)
        if i:
            last, at = found[-1], f"bottlenecks.{i - 1}"
            y = batch_norm(state, f"{at}.residual.1", pixelwise(state, f"{at}.residual.0", last)).relu()
            y = y.unflatten(1, sizes[i - 1])[None]
            y = (F.conv2d if y.ndim == 4 else F.conv3d)(y, state[f"{at}.residual.3.weight"], padding=1)[0].flatten(1)
            y = batch_norm(state, f"{at}.residual.4", y).relu()
            y = batch_norm(state, f"{at}.residual.7", pixelwise(state, f"{at}.residual.6", y))
            y = (y + batch_norm(state, f"{at}.shortcut.1", pixelwise(state, f"{at}.shortcut.0", last))).relu()
            x = torch.cat([x, halved(y, sizes[i - 1], sizes[i])])
        at = f"attention.{task}.{i}"
        hidden = batch_norm(state, f"{at}.1", pixelwise(state, f"{at}.0", x)).relu()
        mask = 1 / (1 + (-batch_norm(state, f"{at}.4", pixelwise(state, f"{at}.3", hidden))).exp())
        found.append(mask * after.flatten(1))
    return found


def slow_ctan(state: State, stages: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """Return f_1 to f_4 of one image for every task."""
    tasks = list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("cross.")))
    found: dict[str, list[Tensor]] = {task: [] for task in tasks}
    sizes = [tuple(after.shape[1:]) for _, after in stages]
    in_encoder = f"cross.{tasks[0]}.stages.0.own.weight" in state
    for i, (before, after) in enumerate(stages):
        codes = {}
        for task in tasks if in_encoder else ():
            at = f"cross.{task}.stages.{i}"
            seen = pixelwise(state, f"{at}.present", before.flatten(1))
            if i:
                seen = seen + pixelwise(state, f"{at}.past", halved(found[task][-1], sizes[i - 1], sizes[i]))
            seen = over_channels(state, f"{at}.norm", seen, None)
            codes[task] = seen * (1 + torch.erf(seen / 2**0.5)) / 2
        for task in tasks:
            mask = torch.ones_like(after.flatten(1))
            if in_encoder:
                at = f"cross.{task}.stages.{i}"
                logits = pixelwise(state, f"{at}.own", codes[task])
                for other in set(tasks) - {task}:
                    asked = pixelwise(state, f"{at}.gate", codes[task])
                    asked = asked + pixelwise(state, f"{at}.gate_other", codes[other])
                    message = pixelwise(state, f"{at}.value", codes[other]) / (1 + (-asked).exp())
                    logits = logits + pixelwise(state, f"{at}.heard", message)
                mask = 2 / (1 + (-logits).exp())
            found[task].append(mask * after.flatten(1))
    if f"cross.{tasks[0]}.bottleneck.embed.weight" in state:
        tokens = {}
        for task in tasks:
            at = f"cross.{task}.bottleneck"
            tokens[task] = over_channels(state, f"{at}.norm", pixelwise(state, f"{at}.embed", found[task][-1]), 0)
        every = torch.cat([tokens[task] for task in tasks], dim=1)  # (D, T P)
        for task in tasks:
            at = f"cross.{task}.bottleneck"
            q = pixelwise(state, f"{at}.attention.q", tokens[task])
            k, v = pixelwise(state, f"{at}.attention.kv", every).chunk(2)
            heads = []
            for start in range(0, len(q), 32):
                head = slice(start, start + 32)
                scores = (q[head].T @ k[head] / 32**0.5).exp()
                heads.append(v[head] @ (scores / scores.sum(1, keepdim=True)).T)
            y = tokens[task] + pixelwise(state, f"{at}.attention.proj", torch.cat(heads))
            hidden = pixelwise(state, f"{at}.mlp.0", over_channels(state, f"{at}.mlp_norm", y, 0))
            y = y + pixelwise(state, f"{at}.mlp.2", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)
            logits = pixelwise(state, f"{at}.out", over_channels(state, f"{at}.out_norm", y, 0))
            found[task][-1] = found[task][-1] * 2 / (1 + torch.exp(-logits))
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if "tan" in name])
def test_schemes_against_their_formulas(scheme: str, encoder: str) -> None:
    model, x = build(scheme, encoder).double().eval(), image(encoder).double()
    state = model.state_dict()
    with torch.no_grad():
        features, stages = model(x, rows()), model.encoder.stages(x)
        for task, index in ROWS.items():
            for row, number in enumerate(index):
                own = [(before[number], after[number]) for before, after in stages]
                expected = slow_mtan(state, task, own) if scheme == "mtan" else slow_ctan(state, own)[task]
                for level, reference in zip(features[task].maps, expected, strict=True):
                    torch.testing.assert_close(level[row].flatten(1), reference, rtol=1e-9, atol=1e-9)
            pooled = model.encoder.features(x[index], features[task].maps).pooled
            torch.testing.assert_close(features[task].pooled, pooled)


# Axes.


class Readers(nn.Module):
    """A scheme, and for each task a linear layer on every map and on the pooled features."""

    def __init__(self, scheme: Sharing) -> None:
        super().__init__()
        self.encoder = scheme
        sizes = [*scheme.encoder.channels, scheme.encoder.dim]
        self.heads = nn.ModuleDict({t: nn.ModuleList(nn.Linear(size, 2) for size in sizes) for t in scheme.tasks})

    def forward(self, x: Tensor, rows: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        return {
            task: [
                head(level.movedim(1, -1))
                for head, level in zip(self.heads[task], [*features.maps, features.pooled], strict=True)
            ]
            for task, features in self.encoder(x, rows).items()
        }


@describes(Readers)
def readers(builder: AxisGraphBuilder, path: str, module: Any) -> None:
    for task, (maps, pooled) in label_sharing(builder, "encoder", module.encoder).items():
        for i, label in enumerate([*maps, pooled]):
            builder.label_map(f"heads.{task}.{i}", module.heads[task][i], label, None)


MINE = {  # scheme -> free axes beside those of the body, over the encoders above
    "hard": 0,
    "separate": 0,
    "mtan": 3 * 3 + 3 * 4,  # bottlenecks: two inner and the outer; masks: hidden
    "ctan": 3 * 4 + 3 * 2,  # what is heard, heads and MLPs; of few channels the head is one
    "ctan, encoder only": 3 * 4,
    "ctan, bottleneck only": 3 * 2,
}


DESCRIBED = [(scheme, encoder) for scheme in SCHEMES for encoder in ("resnet_nano", "vit_nano_patch8")]
DESCRIBED += [(scheme, encoder) for scheme in ("mtan", "ctan") for encoder in ("pvt_mini", "resnet3d_mini")]


@pytest.mark.parametrize(("scheme", "encoder"), DESCRIBED)
def test_axes_are_symmetries(scheme: str, encoder: str) -> None:
    torch.manual_seed(0)
    model = Readers(build(scheme, encoder))
    graph = derive_axes(model)
    changes = check_symmetry(model, graph, (image(encoder), rows()))
    mine = [label for label in changes if ".body" not in label]
    assert len(mine) == MINE[scheme]
    assert max(changes.values(), default=0.0) < 1e-10


# What a site returns, reordered by itself.

DECLARED = {
    "lungs": Task(name="lungs", kind="segmentation", classes=("outside", "lung")),  # reads the maps
    "kind": Task(name="kind", kind="classification", classes=("one", "two")),  # reads the pooled features
    "side": Task(name="side", kind="classification", classes=("left", "right")),
}
READ_BY_STREAMS = {  # model -> axes that the streams of all tasks read; of a body that is understood there are more
    "ctan": {"codes.0", "codes.1", "codes.2", "codes.3", "tokens"},
    "ctan-encoder": {"codes.0", "codes.1", "codes.2", "codes.3"},
    "ctan-bottleneck": {"tokens"},
}
STREAMS = {  # (model, encoder) -> axes of the body that they read
    ("ctan", "resnet_nano"): {"body.stem", "body.layer2", "body.layer3", "body.layer4"},
    ("ctan-encoder", "resnet_nano"): {"body.stem", "body.layer2", "body.layer3", "body.layer4"},
    ("ctan-bottleneck", "resnet_nano"): {"body.layer4"},
    ("ctan", "vit_nano_patch8"): {"body.residual"},
    ("ctan-encoder", "vit_nano_patch8"): {"body.residual"},
    ("ctan-bottleneck", "vit_nano_patch8"): {"body.residual"},
}


def whole(name: str, encoder: str, tasks: dict[str, Task]) -> tuple[MultiTaskModel, AxisGraph]:
    """Return a model in float64 with noise on everything, and its axes."""
    torch.manual_seed(0)
    side, dims = ENCODERS[encoder]
    made = assemble(name, tasks, encoder=encoder, image_size=side, dimensions=dims, decoder_width=8)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand(tensor.shape)
    return made.double().eval(), derive_axes(made)


@torch.no_grad()
def changes_of(model: MultiTaskModel, graph: AxisGraph, encoder: str, task: str) -> dict[str, float]:
    """Reorder each axis in the parts that a site with one task returns; return how much its outputs change."""
    generator, x = np.random.default_rng(0), image(encoder).double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = [name for part, tensors in model.parts().items() if task_of(part) in ("", task) for name in tensors]
    mine = {name: state[name].numpy() for name in kept}
    expected, changes = model(x, rows({task: [0, 2]}))[task], {}
    for label, axis in graph.axes.items():
        if axis.kind == "frozen" or not graph.slots(label, mine):
            continue
        moved = graph.permute(mine, {label: np.roll(axis.random_permutation(generator), 1)})
        moved = graph.regauge(moved, label, graph.random_gauge(moved, label, "gl", generator))
        model.load_state_dict(state | {name: torch.tensor(values) for name, values in moved.items()})
        outputs = model(x, rows({task: [0, 2]}))[task]
        changes[label] = float((outputs - expected).abs().max() / expected.abs().max())
    model.load_state_dict(state)
    return changes


WANTED = [(name, "vit_nano_patch8") for name in MODEL_SPECS]
WANTED += [(name, "resnet_nano") for name in MODEL_SPECS if not MODEL_SPECS[name].requires_transformer]
WANTED += [("ctan", "pvt_mini"), ("ctan", "resnet3d_mini"), ("mtan", "pvt_mini")]


@pytest.mark.parametrize("task", ["lungs", "kind"])
@pytest.mark.parametrize(("name", "encoder"), WANTED)
def test_what_a_site_returns_may_be_reordered_by_itself(name: str, encoder: str, task: str) -> None:
    changes = changes_of(*whole(name, encoder, DECLARED), encoder, task)
    assert changes and max(changes.values()) < 1e-10
    assert any(label.startswith("encoder.") for label in changes)
    assert any(f".{task}." in label for label in changes) or task == "kind"


@pytest.mark.parametrize(("name", "encoder"), STREAMS)
def test_what_the_streams_of_all_tasks_read_keeps_its_order(name: str, encoder: str) -> None:
    model, graph = whole(name, encoder, DECLARED)
    expected = {f"encoder.{label}" for label in STREAMS[name, encoder] | READ_BY_STREAMS[name]}
    assert {label for label, axis in graph.axes.items() if axis.kind == "frozen"} == expected
    freed = AxisGraph(graph.tensors, graph.axes | {label: Axis(graph.axes[label].size) for label in expected})
    changes = changes_of(model, freed, encoder, "lungs")
    assert {label for label, change in changes.items() if change > 1e-6} == expected
    alone, table = whole(name, encoder, {"lungs": DECLARED["lungs"]})
    assert not any(axis.kind == "frozen" for axis in table.axes.values())
    assert max(changes_of(alone, table, encoder, "lungs").values()) < 1e-10


# Names of tasks.


@pytest.mark.parametrize("task", ["copy", "get", "setdefault", "fromkeys", "keys", "forward", "training", "type"])
def test_names_that_pytorch_uses_are_refused(task: str) -> None:
    message = f"Config key task.{task}: PyTorch uses this name itself; choose another"
    with pytest.raises(MtfedError, match=message):
        assemble("hard-sharing", {task: DECLARED["kind"]}, encoder="resnet_nano", image_size=32)
