"""What a kind of task implements, the source from which it reads labels, and the registry of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import MtfedError
from .specs import KIND_SPECS, METRIC_SPECS, KindSpec, MetricSpec
from .task import Task


class LossSettings(Protocol):
    """The settings of a run that losses depend on."""

    @property
    def focal_gamma(self) -> float:
        """Return the exponent of the focal loss."""


class ImageGeometry(Protocol):
    """Where an image is placed in the square or cube that the model sees."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the original image, (H, W) or (D, H, W)."""

    @property
    def scale(self) -> np.ndarray:
        """Return the model's pixels per pixel of the image, along every axis."""

    def move(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (N, 2d), corner and size with x first, in the model's pixels."""


class LabelSource(Protocol):
    """An image of a site and the files in its folder: :class:`mtfed.data.source.Source`."""

    dimensions: int

    @property
    def site(self) -> str:
        """Return the site's key, for errors."""

    @property
    def where(self) -> str:
        """Return the image and its site, for errors."""

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Return millimetres along the image's axes, if its file contains them."""

    @property
    def letterbox(self) -> ImageGeometry:
        """Return where the image is placed in what the model sees."""

    def container(self, name: str) -> Literal["archive", "folder", ""]:
        """Return whether a path names an archive of arrays or a folder of files, "" if a single file."""

    def array(self, name: str, what: str) -> np.ndarray:
        """Return the values of a picture or volume in a file."""

    def arrays(self, name: str, what: str) -> Mapping[str, np.ndarray]:
        """Return the arrays of an archive or a folder by name."""

    def fit(self, array: np.ndarray, what: str, *, nearest: bool) -> np.ndarray:
        """Return an array over the image in the model's pixels; LabelError if it has another shape."""


@dataclass(frozen=True)
class AdditiveMetric:
    """A metric that is computed from sums over images, so that the sums of sites add up to the pooled figure."""

    # Name and shape of every sum.
    states: Callable[[Task], Mapping[str, tuple[int, ...]]]
    # Outputs (M, ...) and values (M, ...) of a batch -> what is added to each sum, in their order.
    update: Callable[[Task, Tensor, Tensor], tuple[Tensor, ...]]
    # The sums, float64, by name -> the value; NaN if the data cannot determine it.
    compute: Callable[..., Tensor]
    # Sums over fewer images stay at their site, because they would reveal single labels. If there is a sum ``count``
    # (K,), it is compared instead of the number of images, and all sums are (K,).
    min_images: int = 1


def mean_metric(terms: Callable[[Task, Tensor, Tensor], Tensor]) -> AdditiveMetric:
    """Return the mean of all terms (N,) or (M, ...) as a metric. NaN terms, which cannot be judged, are left out."""

    def update(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        judged = terms(task, outputs, values).double()
        judged = judged[~judged.isnan()]
        return judged.sum(), torch.tensor(judged.numel())

    return AdditiveMetric(lambda task: {"total": (), "count": ()}, update, lambda total, count: total / count)


def read_no_label(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return the label of an image for a kind that needs none, (1,) uint8."""
    return np.zeros(1, np.uint8)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How tasks of a kind are read, trained, measured and shown.

    In a batch there are M images; a label as read has the shape of one row of ``values`` (M, ...).
    """

    # Reading labels

    # A cell of the manifest -> the label of one image, in the model's pixels; LabelError if it cannot be one.
    read: Callable[[str, Task, LabelSource], np.ndarray]
    # Labels of several images -> one array, padded if labels differ in length, as boxes do.
    stack: Callable[[Sequence[np.ndarray]], np.ndarray] = np.stack
    # A cell -> the index of its class, if an image has exactly one.
    class_of: Callable[[str, Task], int] | None = None
    # A label -> how much of each class it contains: images, boxes, or pixels; without classes that are absent. The last
    # argument holds the values of the label's file before they were resized, if it is a file of a single array.
    class_counts: Callable[[np.ndarray, Task, np.ndarray | None], dict[str, int]] = lambda label, task, raw: {}
    # A label -> the structures that it marks, (K, *S) bool; none if a label of the kind marks no structures.
    masks: Callable[[np.ndarray, Task], np.ndarray] | None = None

    # Training and measuring; the names are those of the spec

    # Outputs (M, ...) and values (M, ...) -> scalar: the mean over the M images.
    losses: Mapping[str, Callable[[Task, LossSettings, Tensor, Tensor], Tensor]]
    metrics: Mapping[str, AdditiveMetric]
    # Outputs and values (M, ...) -> random z of the outputs' shape, where E[z z^T] is the curvature in the outputs of
    # an image's loss whose terms have a mean weight of 1.
    curvature_factor: Callable[[Tensor, Tensor, Task], Tensor]
    # For a kind that needs no labels (``KindSpec.every_image``): normalised images (M, C, *S) -> changed copies of them
    # (k M, C, *S), k of each image one after the other, and what is predicted of the copies, their values (k M, ...).
    # Everything random comes from torch's default generators.
    pretext: Callable[[Tensor, Task], tuple[Tensor, Tensor]] | None = None
    # For a map: the values (P,) of its planes at their first pixel -> what they hold beyond the edge of the image.
    outside: Callable[[Tensor], Tensor] = torch.zeros_like

    # Examples of the record

    # Outputs (M, ...) -> what the report shows of them.
    show: Callable[[Tensor, Task], np.ndarray]
    # Values (M, ...) -> what the report shows of them.
    show_values: Callable[[Tensor, Task], Tensor] = lambda values, task: values
    # Values (M, ...) -> (M, K) bool: which of K things an image shows, so that each gets its examples; by default, the
    # structures that are marked.
    contents: Callable[[Tensor, Task], Tensor] | None = None
    # Values (M, ...) of volumes -> (M, S): how much of the label each slice contains; by default, how much is marked.
    slice_weights: Callable[[Tensor, Task], Tensor] | None = None


_REGISTERED: dict[str, Kind] = {}


def register_kind(name: str, spec: KindSpec, kind: Kind, metrics: Mapping[str, MetricSpec] | None = None) -> None:
    """Make a kind of task available to configs.

    Its decoders are registered with :func:`mtfed.models.decoders.register_decoder`, and a drawing for the report, if
    the plain one does not suffice, with :func:`mtfed.report.galleries.register_gallery`.

    Args:
        name: the kind's name in configs.
        spec: what its tasks may declare.
        kind: the implementation.
        metrics: specs of metrics that no other kind has.

    Raises:
        MtfedError: if the name is taken, or the spec names losses or metrics that are not implemented or described.
    """
    specs = METRIC_SPECS | dict(metrics or {})
    if name in KIND_SPECS:
        raise MtfedError(f"Expected a new name for a kind of task, got {name!r}, which exists; choose another.")
    metric_names = kind.metrics.keys() & specs.keys()
    for what, names, implemented in (("losses", spec.losses, kind.losses), ("metrics", spec.metrics, metric_names)):
        if missing := sorted(set(names) - set(implemented)):
            raise MtfedError(
                f"Expected the kind {name!r} to come with all {what} that its spec names, got none of "
                f"{', '.join(missing)}; add them or leave them out."
            )
    METRIC_SPECS.update(specs)
    KIND_SPECS[name], _REGISTERED[name] = spec, kind


def kind_of(task: Task) -> Kind:
    """Return the implementation of a task's kind; the module of a built-in one is imported at the first call."""
    if task.kind not in _REGISTERED:
        _REGISTERED[task.kind] = import_module(f"{__package__}.{task.kind.replace('-', '_')}").KIND
    return _REGISTERED[task.kind]
