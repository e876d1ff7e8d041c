"""The report of made-up runs: its headline, differences and warnings, and text from outside stays text."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from helpers import TASKS
from helpers.pictured import KINDS as EVERY_KIND
from helpers.reports import AGE, SEEN, SITES, Json, Values, make_run, plain, read
from mtfed.errors import MtfedError
from mtfed.record.run import Run
from mtfed.report import write_report
from mtfed.report.html import escape


def test_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert write_report([run]) == run / "report.html"
    text = plain(read(run))
    assert "FedAvg: Lungs Dice 0.900, Pneumonia AUC 0.850" in text
    assert "Before training0.4000.400+0.500" in text
    assert "2 hospitals · 2 tasks · 1 run: FedAvg · 2026-01-01" in text
    assert "100 (70 normal, 30 pneumonia) + 25 validation" in text and "modality ct" in text
    assert "training alone" not in text and "A difference is how much better" in text


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
    counts_of_tasks = {"grade": {"none": 5, "mild": 3, "moderate": 1, "severe": 1}, "signs": {"mass": 7, "edema": 9}}
    counts: Json = {f"class.{task}.{name}": count for task, of in counts_of_tasks.items() for name, count in of.items()}
    counts |= {"train.grade": 10, "train.signs": 10}
    tasks = {key: value for key, value in EVERY_KIND.items() if key.split(".")[1] in counts_of_tasks}
    sites = [{"key": "north", "tasks": list(counts_of_tasks), "about": {}, "counts": counts}]
    half = dict.fromkeys(counts_of_tasks, 0.5)
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


def test_differences_between_runs_are_listed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", image_size=32)]
    text = plain(read(*runs, make_run(tmp_path / "c", "fedprox", sites=SITES[:1])))
    assert "FedAvg (image-size 64)" in text and "FedAvg (image-size 32)" in text
    assert "The runs also differ in image-size." in text
    assert "The runs do not all have the same hospitals" in text
    many = make_run(tmp_path / "d", image_size=32, batch_size=4, weighting="uniform")
    assert "FedAvg (variant 2)" in plain(read(runs[0], many))


def test_runs_of_other_tasks_are_in_their_table_only(tmp_path: Path) -> None:
    run, partial_run = make_run(tmp_path / "a"), make_run(tmp_path / "b", test={"lungs": 0.95})
    config = Run(partial_run).read_json("config.json").items()
    Run(partial_run).write_json(
        "config.json", {key: value for key, value in config if not key.startswith("task.pneumonia")}
    )
    text = read(run, partial_run)
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
    assert "Validation images" in text and "0.850" in text and "There are no test images" in text
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


ERRORS = [  # test error in years, tasks ahead in, differences from hospitals alone (9.0 on average) and untrained (40)
    (8.2, 1, "+0.8ahead of 1 of 2", "+31.8"),
    (10.5, 0, "−1.5ahead of 0 of 2", "+29.5"),
    (9.02, 0, "0.0ahead of 1 of 2", "+31.0"),
    (45, 0, "−36.0ahead of 0 of 2", "−5.0"),
]


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
