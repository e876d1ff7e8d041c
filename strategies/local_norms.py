"""FedBN: normalisation stays at its site, and everything else is averaged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from .averaging import TaskFedAvg
from .sites import KEY, SiteCard
from .update import Update
from .wire import MANIFEST, TensorEntry, arrays_in, is_decoder, part_of, record_of, tensors_in

# The last word of a module's name: norm, norm1, bn2, ln_1, fc_norm, norm_pre, LayerNorm, layernorm_before, batchnorm1.
NORMS = r"(\w+_)?(layer|batch|group|instance|rms)?_?(norm|bn|ln)(_?\d+|_\w+)?"


class TaskFedBN(TaskFedAvg):
    """FedBN (Li et al., ICLR 2021): each site keeps its own normalisation, affine weights and statistics.

    Scanners differ in their effect on an image, and a model absorbs that in its normalisation. A site is sent the
    shared weights with its own norms. The global arrays contain the average norms, which the paper uses for a site
    outside the federation: a site receives these the first time, so in round 1 the initial ones. In a site's model, the
    input parts of images that it does not have are the average as well.

    The server keeps the norms of every site, so that a site may restart; ``site_norms`` maps a site to the keys of
    the record, and each key to the values of its normalisation tensors, concatenated.

    Args:
        norms: regular expression, not case-sensitive, for the last word of a normalisation module's name. See
            :func:`norm_modules` for modules that are recognised in other ways.
        settings: see :class:`TaskFedAvg`.
    """

    def __init__(self, *, norms: str = NORMS, **settings: Any) -> None:
        super().__init__(**settings)
        self.site_norms: dict[str, dict[str, np.ndarray]] = {}
        self._pattern = re.compile(norms, re.IGNORECASE)
        self._cached_places: dict[tuple[object, ...], dict[str, np.ndarray]] = {}

    def add_to_merge(self, update: Update) -> None:
        super().add_to_merge(update)
        places = self._places(self.phase.arrays)
        own = {key: values.reshape(-1)[places[key]] for key, values in update.arrays.items()}
        self.site_norms[update.site] = self.site_norms.get(update.site, {}) | own

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Iterable[str] | None) -> ArrayRecord:
        return self._with_norms(super().arrays_for(site, arrays, tasks), self.site_norms.get(site.key, {}))

    def trained_models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        models = {}
        for site, norms in sorted(self.site_norms.items()):
            own = {key: array for key, array in arrays.items() if key in norms or not is_decoder(part_of(key))}
            models[site] = self._with_norms(record_of(own), norms)
        return models

    def state(self) -> dict[str, ArrayRecord]:
        return super().state() | {site: record_of(norms) for site, norms in self.site_norms.items()}

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.site_norms = {site: arrays_in(record) for site, record in state.items() if KEY.fullmatch(site)}

    def _with_norms(self, arrays: ArrayRecord, norms: dict[str, np.ndarray]) -> ArrayRecord:
        places = self._places(arrays)
        changed = {}
        for key in [key for key in arrays if norms.get(key, np.empty(0)).size]:
            changed[key] = arrays[key].numpy().copy()
            changed[key].reshape(-1)[places[key]] = norms[key]
        return record_of({key: changed.get(key, array) for key, array in arrays.items()})

    def _places(self, arrays: ArrayRecord) -> dict[str, np.ndarray]:
        """Return the indices of normalisation in every array; they are computed once for each set of parts."""
        layout = arrays[MANIFEST].numpy().tobytes() if MANIFEST in arrays else None, *arrays
        if layout not in self._cached_places:
            self._cached_places[layout] = norm_places(tensors_in(arrays), self._pattern)
        return self._cached_places[layout]


def norm_places(tensors: dict[str, list[TensorEntry]], pattern: re.Pattern[str]) -> dict[str, np.ndarray]:
    """Return the indices, in every flattened array, of the elements of normalisation tensors."""
    modules = norm_modules([tensor for entries in tensors.values() for tensor in entries], pattern)
    places = {}
    for key, entries in tensors.items():
        size = sum(int(np.prod(tensor.shape)) for tensor in entries)
        norms = [np.arange(size)[tensor.place] for tensor in entries if tensor.name.rpartition(".")[0] in modules]
        places[key] = np.concatenate([np.empty(0, np.int64), *norms])
    return places


def norm_modules(tensors: Iterable[TensorEntry], pattern: re.Pattern[str]) -> set[str]:
    """Return the names of the modules that normalise, recognised by the last word of the name or by their tensors.

    In an ``nn.Sequential`` the names are only numbers. A module with a ``running_mean`` is a BatchNorm; one whose
    weight and bias are vectors of equal length is another kind of normalisation, because the weights of layers that
    mix channels have at least two axes.
    """
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    modules = set()
    for module in {name.rpartition(".")[0] for name in shapes} - {""}:
        weight, bias = shapes.get(f"{module}.weight"), shapes.get(f"{module}.bias")
        affine = weight is not None and weight == bias and len(weight) == 1
        if affine or f"{module}.running_mean" in shapes or pattern.fullmatch(module.rpartition(".")[2]):
            modules.add(module)
    return modules
