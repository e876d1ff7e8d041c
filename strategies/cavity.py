"""Local training under the other sites' posterior: partitioned variational inference, one number for each tensor.

A round that ends in a product of posteriors repeats what the sites have in common: each starts from the global model,
stops early, and the mean of their small steps is one small step. If every site instead trains under the cavity, the
posterior of the others (Ashman et al., Partitioned Variational Inference, 2022; expectation propagation for federated
learning, Guo et al., ICLR 2023), its step is what its own images add to it, and such steps are summed, not averaged.

With a share c of the cavity, site j minimises its loss plus c (S - P_j) / 2 |theta - theta_0|^2. Its step Delta_j then
solves (H_j + c (S - P_j)) Delta_j = -gradient_j, and theta_0 + sum_j (P_j + c (S - P_j)) Delta_j / sum_j P_j is the
product's mode if the curvatures P_j are exact; c = 0 is the plain product. The whole cavity at once overshoots, because
all sites step at the same time: c = strength / J, the damping that synchronous updates need. S and P_j are those of the
last round, as means over a tensor (our design): only a few hundred numbers are sent, and no weight whose curvature was
not measured can run away. A site that was not asked, or failed, keeps the posterior of its last round. The loss is
assumed to be a mean over the site's images; for a site with several tasks on different images the pull is then weaker,
and its step longer, than they should be.

A pull tells a site the sum of the others' mean curvatures of a tensor. With one other site, that would be this site's
own curvature, so a tensor is pulled only if three or more sites train it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
from flwr.app import ArrayRecord

from .axes import Tensors
from .contribution import Layout
from .wire import json_record, read_json_record

MIN_SITES = 3  # sites that must train a tensor, so that a sum over the others is not one site's own


class Cavities:
    """The mean precision of each site's last posterior, tensor by tensor, and the pulls that follow from it."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.factors: dict[str, dict[str, float]] = {}  # site -> tensor -> mean precision of its weights
        self.samples: dict[str, float] = {}  # site -> number of its images
        self._next: dict[str, dict[str, float]] = {}

    def others(self, site: str) -> dict[str, float]:
        """Return c (S - P_j) for each tensor that the site trained in its last round."""
        total: Counter[str] = Counter()
        sites: Counter[str] = Counter()
        for factors in self.factors.values():
            total.update(factors)
            sites.update(factors.keys())
        return {
            name: self.strength / sites[name] * max(total[name] - value, 0.0)
            for name, value in self.factors.get(site, {}).items()
            if sites[name] >= MIN_SITES
        }

    def pulls(self, site: str) -> dict[str, float]:
        """Return by tensor the mu of the term ``mu / 2 |theta - theta_0|^2`` for a loss that is a mean over samples."""
        return {name: value / self.samples[site] for name, value in self.others(site).items() if value > 0}

    def note(self, site: str, factors: Mapping[str, float], samples: float) -> None:
        """Store a site's factors for the next round."""
        self._next[site] = dict(factors)
        self.samples[site] = samples

    def end_round(self, sites: Collection[str]) -> None:
        """Replace the last round's factors by this round's; given sites without new factors keep their old ones."""
        known = self.factors | self._next
        self.factors, self._next = {site: known[site] for site in sorted(known) if site in sites}, {}
        self.samples = {site: self.samples[site] for site in self.factors}

    def state(self) -> ArrayRecord:
        """Return what the pulls of the next round depend on."""
        return json_record({"factors": self.factors, "samples": self.samples})

    def restore(self, state: ArrayRecord) -> None:
        """Restore what :meth:`state` returned."""
        content = read_json_record(state)
        self.factors, self.samples = content["factors"], content["samples"]


class PulledSteps:
    """The steps of sites that trained under a pull, beyond their part of the product's mean."""

    def __init__(self) -> None:
        self._steps: Tensors = {}  # tensor -> sum over pulled sites of c (S - P_j) Delta_j
        self._strengths: dict[str, float] = {}  # tensor -> sum of c (S - P_j)

    def add(self, values: Tensors, previous: Tensors, strengths: Mapping[str, float]) -> None:
        """Add the step of a site from the previous values, with its c (S - P_j) by tensor."""
        for name, strength in strengths.items():
            step = np.subtract(values[name], previous[name], dtype=np.float64)
            step *= strength
            self._steps[name] = self._steps[name] + step if name in self._steps else step
            self._strengths[name] = self._strengths.get(name, 0.0) + strength

    def apply(self, arrays: Tensors, precision: Tensors, layout: Layout) -> None:
        """Add the steps to merged arrays in place; at most, they double the steps that the product took.

        A precision that has fallen since the last round is a new estimate and does not justify a longer step.
        """
        for key, tensors in layout.items():
            if key not in precision:
                continue
            values, merged_precision = arrays[key].reshape(-1), precision[key].reshape(-1)
            for tensor in tensors:
                if tensor.name in self._steps:
                    mean = float(merged_precision[tensor.place].mean(dtype=np.float64))
                    step = self._steps.pop(tensor.name) / max(mean, self._strengths[tensor.name])
                    values[tensor.place] += step.reshape(-1).astype(values.dtype)
