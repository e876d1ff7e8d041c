"""What is predicted: one declaration drives decoder, loss, metrics and report.

An app declares its tasks in its config, one table a task::

    [tool.flwr.app.config.task.lungs]
    kind = "segmentation"
    classes = "background, lung"
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LOSSES_OF_KIND = {  # the first is the default
    "classification": ("cross-entropy", "focal"),
    "segmentation": ("dice-ce", "dice", "cross-entropy"),
}
METRICS_OF_KIND = {  # the first is the one that choices go by
    "classification": ("auc", "accuracy"),
    "segmentation": ("dice", "iou"),
}


def _split(value: object) -> object:
    """Read a comma-separated string as a list: Flower's run config holds no lists."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


class Task(BaseModel):
    """One task of a federation. A sample without a label for it contributes nothing to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: Literal["classification", "segmentation"]
    classes: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(min_length=2)
    loss: str = ""  # empty: the default of the kind

    @model_validator(mode="after")
    def _check_loss(self) -> Task:
        allowed = LOSSES_OF_KIND[self.kind]
        if not self.loss:
            object.__setattr__(self, "loss", allowed[0])
        if self.loss not in allowed:
            raise ValueError(f"loss of a {self.kind} task must be one of {', '.join(allowed)}, got {self.loss!r}")
        return self

    @property
    def metric(self) -> str:
        """Return the name of the metric that choices (best model, early stopping) go by."""
        return METRICS_OF_KIND[self.kind][0]
