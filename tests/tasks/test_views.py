"""Two views of an image: the views, the losses and the retrieval against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.pretext import copies, pretext_task
from mtfed.config import Config
from mtfed.learning.losses import task_loss
from mtfed.learning.metrics import TaskMetrics
from mtfed.tasks.kind import kind_of
from mtfed.tasks.views import PROJECTION, crop, pairs

LOSSES = ("vicreg", "nt-xent", "simsiam")


def loss_of(term: str, outputs: Tensor, values: Tensor) -> Tensor:
    task = pretext_task("views", loss=term)
    return task_loss(task, Config(tasks={task.name: task}))(outputs, values)


def projections(count: int, columns: int = PROJECTION) -> tuple[Tensor, Tensor]:
    """Return projections of pairs that resemble each other, in mixed order."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, columns, generator=generator)
    views = images.repeat(2, 1) + 0.8 * torch.randn(2 * count, columns, generator=generator)
    order = torch.randperm(2 * count, generator=generator)
    return views[order].requires_grad_(), torch.arange(count).repeat(2)[order]


@pytest.mark.parametrize("shape", [(5, 1, 16, 16), (3, 3, 16, 16), (2, 1, 8, 8, 8)])
def test_views_are_two_changed_copies_of_each_image(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    views, values = copies("views", images)
    assert views.shape == (2 * shape[0], *shape[1:]) and views.isfinite().all()
    assert values.tolist() == [i for i in range(shape[0]) for _ in range(2)]
    assert not torch.equal(views[0], views[1])
    assert torch.equal(copies("views", images)[0], views)  # the same numbers give the same views
    assert not torch.equal(copies("views", images, seed=1)[0], views)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_crop_lies_inside_the_image(dims: int) -> None:
    """In an image of its own coordinates, a crop shows where it was taken from."""
    side = torch.linspace(-1 + 1 / 32, 1 - 1 / 32, 32)
    image = torch.stack(torch.meshgrid(*(side,) * dims, indexing="ij"))
    torch.manual_seed(0)
    crops = crop(image[None].repeat(50, *[1] * (dims + 1)))
    steps = [crops[:, axis].diff(dim=axis + 1).flatten(1).mean(1) * 16 for axis in range(dims)]  # the side of a crop
    assert all(((step.abs() > 0.45) & (step.abs() < 1.01)).all() for step in steps)
    assert all((step > 0).all() for step in steps[:-1]) and 10 < (steps[-1] < 0).sum() < 40  # mirrored along x
    assert torch.allclose(steps[0], steps[-1].abs(), atol=0.05)


def test_pairs_follow_the_values() -> None:
    rows, values = torch.arange(7.0), torch.tensor([4, 2, 7, 2, 4, 0, 0])
    first, second = pairs(rows, values)
    assert (first.tolist(), second.tolist()) == ([5, 1, 0], [6, 3, 4])  # the only view of image 7 is left out


def slow_vicreg(first: np.ndarray, second: np.ndarray) -> float:
    columns = first.shape[1]
    total = np.mean((first - second) ** 2)
    for view in (first, second):
        deviations = [math.sqrt(np.var(view[:, i], ddof=1) + 1e-4) for i in range(columns)]
        total += np.mean([max(0.0, 1 - deviation) for deviation in deviations]) / 2
        covariance = np.cov(view.T)
        total += sum(covariance[i, j] ** 2 for i in range(columns) for j in range(columns) if i != j) / columns / 25
    return float(total)


def slow_nt_xent(first: np.ndarray, second: np.ndarray) -> float:
    views = [view / np.linalg.norm(view) for view in (*first, *second)]
    terms = []
    for i, view in enumerate(views):
        similar = [math.exp(view @ other / 0.2) for other in views]
        terms.append(-math.log(similar[(i + len(first)) % len(views)] / (sum(similar) - similar[i])))
    return float(np.mean(terms))


def slow_simsiam(first: np.ndarray, second: np.ndarray) -> float:
    cosines = []
    for a, b in ((first, second), (second, first)):
        for row, other in zip(a, b, strict=True):
            p, z = row[PROJECTION:], other[:PROJECTION]
            cosines.append(p @ z / np.linalg.norm(p) / np.linalg.norm(z))
    return 1 - float(np.mean(cosines))


@pytest.mark.parametrize(
    ("term", "slow"), zip(LOSSES, (slow_vicreg, slow_nt_xent, slow_simsiam), strict=True), ids=LOSSES
)
def test_losses_agree_with_their_definitions(term: str, slow: object) -> None:
    outputs, values = projections(6, PROJECTION * (2 if term == "simsiam" else 1))
    first, second = (view.detach().double().numpy() for view in pairs(outputs, values))
    loss = loss_of(term, outputs, values)
    assert float(loss.detach()) == pytest.approx(slow(first, second), rel=1e-4)  # type: ignore[operator]
    loss.backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad.any()
    if term == "simsiam":
        assert not outputs.grad[:, :PROJECTION].any()  # the projections are targets


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("term", LOSSES)
def test_losses_of_few_images_are_finite(term: str, count: int) -> None:
    outputs, values = projections(count, 2 * PROJECTION)
    outputs = torch.cat([outputs.detach(), torch.ones(1, 2 * PROJECTION)]).requires_grad_()  # and a single view
    loss = loss_of(term, outputs, torch.cat([values, torch.tensor([9])]))
    loss.backward()
    assert loss.isfinite() and outputs.grad is not None and outputs.grad.isfinite().all()
    if not count:
        assert loss == 0


def test_the_curvature_is_that_of_the_invariance() -> None:
    task = pretext_task("views")
    outputs, values = projections(1)
    hessian = torch.autograd.functional.hessian(
        lambda x: loss_of("vicreg", x.view_as(outputs), values), outputs.flatten()
    )
    factor = kind_of(task).curvature_factor(outputs.detach(), values, task)
    assert isinstance(hessian, Tensor)
    torch.testing.assert_close(factor.flatten().square(), hessian.diag())


def test_retrieval_counts_the_images_whose_other_view_is_nearest() -> None:
    outputs, values = projections(40, 3 * PROJECTION)
    outputs = torch.cat([outputs[:, :3], torch.zeros(80, PROJECTION - 3)], 1).detach()
    first, second = (view.numpy() for view in pairs(outputs, values))
    cosines = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first]
    hits = [max(range(40), key=row.__getitem__) == i for i, row in enumerate(cosines)]
    metrics = TaskMetrics(pretext_task("views"))
    metrics.update(outputs, values)
    metrics.update(outputs[:2], torch.tensor([0, 0]))  # a single image is not judged
    assert metrics.compute() == {"retrieval": pytest.approx(np.mean(hits))}
    assert 0 < np.mean(hits) < 1
