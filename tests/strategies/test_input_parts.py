"""Parts ``input.NAME``: sites with such images are sent them and return them, and count as in the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord

from helpers.inputs import (
    HIDDEN,
    INPUTS,
    MATCHING,
    SHAPES,
    TASKS,
    UNKNOWN,
    InputSites,
    Parts,
    draw,
    play,
    precision_of,
    step,
)
from helpers.rounds import same
from mtfed.record.run import Run
from mtfed.strategies import STRATEGIES, Alone, BayesianMatching, TaskFedAvg, wire

SAMPLES = {key: sum(tasks.values()) for key, tasks in TASKS.items()}
AVERAGING = [name for name in STRATEGIES if name not in ("alone", "pfnm", "fedadam", "fedyogi")]


def make(name: str, **settings: Any) -> Any:
    return STRATEGIES[name](**MATCHING.get(name, {}), **settings)


def first() -> Any:
    return wire.pack(draw([0]))


def parts_of(key: str) -> set[str]:
    return {"encoder", *(f"input.{name}" for name in INPUTS[key]), *(f"decoder.{task}" for task in TASKS[key])}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_site_is_sent_the_input_parts_that_it_has(name: str) -> None:
    grid = InputSites()
    strategy = make(name)
    arrays = play(strategy, grid, first())
    assert grid.sent == {key: parts_of(key) for key in TASKS}
    strategy.configure_evaluate(1, arrays, ConfigRecord(), grid)
    sent = {key: set(wire.unpack(strategy._phase.arrays_sent(key))) for key in TASKS}
    assert sent == {key: parts_of(key) for key in TASKS}


def test_a_site_that_reports_no_inputs_is_sent_all() -> None:
    grid = InputSites(reports=False)
    play(TaskFedAvg(), grid, first())
    inputs = {part for part in SHAPES if wire.input_of(part)}
    assert all(inputs <= sent for sent in grid.sent.values())


@pytest.mark.parametrize("weighting", ["samples", "uniform", "tasks"])
@pytest.mark.parametrize("name", AVERAGING)
def test_an_input_part_is_the_mean_over_the_sites_that_have_it(name: str, weighting: str) -> None:
    grid = InputSites()
    merged = wire.unpack(play(make(name, weighting=weighting), grid, first()))
    totals = {task: sum(tasks.get(task, 0) for tasks in TASKS.values()) for task in "ab"}
    weights = {
        "samples": SAMPLES,
        "uniform": dict.fromkeys(TASKS, 1),
        "tasks": {key: sum(n / totals[task] for task, n in tasks.items()) for key, tasks in TASKS.items()},
    }[weighting]
    for part, tensors in draw([0]).items():
        if wire.task_of(part):
            continue
        of_part = {key: own[part] for key, own in grid.returned.items() if part in own}
        for tensor, before in tensors.items():
            expected, values = before, [np.float64(own[tensor]) for own in of_part.values()]
            if values:
                expected = np.average(values, axis=0, weights=[weights[key] for key in of_part])
            np.testing.assert_allclose(merged[part][tensor], expected, rtol=1e-5, atol=1e-7, err_msg=tensor)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_part_that_no_site_has_stays_bit_equal(name: str, measured: bool) -> None:
    strategy, grid, arrays = make(name), InputSites(measured=measured), first()
    for number in (1, 2, 3):
        arrays = play(strategy, grid, arrays, number)
    latent, reader = (wire.unpack(arrays)[UNKNOWN][tensor] for tensor in SHAPES[UNKNOWN])
    before = draw([0])[UNKNOWN]
    assert latent.tobytes() == before["mri.latent"].tobytes()
    assert reader[:, :HIDDEN].tobytes() == before["mri.reader"].tobytes() and not reader[:, HIDDEN:].any()
    assert wire.unpack(arrays).keys() == SHAPES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_part_rests_while_its_sites_are_away(name: str) -> None:
    """An optimiser of the server must not move it by its momentum either."""
    strategy, grid, arrays = make(name), InputSites(measured=True), first()
    arrays = play(strategy, grid, arrays)
    grid.keys = {node: key for node, key in grid.keys.items() if key in ("left", "right")}
    after = play(strategy, grid, arrays, 2)
    for key in arrays:
        if key.startswith("input.x-ray"):
            assert after[key].numpy().tobytes() == arrays[key].numpy().tobytes()
    if name != "alone":
        assert after["input.ct:float32"].numpy().tobytes() != arrays["input.ct:float32"].numpy().tobytes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_of_arrival_does_not_matter(name: str) -> None:
    left, right, arrays, others = make(name), make(name), first(), first()
    for number in (1, 2):
        arrays = play(left, InputSites(measured=True, moved=["upper"]), arrays, number)
        others = play(right, InputSites(-1, measured=True, moved=["upper"]), others, number)
        assert same(arrays, others)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_is_bit_equal(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    run, straight, resumed = Run(tmp_path), make(name, max_norm_ratio=50.0), make(name, max_norm_ratio=50.0)
    arrays = first()
    for number in (1, 2):
        arrays = play(straight, InputSites(measured=True), arrays, number)
    run.save("last", arrays, straight.state(), {})
    saved = run.load("last", first())
    assert saved is not None
    again, state, _ = saved
    resumed.restore(state)
    arrays, again = (play(s, InputSites(measured=True), a, 3) for s, a in ((straight, arrays), (resumed, again)))
    assert same(arrays, again)
    left, right = straight.trained_models(arrays), resumed.trained_models(again)
    assert left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)


def test_a_part_that_was_not_sent_is_refused() -> None:
    strategy, grid = TaskFedAvg(), InputSites()
    messages = strategy.configure_train(1, first(), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    replies[0].content["arrays"]["input.3d:float32"] = wire.FlatArray(np.zeros(3, "f"))
    strategy.aggregate_train(1, replies)
    (failure,) = strategy.failures
    assert failure.site == "left" and "it contains 'input.3d:float32', which it was not sent" in failure.reason


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(
    ("name", "moved"),  # without a frame, pfnm keeps the order of the site with the most tensors of an axis
    [("bayesian", list(TASKS)), ("rebasin", list(TASKS)), ("pfnm", ["left", "upper"])],
)
def test_units_are_matched_although_sites_lack_parts_of_their_axes(name: str, moved: list[str], measured: bool) -> None:
    plain = wire.unpack(play(make(name), InputSites(measured=measured), first()))
    matched = wire.unpack(play(make(name), InputSites(measured=measured, moved=moved), first()))
    for part, tensors in plain.items():
        for tensor, values in tensors.items():
            np.testing.assert_allclose(matched[part][tensor], values, rtol=1e-4, atol=1e-5, err_msg=tensor)


def test_a_posterior_counts_weight_by_weight() -> None:
    grid = InputSites(measured=True)
    merged = wire.unpack(play(BayesianMatching(precision_floor=0.0, cavity=0.0), grid, first()))
    own = {key: np.float64(grid.returned[key]["input.3d"]["deep.weight"]) for key in ("right", "whole")}
    precision = [precision_of(key, grid.returned[key])["input.3d"]["deep.weight"] for key in own]
    expected = np.average(list(own.values()), axis=0, weights=precision)
    np.testing.assert_allclose(merged["input.3d"]["deep.weight"], expected, atol=1e-3)  # precision is sent rounded
    assert not np.allclose(np.mean(list(own.values()), axis=0), expected, atol=5e-3)


def test_only_tensors_that_three_sites_train_are_pulled() -> None:
    strategy, grid, arrays = BayesianMatching(), InputSites(measured=True), first()
    for number in (1, 2, 3):
        arrays = play(strategy, grid, arrays, number)
    pulled = {key: set(strategy.cavities.pulls(key)) for key in TASKS}
    of_all, flat = set(SHAPES["encoder"]), set(SHAPES["input.2d"])  # three sites have 2D images
    assert pulled == {"left": of_all | flat | {"a.weight"}, "right": of_all, "upper": of_all | flat | {"a.weight"},
                      "whole": of_all | flat | {"a.weight"}}  # fmt: skip


def test_sites_alone_keep_their_own_input_parts_and_start_a_new_one_from_the_initial_one() -> None:
    strategy, grid, arrays = Alone(), InputSites(), first()
    arrays = play(strategy, grid, arrays)
    models = strategy.trained_models(arrays)
    assert {key: set(wire.unpack(model)) for key, model in models.items()} == {key: parts_of(key) for key in TASKS}
    own = wire.unpack(models["left"])["input.ct"]["ct.latent"]
    assert own.tobytes() == grid.returned["left"]["input.ct"]["ct.latent"].tobytes()
    again = Alone()
    again.restore(strategy.state())
    grid.inputs = {**INPUTS, "left": ["2d", "3d", "ct"]}
    again.configure_train(2, arrays, ConfigRecord(), grid)
    sent = wire.unpack(again._phase.arrays_sent("left"))
    assert sent["input.ct"]["ct.latent"].tobytes() == own.tobytes()
    assert sent["input.3d"]["deep.weight"].tobytes() == draw([0])["input.3d"]["deep.weight"].tobytes()


def test_norms_of_input_parts_that_a_site_lacks_are_the_average() -> None:
    strategy, grid = make("fedbn"), InputSites()
    merged = play(strategy, grid, first())
    models = {key: wire.unpack(model)["input.2d"] for key, model in strategy.trained_models(merged).items()}
    average = wire.unpack(merged)["input.2d"]
    assert models["right"]["flat.norm.bias"].tobytes() == average["flat.norm.bias"].tobytes()
    own = grid.returned["left"]["input.2d"]["flat.norm.bias"]
    assert models["left"]["flat.norm.bias"].tobytes() == own.tobytes()


def test_a_new_unit_is_not_read_by_input_parts_of_sites_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def renewed(key: str, number: int, sent: Parts) -> Parts:
        own = step(key, number, sent)
        if key == "left":  # has no input part with an axis of hidden units
            own["encoder"]["up.weight"][:2] = 9.0
            own["encoder"]["down.weight"][:, :2] = -9.0
        return own

    monkeypatch.setattr("helpers.inputs.step", renewed)
    strategy, grid, arrays = make("growing"), InputSites(), first()
    for number in (1, 2):
        arrays = play(strategy, grid, arrays, number)
        merged = wire.unpack(arrays)
        assert merged["encoder"]["up.weight"].shape[0] > HIDDEN
        deep = merged["input.3d"]
        assert deep["deep.reader"].shape[1] == deep["deep.writer"].shape[0] == merged["encoder"]["up.weight"].shape[0]
        assert not deep["deep.reader"][:, HIDDEN:].any() and not deep["deep.writer"][HIDDEN:].any()
        assert not merged[UNKNOWN]["mri.reader"][:, HIDDEN:].any()
