"""Multi-task models compared with single-task models."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.reports import GOOD, Values, make_run, plain, read


def test_models_are_compared(tmp_path: Path) -> None:
    names = ("mtmedformer", "single-task", "mtan")
    runs = [
        make_run(tmp_path / f"{model}-{encoder}-{seed}", test=dict.fromkeys(GOOD, base + 0.01 * seed + 0.1 * i),
                 model=model, encoder=encoder, seed=seed, examples=False)
        for i, model in enumerate(names)
        for encoder, base in (("pvt_mini", 0.5), ("resnet_mini", 0.6))
        for seed in (0, 1)
        if (model, encoder) != ("single-task", "resnet_mini")
    ]  # fmt: skip
    page = read(*runs)
    for label in ("MTMedFormer · pvt_mini", "Single-task · pvt_mini", "MTAN · resnet_mini"):
        assert label in page
    table = plain(re.findall(r'<table class="numbers models">.*?</table>', page)[0])
    # (0.7 - 0.6) / 0.6 and (0.71 - 0.61) / 0.61; single-task models of the other encoder are not there
    assert "MTAN · pvt_mini+16.5 %±0.20.00 M0.705±0.0070.705±0.007" in table
    assert "Single-task · pvt_minireference0.00 M0.605±0.0070.605±0.007" in table
    assert "MTAN · resnet_mini–0.00 M0.805±0.0070.805±0.007" in table
    assert "also differ in" not in plain(page)
    pair = [run for run in runs if run.name in ("mtan-pvt_mini-0", "single-task-pvt_mini-0", "mtmedformer-pvt_mini-0")]
    text = plain(read(*pair))
    assert "MTMedFormer" in text and "MTMedFormer · pvt_mini" not in text
    other = make_run(tmp_path / "prox", "fedprox", model="mtan", encoder="pvt_mini", batch_size=8)
    text = plain(read(*pair, other))
    assert "MTAN · FedProx" in text and "The runs also differ in batch-size" in text


def test_the_headline_contains_the_gain_of_sharing(tmp_path: Path) -> None:
    better, worse = ({"lungs": value, "pneumonia": value} for value in (0.9, 0.6))
    single = make_run(tmp_path / "a", model="single-task", test=worse, validation=worse)
    shared = make_run(tmp_path / "b", model="mtan", test=better, validation=better)
    assert "MTAN: +50.0 % over a model for each task, mean of 2 tasks" in plain(read(single, shared))
    assert "numbers models" not in read(shared)
    nothing: Values = {"lungs": 0.0, "pneumonia": 0.6}  # no share of it can be gained
    text = plain(read(shared, make_run(tmp_path / "c", model="single-task", test=nothing, validation=worse)))
    assert "MTAN: Lungs Dice 0.900" in text and "reference" not in text and "Δ" not in text
