"""Public data sets by name. A new one is a module here with ``SETS``, and a row of :data:`MODULES`."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import unknown

if TYPE_CHECKING:
    from .dataset import DataSet

MODULES = (
    "medmnist",
    "busi",
    "mias",
    "cbis_ddsm",
    "inbreast",
    "vindr_mammo",
    "rsna_pneumonia",
    "kermany",
    "covid_chestxray",
    "ham10000",
    "isic",
    "openkbp",
    "stoic",
    "decathlon",
    "drive",
    "prostate_ct",
    "copies",
)


@lru_cache
def all_sets() -> dict[str, DataSet]:
    """Return the data sets by name, in the order of the modules."""
    found = [dataset for module in MODULES for dataset in import_module(f".{module}", __name__).SETS]
    return {dataset.name: dataset for dataset in found}


def find_set(name: str) -> DataSet:
    """Return a data set by its name; raise :class:`~mtfed.errors.MtfedError` with the nearest one if there is none."""
    sets = all_sets()
    for spelling in (name, name.lower().replace("_", "-")):
        if spelling in sets:
            return sets[spelling]
    raise unknown("data set", name, sets)
