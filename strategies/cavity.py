"""Local training under what the other sites know: partitioned variational inference, one number a tensor.

A round that ends in a product of posteriors repeats what the sites have in common: each starts from the global model,
stops early, and the mean of their small steps is one small step. If every site instead trains under the cavity, the
posterior of the others (Ashman et al., Partitioned Variational Inference, 2022; expectation propagation for federated
learning, Guo et al., ICLR 2023), its step is what its own images add to it, and such steps are summed, not averaged.

With a share c of the cavity, site j minimises its loss plus c (S - P_j) / 2 |theta - theta_0|^2, so that its step
Delta_j solves (H_j + c (S - P_j)) Delta_j = -gradient_j, and theta_0 + sum_j (P_j + c (S - P_j)) Delta_j / sum_j P_j is
the product's mode if curvatures are as told; c = 0 is the plain product. Taking all of it at once overshoots, since all
sites step together: c = strength / J, the damping that synchronous updates need. S and P_j are those of the last round,
as means over a tensor (our design): a few hundred numbers travel, and no weight whose curvature is not seen runs away.
A site that was not asked, or failed, keeps the posterior of its last round. The loss is taken for a mean over the
site's images: of a site with several tasks on different images the pull is then weaker than it should be, and its step
longer.

A pull tells a site what the others' mean curvature of a tensor adds up to. Of one other site it would be that site's
own, so a tensor is pulled where three or more hold it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from flwr.app import ArrayRecord

from .wire import json_record, read_json_record

FEWEST = 3  # holders of a tensor, for the others to be more than one


class Cavities:
    """What each site's last posterior was worth, tensor by tensor, and what the others' are to pull it with."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.factors: dict[str, dict[str, float]] = {}  # site -> tensor -> mean precision of its weights
        self.samples: dict[str, float] = {}
        self._next: dict[str, dict[str, float]] = {}

    def others(self, site: str) -> dict[str, float]:
        """Return c (S - P_j) by tensor: of tensors that the site held in the last round."""
        total: Counter[str] = Counter()
        holders: Counter[str] = Counter()
        for factors in self.factors.values():
            total.update(factors)
            holders.update(factors.keys())
        return {
            name: self.strength / holders[name] * max(total[name] - value, 0.0)
            for name, value in self.factors.get(site, {}).items()
            if holders[name] >= FEWEST
        }

    def pulls(self, site: str) -> dict[str, float]:
        """Return by tensor the mu of ``mu / 2 |theta - theta_0|^2`` beside a loss that is a mean over samples."""
        return {name: value / self.samples[site] for name, value in self.others(site).items() if value > 0}

    def note(self, site: str, factors: Mapping[str, float], samples: float) -> None:
        """Keep a site's factors for the next round."""
        self._next[site] = dict(factors)
        self.samples[site] = samples

    def end_round(self, sites: Collection[str]) -> None:
        """Let the round's factors be the last ones; of these sites, those that told nothing keep theirs."""
        known = self.factors | self._next
        self.factors, self._next = {site: known[site] for site in sorted(known) if site in sites}, {}
        self.samples = {site: self.samples[site] for site in self.factors}

    def state(self) -> ArrayRecord:
        """Return what the next round's pulls depend on."""
        return json_record({"factors": self.factors, "samples": self.samples})

    def restore(self, state: ArrayRecord) -> None:
        """Take back what :meth:`state` gave."""
        content = read_json_record(state)
        self.factors, self.samples = content["factors"], content["samples"]
