"""The number of sites and their names."""

from __future__ import annotations

from helpers.divided_sets import (
    CONFIG,
    set_rows,
    to_divide,
)
from mtfed.data.manifest import Row
from mtfed.data.partition import Options, partition
from mtfed.data.partition import default_sites as sites_of_set
from mtfed.data.partition.divide import site_names


def test_sites_are_named_after_their_groups() -> None:
    rows = to_divide(set_rows(0))
    assert partition(rows, CONFIG.tasks, 4, Options("column")).names == ("nord", "ost", "sud", "west")
    assert partition(rows, CONFIG.tasks, 3, Options("column")).names == ("ost", "west", "other")
    assert partition(rows, CONFIG.tasks, 6, Options("column")).names == (
        "nord", "ost-1", "ost-2", "ost-3", "sud", "west",
    )  # fmt: skip
    assert partition(rows, CONFIG.tasks, 3, Options("modality")).names in (
        ("ct-1", "ct-2", "mr"),
        ("ct", "mr-1", "mr-2"),
    )
    assert partition(rows, CONFIG.tasks, 2, Options("iid")).names == ("hospital-1", "hospital-2")
    assert site_names([("北京",), ("北京",), ("A/../b",), ("a b",), ("x" * 40 + " y",)])[:2] == ["site-1", "site-2"]
    for groups in ([("a",), ("a",), ("a-1",)], [("Ä",), ("a",)], [("a b c " * 9,)] * 12):
        names = site_names(groups)
        assert len(set(names)) == len(names) and all(name.isascii() and "/" not in name for name in names)


def test_the_number_of_sites() -> None:
    rows = to_divide(set_rows(0))
    for scheme, sites in (("column", 4), ("column + tasks", 4), ("modality", 8), ("iid", 8), ("column + modality", 8)):
        assert sites_of_set(rows, CONFIG.tasks, Options(scheme)) == sites
    tiny = [Row(f"{n}.png", f"t{n}", "train", {"grade": "no"}, 0, {"site": f"tiny {n}"}) for n in range(3)]
    assert sites_of_set(rows + tiny, CONFIG.tasks, Options("column")) == 5  # the three share a site
    assert partition(rows + tiny, CONFIG.tasks, 5, Options("column")).names[-1] == "other"
    assert sites_of_set(rows + tiny[:1], CONFIG.tasks, Options("column")) == 4  # the one goes to the smallest
    val = [Row(f"{n}.png", f"h{n}", "train" if n else "val", {"grade": "no"}, 0, {"site": "held"}) for n in range(4)]
    single = [Row("l.png", "l", "train", {"grade": "no"}, 0, {"site": "Ost", "modality": "single"})]
    for extra, scheme in ((val[:2], "column"), (val, "column"), (single, "column + modality")):
        sites = sites_of_set(rows + extra, CONFIG.tasks, Options(scheme))
        assert len(partition(rows + extra, CONFIG.tasks, sites, Options(scheme)).names) == sites
