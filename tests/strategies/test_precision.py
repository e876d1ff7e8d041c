"""Precision on the wire: how far a byte may be off, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from helpers.rounds import SITES, one_round, same, update
from mtfed.strategies import BayesianMatching, wire
from mtfed.strategies.precision import LARGEST, MAX_PRECISION, Precision, encode, read_precision, write_precision

RNG = np.random.default_rng
ARRAYS = {"w": np.zeros((2, 3), "f"), "n": np.array(3)}


@pytest.mark.parametrize("dtype", ["e", "f", "d"])
@pytest.mark.parametrize("largest", [6e-5, 1.0, 4e4])
def test_a_byte_is_off_by_nine_percent_at_most(dtype: str, largest: float) -> None:
    octaves = RNG(0).uniform(-8 if dtype == "e" else -63, 0, (40, 50))
    values = (largest * np.exp2(octaves)).astype(dtype)
    coded = encode(values)
    got = coded.decode().reshape(values.shape).astype(float)
    assert coded.values.dtype == np.uint8 and coded.values.shape == values.shape
    within = 1.005 if dtype == "e" else 1.00001  # half precision divides coarsely
    known = values > 0
    ratio = got[known] / values[known].astype(float)
    assert ratio.max() <= 2 ** (1 / 8) * within and ratio.min() >= 2 ** (-1 / 8) / within
    assert (got[~known] == 0).all()
    assert got.max() == pytest.approx(float(values.max()), rel=1e-3 if dtype == "e" else 1e-6)
    assert coded.mean() == pytest.approx(got.mean(), rel=1e-6)
    np.testing.assert_array_equal(coded.at(slice(7, 31), (4, 6)).decode(), got.ravel()[7:31].astype("f"))


@pytest.mark.parametrize(
    ("given", "decoded"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([0.0, 3.0], [0.0, 3.0]),
        ([3.0 * 2.0**-63, 3.0], [3.0 * 2.0**-63, 3.0]),
        ([3.0 * 2.0**-64, 3.0], [0.0, 3.0]),
        ([1e-38, 9e19], [0.0, 9e19]),
        ([1e-44, 1e-44], [np.float32(1e-44)] * 2),
        ([], []),
        (5.0, [5.0]),
    ],
)
def test_zeros_and_extremes(given: Any, decoded: list[float]) -> None:
    coded = encode(np.array(given, "f"))
    np.testing.assert_allclose(coded.decode(), decoded, rtol=1e-6)
    assert coded.values.shape == np.shape(given)


@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf, 2e20])
def test_what_is_no_precision_is_not_encoded(value: float) -> None:
    with pytest.raises(ValueError, match=r"Expected precisions from 0 to 1e\+20, got"):
        encode(np.array([1.0, value]))


@pytest.mark.parametrize("dtype", ["e", "f", "d"])
def test_floats_are_not_encoded(dtype: str) -> None:
    values = RNG(0).exponential(1.0, (3, 4)).astype(dtype)
    precision = Precision(values)
    np.testing.assert_array_equal(precision.decode(), values.ravel())
    assert precision.decode().dtype == ("d" if dtype == "d" else "f")
    np.testing.assert_array_equal(precision.at(slice(2, 8), (3, 2)).values, values.ravel()[2:8].reshape(3, 2))


def test_the_record_comes_back() -> None:
    values = {"w": RNG(0).exponential(1.0, (2, 3)).astype("f"), "b": np.zeros(4, "f"), "s": np.array(2.5, "f")}
    written = write_precision(values)
    assert list(written) == [name for key in values for name in (key, key + LARGEST)]
    for record in (written, over_the_wire(written)):
        decoded = read_precision(record, values)
        assert decoded.keys() == values.keys()
        for key, precision in decoded.items():
            coded = encode(values[key])
            np.testing.assert_array_equal(precision.values, coded.values)
            assert precision.largest == coded.largest and precision.values.shape == values[key].shape
    assert read_precision(ArrayRecord(), values) == {}  # those arrays count by their samples


def over_the_wire(record: ArrayRecord) -> ArrayRecord:
    """Return a record of Flower's own arrays, serialised."""
    plain = ArrayRecord()
    for key, array in record.items():
        plain[key] = Array(array.numpy())
    return plain


def coded(scale: Any, values: Any = None) -> dict[str, Any]:
    return {"w": np.ones((2, 3), np.uint8) if values is None else values} | (
        {} if scale is None else {"w/largest": scale}
    )


def floats(value: float) -> dict[str, Any]:
    values = np.ones((2, 3), "f")
    values[1, 1] = value
    return {"w": values}


BAD = {
    "negative": (floats(-1e-3), "the precision of 'w' contains values that are negative, too large or not finite"),
    "nan": (floats(np.nan), "the precision of 'w' contains values that are negative, too large or not finite"),
    "inf": (floats(np.inf), "the precision of 'w' contains values that are negative, too large or not finite"),
    "huge": (floats(MAX_PRECISION), "the precision of 'w' contains values that are negative, too large or not finite"),
    "shape": ({"w": np.ones((3, 2), "f")}, "the precision of 'w' should be of shape [2, 3], it is [3, 2]"),
    "flat": ({"w": np.ones(6, "f")}, "the precision of 'w' should be of shape [2, 3], it is [6]"),
    "code shape": (coded(np.array(1.0, "f"), np.ones(6, np.uint8)), "should be of shape [2, 3], it is [6]"),
    "unknown": ({"v": np.ones((2, 3), "f")}, "it contains the precision of 'v', but no such array"),
    "unknown scale": ({"v/largest": np.array(1.0)}, "it contains the precision of 'v', but no such array"),
    "no scale": (coded(None), "the precision of 'w' consists of codes without a valid scale 'w/largest'"),
    "two scales": (coded(np.ones(2)), "the precision of 'w' consists of codes without a valid scale 'w/largest'"),
    "negative scale": (coded(np.array(-1.0)), "consists of codes without a valid scale 'w/largest'"),
    "nan scale": (coded(np.array(np.nan)), "consists of codes without a valid scale 'w/largest'"),
    "infinite scale": (coded(np.array(np.inf)), "consists of codes without a valid scale 'w/largest'"),
    "huge scale": (coded(np.array(1e21)), "consists of codes without a valid scale 'w/largest'"),
    "text for a scale": (coded(np.array("1")), "consists of codes without a valid scale 'w/largest'"),
    "integers": ({"w": np.ones((2, 3), int)}, "the precision of 'w' should be floats or one-byte codes, it is int64"),
    "bools": ({"w": np.ones((2, 3), bool)}, "the precision of 'w' should be floats or one-byte codes, it is bool"),
    "complex": ({"w": np.ones((2, 3), "F")}, "should be floats or one-byte codes, it is complex64"),
}  # fmt: skip


def record_of(values: dict[str, Any]) -> ArrayRecord:
    record = ArrayRecord()
    for key, value in values.items():
        record[key] = wire.FlatArray(value)
    return record


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_with_a_sentence(name: str) -> None:
    values, sentence = BAD[name]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_precision(record_of(values), ARRAYS)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_costs_only_its_site(name: str) -> None:
    values, sentence = BAD[name]
    plain = record_of({"w": RNG(9).normal(size=(2, 3)).astype("f"), "n": np.array(3)})

    def answer(key: str, message: Message, bad: str = "b") -> RecordDict:
        content = update(key, Message(RecordDict({"arrays": PACKED}), dst_node_id=1, message_type="train"))
        content["arrays"] = record_of({"w": RNG(list(key.encode())).normal(size=(2, 3)).astype("f"), "n": np.array(3)})
        content["precision"] = record_of(values if key == bad else floats(2.0))
        return content

    strategy = BayesianMatching()
    got, metrics, _ = one_round(strategy, answer, arrays=plain)
    (failure,) = strategy.failures
    assert failure.site == "b" and sentence in failure.reason and failure.reason.startswith("its update was refused")
    assert metrics["num-examples"] == 55 and {"merge.share.model.a", "merge.share.model.c"} <= metrics.keys()
    without, _, _ = one_round(BayesianMatching(), lambda key, m: None if key == "b" else answer(key, m), arrays=plain)
    assert same(got, without)


def test_a_decoder_without_precision_counts_by_its_samples() -> None:
    def answer(key: str, message: Message) -> RecordDict:
        content = update(key, message)
        encoder = content["arrays"]["encoder:float32"].numpy()
        content["precision"] = write_precision({"encoder:float32": np.full(encoder.shape, len(key) + 1.0, "f")})
        return content

    strategy = BayesianMatching()
    got, _, _ = one_round(strategy, answer)
    own = {key: update(key, Message(RecordDict({"arrays": got}), dst_node_id=1, message_type="train"))["arrays"]
           for key in SITES}  # fmt: skip
    mean = np.mean([record["encoder:float32"].numpy() for record in own.values()], axis=0)
    np.testing.assert_allclose(got["encoder:float32"].numpy(), mean, rtol=1e-5, atol=1e-6)
    y = {key: record["decoder.y:float32"].numpy() for key, record in own.items()}
    np.testing.assert_allclose(got["decoder.y:float32"].numpy(), (3 * y["b"] + 40 * y["c"]) / 43, rtol=1e-5)
    assert strategy.posterior["decoder.y:float32"] == 43 and strategy.posterior["encoder:float32"].shape == (13,)


PACKED = wire.pack({
    "encoder": {"w": np.zeros((3, 4), "f"), "scalar": np.float32(0), "seen": np.array(7)},
    **{f"decoder.{task}": {"v": np.zeros(size, "f")} for task, size in (("x", 5), ("y", (2, 2)), ("z", 2))},
})  # fmt: skip
