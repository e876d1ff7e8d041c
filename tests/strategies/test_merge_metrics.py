"""Metrics that a merge records, and the summary that its strategy logs."""

from __future__ import annotations

import logging

import pytest

from helpers.bayesian import (
    frame,
    merged,
    sites,
)
from mtfed.strategies import BayesianMatching


def test_metrics_contain_distances_and_shares() -> None:
    _, metrics = merged(sites(True, "ac"))
    assert 0 < metrics["merge.distance"] < metrics["merge.distance-before"]
    assert metrics["merge.distance"] == pytest.approx(0.05**2, rel=0.1)
    for part, holders in (("encoder", "abc"), ("decoder.x", "ac"), ("decoder.y", "bc")):
        shares = {key: metrics[f"merge.share.{part}.{key}"] for key in holders}
        assert sum(shares.values()) == pytest.approx(1)
        assert all(share == pytest.approx(1 / len(holders), rel=0.1) for share in shares.values())
    # A sample of a site without precision counts like one of the others: b has 3 of 58 samples.
    _, metrics = merged(sites(True, measuring="ac"))
    assert metrics["merge.share.encoder.b"] == pytest.approx(3 / 58, rel=1e-5)
    _, metrics = merged(sites(True, measuring=""))
    assert metrics["merge.share.decoder.y.c"] == pytest.approx(40 / 43)


def test_the_summary_logs_the_settings() -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("flwr")
    log.addHandler(handler)
    try:
        BayesianMatching(frame()[0], prior_strength=0.5).summary()
        BayesianMatching().summary()
    finally:
        log.removeHandler(handler)
    text = "\n".join(lines)
    assert f"Matching: {len(frame()[0].axes)} axes, start common, gate 0.001" in text
    assert "Precision: fisher, floor 0.2, prior 0.5" in text and "Matching: 0 axes" in text and "Failures: skip" in text
