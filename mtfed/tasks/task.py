"""The declaration of a task. It determines the task's decoder, loss, metrics and place in the report.

An app declares its tasks in its config, one table for each::

    [tool.flwr.app.config.task.lungs]
    kind = "segmentation"
    classes = "background, lung"

``mtfed config`` lists the kinds. A kind is a row of :data:`mtfed.tasks.specs.KIND_SPECS`, which contains the names that
can be declared, and an implementation, see :mod:`.kind`.
"""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from ..errors import unknown
from .specs import KIND_SPECS, METRIC_SPECS, KindSpec

TERM = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?([a-z][a-z0-9-]*)")


def _split(value: object) -> object:
    """Return a comma-separated string as a list, because Flower's run config cannot contain lists."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _terms(loss: str) -> tuple[tuple[float, str], ...]:
    """Return the weight and the name of every term of a loss."""
    matches = [TERM.fullmatch(word.strip()) for word in loss.split("+")]
    if not all(matches):
        raise ValueError("loss must be a sum of terms, as in 'dice + 0.5*cross-entropy'")
    return tuple((float(match[1] or 1), match[2]) for match in matches if match)


def _spec(info: ValidationInfo) -> KindSpec | None:
    """Return the spec of the task's kind; none if the kind itself is wrong, which is reported first."""
    return KIND_SPECS.get(info.data.get("kind", ""))


class Task(BaseModel):
    """One task of a federation. A sample without a label for a task contributes nothing to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: str
    # Names of the classes, of the quantities of a regression, or of the structures whose dose-volume histograms count;
    # none if the kind needs no labels.
    classes: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    loss: str = ""  # a sum of terms, as in "dice + 0.5*cross-entropy"; empty: the default of the kind
    metrics: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()  # the first one decides; empty: those of the kind
    decoder: str = ""  # empty: the default of the kind
    range: Annotated[tuple[float, ...], BeforeValidator(_split)] = ()  # lowest and highest value, if the kind has them
    dimensions: Literal[0, 2, 3] = 0  # 2 for images, 3 for volumes; 0: those of the run

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str) -> str:
        if kind not in KIND_SPECS:
            *names, last = map(repr, KIND_SPECS)
            raise ValueError(f"expected {', '.join(names)} or {last}")
        return kind

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if (spec := _spec(info)) and (len(set(classes)) != len(classes) or len(classes) < spec.min_classes):
            count = f"{spec.min_classes} or more"
            raise ValueError(f"classes of a {info.data['kind']} task must be {count} different names")
        return classes

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: str, info: ValidationInfo) -> str:
        if not (spec := _spec(info)):
            return loss
        loss = loss or spec.default_loss or spec.losses[0]
        terms = _terms(loss)
        for weight, term in terms:
            if term not in spec.losses:
                raise ValueError(str(unknown(f"loss term of a {info.data['kind']} task", term, spec.losses)))
            if not weight:
                raise ValueError(f"expected weights above 0; leave {term!r} out")
        if len({term for _, term in terms}) < len(terms):
            raise ValueError("expected each term once; add up its weights")
        return loss

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not (spec := _spec(info)):
            return metrics
        for metric in metrics:
            if metric not in spec.metrics:
                raise ValueError(str(unknown(f"metric of a {info.data['kind']} task", metric, spec.metrics)))
        return tuple(dict.fromkeys(metrics)) or spec.metrics

    @field_validator("decoder")
    @classmethod
    def _check_decoder(cls, decoder: str, info: ValidationInfo) -> str:
        if not (spec := _spec(info)):
            return decoder
        if decoder and decoder not in spec.decoders:
            raise ValueError(str(unknown(f"decoder of a {info.data['kind']} task", decoder, spec.decoders)))
        return decoder or spec.decoders[0]

    @field_validator("range")
    @classmethod
    def _check_range(cls, ends: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        spec = _spec(info)
        if spec and spec.has_range and not (len(ends) == 2 and ends[0] < ends[1]):
            raise ValueError(f"range of a {info.data['kind']} task must be its lowest and highest value, as in '0, 80'")
        if spec and ends and not spec.has_range:
            raise ValueError(f"a {info.data['kind']} task has no range")
        return ends

    @property
    def spec(self) -> KindSpec:
        """Return the spec of the task's kind."""
        return KIND_SPECS[self.kind]

    @property
    def structures(self) -> tuple[str, ...]:
        """Return the classes without the background."""
        return self.classes[self.spec.has_background :]

    @property
    def output_channels(self) -> int:
        """Return how many numbers a plain decoder predicts for each image or voxel."""
        return self.spec.output_channels or len(self.classes)

    @cached_property
    def terms(self) -> tuple[tuple[float, str], ...]:
        """Return the weight and the name of every term of the loss."""
        return _terms(self.loss)

    @property
    def weight(self) -> float:
        """Return the mean weight of the terms of the loss."""
        return sum(weight for weight, _ in self.terms) / len(self.terms)

    @property
    def metric(self) -> str:
        """Return the name of the metric that decides (best model, early stopping)."""
        return self.metrics[0]

    def score(self, value: float, metric: str = "") -> float:
        """Return a metric's value such that higher is better, on about the same scale for all tasks.

        Metrics for which higher is better are clipped at -1, because R² has no lower bound. An error becomes one
        minus its share of the largest possible error.
        """
        spec = METRIC_SPECS[metric or self.metric]
        if spec.higher_is_better:
            return value if math.isnan(value) else max(value, -1.0)
        return 1 - value / self.width if spec.in_units else 1 - value

    @property
    def width(self) -> float:
        """Return the largest possible error: the width of the range, or the distance between the outer classes."""
        return self.range[1] - self.range[0] if self.range else max(len(self.classes) - 1, 1)
