"""Packing: arrays are unpacked as they were packed, over every route."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from flwr.app import Array

from mtfed.strategies import wire

RNG = np.random.default_rng(0)
PARTS = {
    "encoder": {"w": RNG.normal(size=(2, 3)).astype("f"), "n": np.array(3), "h": RNG.normal(size=4).astype("e")},
    "decoder.t": {
        "w": RNG.normal(size=(1, 2, 2)).astype("f"),
        "scalar": np.array(0.5, "f"),
        "none": np.zeros((0, 3), "f"),
    },
}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[p].keys() == b[p].keys()
        and all(np.array_equal(a[p][n], b[p][n]) and a[p][n].dtype == b[p][n].dtype for n in a[p])
        for p in a
    )


def test_round_trip() -> None:
    record = wire.pack(PARTS)
    assert list(record) == ["manifest", "encoder:float32", "encoder:int64", "encoder:float16", "decoder.t:float32"]
    assert same(wire.unpack(record), PARTS)
    assert same(wire.unpack(wire.repack(record, PARTS)), PARTS)
    chosen = wire.select(record, ["decoder.t"])
    assert same(wire.unpack(chosen), {"decoder.t": PARTS["decoder.t"]})
    assert chosen["decoder.t:float32"] is record["decoder.t:float32"]


def test_flowers_own_bytes() -> None:
    record = wire.pack(PARTS)
    for array in record.values():
        by_flower = Array(array.dtype, tuple(array.shape), array.stype, array.data)
        assert np.array_equal(by_flower.numpy(), array.numpy())
        assert by_flower.object_id == array.object_id
        assert np.array_equal(pickle.loads(pickle.dumps(array)).numpy(), array.numpy())


def test_views_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        wire.unpack(wire.pack(PARTS))["encoder"]["w"][0] = 1
