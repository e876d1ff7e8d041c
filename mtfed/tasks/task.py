"""What is predicted: one declaration drives decoder, loss, metrics and report.

An app declares its tasks in its config, one table a task::

    [tool.flwr.app.config.task.lungs]
    kind = "segmentation"
    classes = "background, lung"

``mtfed config`` lists the kinds. A kind is a row of :data:`KINDS` here, which says what can be named, and a module of
:mod:`mtfed.tasks`, which says how it is done.
"""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from ..errors import unknown
from .specs import KIND_SPECS, LOWER_IS_BETTER

TERM = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?([a-z][a-z0-9-]*)")


def _split(value: object) -> object:
    """Read a comma-separated string as a list: Flower's run config holds no lists."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _terms(loss: str) -> tuple[tuple[float, str], ...]:
    found = [TERM.fullmatch(word.strip()) for word in loss.split("+")]
    if not all(found):
        raise ValueError("loss must be a sum of terms, as in 'dice + 0.5*cross-entropy'")
    return tuple((float(term[1] or 1), term[2]) for term in found if term)


class Task(BaseModel):
    """One task of a federation. A sample without a label for it contributes nothing to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: Literal[tuple(KIND_SPECS)]  # type: ignore[valid-type]
    # Of the labels; of a regression, its quantities; of a dose, the structures whose dose-volume histograms count.
    classes: Annotated[tuple[str, ...], BeforeValidator(_split)]
    loss: str = ""  # a sum of terms, as in "dice + 0.5*cross-entropy"; empty: the default of the kind
    metrics: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()  # choices go by the first; empty: the kind's
    decoder: str = ""  # empty: the default of the kind
    range: Annotated[tuple[float, ...], BeforeValidator(_split)] = ()  # lowest and highest value, where there are such

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind = KIND_SPECS.get(info.data.get("kind", ""))  # none where the kind is wrong itself, which is told first
        if kind and (len(set(classes)) != len(classes) or len(classes) < kind.least_classes):
            raise ValueError(
                f"classes of a {info.data['kind']} task must be {kind.least_classes} or more different names"
            )
        return classes

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: str, info: ValidationInfo) -> str:
        if not (kind := KIND_SPECS.get(info.data.get("kind", ""))):
            return loss
        loss = loss or kind.loss
        terms = _terms(loss)
        for weight, term in terms:
            if term not in kind.losses:
                raise ValueError(str(unknown(f"loss term of a {info.data['kind']} task", term, kind.losses)))
            if not weight:
                raise ValueError(f"expected weights above 0; leave {term!r} out")
        if len({term for _, term in terms}) < len(terms):
            raise ValueError("expected each term once; add up its weights")
        return loss

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, metrics: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not (kind := KIND_SPECS.get(info.data.get("kind", ""))):
            return metrics
        for metric in metrics:
            if metric not in kind.metrics:
                raise ValueError(str(unknown(f"metric of a {info.data['kind']} task", metric, kind.metrics)))
        return tuple(dict.fromkeys(metrics)) or kind.metrics

    @field_validator("decoder")
    @classmethod
    def _check_decoder(cls, decoder: str, info: ValidationInfo) -> str:
        if not (kind := KIND_SPECS.get(info.data.get("kind", ""))):
            return decoder
        if decoder and decoder not in kind.decoders:
            raise ValueError(str(unknown(f"decoder of a {info.data['kind']} task", decoder, kind.decoders)))
        return decoder or kind.decoders[0]

    @field_validator("range")
    @classmethod
    def _check_range(cls, ends: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        kind = KIND_SPECS.get(info.data.get("kind", ""))
        if kind and kind.ranged and not (len(ends) == 2 and ends[0] < ends[1]):
            raise ValueError(f"range of a {info.data['kind']} task must be its lowest and highest value, as in '0, 80'")
        if kind and ends and not kind.ranged:
            raise ValueError(f"a {info.data['kind']} task has no range")
        return ends

    @cached_property
    def terms(self) -> tuple[tuple[float, str], ...]:
        """Return the terms of the loss and how much each counts."""
        return _terms(self.loss)

    @property
    def weight(self) -> float:
        """Return how much the terms of the loss count on average."""
        return sum(weight for weight, _ in self.terms) / len(self.terms)

    def score(self, value: float, metric: str = "") -> float:
        """Return a metric's value so that up is better, on about the same scale for all tasks.

        Metrics that go up are at most 1, and below -1 no worse than there, as R² has no end; an error becomes one minus
        its share of the widest possible.
        """
        if (metric or self.metric) not in LOWER_IS_BETTER:
            return value if math.isnan(value) else max(value, -1.0)
        width = self.range[1] - self.range[0] if self.range else len(self.classes) - 1
        return 1 - value / width

    @property
    def metric(self) -> str:
        """Return the name of the metric that choices (best model, early stopping) go by."""
        return self.metrics[0]
