"""Losses of earlier rounds in messages."""

from __future__ import annotations

import json

import torch
from flwr.app import ConfigRecord

from mtfed.learning.balancing import read_history, write_history

torch.set_num_threads(1)


def test_history_is_written_and_read() -> None:
    lines = [
        {"round": r, "task": task, "loss": loss}
        for r in range(1, 5)
        for task, loss in (("a", 1 / r), ("b", 2.0 if r == 1 else None), ("c", float(r)), ("d", None))
    ]
    lines = json.loads(json.dumps(lines))
    for balancing in ("dwa", "gradnorm"):
        settings = write_history(balancing, lambda: lines, ["a", "b", "d"])
        assert settings == {"losses.a": [1.0, 1 / 3, 1 / 4], "losses.b": [2.0]}
        record = ConfigRecord({"learning-rate": 0.1, "server-round": 5, **settings})
        assert read_history(record) == {"a": [1.0, 1 / 3, 1 / 4], "b": [2.0]}
        for known in range(1, 4):  # whatever the length, the first and the last two stand where they are read
            short = write_history(balancing, lambda n=known: [x for x in lines if x["round"] <= n], ["a"])["losses.a"]
            assert short == [1 / r for r in range(1, known + 1)]
    for balancing in ("equal", "uncertainty", "pcgrad"):
        assert write_history(balancing, lambda: 1 / 0, ["a"]) == {}  # type: ignore[arg-type,return-value]
