"""Training of some parts of a model, and weights from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import two_tasks
from helpers.three_tasks import config, one_step, shard, tiny
from mtfed.errors import MtfedError
from mtfed.learning.balancing import (
    BALANCING,
)
from mtfed.learning.curvature import curvature
from mtfed.learning.parts import load_weights
from mtfed.models.build import build_model

torch.set_num_threads(1)


@pytest.mark.parametrize("balancing", BALANCING)
@pytest.mark.parametrize("tasks", [["lungs", "side"], ["pneumonia", "side"]])
def test_parts_of_other_tasks_are_context(balancing: str, tasks: list[str]) -> None:
    model = tiny(norm=True)
    before = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in model.parts().items()}
    gradients = one_step(model, tasks, balancing=balancing)
    changed = {
        part for part, tensors in model.parts().items() if any(not t.equal(before[part][n]) for n, t in tensors.items())
    }
    own = {f"decoder.{task}" for task in tasks} | ({"cross.lungs"} if "lungs" in tasks else set())
    assert changed == {"encoder", *own}
    assert ("encoder.streams.lungs.0.weight" in gradients) == ("lungs" in tasks)
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("tasks", [["lungs", "side"], ["pneumonia", "side"], ["side"]])
def test_curvature_is_of_the_weights_that_are_trained(tasks: list[str]) -> None:
    model = tiny(norm=True)
    gradients = curvature(model, shard(), tasks, config(balancing="equal"), seed=0)
    parts = {part for part, tensors in model.parts().items() if tensors.keys() & gradients.keys()}
    assert parts == {"encoder", *(f"decoder.{task}" for task in tasks)} | (
        {"cross.lungs"} if "lungs" in tasks else set()
    )
    assert all(value.any() for name, value in gradients.items() if "unused" not in name)
    assert all(weight.requires_grad for weight in model.parameters())


def test_weights_of_a_site_are_loaded_or_refused(tmp_path: Path) -> None:
    model, other = build_model(two_tasks.config()), build_model(two_tasks.config(seed=1))
    save_file(other.state_dict(), tmp_path / "own.safetensors")
    load_weights(model, tmp_path / "own.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    name = next(iter(model.state_dict()))
    save_file({"elsewhere": torch.ones(2)}, tmp_path / "none.safetensors")
    save_file({name: torch.ones(2)}, tmp_path / "shape.safetensors")
    (tmp_path / "text.safetensors").write_text("weights")
    for file, message in (
        ("none", "holds no tensor of this model"),
        ("shape", "should be"),
        ("text", "cannot read"),
        ("absent", "cannot read"),
    ):
        with pytest.raises(MtfedError, match=message):
            load_weights(model, tmp_path / f"{file}.safetensors")
