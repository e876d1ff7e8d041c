"""The names of the partition schemes and the rules for combining them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import unknown

# In the order in which they are applied. Their functions are in mtfed.data.partition.schemes.
PARTITIONS = {
    "column": "each site has one value of partition-column; with fewer sites the last has the rarest values",
    "modality": "each site has one value of the column modality; sites with the same value divide its patients",
    "tasks": "one site for each task in turn, then one site with all tasks, and again from the first",
    "dirichlet": "the sites' shares of every class are drawn from Dirichlet(partition-alpha)",
    "quantity": "the sites' shares of all patients are drawn from Dirichlet(partition-alpha)",
    "iid": "equal shares of all patients; the default if none of dirichlet, quantity and iid is named",
}
FLOWER = "flwr:"  # prefix of the name of a partitioner of flwr-datasets
FLOWER_DESCRIPTION = "a partitioner of flwr-datasets; partition-options are its arguments"
EXCLUSIVE = ("iid", "dirichlet", "quantity")  # dirichlet and quantity can be combined, iid with neither


def read_partition(text: str) -> tuple[str, ...]:
    """Return the schemes of a sum such as ``"tasks + dirichlet"`` in the order in which they are applied.

    Raises:
        ValueError: if a scheme is unknown or named twice, or if schemes cannot be combined.
    """
    names = [word.strip() for word in text.split("+")]
    flower = [name for name in names if name.startswith(FLOWER)]
    for name in names:
        if name in flower:
            if not re.fullmatch(FLOWER + r"[A-Za-z]\w*", name):
                raise ValueError("expected a partitioner's name after 'flwr:', such as 'flwr:DirichletPartitioner'")
        elif name not in PARTITIONS:
            raise ValueError(str(unknown("scheme", name, [*PARTITIONS, FLOWER + "NAME"])))
    if len(set(names)) < len(names):
        raise ValueError("expected each scheme once")
    if flower and set(names) - {*flower[:1], "tasks"}:
        raise ValueError(f"expected nothing but 'tasks' next to {flower[0]!r}, which assigns every patient to a site")
    if "iid" in names and (skewed := [name for name in EXCLUSIVE[1:] if name in names]):
        raise ValueError(f"expected either 'iid' or {skewed[0]!r}")
    return (*flower, *(name for name in PARTITIONS if name in names))


def describe_partitions() -> str:
    """Return a table with one line per scheme."""
    rows = {**PARTITIONS, FLOWER + "NAME": FLOWER_DESCRIPTION}
    return "\n".join(f"{name:20} {description}" for name, description in rows.items())


def is_flower(names: Sequence[str]) -> bool:
    """Return whether the schemes include a partitioner of flwr-datasets."""
    return bool(names) and names[0].startswith(FLOWER)
