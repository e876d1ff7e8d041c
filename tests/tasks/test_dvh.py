"""Dose-volume histograms against numpy and the definitions of the challenge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.kinds import perfect, slow_dvh, source
from mtfed.learning.metrics import TaskMetrics
from mtfed.tasks import dose, dvh
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

OPENKBP = Path(__file__).parents[3] / "shared" / "data" / "openkbp3d"


def test_percentiles_agree_with_numpy() -> None:
    generator = np.random.default_rng(0)
    at = np.array([0, 1, 5, 37.3, 99, 99.99, 100])
    for count in (1, 2, 7, 300):
        values = generator.gamma(2, 20, (2, count))
        percentiles = dvh.percentiles(torch.from_numpy(values), torch.from_numpy(at))
        np.testing.assert_allclose(percentiles, np.percentile(values, at, axis=1).T, rtol=1e-12)


NAMES = [("PTV70", True), ("ptv_low", True), ("CTV", True), ("GTV1", True), ("Larynx", False), ("opticPTV", False)]


@pytest.mark.parametrize(("name", "target"), NAMES)
def test_targets_are_recognised_by_name(name: str, target: bool) -> None:
    assert dvh.is_target(name) == target


@pytest.mark.parametrize(("volume", "voxels"), [(1.0, 100), (30.0, 3), (64.0, 2), (250.0, 1)])
def test_voxels_of_a_tenth_of_a_cubic_centimetre(volume: float, voxels: int) -> None:
    assert dvh.voxels_of_tenth(volume) == voxels


def test_metrics_of_structures_agree_with_the_challenge() -> None:
    generator = np.random.default_rng(1)
    gray = generator.gamma(2, 15, (5, 6, 7))
    masks = {"Larynx": generator.random(gray.shape) < 0.4, "PTV70": generator.random(gray.shape) < 0.3}
    masks["tiny"] = np.arange(gray.size).reshape(gray.shape) == 17  # smaller than 0.1 cm^3
    masks["none"] = np.zeros(gray.shape, bool)
    doses = dvh.dvh_metrics(torch.from_numpy(gray), {name: torch.from_numpy(m) for name, m in masks.items()}, 3)
    del masks["none"]
    expected = {(s, m): v for s, mask in masks.items() for m, v in slow_dvh(gray, s, mask, 3).items()}
    assert {key: float(value) for key, value in doses.items()} == pytest.approx(expected, rel=1e-12)


def test_a_soft_histogram_approaches_the_histogram_and_has_gradients() -> None:
    generator = np.random.default_rng(2)
    values, masks = generator.random(50), generator.random((2, 50)) < 0.5
    levels = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    given = torch.from_numpy(values), torch.from_numpy(masks), levels
    sharp = dvh.soft_histogram(*given, 1e-6)
    np.testing.assert_allclose(sharp, [[np.mean(values[m] >= t) for t in levels.numpy()] for m in masks], atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: dvh.soft_histogram(x, *given[1:], 0.1), given[0].requires_grad_())


@pytest.mark.skipif(not OPENKBP.is_dir(), reason="needs the OpenKBP patients, which are not part of the project")
def test_a_real_patient_is_scored_by_the_definition(tmp_path: Path) -> None:
    patient = np.load(sorted((OPENKBP / "volumes").glob("*.npz"))[0])
    names = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible", "PTV56",
             "PTV63", "PTV70")  # fmt: skip
    gray = patient["dose"].astype(np.float64) / 20
    masks = {name: (patient["structures"] >> i & 1).astype(bool) for i, name in enumerate(names)}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    possible = patient["possible_dose"].astype(bool)
    np.save(tmp_path / "ct.npy", patient["ct"])
    np.savez(tmp_path / "dose.npz", dose=gray, possible=possible, spacing=[5.0, 7.812, 7.812], **masks)
    task = Task(name="dose", kind="dose", classes=names, range=(0, 100))
    site = source(tmp_path, "ct.npy", 64, 3)
    values = torch.from_numpy(kind_of(task).read("dose.npz", task, site)[None]).long()
    gray = gray * possible
    (read,) = dose.plans(values, task)
    doses = dvh.dvh_metrics(read.dose * 100, read.structures, read.tenth)
    tenth = max(1, round(100 / (5 * 7.812**2)))
    expected = {(s, m): v for s, mask in masks.items() for m, v in slow_dvh(gray, s, mask, tenth).items()}
    step = 100 / dose.STEPS
    assert {key: float(value) for key, value in doses.items()} == pytest.approx(expected, abs=step)
    metrics = TaskMetrics(task)
    metrics.update(perfect(task, values), values)
    assert metrics.compute() == {"dose-score": pytest.approx(0, abs=1e-5), "dvh-score": pytest.approx(0, abs=1e-5)}
    metrics = TaskMetrics(task)
    metrics.update(torch.zeros(1, 1, 64, 64, 64), values)
    mean = np.mean(list(expected.values()))
    assert metrics.compute() == {
        "dose-score": pytest.approx(gray.sum() / possible.sum(), abs=step), "dvh-score": pytest.approx(mean, abs=step),
    }  # fmt: skip
