"""Columns of labels as ``mtfed site init`` drafts them."""

from __future__ import annotations

import pytest

from mtfed.site.draft.columns import guess, widened


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["yes", "no"] * 5, "classification", ("no", "yes")),
        (["0", "1"] * 5, "classification", ("0", "1")),
        (["0.0", "1.0", "2.0"] * 4, "classification", ("0", "1", "2")),
        ([f"{x / 7:.2f}" for x in range(20)], "regression", ()),
        ([str(x) for x in range(20)], "", ()),  # row numbers
        (["same"] * 9, "", ()),
        ([f"word {x}" for x in range(20)], "", ()),
        (["effusion|mass", "No Finding", "mass", "effusion"] * 2, "multi-label", ("effusion", "mass")),
    ],
)
def test_a_column_is_guessed_from_its_cells(cells: list[str], kind: str, classes: tuple[str, ...]) -> None:
    candidate = guess("Some Column", {f"{i}.png": cell for i, cell in enumerate(cells)}, "here")
    assert (candidate.column, candidate.kind, candidate.classes) == ("some-column", kind, classes)
    if kind == "multi-label":
        assert candidate.cells["0.png"] == "effusion; mass" and candidate.cells["1.png"] == "none"


@pytest.mark.parametrize(("numbers", "ends"), [([3.2, 87], (0, 90)), ([-1000, 900], (-1000, 1000)), ([5, 5], (5, 6))])
def test_a_range_has_round_ends(numbers: list[float], ends: tuple[float, float]) -> None:
    low, high = widened(numbers)
    assert (low, high) == ends and low <= min(numbers) and high >= max(numbers)
