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
from conftest import TASKS

from mtfed.config import flatten, read_config
from mtfed.errors import MtfedError
from mtfed.metrics import TaskMetrics
from mtfed.report import write_report
from mtfed.report.examples import dice, outline
from mtfed.report.html import Html, count, escape, fold, join, listed, number, tag
from mtfed.report.verdict import METRICS
from mtfed.runs import Run
from mtfed.tasks import METRICS_OF_KIND, Task

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


def figures(values: Values, task: str) -> dict[str, float | None]:
    return dict.fromkeys(METRICS_OF_KIND["segmentation" if task == "lungs" else "classification"], values.get(task))


def make_run(
    folder: Path,
    strategy: str = "fedavg",
    test: Values = GOOD,
    *,
    validation: Values = GOOD,
    seed: int = 0,
    rounds: int = 3,
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
    settings = read_config({**TASKS, "strategy": strategy, "seed": seed, "rounds": 3, **given})
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
                "validation": figures(validation, task),
                "test": {} if own else figures(test, task),
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
    splits = {"test": test, "validation": validation, "untrained": RAW}
    summary: Json = {
        "rounds": rounds,
        "chosen_round": rounds,
        "stopped": "all rounds done",
        "parameters": 1234,
        "tasks": {task: {split: figures(values, task) for split, values in splits.items()} for task in settings.tasks},
    }
    if own:
        summary["per_site"] = {site: {task: figures(held, task) for task in held} for site, held in own.items()}
    run.write_json("summary.json", summary)
    if examples and not own:
        kept: dict[str, np.ndarray] = {}
        for task in settings.tasks.values():
            shape = (3, 16, 16) if task.kind == "segmentation" else (3,)
            labels = np.arange(np.prod(shape)).reshape(shape) % 7 // 4
            scores = np.stack([labels * 0.3 + 0.2, 0.8 - labels * 0.3], 1).astype(np.float16)
            images = np.full((3, 1, 16, 16), 90, np.uint8)
            kept |= {f"{task.name}.images": images, f"{task.name}.labels": labels, f"{task.name}.scores": scores}
        np.savez_compressed(folder / "examples.npz", **kept)  # type: ignore[arg-type]
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
    assert "+0.500 over the untrained model." in text
    assert "2 hospitals · 2 tasks · 1 run: FedAvg · 2026-01-01" in text
    assert "100 (70 normal, 30 pneumonia) + 25 validation" in text and "modality ct" in text
    assert "training alone" not in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert read(run) == read(run, run)


VERDICTS = [  # test figures of the federation, headline, sentence on lungs; each site alone has 0.8 (north) and 0.7
    (
        {"lungs": 0.9, "pneumonia": 0.85},
        "beats the average hospital training alone in both tasks",
        "+0.150 over a hospital training alone (better than 2 of 2), +0.500 over the untrained model.",
    ),
    (
        {"lungs": 0.76, "pneumonia": 0.6},
        "beats the average hospital training alone in 1 of 2 tasks",
        "+0.010 over a hospital training alone (better than 1 of 2), +0.360 over the untrained model. "
        "The best one alone, north, reaches 0.800.",
    ),
    (
        {"lungs": 0.3, "pneumonia": 0.6},
        "does not beat the average hospital training alone in either task",
        "0.450 below a hospital training alone (better than 0 of 2), 0.100 below the untrained model. "
        "The best one alone, north, reaches 0.800.",
    ),
    (
        {"lungs": 0.7502, "pneumonia": 0.85},
        "in 1 of 2 tasks",
        "level with a hospital training alone (better than 1 of 2)",
    ),
]


@pytest.mark.parametrize(("test", "headline", "sentence"), VERDICTS)
def test_beside_hospitals_alone(tmp_path: Path, test: Values, headline: str, sentence: str) -> None:
    own: dict[str, dict[str, float | None]] = {"north": {"lungs": 0.8}, "south": {"lungs": 0.7, "pneumonia": 0.7}}
    alone = make_run(tmp_path / "alone", "alone", {"lungs": 0.75, "pneumonia": 0.7}, own=own)
    text = plain(read(alone, make_run(tmp_path / "fed", test=test)))
    assert headline in text
    assert sentence in text
    assert "mean of 2: 0.700 to 0.800" in text


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
    assert "The runs differ in more than strategy and seed: image-size." in text
    assert "The runs are not all of the same hospitals" in text
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
    assert f"<strong>{escape(evil)}</strong> in rounds 1 and 2, train: <code>{escape(evil)} &amp; more</code>" in text
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


def test_every_metric_has_words_and_is_better_when_higher() -> None:
    for kind, metrics in METRICS_OF_KIND.items():
        task = TaskMetrics(Task(name="t", kind=kind, classes=("a", "b")))  # type: ignore[arg-type]
        assert set(metrics) <= METRICS.keys()
        assert all(task.higher_is_better(metric) for metric in metrics)


def test_markup_escapes_what_is_no_markup() -> None:
    assert tag("p", "a<b", Html("<br>"), class_="x", title='"') == '<p class="x" title="&quot;">a&lt;b<br></p>'
    assert join(["<", Html("<i></i>")], " & ") == "&lt; &amp; <i></i>"
    assert fold("s", "&") == "<details><summary>s</summary>&amp;</details>"
    assert [number(x) for x in (0.12345, -1234.5, math.nan, None)] == ["0.123", "−1,234.500", "–", "–"]
    assert [listed(x) for x in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [count(x, "round") for x in (1, 2)] == ["1 round", "2 rounds"]
