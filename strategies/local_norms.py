"""FedBN: what normalises stays at its site, and all else is averaged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from .averaging import TaskFedAvg
from .screening import Update
from .sites import KEY, SiteCard
from .wire import MANIFEST, FlatArray, TensorEntry, is_decoder, part_of, tensors_in

# The last word of a module's name: norm, norm1, bn2, ln_1, fc_norm, norm_pre, LayerNorm, layernorm_before, batchnorm1.
NORMS = r"(\w+_)?(layer|batch|group|instance|rms)?_?(norm|bn|ln)(_?\d+|_\w+)?"


class TaskFedBN(TaskFedAvg):
    """FedBN (Li et al., ICLR 2021): normalisation, affine and statistics, stays each site's own.

    Scanners differ in what they do to an image, and normalisation is where a model takes that in. A site is sent the
    shared weights with its own norms laid in. The global arrays hold the average norms, as the paper uses for a site
    outside the federation: a site is sent these the first time, that is, the initial ones in round 1.

    The server keeps the norms of every site, so that a site may restart; ``site_norms`` is site -> key of the record
    -> the values of the key's normalisation tensors, one after the other.

    Args:
        norms: regular expression, without regard to case, of the last word of a normalisation module's name. See
            :func:`norm_modules` for those that are known otherwise.
        settings: see :class:`TaskFedAvg`.
    """

    def __init__(self, *, norms: str = NORMS, **settings: Any) -> None:
        super().__init__(**settings)
        self.site_norms: dict[str, dict[str, np.ndarray]] = {}
        self._pattern = re.compile(norms, re.IGNORECASE)
        self._known: dict[tuple[object, ...], dict[str, np.ndarray]] = {}

    def add_to_merge(self, update: Update) -> None:
        super().add_to_merge(update)
        places = self._places(self._arrays)
        own = {key: values.reshape(-1)[places[key]] for key, values in update.arrays.items()}
        self.site_norms[update.site] = self.site_norms.get(update.site, {}) | own

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Iterable[str] | None) -> ArrayRecord:
        return self._with_norms(super().arrays_for(site, arrays, tasks), self.site_norms.get(site.key, {}))

    def models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        models = {}
        for site, norms in sorted(self.site_norms.items()):
            held = ArrayRecord()
            for key, array in arrays.items():
                if key in norms or not is_decoder(part_of(key)):
                    held[key] = array
            models[site] = self._with_norms(held, norms)
        return models

    def state(self) -> dict[str, ArrayRecord]:
        kept = super().state()
        for site, norms in self.site_norms.items():
            kept[site] = ArrayRecord()
            for key, values in norms.items():
                kept[site][key] = FlatArray(values)
        return kept

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.site_norms = {
            site: {key: array.numpy() for key, array in record.items()}
            for site, record in state.items()
            if KEY.fullmatch(site)
        }

    def _with_norms(self, arrays: ArrayRecord, norms: dict[str, np.ndarray]) -> ArrayRecord:
        places = self._places(arrays)
        own = ArrayRecord()
        for key, array in arrays.items():
            if norms.get(key, np.empty(0)).size:
                values = array.numpy().copy()
                values.reshape(-1)[places[key]] = norms[key]
                own[key] = FlatArray(values)
            else:
                own[key] = array
        return own

    def _places(self, arrays: ArrayRecord) -> dict[str, np.ndarray]:
        """Return which elements of every array are of normalisation tensors; worked out once for a set of parts."""
        model = arrays[MANIFEST].numpy().tobytes() if MANIFEST in arrays else None, *arrays
        if model not in self._known:
            self._known[model] = norm_places(tensors_in(arrays), self._pattern)
        return self._known[model]


def norm_places(tensors: dict[str, list[TensorEntry]], pattern: re.Pattern[str]) -> dict[str, np.ndarray]:
    """Return the indices, in every flattened array, of the elements of normalisation tensors."""
    modules = norm_modules([tensor for held in tensors.values() for tensor in held], pattern)
    places = {}
    for key, held in tensors.items():
        size = sum(int(np.prod(tensor.shape)) for tensor in held)
        own = [np.arange(size)[tensor.place] for tensor in held if tensor.name.rpartition(".")[0] in modules]
        places[key] = np.concatenate([np.empty(0, np.int64), *own])
    return places


def norm_modules(tensors: Iterable[TensorEntry], pattern: re.Pattern[str]) -> set[str]:
    """Return the names of the modules that normalise: by the last word of the name, or by what they hold.

    In an ``nn.Sequential`` a name is but a number. A module with a ``running_mean`` is a BatchNorm; one whose weight
    and bias are vectors of one length is a normalisation of another kind, as weights of layers that mix channels are
    matrices at least.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    found = set()
    for module in {name.rpartition(".")[0] for name in shapes} - {""}:
        weight, bias = shapes.get(f"{module}.weight"), shapes.get(f"{module}.bias")
        affine = weight is not None and weight == bias and len(weight) == 1
        if affine or f"{module}.running_mean" in shapes or pattern.fullmatch(module.rpartition(".")[2]):
            found.add(module)
    return found
