"""MTAN and CTAN against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.sharing import ENCODERS, ROWS, SCHEMES, build, image, rows

torch.set_num_threads(1)

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
    features: list[Tensor] = []
    sizes = [tuple(after.shape[1:]) for _, after in stages]
    for i, (before, after) in enumerate(stages):
        x = before.flatten(1)
        if i:
            last, at = features[-1], f"bottlenecks.{i - 1}"
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
        features.append(mask * after.flatten(1))
    return features


def slow_ctan(state: State, stages: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """Return f_1 to f_4 of one image for every task."""
    tasks = list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith("cross.")))
    features: dict[str, list[Tensor]] = {task: [] for task in tasks}
    sizes = [tuple(after.shape[1:]) for _, after in stages]
    in_encoder = f"cross.{tasks[0]}.stages.0.own.weight" in state
    for i, (before, after) in enumerate(stages):
        codes = {}
        for task in tasks if in_encoder else ():
            at = f"cross.{task}.stages.{i}"
            seen = pixelwise(state, f"{at}.present", before.flatten(1))
            if i:
                seen = seen + pixelwise(state, f"{at}.past", halved(features[task][-1], sizes[i - 1], sizes[i]))
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
            features[task].append(mask * after.flatten(1))
    if f"cross.{tasks[0]}.bottleneck.embed.weight" in state:
        tokens = {}
        for task in tasks:
            at = f"cross.{task}.bottleneck"
            tokens[task] = over_channels(state, f"{at}.norm", pixelwise(state, f"{at}.embed", features[task][-1]), 0)
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
            features[task][-1] = features[task][-1] * 2 / (1 + torch.exp(-logits))
    return features


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
