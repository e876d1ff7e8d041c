"""Cells of boxes that are read or refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.detections import CELLS, LESIONS
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root
from mtfed.data.source import Source
from mtfed.errors import MtfedError
from mtfed.tasks.detection import read_boxes, stack_boxes
from mtfed.tasks.task import Task


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """An image of 80 x 40 pixels in a model's image of 40 px: half its size, ten pixels from the top."""
    out = io.BytesIO()
    Image.new("L", (80, 40)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    return Source(SiteData("north", Root(tmp_path), ()), "a.png", 40)


@pytest.fixture
def volume(tmp_path: Path) -> Source:
    np.save(tmp_path / "v.npy", np.zeros((10, 20, 40), np.uint8))
    return Source(SiteData("north", Root(tmp_path), ()), "v.npy", 20, 3)


@pytest.mark.parametrize(
    ("task", "cell", "expected"),
    [
        (LESIONS, "none", []),
        (LESIONS, "[]", []),
        (LESIONS, "10,20,30,8", [[5, 20, 15, 4, 0]]),
        (LESIONS, "10,20,30,8,lesion", [[5, 20, 15, 4, 0]]),
        (LESIONS, "10,20,30,8,0", [[5, 20, 15, 4, 0]]),
        (LESIONS, " 10, 20,30 ,8 ; 0,0,80,40;", [[5, 20, 15, 4, 0], [0, 10, 40, 20, 0]]),
        (LESIONS, "-4,30,10,20", [[0, 25, 3, 5, 0]]),  # reaches past the left and the lower edge
        (LESIONS, "70.5,30,10,1e1", [[35.25, 25, 4.75, 5, 0]]),
        (CELLS, "0,0,4,4,platelet;0,0,4,4,1", [[0, 10, 2, 2, 2], [0, 10, 2, 2, 1]]),
        (CELLS, '[[0, 0, 4, 4, "white"], [2, 2, 4.0, 4, 0]]', [[0, 10, 2, 2, 1], [1, 11, 2, 2, 0]]),
    ],
)
def test_cells_become_boxes_in_the_models_pixels(
    source: Source, task: Task, cell: str, expected: list[list[float]]
) -> None:
    label = read_boxes(cell, task, source)
    assert label.dtype == np.float32
    assert label.shape == (len(expected), 5)
    np.testing.assert_allclose(label, np.array(expected).reshape(-1, 5), atol=1e-6)


def test_boxes_of_a_volume_have_a_depth(volume: Source) -> None:
    label = read_boxes("4,2,0,8,6,10", LESIONS, volume)
    np.testing.assert_allclose(label, [[2, 6, 7.5, 4, 3, 5, 0]], atol=0.51)  # placed on whole pixels
    np.testing.assert_allclose(label[:, 3:], [[4, 3, 5, 0]])
    assert read_boxes("none", LESIONS, volume).shape == (0, 7)
    with pytest.raises(MtfedError, match="should be x,y,z,w,h,d;"):
        read_boxes("4,2,8,6", LESIONS, volume)


@pytest.mark.parametrize(
    ("task", "cell", "message"),
    [
        (LESIONS, "10,20,30", "should be x,y,w,h;"),
        (LESIONS, "10,20,30,8,0,0", "should be x,y,w,h;"),
        (LESIONS, "10 20 30 8", "should be x,y,w,h;"),
        (LESIONS, "None", "box 'None' of task lesions should be"),
        (LESIONS, ";", "should be at least one box"),
        (LESIONS, "a,20,30,8", "should be x,y,w,h in numbers"),
        (LESIONS, "10,20,0,8", "with a size above 0"),
        (LESIONS, "10,20,30,-8", "with a size above 0"),
        (LESIONS, "10,20,nan,8", "should be x,y,w,h in finite numbers"),
        (LESIONS, "inf,20,1,8", "should be x,y,w,h in finite numbers"),
        (LESIONS, "80,20,30,8", "within the image of 80 x 40 pixels"),
        (LESIONS, "10,-9,30,8", "within the image of 80 x 40 pixels"),
        (LESIONS, "10,20,30,8,1", "label '1' of task lesions should be one of lesion or an index below 1"),
        (CELLS, "10,20,30,8", "should be x,y,w,h,class;"),
        (CELLS, "10,20,30,8,blue", "label 'blue' of task cells should be one of red, white, platelet"),
        (CELLS, "10,20,30,8,-1", "label '-1' of task cells"),
        (LESIONS, "[[10, 20, 30, 8]", "should be a JSON list of lists"),
        (LESIONS, "[10, 20, 30, 8]", "should be a JSON list of lists"),
        (LESIONS, "[[10, 20, 30, null]]", "in numbers"),
    ],
)
def test_an_invalid_box_is_refused(source: Source, task: Task, cell: str, message: str) -> None:
    with pytest.raises(MtfedError) as caught:
        read_boxes(cell, task, source)
    assert message in str(caught.value)
    assert "a.png of site north" in str(caught.value)


def test_labels_are_padded_to_the_longest() -> None:
    stacked = stack_boxes([np.zeros((0, 5), np.float32), np.ones((2, 5), np.float32), np.ones((1, 5), np.float32)])
    assert stacked.shape == (3, 2, 5)
    assert stacked.dtype == np.float32
    assert (stacked[..., -1] == [[-1, -1], [1, 1], [1, -1]]).all()
    assert stack_boxes([np.zeros((0, 5), np.float32)] * 2).shape == (2, 0, 5)
