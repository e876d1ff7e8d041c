"""The product of posteriors against a slow one, weight by weight in plain floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp2

import numpy as np
import pytest
from flwr.app import ArrayRecord

from mtfed.strategies import wire
from mtfed.strategies.precision import Precision, encode
from mtfed.strategies.product import Merged, Product

RNG = np.random.default_rng
MODEL = {  # part -> tensor -> shape
    "encoder": {
        "conv.weight": (3, 2, 2),
        "bn.running_mean": (3,),
        "bn.running_var": (3,),
        "bn.num_batches_tracked": (),
        "scale": (),
    },
    "decoder.x": {"head.weight": (2, 3), "head.bias": (2,), "nothing": (0, 3)},
    "decoder.y": {"other": (4,)},
}


@dataclass
class Sent:
    """What a site sends, by tensor."""

    values: dict[str, np.ndarray]
    samples: float
    precision: dict[str, Precision] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # parts that it does not train


def model(seed: int) -> dict[str, np.ndarray]:
    """Return tensors by name, with means that are far from 0 compared with their variances."""
    generator = RNG(seed)
    tensors = {
        name: np.array(generator.integers(50)) if name.endswith("tracked") else generator.normal(size=shape)
        for shapes in MODEL.values() for name, shape in shapes.items()
    }  # fmt: skip
    tensors["bn.running_var"] = np.square(tensors["bn.running_var"]) + 0.1
    tensors["bn.running_mean"] = tensors["bn.running_mean"] + 100
    return {name: value if name.endswith("tracked") else np.asarray(value, "f") for name, value in tensors.items()}


def precision_of(seed: int, how: str) -> dict[str, Precision]:
    """Return precisions of every float of a model: floats of a kind, or one-byte codes."""
    generator = RNG([seed, 1])
    values = {
        name: np.asarray(generator.exponential(3.0, shape) * (generator.random(shape) > 0.2 * bool(shape)))
        for shapes in MODEL.values() for name, shape in shapes.items() if not name.endswith("tracked")
    }  # fmt: skip
    # A normalisation's statistics have one precision; another each would not make them those of any pooled images.
    values |= {name: np.full(3, 7.0 + seed) for name in ("bn.running_mean", "bn.running_var")}
    if how == "codes":
        return {name: encode(value.astype("f")) for name, value in values.items()}
    return {name: Precision(value.astype(how)) for name, value in values.items()}


def record(tensors: dict[str, np.ndarray], packed: bool, without: Sequence[str] = ()) -> ArrayRecord:
    parts = {part: {name: tensors[name] for name in own} for part, own in MODEL.items() if part not in without}
    if packed:
        return wire.pack(parts)
    plain = ArrayRecord()
    for own in parts.values():
        for name, value in own.items():
            plain[name] = wire.FlatArray(value)
    return plain


def merged(
    sites: Sequence[Sent], previous: dict[str, np.ndarray], packed: bool, floor: float = 0.1, prior: float = 0.0
) -> tuple[dict[str, np.ndarray], Merged]:
    """Return the product by tensor, and as it comes; ``prior`` is the precision of all previous values."""
    arrays = record(previous, packed)
    product = Product(wire.tensors_in(arrays), floor)
    for site in sites:
        sent = record(site.values, packed, site.without)
        keys = [key for key in sent if key != wire.MANIFEST]
        names = {tensor.name for key in keys for tensor in product.tensors[key]}
        product.add(
            {name: site.values[name] for name in names},
            dict.fromkeys(keys, site.samples),
            {name: own for name, own in site.precision.items() if name in names},
        )
    last = {key: array.numpy() for key, array in arrays.items() if key != wire.MANIFEST}
    priors = {key: np.full(value.shape, prior, "f") for key, value in last.items() if value.dtype.kind == "f"}
    result = product.finish(last, priors if prior else None)
    return (
        {
            tensor.name: result.arrays.get(key, last[key]).reshape(-1)[tensor.place].reshape(tensor.shape)
            for key, tensors in product.tensors.items() for tensor in tensors
        },
        result,
    )  # fmt: skip


def decoded(precision: Precision) -> list[float]:
    values = [float(value) for value in precision.values.ravel()]
    if precision.largest is None:
        return values
    return [precision.largest * exp2((code - 255) / 4) if code else 0.0 for code in values]


def slow(
    sites: Sequence[Sent], previous: dict[str, np.ndarray], floor: float = 0.1, prior: float = 0.0
) -> dict[str, np.ndarray]:
    """Return the product weight by weight, as its formula is written."""
    result = {}
    for part, shapes in MODEL.items():
        training = [site for site in sites if part not in site.without and site.samples > 0]
        for name in shapes:
            before = previous[name].ravel().tolist()
            if name.endswith("tracked"):
                result[name] = np.array(max(int(site.values[name]) for site in training) if training else before[0])
                continue
            measuring = [site for site in training if site.precision]
            floored = {}
            for site in measuring:
                own = decoded(site.precision[name])
                shape = site.precision[name].values.shape
                row = max(len(own) // (shape[0] or 1) if len(shape) > 1 else len(own), 1)
                floored[id(site)] = [
                    p + floor * sum(own[i // row * row :][:row]) / row + floor**2 * sum(own) / len(own)
                    for i, p in enumerate(own)
                ]
            total, samples = sum(sum(own) for own in floored.values()), sum(site.samples for site in measuring)
            usual = (total / len(before) / samples if before else 0.0) if measuring else 1.0
            new = []
            for i, last in enumerate(before):

                def moment(tensors: dict[str, np.ndarray], i: int = i, name: str = name) -> float:
                    mean = tensors["bn.running_mean"].ravel()[i] if name.endswith("running_var") else 0.0
                    return float(tensors[name].ravel()[i]) + float(mean) ** 2

                weights = [floored[id(site)][i] if site.precision else usual * site.samples for site in training]
                above = sum(w * moment(site.values) for w, site in zip(weights, training, strict=True))
                below = prior + sum(weights)
                if not training or below == 0:
                    new.append(last)
                    continue
                value = (above + prior * moment(previous)) / below
                new.append(value - (result["bn.running_mean"][i] ** 2 if name.endswith("running_var") else 0.0))
            result[name] = np.array(new).reshape(shapes[name])
    return result


MIXES = {  # how each of four sites sends its precision; its samples; the parts it does not train
    "all count": ([None] * 4, [3, 5, 2, 8], {}),
    "all measure": (["f", "f", "f", "f"], [3, 5, 2, 8], {}),
    "half, single, double, codes": (["e", "f", "d", "codes"], [3, 5, 2, 8], {}),
    "some count, some measure": ([None, "f", "codes", None], [3, 5, 2, 8], {}),
    "one counts": (["codes", None, "codes", "codes"], [30, 500, 20, 8], {}),
    "no weight": (["f", None, "f", None], [0, 5, 2, 0], {}),
    "in parts": (["f", None, "codes", None], [3, 5, 2, 8], {0: ("decoder.x",), 1: ("encoder",), 3: ("decoder.x",)}),
    "no site trains a part": (["f", None, "codes", None], [3, 5, 2, 8], dict.fromkeys(range(4), ("decoder.y",))),
    "no site counts": ([None] * 4, [0, 0, 0, 0], {}),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("prior", [0.0, 4.0])
@pytest.mark.parametrize("floor", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("mix", MIXES)
def test_the_product_equals_a_slow_one(mix: str, floor: float, prior: float, packed: bool) -> None:
    kinds, samples, lacks = MIXES[mix]
    sites = [
        Sent(model(j), samples[j], precision_of(j, kind) if kind else {}, lacks.get(j, ()))
        for j, kind in enumerate(kinds)
    ]
    previous = model(9)
    got, whole = merged(sites, previous, packed, floor, prior)
    expected = slow(sites, previous, floor, prior)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == previous[name].dtype and got[name].shape == previous[name].shape
        np.testing.assert_allclose(got[name], value, rtol=2e-6, atol=1e-6, err_msg=name)
    for key, precision in whole.precision.items():
        assert precision.dtype == np.float32 and precision.shape in ((), whole.arrays[key].shape)
        assert (precision >= 0).all() and np.isfinite(precision).all()


@pytest.mark.parametrize("packed", [True, False])
def test_weights_that_no_site_measured_stay(packed: bool) -> None:
    zeros = {name: Precision(np.zeros_like(own.values)) for name, own in precision_of(0, "f").items()}
    some = {name: Precision(own.values * (np.arange(own.values.size).reshape(own.values.shape) % 2))
            for name, own in precision_of(1, "f").items()}  # fmt: skip
    previous, sites = model(9), [Sent(model(0), 4, zeros), Sent(model(1), 2, zeros)]
    got, _ = merged(sites, previous, packed)
    for name in previous.keys() - {"bn.num_batches_tracked"}:
        np.testing.assert_array_equal(got[name], previous[name], err_msg=name)
    got, _ = merged([*sites, Sent(model(2), 1, some)], previous, packed, floor=0.0)
    for name in previous.keys() - {"bn.num_batches_tracked", "bn.running_var"}:
        known = some[name].values > 0
        np.testing.assert_allclose(got[name], np.where(known, model(2)[name], previous[name]), rtol=1e-6)
    # If the others measured nothing, only the site that counts by its samples decides.
    got, _ = merged([*sites, Sent(model(2), 1)], previous, packed)
    for name in previous.keys() - {"bn.num_batches_tracked"}:
        np.testing.assert_allclose(got[name], model(2)[name], rtol=1e-6, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", [None, "d"])
def test_batch_norm_has_the_moments_of_the_pooled_activations(packed: bool, how: str | None) -> None:
    sizes, pooled, sites = (40, 7, 300), [], []
    for j, size in enumerate(sizes):
        activations = RNG(j).normal(5 * j, 1 + j, (size, 3)).astype("f")
        pooled.append(activations)
        own = model(j) | {"bn.running_mean": activations.mean(0), "bn.running_var": activations.var(0)}
        known = {
            name: Precision(np.full(np.shape(own.values), float(size))) for name, own in precision_of(0, "d").items()
        }
        sites.append(Sent(own, size, known if how else {}))
    got, _ = merged(sites, model(9), packed)
    together = np.concatenate(pooled).astype(float)
    np.testing.assert_allclose(got["bn.running_mean"], together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got["bn.running_var"], together.var(0), rtol=1e-5)


def test_a_variance_without_its_mean_is_ignored() -> None:
    arrays, own = record(model(9), packed=False), model(0)
    product = Product(wire.tensors_in(arrays))
    names = ("bn.running_var", "scale")
    shares = product.add({name: own[name] for name in names}, dict.fromkeys(names, 5.0))
    result = product.finish({key: array.numpy() for key, array in arrays.items()})
    assert shares.keys() == result.arrays.keys() == {"scale"}


def test_a_mean_of_another_shape_does_not_belong_to_the_variance() -> None:
    tensors = {"a.running_var": np.full(3, 2.0, "f"), "a.running_mean": np.full(2, 5.0, "f"),
               "b.running_var": np.full(3, 4.0, "f")}  # fmt: skip
    product = Product({name: [wire.TensorEntry(name, value.shape, ...)] for name, value in tensors.items()})
    for factor in (1, 3):
        product.add({name: value * factor for name, value in tensors.items()}, dict.fromkeys(tensors, 1.0))
    result = product.finish(tensors)
    assert {name: float(value[0]) for name, value in result.arrays.items()} == {
        "a.running_var": 4.0, "a.running_mean": 10.0, "b.running_var": 8.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "largest"),
    [
        (np.array([[3, -7], [1, -2]]), [3, -2]),
        (np.array([[3, 7], [250, 2]], np.uint8), [250, 7]),
        (np.array([[True, False], [False, False]]), [True, False]),
    ],
)
def test_integers_merge_by_their_maximum(given: np.ndarray, largest: list) -> None:
    previous = {"n": np.zeros(2, given.dtype)}
    product = Product({"n": [wire.TensorEntry("n", (2,), ...)]})
    for row in given:
        product.add({"n": row}, {"n": 1.0})
    result = product.finish(previous, {"n": np.ones(2, "f")})
    assert result.arrays["n"].tolist() == largest and result.arrays["n"].dtype == given.dtype and not result.precision


def test_a_prior_of_one_number_counts_for_all_values() -> None:
    previous = {"w": np.arange(4.0, dtype="f")}
    product = Product({"w": [wire.TensorEntry("w", (4,), ...)]})
    product.add({"w": np.full(4, 8.0, "f")}, {"w": 3.0})
    result = product.finish(previous, {"w": np.array(1.0, "f")})
    np.testing.assert_allclose(result.arrays["w"], (previous["w"] + 3 * 8) / 4)
    assert result.precision["w"].shape == () and result.precision["w"] == 4


def test_a_share_is_the_sum_of_the_precision() -> None:
    sites = [Sent(model(0), 3, precision_of(0, "d")), Sent(model(1), 5)]
    product = Product(wire.tensors_in(record(model(9), packed=True)), floor=0.5)
    parts = {"encoder:float32": 3.0, "decoder.x:float32": 3.0}
    shares = product.add(sites[0].values, parts, sites[0].precision)
    for part in ("encoder", "decoder.x"):
        named = [name for name in MODEL[part] if not name.endswith("tracked")]
        assert shares[f"{part}:float32"] == pytest.approx(
            sum(1.75 * sites[0].precision[name].values.sum() for name in named)
        )
    assert product.add(sites[1].values, {"encoder:float32": 5.0}) == {"encoder:float32": 5.0 * (12 + 3 + 3 + 1)}
