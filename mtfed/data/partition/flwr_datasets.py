"""Partitioners of flwr-datasets: they say which site each patient is at."""

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

from ...errors import MtfedError, unknown
from ...tasks.task import Task
from ..manifest import Row
from ..partition_names import FLOWER
from .deal import Deal, Division, Options
from .patients import patients_of

if TYPE_CHECKING:
    import datasets
    from flwr_datasets.partitioner import Partitioner

COLUMNS = ("patient", "label", "site", "modality", "images")  # of the table that a partitioner divides


def partition_with(
    partitioner: Partitioner, rows: Sequence[Row], tasks: dict[str, Task], options: Options | None = None
) -> Division:
    """Deal patients as a partitioner of your own says.

    It divides a table of patients with the columns :data:`COLUMNS`: ``label`` numbers the classes, or where there are
    several tasks their combinations; ``site`` is the cell of ``options.column``; ``images`` how many there are.

    Example:
        >>> from flwr_datasets.partitioner import DirichletPartitioner
        >>> partitioner = DirichletPartitioner(num_partitions=3, partition_by="label", alpha=0.5)
        >>> division = partition_with(partitioner, rows, tasks)  # doctest: +SKIP
    """
    from .divide import divide

    options = options or Options()
    patients = patients_of(rows, tasks)
    probe = Deal(patients, tasks, 1, options, np.random.default_rng())
    site_of, sites = _divide(partitioner, probe, type(partitioner).__name__)
    deal = Deal(patients, tasks, sites, options, np.random.default_rng())
    deal.assign(site_of)
    return divide(deal)


def assign(deal: Deal, name: str) -> None:
    """Let the partitioner that ``flwr:NAME`` names say of every patient of a deal where it is."""
    site_of, sites = _divide(_build(deal, name), deal, name)
    if sites != deal.sites:
        raise MtfedError(
            f"Config key partition: {name} makes {sites} sites of these data, but {deal.sites} are asked for; ask for "
            f"{sites} (--num-supernodes), or change partition-options."
        )
    deal.assign(site_of)


def own_number(name: str, deal: Deal) -> int | None:
    """Return how many sites a partitioner makes, if it is the data and its options that say so."""
    kind = _kind(name)
    if "num_partitions" in inspect.signature(kind).parameters:
        return None
    return _divide(_build(deal, name), deal, name)[1]


def _kind(name: str) -> type[Partitioner]:
    try:
        from flwr_datasets import partitioner
    except ImportError:
        raise MtfedError(
            f"Config key partition: {name} needs flwr-datasets; install it (pip install 'mtfed[partition]')."
        ) from None
    # Those that divide columns have no part of the patients to give.
    known = [kind for kind in partitioner.__all__ if kind != "Partitioner" and not kind.startswith("Vertical")]
    if (wanted := name.removeprefix(FLOWER)) not in known:
        raise MtfedError(f"Config key partition: {unknown('partitioner of flwr-datasets', wanted, known)}")
    found: type[Partitioner] = getattr(partitioner, wanted)
    return found


def _build(deal: Deal, name: str) -> Partitioner:
    """Return the partitioner; what its options leave out comes from the config where it says as much."""
    kind = _kind(name)
    wanted = inspect.signature(kind).parameters
    given = read_options(deal.options.flower)
    if strange := [key for key in given if key not in wanted or key == "num_partitions"]:
        known = ", ".join(key for key in wanted if key != "num_partitions")
        raise MtfedError(f"Config key partition-options: {name} takes {known}, there is no {strange[0]!r} for it.")
    ours = {
        "num_partitions": deal.sites,
        "seed": deal.options.seed,
        "alpha": deal.options.alpha,
        "partition_by": "label",
    }
    given = {key: value for key, value in ours.items() if key in wanted} | given
    missing = [key for key, one in wanted.items() if one.default is inspect.Parameter.empty and key not in given]
    if missing:
        raise MtfedError(f"Config key partition-options: {name} needs {', '.join(missing)}; give KEY=VALUE pairs.")
    try:
        return kind(**given)
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


def _divide(partitioner: Partitioner, deal: Deal, name: str) -> tuple[dict[str, int], int]:
    """Return the site of every patient, as far as a partitioner puts it anywhere, and how many sites there are."""
    site_of: dict[str, int] = {}
    try:
        # No progress bars for a table that takes no time, nor warnings: the table of who holds what tells it better.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
            partitioner.dataset = _dataset(deal)
            sites = partitioner.num_partitions
            for site in range(sites):
                for patient in partitioner.load_partition(site)["patient"]:
                    if site_of.setdefault(str(patient), site) != site:
                        raise MtfedError(f"Partitioner {name} puts patient {patient!r} at two sites; use another.")
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise MtfedError(
            f"Partitioner {name} cannot divide {len(deal.patients)} patients (columns {', '.join(COLUMNS)}): {error}"
        ) from None
    return site_of, sites


def _dataset(deal: Deal) -> datasets.Dataset:
    """Return the patients as a table with a row each."""
    import datasets

    def cell(name: str, column: str) -> str:
        return next((row.others[column] for row in deal.patients[name].rows if row.others.get(column)), "")

    kinds = sorted({patient.kind for patient in deal.patients.values()})  # as numbers, which every partitioner takes
    return datasets.Dataset.from_dict(
        {
            "patient": list(deal.patients),
            "label": [kinds.index(patient.kind) for patient in deal.patients.values()],
            "site": [cell(name, deal.options.column) for name in deal.patients],
            "modality": [cell(name, "modality") for name in deal.patients],
            "images": [len(patient.rows) for patient in deal.patients.values()],
        }
    )
