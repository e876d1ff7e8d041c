"""The sample of the shared weights: its layers, its tensors, and how close its cosines are to those of all numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mtfed.strategies import shared_sample, wire
from mtfed.strategies.shared_sample import SharedSample, layer_of, stride_of

LAYERS = [
    ("encoder.body.blocks.3.attn.qkv.weight", "encoder.body.blocks.3"),
    ("encoder.body.blocks.11.mlp.fc1.bias", "encoder.body.blocks.11"),
    ("encoder.body.pos_embed", "encoder.body.pos_embed"),
    ("encoder.body.patch_embed.proj.weight", "encoder.body.patch_embed"),
    ("encoder.body.fc_norm.weight", "encoder.body.fc_norm"),
    ("encoder.body.layers.0.blocks.1.norm1.weight", "encoder.body.layers.0.blocks.1"),  # Swin
    ("encoder.body.layers.1.downsample.norm.weight", "encoder.body.layers.1"),
    ("encoder.body.stages.2.blocks.0.mlp.0.weight", "encoder.body.stages.2.blocks.0"),
    ("encoder.body.stages_1.blocks.0.gamma", "encoder.body.stages_1.blocks.0"),
    ("encoder.body.layer2.0.downsample.0.weight", "encoder.body.layer2.0"),  # ResNet
    ("encoder.body.conv1.weight", "encoder.body.conv1"),
    ("encoder.bottlenecks.0.residual.1.bias", "encoder.bottlenecks.0"),  # MTAN
    ("encoder.reader.attention.q.weight", "encoder.reader"),  # Medformer
    ("encoder.blocks.0.norm1.weight", "encoder.blocks.0"),
    ("encoder.points.0", "encoder.points"),  # a list of parameters is one layer
    ("encoder.latents", "encoder.latents"),
    ("layers.0.weight", "layers.0"),  # a plain state dict
    ("0.weight", "0"),
    ("fc.weight", "fc"),
    ("weight", "weight"),
    ("encoder", "encoder"),
]


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_layers(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_shared_tensors_are_sampled_and_others_are_not() -> None:
    tensors = {"encoder.bn.weight": 3, "encoder.bn.running_var": 3, "encoder.big.weight": 200_000, "encoder.empty": 0}
    parts = {"encoder": {name: np.arange(size, dtype="f") for name, size in tensors.items()}}
    parts["encoder"]["encoder.bn.num_batches_tracked"] = np.array(5)
    parts |= {part: {f"{part}.w": np.ones(2)} for part in ("input.ct", "decoder.x", "cross.x")}
    arrays = wire.pack(parts)
    sample = SharedSample(arrays)
    layers = [("encoder", "encoder.bn"), ("encoder", "encoder.big"), ("input.ct", "input.ct")]
    assert sample.layers == layers and sample.size == 3 + shared_sample.SAMPLED + 2
    values = sample.values(arrays)
    np.testing.assert_array_equal(values[:3], [0, 1, 2])
    blocks = values[3:-2].reshape(-1, shared_sample.BLOCK)
    assert (np.diff(blocks) == 1).all() and (np.diff(blocks[:, 0]) == stride_of(200_000)).all()


@pytest.mark.parametrize("shape", [(384, 1536), (1152, 384), (768, 768), (1000, 66), (320, 320, 3, 3)])
def test_the_cosine_of_a_sample_is_close_to_that_of_all_numbers(shape: tuple[int, ...]) -> None:
    """Gradients of a linear layer are products of few errors and inputs, so that rows and columns are correlated."""
    errors = []
    for seed in range(10):
        generator = np.random.default_rng(seed)

        def update(common: np.ndarray, generator: np.random.Generator = generator) -> np.ndarray:
            size = shape[0], int(np.prod(shape[1:]))
            left, right = generator.lognormal(size=(size[0], 4)), generator.standard_normal((4, size[1]))
            return (common + left @ right).reshape(shape).astype("f")

        common = generator.standard_normal(shape[0])[:, None] * generator.standard_normal(int(np.prod(shape[1:])))
        u, v = update(common), update(common)
        record = [wire.pack({"encoder": {"w": w}}) for w in (u, v)]
        a, b = (SharedSample(arrays).values(arrays).astype(float) for arrays in record)
        exact = float((u * v).sum() / np.linalg.norm(u) / np.linalg.norm(v))
        errors.append(a @ b / np.sqrt((a @ a) * (b @ b)) - exact)
    assert np.sqrt(np.mean(np.square(errors))) < 0.02
