"""Partitioners of flwr-datasets, which assign each patient to a site."""

from __future__ import annotations

import inspect
import io
import re
import tomllib
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config.partitions import FLOWER
from ...errors import MtfedError, unknown
from ...tasks.task import Task
from ..manifest import Row
from .allocation import Allocation, Division, Options
from .divide import divide
from .patients import patients_of

if TYPE_CHECKING:
    import datasets
    from flwr_datasets.partitioner import Partitioner

COLUMNS = ("patient", "label", "site", "modality", "images")  # columns of the table that a partitioner divides


def partition_with(
    partitioner: Partitioner, rows: Sequence[Row], tasks: dict[str, Task], options: Options | None = None
) -> Division:
    """Divide a set with a partitioner of your own.

    The partitioner divides a table of patients with the columns :data:`COLUMNS`. ``label`` numbers the classes, or the
    combinations of classes if there are several tasks; ``site`` is the cell of ``options.column``; ``images`` is the
    number of images.

    Example:
        >>> from flwr_datasets.partitioner import DirichletPartitioner
        >>> partitioner = DirichletPartitioner(num_partitions=3, partition_by="label", alpha=0.5)
        >>> division = partition_with(partitioner, rows, tasks)  # doctest: +SKIP
    """
    options = options or Options()
    patients = patients_of(rows, tasks)
    whole = Allocation(patients, tasks, 1, options, np.random.default_rng())
    site_of, sites = _site_of(partitioner, whole, type(partitioner).__name__)
    allocation = Allocation(patients, tasks, sites, options, np.random.default_rng())
    allocation.assign(site_of)
    return divide(allocation)


def assign(allocation: Allocation, name: str) -> None:
    """Assign every patient to the site that the partitioner ``flwr:NAME`` chooses."""
    site_of, sites = _site_of(_build(allocation, name), allocation, name)
    if sites != allocation.sites:
        raise MtfedError(
            f"Config key partition: {name} makes {sites} sites of these data, but {allocation.sites} are asked for; "
            f"ask for {sites} (--num-supernodes), or change partition-options."
        )
    allocation.assign(site_of)


def own_sites(name: str, allocation: Allocation) -> int | None:
    """Return how many sites a partitioner makes, ``None`` if it makes as many as it is asked for."""
    if "num_partitions" in inspect.signature(_partitioner_class(name)).parameters:
        return None
    return _site_of(_build(allocation, name), allocation, name)[1]


def _partitioner_class(name: str) -> type[Partitioner]:
    try:
        from flwr_datasets import partitioner
    except ImportError:
        raise MtfedError(
            f"Config key partition: {name} needs flwr-datasets (pip install 'mtfed[partition]')."
        ) from None
    # Vertical partitioners divide columns, not patients.
    known = [cls for cls in partitioner.__all__ if cls != "Partitioner" and not cls.startswith("Vertical")]
    if (class_name := name.removeprefix(FLOWER)) not in known:
        raise MtfedError(f"Config key partition: {unknown('partitioner of flwr-datasets', class_name, known)}")
    cls: type[Partitioner] = getattr(partitioner, class_name)
    return cls


def _build(allocation: Allocation, name: str) -> Partitioner:
    """Return the partitioner with its options; the config's own keys fill in what these leave out."""
    cls, options = _partitioner_class(name), allocation.options
    parameters = inspect.signature(cls).parameters
    given = read_options(options.flower)
    if unknown_keys := [key for key in given if key not in parameters or key == "num_partitions"]:
        known = ", ".join(key for key in parameters if key != "num_partitions")
        raise MtfedError(f"Config key partition-options: {name} takes {known}, but not {unknown_keys[0]!r}.")
    defaults: dict[str, Any] = {"num_partitions": allocation.sites, "partition_by": "label"}
    defaults |= {"seed": options.seed, "alpha": options.alpha}
    given = {key: value for key, value in defaults.items() if key in parameters} | given
    required = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if missing := [key for key in required if key not in given]:
        raise MtfedError(f"Config key partition-options: {name} needs {', '.join(missing)}; give KEY=VALUE pairs.")
    try:
        return cls(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise MtfedError(f"Config key partition-options: {name} refuses them: {error}") from None


def read_options(text: str) -> dict[str, Any]:
    """Read ``"alpha=0.5, partition_by=label, sizes=[1, 2]"``: values as TOML, bare words as text."""
    given: dict[str, Any] = {}
    for pair in filter(str.strip, re.split(r",(?![^\[]*\])", text)):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier() or key in given:
            raise MtfedError(
                f"Config key partition-options: expected KEY=VALUE once a key, as in 'alpha=0.5, partition_by=label', "
                f"got {pair.strip()!r}."
            )
        try:
            given[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            given[key] = value
    return given


def _site_of(partitioner: Partitioner, allocation: Allocation, name: str) -> tuple[dict[str, int], int]:
    """Return the site of every patient that a partitioner places, and the number of sites."""
    site_of: dict[str, int] = {}
    try:
        # The progress bars and warnings add nothing: the table takes no time, and the table of sites shows the result.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
            partitioner.dataset = _dataset(allocation)
            sites = partitioner.num_partitions
            for site in range(sites):
                for patient in partitioner.load_partition(site)["patient"]:
                    if site_of.setdefault(str(patient), site) != site:
                        raise MtfedError(f"Partitioner {name} puts patient {patient!r} at two sites; use another.")
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise MtfedError(
            f"Partitioner {name} cannot divide {len(allocation.patients)} patients (columns {', '.join(COLUMNS)}): "
            f"{error}"
        ) from None
    return site_of, sites


def _dataset(allocation: Allocation) -> datasets.Dataset:
    """Return the patients as a table with one row each."""
    import datasets

    patients = allocation.divided_patients()

    def cell(name: str, column: str) -> str:
        return next((row.others[column] for row in patients[name].rows if row.others.get(column)), "")

    strata = sorted({patient.stratum for patient in patients.values()})  # every partitioner takes numbers
    return datasets.Dataset.from_dict(
        {
            "patient": list(patients),
            "label": [strata.index(patient.stratum) for patient in patients.values()],
            "site": [cell(name, allocation.options.column) for name in patients],
            "modality": [cell(name, "modality") for name in patients],
            "images": [len(patient.rows) for patient in patients.values()],
        }
    )
