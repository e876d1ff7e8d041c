"""The report: what it says of made-up runs, that it loads nothing, and that text from outside stays text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TASKS
from helpers.pictured import KINDS as EVERY_KIND
from helpers.pictured import pictured

from mtfed.config import flatten, read_config
from mtfed.config.help import MODELS
from mtfed.errors import MtfedError
from mtfed.learning.metrics import TaskMetrics
from mtfed.record.examples import save_examples
from mtfed.record.run import Run
from mtfed.report import write_report
from mtfed.report.charts import limits, ticks
from mtfed.report.figures import METRICS, digits, scale
from mtfed.report.html import Html, count, escape, fold, join, number, tag
from mtfed.report.overlays import dice, found
from mtfed.report.pictures import BRIGHT, PREDICTED, TRUE, outline
from mtfed.report.records import MODEL_TITLES
from mtfed.tasks.average_precision import match
from mtfed.tasks.specs import KIND_SPECS, LOWER_IS_BETTER
from mtfed.tasks.task import Task

Json = dict[str, Any]
Values = Mapping[str, float | None]  # by task
GOOD: Values = {"lungs": 0.9, "pneumonia": 0.85}
RAW: Values = {"lungs": 0.4, "pneumonia": 0.5}
SITES: list[Json] = [
    {
        "key": "north",
        "tasks": ["lungs"],
        "about": {"num-partitions": 2},
        "counts": {"train.lungs": 40, "validation.lungs": 10},
    },
    {
        "key": "south",
        "tasks": ["lungs", "pneumonia"],
        "about": {"modality": "ct"},
        "counts": {
            "train.lungs": 20,
            "validation.lungs": 5,
            "train.pneumonia": 100,
            "validation.pneumonia": 25,
            "class.pneumonia.normal": 70,
            "class.pneumonia.pneumonia": 30,
        },
    },
]


def figures(values: Values, task: Task) -> dict[str, float | None]:
    return dict.fromkeys(task.metrics, values.get(task.name))


def make_run(
    folder: Path,
    strategy: str = "fedavg",
    test: Values = GOOD,
    *,
    validation: Values = GOOD,
    seed: int = 0,
    rounds: int = 3,
    untrained: Values = RAW,
    tasks: Mapping[str, str] = TASKS,
    finished: bool = True,
    sites: Sequence[Json] = SITES,
    failures: Sequence[Json] = (),
    own: Mapping[str, dict[str, float | None]] | None = None,
    examples: bool = True,
    **config: Any,
) -> Path:
    """Write a run folder as the server does; ``own`` is the test figure of every site's model by site and task."""
    folder.mkdir(parents=True)
    run = Run(folder)
    given: Json = {key.replace("_", "-"): value for key, value in config.items()}
    settings = read_config({**tasks, "strategy": strategy, "seed": seed, "rounds": 3, **given})
    run.write_json("config.json", flatten(settings))
    run.write_json(
        "environment.json",
        {
            "started": "2026-01-01T12:00:00+0000",
            "versions": {"mtfed": "0.1.0"},
            "command": ["mtfed", "simulate"],
        },
    )
    run.write_json("sites.json", list(sites))
    run.append(
        "metrics.jsonl",
        [
            {
                "round": r,
                "task": task,
                "strategy": strategy,
                "loss": 1 / r,
                "samples": 60,
                "validation": figures(validation, settings.tasks[task]),
                "test": {} if own else figures(test, settings.tasks[task]),
            }
            for r in range(1, rounds + 1)
            for task in settings.tasks
        ],
    )
    run.append(
        "rounds.jsonl",
        [
            {
                "round": r,
                "seconds": 2.0,
                "train_seconds": 1.0,
                "asked": 2,
                "answered": 2,
                "steps": 4.0,
                "bytes_down": 2_000_000,
                "bytes_up": 2_000_000,
                "learning_rate": 0.001,
                "failures": list(failures),
            }
            for r in range(1, rounds + 1)
        ],
    )
    if not finished:
        return folder
    splits = {"test": test, "validation": validation, "untrained": untrained}
    summary: Json = {
        "rounds": rounds,
        "chosen_round": rounds,
        "stopped": "all rounds done",
        "parameters": 1234,
        "tasks": {
            name: {split: figures(values, task) for split, values in splits.items()}
            for name, task in settings.tasks.items()
        },
    }
    if own:
        summary["per_site"] = {
            site: {task: figures(held, settings.tasks[task]) for task in held} for site, held in own.items()
        }
    run.write_json("summary.json", summary)
    if examples and not own:
        shard, seer = pictured(settings, 3)
        save_examples(run, seer, shard, settings)  # type: ignore[arg-type]
    return folder


def read(*runs: Path, out: Path | None = None) -> str:
    """Write the report and return it, once it is known to be one whole page that loads nothing."""
    text = write_report(runs, out).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == [], "every element is closed"
    assert len(checker.ids) == len(set(checker.ids)), "ids are of one drawing each"
    used = {name for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text) for name in pair if name}
    assert used <= set(checker.ids)
    assert not re.search(r"https?://|<script|<link|@import|\bon\w+=", text)
    assert len(text) < 2_000_000
    return text


def plain(text: str) -> str:
    """Return a page's words."""
    return " ".join(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.S)).split())


class Checker(HTMLParser):
    """Follow a page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert "src" not in given
        assert (given.get("href") or "#").startswith(("#", "data:image/"))
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert write_report([run]) == run / "report.html"
    text = plain(read(run))
    assert "FedAvg: Lungs Dice 0.900, Pneumonia AUC 0.850" in text
    assert "Before training0.4000.400+0.500" in text
    assert "2 hospitals · 2 tasks · 1 run: FedAvg · 2026-01-01" in text
    assert "100 (70 normal, 30 pneumonia) + 25 validation" in text and "modality ct" in text
    assert "training alone" not in text and "Difference+: FedAvg is better" in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert read(run) == read(run, run)


VERDICTS = [  # test figures of the federation, tasks it is ahead in, its difference from hospitals alone and untrained
    # Each hospital alone reaches 0.8 (north) and 0.7 (south) on the lungs, 0.7 (south) on pneumonia.
    ({"lungs": 0.9, "pneumonia": 0.85}, 2, "+0.150ahead of 2 of 2", "+0.500"),
    ({"lungs": 0.76, "pneumonia": 0.6}, 1, "+0.010ahead of 1 of 2", "+0.360"),
    ({"lungs": 0.3, "pneumonia": 0.6}, 0, "−0.450ahead of 0 of 2", "−0.100"),
    ({"lungs": 0.7502, "pneumonia": 0.85}, 1, "0.000ahead of 1 of 2", "+0.350"),
]


@pytest.mark.parametrize(("test", "ahead", "alone_difference", "untrained_difference"), VERDICTS)
def test_differences_from_hospitals_alone(
    tmp_path: Path, test: Values, ahead: int, alone_difference: str, untrained_difference: str
) -> None:
    own: dict[str, dict[str, float | None]] = {"north": {"lungs": 0.8}, "south": {"lungs": 0.7, "pneumonia": 0.7}}
    alone = make_run(tmp_path / "alone", "alone", {"lungs": 0.75, "pneumonia": 0.7}, own=own)
    text = plain(read(alone, make_run(tmp_path / "fed", test=test)))
    assert f"FedAvg: ahead of hospitals training alone in {ahead} of 2 tasks" in text
    lungs = text[text.index("Lungs segmentation") : text.index("Pneumonia classification")]
    assert f"0.750{alone_difference}" in lungs.replace("0.7500.750", "0.750")
    assert f"0.400{untrained_difference}" in lungs.replace("0.4000.400", "0.400")
    assert "mean of 2: 0.700 to 0.800best: north" in text


def test_class_counts_are_of_tasks_with_one_class_an_image(tmp_path: Path) -> None:
    told = {"grade": {"none": 5, "mild": 3, "moderate": 1, "severe": 1}, "signs": {"mass": 7, "edema": 9}}
    counts: Json = {f"class.{task}.{name}": count for task, of in told.items() for name, count in of.items()}
    counts |= {"train.grade": 10, "train.signs": 10}
    tasks = {key: value for key, value in EVERY_KIND.items() if key.split(".")[1] in told}
    sites = [{"key": "north", "tasks": list(told), "about": {}, "counts": counts}]
    half = dict.fromkeys(told, 0.5)
    text = plain(read(make_run(tmp_path / "a", test=half, validation=half, tasks=tasks, sites=sites, examples=False)))
    assert "10 (5 none, 3 mild, 1 moderate, 1 severe) + 0 validation10 + 0 validation" in text


def test_seeds_are_one_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"avg{s}", test={"lungs": 0.8 + s / 10}, seed=s) for s in (0, 1)]
    runs += [make_run(tmp_path / f"prox{s}", "fedprox", {"lungs": 0.7, "pneumonia": 0.7}, seed=s) for s in (0, 1, 2)]
    text = read(*runs)
    assert write_report(runs) == tmp_path / "report.html"
    assert "0.850</strong><small>±0.071" in text and "0.700<small>±0.000" in text
    assert "FedAvg2 seeds" in plain(text) and "FedProx3 seeds" in plain(text)
    assert "FedProx, seed 2" in plain(text)


def test_the_headline_goes_by_validation(tmp_path: Path) -> None:
    high, low = ({"lungs": value, "pneumonia": value} for value in (0.99, 0.5))
    lucky = make_run(tmp_path / "a", "fedprox", high, validation=low)
    assert "FedAvg: Lungs Dice 0.900" in plain(read(lucky, make_run(tmp_path / "b")))


def test_what_differs_is_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", image_size=32)]
    text = plain(read(*runs, make_run(tmp_path / "c", "fedprox", sites=SITES[:1])))
    assert "FedAvg (image-size 64)" in text and "FedAvg (image-size 32)" in text
    assert "The runs also differ in image-size." in text
    assert "The runs do not all have the same hospitals" in text
    many = make_run(tmp_path / "d", image_size=32, batch_size=4, weighting="uniform")
    assert "FedAvg (variant 2)" in plain(read(runs[0], many))


def test_runs_of_other_tasks_are_in_their_table_only(tmp_path: Path) -> None:
    both, one = make_run(tmp_path / "a"), make_run(tmp_path / "b", test={"lungs": 0.95})
    config = Run(one).read_json("config.json").items()
    Run(one).write_json("config.json", {key: value for key, value in config if not key.startswith("task.pneumonia")})
    text = read(both, one)
    lungs, pneumonia = re.findall(r'<section class="card">.*?</section>', text)
    assert "lungs only" in lungs and "0.950" in lungs and "lungs only" not in pneumonia


def test_unfinished_and_continued_runs(tmp_path: Path) -> None:
    text = plain(read(make_run(tmp_path / "a", rounds=2, finished=False)))
    assert "Not finished: 2 of 3 rounds" in text and "0.900" in text and "Predictions" not in text
    continued = make_run(tmp_path / "b")
    rounds = Run(continued).lines("rounds.jsonl")
    Run(continued).append("rounds.jsonl", [rounds[-1] | {"round": 4}])
    assert "Not finished: 4 of 3 rounds" in plain(read(continued))
    assert "FedAvg (unfinished): stopped, or still running, after round 2 of 3." in text


def test_failures_and_text_from_outside(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    sites = [SITES[0] | {"key": evil, "about": {evil: evil}}, SITES[1]]
    failure = {"site": evil, "action": "train", "reason": f"{evil} & more", "traceback": f"File {evil}\n$x_1$"}
    failures = [failure | {"server_round": r} for r in (1, 2)]
    own: dict[str, dict[str, float | None]] = {evil: {"lungs": 0.99}, "south": {"pneumonia": 0.7}}
    runs = [
        make_run(tmp_path / "a", sites=sites, failures=failures, encoder=f"$x_1$ {evil}"),
        make_run(tmp_path / "c", sites=sites, encoder="other"),
        make_run(tmp_path / "b", "alone", own=own, sites=sites, failures=failures),
    ]
    text = read(*runs)
    assert evil not in text and escape(evil) in text
    assert f"<strong>{escape(evil)}</strong> in rounds 1, 2, train: <code>{escape(evil)} &amp; more</code>" in text
    assert "6 failures at" in text and "$x_1$" in text


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    bare = make_run(tmp_path / "a", examples=False, sites=[])
    for name in ("metrics.jsonl", "environment.json", "sites.json"):
        (bare / name).unlink()
    text = plain(read(bare))
    assert "0.900" in text and "Predictions" not in text and "Hospitals and their images" not in text
    untested = make_run(tmp_path / "b", test={"lungs": None, "pneumonia": None}, examples=False)
    text = plain(read(untested))
    assert "Validation images" in text and "0.850" in text and "Without test figures" in text
    nothing = make_run(tmp_path / "c", test={}, validation={"lungs": math.nan}, examples=False)
    assert "Pneumonia AUC –" in plain(read(nothing))


def test_bad_input(tmp_path: Path) -> None:
    good, started = make_run(tmp_path / "good"), make_run(tmp_path / "started", rounds=0, finished=False)
    damaged = make_run(tmp_path / "damaged")
    (damaged / "examples.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "folder").mkdir()
    cases: list[tuple[list[Path], Path | None, str]] = [
        ([], None, "at least one run folder"),
        ([tmp_path / "folder"], None, "is not one"),
        ([tmp_path / "absent"], None, "is not one"),
        ([good, started], None, "at least one finished round, .*started has none"),
        ([damaged], None, "examples.npz cannot be read; the run folder is damaged"),
        ([good], tmp_path / "folder", "Cannot write the report to .*folder: Is a directory"),
    ]
    for runs, out, sentence in cases:
        with pytest.raises(MtfedError, match=sentence):
            write_report(runs, out)
    assert not (tmp_path / "report.html").exists()


def test_dice_is_the_metrics(tmp_path: Path) -> None:
    task = Task(name="t", kind="segmentation", classes=("none", "left", "right"))
    generator = torch.Generator().manual_seed(0)
    for classes in (3, 2, 1):  # of those that are there
        true, predicted = (torch.randint(0, classes, (1, 8, 8), generator=generator) for _ in range(2))
        metrics = TaskMetrics(task)
        metrics.update(torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float(), true)
        assert dice(predicted[0].numpy(), true[0].numpy(), 3) == pytest.approx(metrics.compute()["dice"], nan_ok=True)


def test_outlines_are_closed_around_each_structure() -> None:
    labels = np.zeros((5, 6), int)
    assert outline(labels, 3) == ""
    labels[1:3, 1:3], labels[4, 5] = 1, 2
    path = outline(labels, 3)
    assert path.count("M") == path.count("Z") == 2
    points = np.array([[float(x) for x in point.split(",")] for point in re.findall(r"[\d.]+,[\d.]+", path)])
    assert points[:, 0].max() == 6 and points[:, 1].max() == 5  # the image's edge, and no further


def test_found_boxes_are_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        corner, size = (torch.rand(10, 2, generator=generator) * side for side in (4, 6))
        boxes = torch.cat([corner, size, torch.randint(2, (10, 1), generator=generator)], 1)
        true, scores = boxes[:4], torch.rand(6, generator=generator).sort(descending=True).values
        hits = match(boxes[None, 4:, :4], scores[None], boxes[None, 4:, 4].long(), true[None], [0.5])
        predicted = torch.cat([boxes[4:], scores[:, None]], 1)
        assert found(predicted.numpy(), true.numpy()) == int(hits.sum())
        assert found(predicted.numpy(), true[:0].numpy()) == 0


def test_every_metric_has_words_and_a_direction() -> None:
    for kind, held in KIND_SPECS.items():
        given = {"range": (0, 1)} if held.ranged else {}
        task = TaskMetrics(Task(name="t", kind=kind, classes=("a", "b"), **given))  # type: ignore[arg-type]
        assert set(held.metrics) <= METRICS.keys()
        for metric in held.metrics:
            assert task.higher_is_better(metric) == (metric not in LOWER_IS_BETTER)


DIGITS = [  # highest value of a regression, decimals of its mean absolute error
    (1, 3),
    (8, 3),
    (80, 2),
    (100, 1),
    (228, 1),
    (40_000, 0),
]


@pytest.mark.parametrize(("high", "expected"), DIGITS)
def test_errors_have_sensible_digits(high: float, expected: int) -> None:
    task = Task(name="t", kind="regression", classes=("a",), range=(0, high))
    assert (digits(task, "mae"), digits(task, "r2")) == (expected, 3)


SCALES = [  # points, metric, ends
    ([0.81, 0.86], "auc", (0.8, 0.9)),
    ([0.15, 0.3], "auc", (0.15, 0.3)),
    ([0.5], "auc", (0.45, 0.55)),
    ([-0.02, 0.4], "kappa", (-0.05, 0.4)),
    ([], "auc", (0, 1)),
    ([2.8, 31.4], "dose-score", (0, 35)),
    ([8.9, 9.4], "mae", (8.9, 9.4)),
    ([9.4], "mae", (9, 9.5)),
    ([0.0], "mae", (0, 0.5)),
    ([0.0], "ap50", (0, 0.05)),
    ([], "mae", (0, 1)),
]


@pytest.mark.parametrize(("points", "metric", "ends"), SCALES)
def test_scales_end_at_round_numbers(points: list[float], metric: str, ends: tuple[float, float]) -> None:
    assert scale(points, metric) == pytest.approx(ends)


ERRORS = [  # test error in years, tasks ahead in, differences from hospitals alone (9.0 on average) and untrained (40)
    (8.2, 1, "+0.8ahead of 1 of 2", "+31.8"),
    (10.5, 0, "−1.5ahead of 0 of 2", "+29.5"),
    (9.02, 0, "0.0ahead of 1 of 2", "+31.0"),
    (45, 0, "−36.0ahead of 0 of 2", "−5.0"),
]
AGE = {key: value for key, value in EVERY_KIND.items() if key.startswith("task.age.")}


@pytest.mark.parametrize(("error", "ahead", "alone_difference", "untrained_difference"), ERRORS)
def test_errors_are_better_when_lower(
    tmp_path: Path, error: float, ahead: int, alone_difference: str, untrained_difference: str
) -> None:
    own: dict[str, dict[str, float | None]] = {"north": {"age": 8.0}, "south": {"age": 10.0}}
    raw: Values = {"age": 40.0}
    alone = make_run(tmp_path / "alone", "alone", {"age": 9.0}, own=own, tasks=AGE, untrained=raw)
    page = read(alone, make_run(tmp_path / "fed", test={"age": error}, tasks=AGE, untrained=raw))
    text = plain(page)
    assert f"FedAvg: ahead of hospitals training alone in {ahead} of 1 task" in text
    assert f"9.000{alone_difference}" in text and f"40.000{untrained_difference}" in text
    assert "mean of 2: 8.0 to 10.0best: north" in text
    assert "MAE, lower is better, FedAvg" in text and "MAE ↓" in text
    assert f"<strong>{min(error, 9):.1f}</strong>" in page and "<strong>40.0</strong>" not in page


def test_choices_weigh_errors_as_shares(tmp_path: Path) -> None:
    tasks = AGE | {key: value for key, value in TASKS.items() if key.startswith("task.lungs.")}
    close = make_run(tmp_path / "a", "fedprox", tasks=tasks, validation={"age": 5.0, "lungs": 0.80})
    far = make_run(tmp_path / "b", tasks=tasks, validation={"age": 30.0, "lungs": 0.82})
    assert "FedProx: Age MAE" in plain(read(close, far))


SEEN = {  # by task, what stands beneath its pictures
    "finding": "of these 8 right",
    "signs": "of the labels of these 8 right",
    "grade": "off by 1 class",
    "lesion": "Lesion: Dice",
    "organs": "at most the 6 largest structures",
    "spots": "nothing to find",
    "age": "mean absolute error",
    "dose": "left: true dose",
}


@pytest.mark.parametrize(("dimensions", "size"), [(2, 64), (3, 24)])
def test_every_kind_is_drawn(tmp_path: Path, dimensions: int, size: int) -> None:
    given: Json = {"dimensions": dimensions, "image_size": size}
    every = dict.fromkeys(SEEN, 0.5)
    run = make_run(tmp_path / "a", tasks=EVERY_KIND, test=every, validation=every, examples=False, **given)
    settings = Run(run).config()
    shard, seer = pictured(settings, 12)
    save_examples(Run(run), seer, shard, settings)  # type: ignore[arg-type]
    page = read(run)
    text = plain(page)
    for metric, words in METRICS.items():
        assert f"{words.name}: {escape(words.says)}" in text, metric
    shown = page[page.index("Predictions on test images") : page.index("Hospitals and their images")]
    assert shown.count("<figure>") == len(SEEN) * (8 if dimensions == 2 else 4)
    assert (f"of {size}</div>" in shown) == (dimensions == 3)
    if dimensions == 2:
        assert not [words for words in SEEN.values() if words not in plain(shown)]
    assert "0.50 Gy Dose score, lower is better, FedAvg" in text and "Dose score ↓Gy" in text


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


def test_the_headline_tells_what_sharing_gains(tmp_path: Path) -> None:
    better, worse = ({"lungs": value, "pneumonia": value} for value in (0.9, 0.6))
    single = make_run(tmp_path / "a", model="single-task", test=worse, validation=worse)
    shared = make_run(tmp_path / "b", model="mtan", test=better, validation=better)
    assert "MTAN: +50.0 % over a model for each task, mean of 2 tasks" in plain(read(single, shared))
    assert "numbers models" not in read(shared)
    nothing: Values = {"lungs": 0.0, "pneumonia": 0.6}  # no share of it can be gained
    text = plain(read(shared, make_run(tmp_path / "c", model="single-task", test=nothing, validation=worse)))
    assert "MTAN: Lungs Dice 0.900" in text and "reference" not in text and "Δ" not in text


HEADLINES = [  # models and strategies of the runs, with more tasks than fit into a headline; the headline
    ([("single-task", "fedavg")], "FedAvg, one model per task: 8 tasks"),
    ([("hard-sharing", "fedavg")], "FedAvg: 8 tasks"),
    ([("single-task", "fedavg"), ("mtan", "fedavg")], "MTAN: 8 tasks"),
    ([("hard-sharing", "alone")], "Each hospital alone: 8 tasks"),
]


@pytest.mark.parametrize(("runs", "headline"), HEADLINES)
def test_headlines_of_many_tasks(tmp_path: Path, runs: list[tuple[str, str]], headline: str) -> None:
    folders = []
    for model, strategy in runs:
        # Single-task models do best, and still are not what the page is about; nothing can be a share of 0.
        validation = dict.fromkeys(SEEN, 0.9 if model == "single-task" else 0.1)
        given: Json = {"test": dict.fromkeys(SEEN, 0.0), "validation": validation, "examples": False}
        folders.append(make_run(tmp_path / model, strategy, tasks=EVERY_KIND, model=model, **given))
    assert f"<h1>{headline}</h1>" in read(*folders)


def test_a_model_for_each_task_beside_hospitals_alone(tmp_path: Path) -> None:
    own: dict[str, dict[str, float | None]] = {"north": {"lungs": 0.8}, "south": {"lungs": 0.7, "pneumonia": 0.7}}
    alone = make_run(tmp_path / "alone", "alone", {"lungs": 0.75, "pneumonia": 0.7}, own=own, model="single-task")
    text = plain(read(alone, make_run(tmp_path / "fed", model="single-task")))
    assert "FedAvg, one model per task: ahead of hospitals training alone in 2 of 2 tasks" in text


LIMITS = [  # figures, whether they are shares, the ends of the axis
    ([0.0, 0.4], True, (0, 0.42)),
    ([0.0], True, (0, 0.05)),
    ([0.5, 1.0], True, (0.475, 1)),
    ([0.5, 1.5], False, (0.45, 1.55)),
    ([-0.2, 0.8], True, (-0.25, 0.85)),
    ([-12_000.0, 0.5], True, (-1, 0.575)),
    ([-12_000.0, -300.0], True, (-1, 0.05)),
    ([7.0], False, (6.65, 7.35)),
]


@pytest.mark.parametrize(("drawn", "share", "ends"), LIMITS)
def test_axes_end_where_figures_can(drawn: list[float], share: bool, ends: tuple[float, float]) -> None:
    assert limits(drawn, share=share) == pytest.approx(ends)


TICKS = [
    ([-1.0, -0.5, 0.0], ["−1.0", "−0.5", "0.0"]),
    ([0.235, 0.2375, 0.24], ["0.2350", "0.2375", "0.2400"]),
    ([0.0, 12_500.0, 25_000.0], ["0.0", "12.5k", "25.0k"]),
    ([0.0, 200.0, 400.0], ["0", "200", "400"]),
    ([2e6, 4e6], ["2M", "4M"]),
    ([0.00025, 0.0005, 0.00075], ["0.25e−3", "0.50e−3", "0.75e−3"]),
]


@pytest.mark.parametrize(("values", "written"), TICKS)
def test_numbers_beside_an_axis_are_short(values: list[float], written: list[str]) -> None:
    assert ticks(values) == written
    assert max(map(len, written)) <= 7


def test_what_is_far_below_zero_is_cut_off(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", test={"age": 8.0}, validation={"age": 8.0}, tasks=AGE)
    metrics = (folder / "metrics.jsonl").read_text().replace('"r2": 8.0', '"r2": -4000.0')
    (folder / "metrics.jsonl").write_text(metrics)
    summary = Run(folder).read_json("summary.json")
    summary["tasks"]["age"]["untrained"] = {"mae": 40.0, "r2": -12_000.0}
    Run(folder).write_json("summary.json", summary)
    page = read(folder)
    assert "R² (values below −1 are not drawn)" in page
    drawn = re.findall(r"<figcaption>Age: R².*?</figure>", page)[0]
    assert ">−1.0</text>" in drawn and ">before training, test</text>" not in drawn
    assert "FedAvg, test: −4,000.000 in round 1" in drawn
    lungs = {key: value for key, value in TASKS.items() if key.startswith("task.lungs.")}
    own: dict[str, dict[str, float | None]] = {"north": {"lungs": -0.12}, "south": {"lungs": 0.3}}
    page = read(make_run(tmp_path / "b", "alone", {"lungs": 0.1}, own=own, tasks=lungs))
    assert "<span>−0.15</span>" in page and "-0.15<" not in page


def test_what_is_true_is_dashed(tmp_path: Path) -> None:
    """One convention for masks, structures and boxes; the colours of structures mean nothing else."""
    looks = {TRUE[2], PREDICTED[2]}
    assert looks == {"5 4", "none"} and not {TRUE[0], PREDICTED[0]} & set(BRIGHT)
    every = dict.fromkeys(SEEN, 0.5)
    page = read(make_run(tmp_path / "a", tasks=EVERY_KIND, test=every, validation=every))
    for task, what in (("Lesion", "outline"), ("Organs", "outline"), ("Spots", "box")):
        legend = re.findall(rf"<h3>{task}:.*?</ul>", page)[0]
        for look, said in ((TRUE, f"true {what}"), (PREDICTED, f"predicted {what}")):
            assert re.search(rf'stroke-dasharray="{look[2]}"></line></svg>{said}', legend), (task, said)


def test_every_model_has_a_title() -> None:
    assert MODEL_TITLES.keys() == MODELS.keys()


def test_markup_escapes_what_is_no_markup() -> None:
    assert tag("p", "a<b", Html("<br>"), class_="x", title='"') == '<p class="x" title="&quot;">a&lt;b<br></p>'
    assert join(["<", Html("<i></i>")], " & ") == "&lt; &amp; <i></i>"
    assert fold("s", "&") == "<details><summary>s</summary>&amp;</details>"
    assert [number(x) for x in (0.12345, -1234.5, math.nan, None)] == ["0.123", "−1,234.500", "–", "–"]
    assert [count(x, "round") for x in (1, 2)] == ["1 round", "2 rounds"]
    assert [count(2, noun) for noun in ("class", "box")] == ["2 classes", "2 boxes"]
