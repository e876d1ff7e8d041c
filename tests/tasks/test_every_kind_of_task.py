"""Properties that several kinds of task share: faults of labels, unknown labels, and the focal loss."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.decoders import CLASSES
from helpers.decoders import declare as declare_kind
from helpers.kinds import (
    AGE,
    DOSE,
    FINDINGS,
    GRADE,
    PARTS,
    source,
)
from helpers.references import compute, declare
from mtfed.config import read_config
from mtfed.errors import LabelError
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

MASK = Task(name="mask", kind="segmentation", classes=("background", "lung"))
BLOOD = Task(name="cells", kind="detection", classes=("red", "white"))
FAULTS = [  # task, cell, the finding of the site's check that it belongs to
    (FINDINGS, "heart", "class"),
    (GRADE, "awful", "class"),
    (AGE, "old", "wrong"),
    (AGE, "610", "range"),
    (BLOOD, "1,2", "wrong"),
    (BLOOD, "0,0,4,4,blue", "class"),
    (BLOOD, "9,9,4,4,red", "range"),
    (BLOOD, "[[0, 0, -4, 4, 1]]", "range"),
    (PARTS, "p.png", "unreadable"),
    (MASK, "p.png", "values"),
    (MASK, "small.npy", "misfit"),
    (MASK, "colour.npy", "misfit"),
    (PARTS, "none.npz", "wrong"),
    (PARTS, "two.npz", "values"),
    (PARTS, "small.npz", "misfit"),
    (DOSE, "none.npz", "wrong"),
]


@pytest.mark.parametrize(("task", "cell", "fault"), FAULTS)
def test_an_error_contains_the_kind_of_fault(tmp_path: Path, task: Task, cell: str, fault: str) -> None:
    Image.fromarray(np.full((6, 6), 7, np.uint8)).save(tmp_path / "p.png")
    np.save(tmp_path / "small.npy", np.zeros((5, 6), np.uint8))
    np.save(tmp_path / "colour.npy", np.zeros((6, 6, 3), np.uint8))
    np.savez(tmp_path / "none.npz", other=np.zeros((6, 6), bool))
    np.savez(tmp_path / "two.npz", heart=np.full((6, 6), 2))
    np.savez(tmp_path / "small.npz", heart=np.zeros((5, 6), bool))
    with pytest.raises(LabelError) as caught:
        kind_of(task).read(cell, task, source(tmp_path, size=6))
    assert caught.value.fault == fault
    assert pickle.loads(pickle.dumps(caught.value)).fault == fault


@pytest.mark.parametrize(
    ("kind", "shape", "unknown"), [("multi-label", (), -1), ("multi-label-segmentation", (4, 4), 255)]
)
def test_what_is_not_known_does_not_count(kind: str, shape: tuple[int, ...], unknown: int) -> None:
    outputs = torch.randn(8, 3, *shape)
    values = torch.randint(2, outputs.shape)
    values[:, 1] = unknown
    without = compute(declare(kind, 2), outputs[:, [0, 2]], values[:, [0, 2]])
    assert compute(declare(kind, 3), outputs, values) == pytest.approx(without)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_focal_loss_of_a_softmax_has_a_gradient(kind: str, gamma: float) -> None:
    config = read_config({"task.a.kind": kind, "task.a.classes": ", ".join(CLASSES), "focal-gamma": gamma})
    shape = (2, 3) if kind == "classification" else (2, 3, 1, 1)
    logits = torch.tensor([[200.0, -200.0, 0.0], [0.3, -0.2, 1.0]]).view(shape).requires_grad_()
    values = torch.tensor([0, 1]).view(2, *shape[2:])
    loss = kind_of(declare_kind(kind)).losses["focal"](declare_kind(kind), config, logits, values)
    (gradient,) = torch.autograd.grad(loss, logits)
    p = torch.tensor([0.3, -0.2, 1.0]).softmax(0)[1]
    torch.testing.assert_close(loss, (1 - p) ** gamma * -p.log() / 2)
    assert gradient.isfinite().all() and not gradient[0].any() and gradient[1].flatten()[1] < 0


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["multi-label", "multi-label-segmentation"])
def test_the_focal_loss_of_a_certain_prediction_has_a_gradient(kind: str, gamma: float) -> None:
    task = declare_kind(kind)
    config = read_config({"task.a.kind": kind, "task.a.classes": ", ".join(CLASSES), "focal-gamma": gamma})
    results, shape = [], (1, 3) if kind == "multi-label" else (1, 3, 1, 1)
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([200.0, -200.0, -1.5], dtype=dtype).view(shape).requires_grad_()
        loss = kind_of(task).losses["focal"](task, config, logits, torch.tensor([1, 0, 1]).view(shape))
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append(gradient.flatten().double())
        p = torch.tensor(-1.5, dtype=torch.float64).sigmoid()
        torch.testing.assert_close(loss.double(), (1 - p) ** gamma * -p.log() / 3, check_dtype=False)
    torch.testing.assert_close(results[0], results[1])
    assert results[0].isfinite().all() and results[0].tolist()[:2] == [0.0, 0.0] and results[0][2] < 0
