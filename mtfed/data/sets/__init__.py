"""Public data sets by name.

To add a data set, write a module in this folder that defines ``SETS`` and add its name to :data:`MODULES`. A data set
from outside the package is added by :func:`register_set`.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import MtfedError, unknown

if TYPE_CHECKING:
    from .dataset import DataSet

MODULES = (
    "medmnist", "busi", "mias", "cbis_ddsm", "inbreast", "vindr_mammo", "rsna_pneumonia", "kermany", "covid_chestxray",
    "ham10000", "isic", "openkbp", "stoic", "decathlon", "drive", "prostate_ct",
)  # fmt: skip


@lru_cache
def all_sets() -> dict[str, DataSet]:
    """Return the data sets by name, in the order of :data:`MODULES`."""
    sets = [dataset for module in MODULES for dataset in import_module(f".{module}", __name__).SETS]
    return {dataset.name: dataset for dataset in sets}


def register_set(dataset: DataSet) -> None:
    """Add a data set to those that ``mtfed data`` offers.

    Raises:
        MtfedError: there is already a data set with this name.
    """
    if dataset.name in all_sets():
        raise MtfedError(f"There is already a data set {dataset.name!r}; choose another name.")
    all_sets()[dataset.name] = dataset


def find_set(name: str) -> DataSet:
    """Return a data set by its name.

    Raises:
        MtfedError: there is no such data set; the message suggests the nearest name.
    """
    sets = all_sets()
    for spelling in (name, name.lower().replace("_", "-")):
        if spelling in sets:
            return sets[spelling]
    raise unknown("data set", name, sets)
