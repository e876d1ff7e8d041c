"""The working state of one round's merge in :class:`.bayesian.BayesianMatching`."""

from __future__ import annotations

from flwr.app import ArrayRecord

from .averaging import SiteWeights
from .axes import AxisGraph, Tensors
from .cavity import PulledSteps
from .contribution import Contribution, tensors_by_name, unique_names
from .frame import Frame
from .merge_metrics import MergeMetrics
from .merging import Product
from .wire import arrays_in, tensors_in


class BayesianMerge:
    """One merge: it begins with the global arrays and ends when the product is taken.

    Args:
        arrays: the global arrays that the round started from.
        graph: the axis graph, if units are matched.
        weights: how much each site counts in each part.
        precision_floor: see :class:`.merging.Product`.
    """

    def __init__(
        self, arrays: ArrayRecord, graph: AxisGraph | None, weights: SiteWeights, precision_floor: float
    ) -> None:
        self.arrays = arrays
        self.graph = graph
        self.weights = weights
        self.previous = arrays_in(arrays)
        self.layout = unique_names(tensors_in(arrays), graph)
        self.product = Product(self.layout, precision_floor)
        self.pulled_steps = PulledSteps()
        self.metrics = MergeMetrics()
        self.waiting: list[Contribution] = []  # contributions that are merged only when all have arrived
        self._frame: Frame | None = None

    def previous_tensors(self) -> Tensors:
        """Return the tensors of the global model by name, as views."""
        return tensors_by_name(self.previous, self.layout)

    def match(self, contribution: Contribution, gate: float, seed: int) -> Contribution:
        """Return a contribution with its units in the global model's order."""
        if self.graph is None:
            return contribution
        if self._frame is None:
            self._frame = Frame(self.graph, self.previous_tensors(), gate=gate, seed=seed)
        return self.match_to(self._frame, contribution)

    def match_to(self, frame: Frame, contribution: Contribution) -> Contribution:
        """Return a contribution with its units in the order of a frame."""
        aligned = frame.align(contribution.values)
        for label, placement in aligned.placements.items():
            self.metrics.add_placement(label, placement)
        if not aligned.permutations:
            return contribution
        return contribution.permuted(frame.graph, aligned.tensors, aligned.permutations)
