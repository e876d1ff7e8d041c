"""Parquet manifests."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from helpers.manifests import TASK_NAMES, parquet, write
from mtfed.data.manifest import read_site
from mtfed.errors import MtfedError


def test_parquet_gives_the_same_rows_as_csv(tmp_path: Path) -> None:
    import datetime

    import pyarrow

    columns: dict[str, object] = {
        "image": ["a.png", " b.png ", "c.png"],
        "patient": [7, 8, 9],
        "split": ["train", None, "val"],
        "number": [1.0, 2.5, float("nan")],
        "narrow": [0.1, 3.0, None],
        "sick": [True, False, None],
        "boxes": [[[1.5, 2.0, 3.0, 4.0, 0.0]], [], None],
        "signs": [["dark", "edge"], [], None],
        "sizes": [[1, 2], [3], None],
        "kind": pyarrow.array(["x", "y", None]).dictionary_encode(),
        "empty": pyarrow.nulls(3),
        "day": [datetime.date(2026, 1, 2), None, None],
    }
    folder = parquet(tmp_path / "p", columns, narrow=pyarrow.float32())
    text = (
        "image,patient,split,number,narrow,sick,boxes,signs,sizes,kind,empty,day\n"
        'a.png,7,train,1,0.1,yes,"[[1.5, 2.0, 3.0, 4.0, 0.0]]",dark; edge,1; 2,x,,2026-01-02\n'
        "b.png,8,,2.5,3,no,none,none,3,y,,\nc.png,9,val,,,,,,,,,\n"
    )
    tasks = ["number", "sick", "boxes", "signs", "sizes"]
    result, expected = read_site(folder, "s", tasks), read_site(write(tmp_path / "c", text), "s", tasks)
    assert result.rows == expected.rows and [r.others for r in result.rows] == [r.others for r in expected.rows]
    assert [row.number for row in result.rows] == [0, 1, 2] and result.pool == result.rows
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(folder / "manifest.parquet", "manifest.parquet")
    assert read_site(tmp_path / "p.zip", "s", tasks).rows == result.rows


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"image": ["a.png"]}, r"manifest.parquet lacks the column patient; it has 'image'"),
        ({"image": ["a", "b"], "patient": ["1", None]}, "manifest.parquet, row 2: image and patient must not be empty"),
        ({"image": ["a"], "patient": [1], "split": ["trian"]}, "row 1: split should be train, val or test"),
        ({"image": ["a"], "patient": [1], "lungs": [b"x"]}, "column 'lungs' holds binary; write it as text or numbers"),
        ({"image": ["a"], "patient": [1], "lungs": [{"x": 1}]}, "column 'lungs' holds struct"),
        ({"image": ["a"], "patient": [1], "lungs": [[b"x"]]}, "column 'lungs' holds lists of binary"),
        ({"image": ["a"], "patient": [1], "lungs ": ["x"], "lungs": ["y"]}, "has two columns 'lungs'"),
    ],
)
def test_bad_parquet_is_refused(tmp_path: Path, columns: dict[str, object], sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        read_site(parquet(tmp_path, columns), "s", TASK_NAMES)


def test_two_or_broken_manifests_are_refused(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "both", {"image": ["a.png"], "patient": ["1"]})
    write(folder, "image,patient\na.png,1\n")
    with pytest.raises(MtfedError, match=r"holds a manifest.csv and a manifest.parquet; remove one of"):
        read_site(folder, "s", TASK_NAMES)
    (folder / "manifest.csv").unlink()
    whole = (folder / "manifest.parquet").read_bytes()
    for broken in (b"", b"PAR1", whole[:-9], b"image,patient\na.png,1\n"):
        (folder / "manifest.parquet").write_bytes(broken)
        with pytest.raises(MtfedError, match=r"manifest.parquet cannot be read as Parquet: .*; write it again"):
            read_site(folder, "s", TASK_NAMES)
    (tmp_path / "m" / "manifest.csv").mkdir(parents=True)
    with pytest.raises(MtfedError, match=r"Cannot read .*manifest.csv: .*; repair or remove it"):
        read_site(tmp_path / "m", "s", TASK_NAMES)
