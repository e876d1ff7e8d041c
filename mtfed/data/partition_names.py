"""What a set can be divided by: the names of schemes, and how they go together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import unknown

# In the order in which they are applied; mtfed.data.partition.schemes has the function of each.
PARTITIONS = {
    "column": "a site holds one value of partition-column; the last of fewer sites the smallest values",
    "modality": "a site holds one value of the column modality, whose patients its sites share",
    "tasks": "a site holds one task after the other, then a site all of them, and again",
    "dirichlet": "of every class a site gets a share drawn from Dirichlet(partition-alpha)",
    "quantity": "of all patients a site gets a share drawn from Dirichlet(partition-alpha), classes as they come",
    "iid": "of all patients a site gets an even share; so it is where neither of these two is named",
}
FLOWER = "flwr:"  # before the name of a partitioner of flwr-datasets
FLOWER_SAYS = "a partitioner of flwr-datasets; partition-options are its arguments"
EXCLUSIVE = ("iid", "dirichlet", "quantity")  # dirichlet and quantity multiply, an even share goes with neither


def read_partition(text: str) -> tuple[str, ...]:
    """Return the schemes of a sum like ``"tasks + dirichlet"`` in the order of their application.

    Raises:
        ValueError: of what is unknown, named twice, or does not go together.
    """
    names = [word.strip() for word in text.split("+")]
    flower = [name for name in names if name.startswith(FLOWER)]
    for name in names:
        if name in flower:
            if not re.fullmatch(FLOWER + r"[A-Za-z]\w*", name):
                raise ValueError("expected the name of a partitioner behind 'flwr:', as 'flwr:DirichletPartitioner'")
        elif name not in PARTITIONS:
            raise ValueError(str(unknown("scheme", name, [*PARTITIONS, FLOWER + "NAME"])))
    if len(set(names)) < len(names):
        raise ValueError("expected each scheme once")
    if flower and set(names) - {*flower[:1], "tasks"}:
        raise ValueError(f"expected nothing but 'tasks' beside {flower[0]!r}, which says where every patient is")
    if "iid" in names and (skewed := [name for name in EXCLUSIVE[1:] if name in names]):
        raise ValueError(f"expected either 'iid' or {skewed[0]!r}")
    return (*flower, *(name for name in PARTITIONS if name in names))


def describe_partitions() -> str:
    """Return a line a scheme."""
    rows = {**PARTITIONS, FLOWER + "NAME": FLOWER_SAYS}
    return "\n".join(f"{name:20} {what}" for name, what in rows.items())


def is_flower(names: Sequence[str]) -> bool:
    """Return whether a partitioner of flwr-datasets is among the schemes."""
    return bool(names) and names[0].startswith(FLOWER)
