"""Axes of Medformer are symmetries on images and on volumes, and those that may grow can be resized."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.growing import numbers
from helpers.medformers import FLAT, TASKS, images, medformer, rows, words
from mtfed.models.symmetry import SymmetryError, check_symmetry, derive_axes
from mtfed.models.width import resize
from mtfed.strategies.axes import AxisGraph
from mtfed.strategies.growth import Growth, expand

torch.set_num_threads(1)

KINDS = words(("ct", "chest"), ("mri", "brain"), ("ct", "brain"))
INPUTS: dict[int, tuple[Any, ...]] = {
    2: (images(32, 32), rows(grade=[0, 1, 2], lungs=[0, 2]), KINDS),
    3: (images(16, 16, 16), rows(nodule=[0, 1], liver=[1, 2]), KINDS),
}


@pytest.mark.parametrize("dimensions", INPUTS)
def test_axes_are_symmetries(dimensions: int) -> None:
    model = medformer()
    graph = derive_axes(model)
    changes = check_symmetry(model, graph, INPUTS[dimensions])
    assert max(changes.values()) < 1e-12
    own = {label for label in changes if label.startswith("encoder.")}
    blocks = ["reader", "writer.0", "writer.1", *(f"blocks.{i}" for i in range(4))]
    attention = [f"{name}.{'attn' if name.startswith('blocks') else 'attention'}.heads" for name in blocks]
    expected = ["residual", "latents", *attention, *(f"{name}.mlp.hidden" for name in blocks)]
    stems = [label for label in own if "stem" in label]
    assert own - set(stems) == {f"encoder.{label}" for label in expected}
    assert len(stems) == 4  # the inner and the last channels of each stem
    assert graph.tensors.keys() >= {name for name in model.state_dict() if name.startswith("encoder.")}
    assert not [label for label, axis in graph.axes.items() if axis.axis_type == "frozen"]


def test_the_residual_stream_of_one_input_part_alone_is_no_symmetry() -> None:
    """Permuting what volumes pass through changes their output, so the parts of a site have to move together."""
    model = medformer()
    graph = derive_axes(model)
    tensors = {name: entry for name, entry in graph.tensors.items() if ".patches.3d" not in name}
    with pytest.raises(SymmetryError, match="Axis 'encoder"):
        check_symmetry(model, AxisGraph(tensors, graph.axes), INPUTS[3])
    flat = check_symmetry(model, AxisGraph(tensors, graph.axes), INPUTS[2])  # images do not pass through them
    assert max(flat.values()) < 1e-12


def test_a_model_of_images_alone_has_axes() -> None:
    flat = {name: task for name, task in TASKS.items() if task.dimensions == 2}
    model = medformer(flat, (FLAT,))
    assert max(check_symmetry(model, derive_axes(model), INPUTS[2]).values()) < 1e-12


@torch.no_grad()
def test_unread_units_change_nothing() -> None:
    model = medformer().double().eval()
    graph, before = derive_axes(model), numbers(model)
    sizes = {label: axis.size for label, axis in graph.axes.items() if axis.growable and axis.axis_type != "grouped"}
    assert {label for label in sizes if ".mlp.hidden" in label} and not {"encoder.residual", "encoder.latents"} & set(
        sizes
    )
    wide = graph.resize({label: size + size // 2 for label, size in sizes.items()})
    own = {label: torch.arange(size).numpy() for label, size in sizes.items()}
    values, _ = expand(Growth(wide, [own]), 0, before)
    grown = resize(model, values).eval()
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    for x, index, kinds in INPUTS.values():
        expected, actual = (net(x.double(), index, kinds) for net in (model, grown))
        for task in index:
            torch.testing.assert_close(actual[task], expected[task], rtol=1e-9, atol=1e-9)
    again = derive_axes(grown)
    assert {label: axis.size for label, axis in again.axes.items()} == {k: axis.size for k, axis in wide.axes.items()}
    check_symmetry(grown, again, INPUTS[3])
