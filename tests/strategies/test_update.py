"""Screening: which updates are refused, and for which reason."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from helpers.rounds import drift, one_round
from mtfed.strategies import BayesianMatching, TaskFedAvg, wire

Answer = Callable[[str, Message], RecordDict | Error | None]


def without(*keys: str) -> Answer:
    """Return an answer in which site c leaves arrays out."""

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        for name in keys if key == "c" else ():
            del content["arrays"][name]
        return content

    return answer


def reporting(**metrics: float) -> Answer:
    """Return an answer in which site c reports other metrics."""

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        for name, value in metrics.items() if key == "c" else ():
            content["metrics"][name.replace("_", "-")] = value
        return content

    return answer


def filled(value: float) -> Answer:
    """Return an answer in which all numbers of site c's encoder are one value."""

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        if key == "c":
            content["arrays"]["encoder:float32"] = wire.FlatArray(np.full(13, value, "f"))
        return content

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            without("encoder:int64"),
            "it contains 'encoder' without 'encoder:int64'; a part must be whole or left out",
        ),
        (
            without("encoder:float32"),
            "it contains 'encoder' without 'encoder:float32'; a part must be whole or left out",
        ),
        (
            without("encoder:float32", "encoder:int64", "decoder.x:float32", "decoder.y:float32"),
            "it contains no arrays",
        ),
        (reporting(num_examples=0), "it was trained on no samples: its num-examples is 0"),
        (reporting(num_examples=-3), "num-examples should be a number of samples up to 1e+15, it is -3"),
        (reporting(num_examples=float("nan")), "num-examples should be a number of samples up to 1e+15, it is nan"),
        (reporting(num_examples=1e16), "num-examples should be a number of samples up to 1e+15, it is 1e+16"),
        (filled(-2e10), "'encoder:float32' contains values beyond 1e+10; its training diverged"),
        (filled(float("nan")), "'encoder:float32' contains values that are not finite; its training diverged"),
        (filled(1e10), None),
        (without("decoder.x:float32"), None),
        (without("encoder:float32", "encoder:int64"), None),
        (without("manifest"), None),
        (reporting(num_examples=1), None),
    ],
)
def test_an_update_is_checked(answer: Answer, reason: str | None) -> None:
    strategy = TaskFedAvg()
    one_round(strategy, answer)
    expected = [] if reason is None else [("c", f"its update was refused: {reason}")]
    assert [(failure.site, failure.reason) for failure in strategy.failures] == expected


def archive() -> bytes:
    buffer = BytesIO()
    np.savez(buffer, a=np.zeros(19, "f"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("record", "name"), [("arrays", "encoder:float32"), ("arrays", "manifest"), ("precision", "encoder:float32")]
)
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04K\x01.", archive()],
    ids=["nothing", "zip", "torn", "pickle", "archive"],
)
def test_only_bytes_that_are_no_array_are_refused(record: str, name: str, content: bytes) -> None:
    def answer(key: str, message: Message) -> RecordDict:
        given = drift(key, message)
        if key == "c":
            broken = ArrayRecord(dict(given["arrays"].items()) if record == "arrays" else {})
            broken[name] = Array("float32", (19,), "numpy.ndarray", content)
            given[record] = broken
        return given

    strategy = BayesianMatching()
    one_round(strategy, answer)
    assert [failure.site for failure in strategy.failures] == ["c"]
    assert f"{name!r} cannot be read as an array" in strategy.failures[0].reason


def test_a_part_left_out_is_averaged_over_the_other_sites() -> None:
    merged, _, _ = one_round(TaskFedAvg(), without("decoder.x:float32"))
    given: dict[str, np.ndarray] = {}
    one_round(TaskFedAvg(), lambda key, message: given.setdefault(key, content := drift(key, message)) and content)
    np.testing.assert_array_equal(
        merged["decoder.x:float32"].numpy(), given["a"]["arrays"]["decoder.x:float32"].numpy()
    )
