"""Settings that exclude each other: for each key, a check of its value against those of the keys before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .partitions import is_flower, read_partition

Settings = Mapping[str, Any]  # by field name; a setting that is itself wrong is missing


def _normalise(value: str, others: Settings) -> str:
    dimensions = {task.dimensions or others.get("dimensions") for task in others.get("tasks", {}).values()}
    if value == "encoder" and 3 in dimensions:
        return "expected image or site for volumes, because timm's means and deviations are of images"
    return ""


def _partition_options(value: str, others: Settings) -> str:
    if value and "partition" in others and not is_flower(read_partition(others["partition"])):
        return "expected partition = 'flwr:NAME' with it, because no other scheme reads options"
    return ""


def _backforward_rounds(value: int, others: Settings) -> str:
    if value and others.get("accumulate", 1) > 1:
        return "expected accumulate = 1 with it, because its second pass needs the whole batch"
    if value and (balancing := others.get("balancing")) in ("gradnorm", "pcgrad"):
        return (
            f"expected balancing = uncertainty, equal or dwa with it, because {balancing} needs all gradients of a "
            "task at once"
        )
    return ""


def _lora_rank(value: int, others: Settings) -> str:
    if value and not others.get("encoder_rate", 1.0):
        return "expected encoder-rate above 0 with it, because the updates learn at the encoder's rate"
    return ""


def _autocast(value: str, others: Settings) -> str:
    if value == "float16" and others.get("backforward_rounds"):
        return "expected auto, bfloat16 or none with backforward-rounds, whose gradients are not scaled"
    return ""


def _start(value: str, others: Settings) -> str:
    is_frozen = not others.get("encoder_rate", 1.0) or others.get("lora_rank")  # all sites then read the weights
    if value == "apart" and others.get("weights") and not is_frozen:
        return "expected 'common' with pretrained weights, because sites that start apart ignore them"
    return ""


# Field -> a function that returns what is wrong with its value, given the settings before it, or an empty text.
CONFLICTS: dict[str, Callable[[Any, Settings], str]] = {
    "normalise": _normalise,
    "partition_options": _partition_options,
    "backforward_rounds": _backforward_rounds,
    "lora_rank": _lora_rank,
    "autocast": _autocast,
    "start": _start,
}
