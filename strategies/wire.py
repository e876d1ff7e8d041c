"""A model in a message: one flat array for each part and dtype, and a manifest of the tensors in them.

Flower's deployment engine needs about 0.25 s in each round for every array of a message, and a vision transformer has
hundreds of small tensors. A packed record therefore contains ``manifest`` (JSON as bytes: part -> [name, shape, dtype]
in order) and one vector for each part and dtype under ``part:dtype``, for example ``encoder:float32`` or
``decoder.lungs:float32``.

A part ``decoder.TASK`` or ``cross.TASK`` belongs to a task: only sites that have the task return it, and in its merge
they count by their samples of the task. A decoder is sent only to these sites; ``cross.TASK``, on which the features
of other tasks depend, is sent to every site.

A part ``input.NAME`` belongs to a kind of images: only images of this kind pass through it, such as the patch embedding
of volumes (``input.3d``) or what a model learned about a modality (``input.ct``). Only sites that have such images
receive and return it, and in its merge they count as in that of the encoder. All other parts are shared by all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from math import prod
from types import EllipsisType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

MANIFEST = "manifest"
DECODER, CROSS = "decoder", "cross"  # prefixes of the parts that belong to one task
INPUT = "input"  # prefix of the parts that belong to one kind of images
RecordType = TypeVar("RecordType", ArrayRecord, ConfigRecord, MetricRecord)


class FlatArray(Array):
    """A Flower array over memory that already exists; it is serialised only if an engine asks for bytes.

    The array is read-only, because engines that share memory give the same bytes to many sites.
    """

    def __init__(self, values: np.ndarray) -> None:
        values = np.asarray(values, order="C").view()  # ascontiguousarray would add an axis to a scalar
        values.flags.writeable = False
        self.__dict__["_values"] = values
        self.__dict__.update(dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray")

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Return the array in NumPy's ``.npy`` format, as in Flower's own arrays."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["_values"], allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """Return the read-only values without a copy."""
        return self.__dict__["_values"]

    def __reduce__(self) -> tuple[Any, ...]:
        return _flat_array, (self.__dict__["_values"],)  # leaves out chunks and ids that an engine cached


# Flower writes a class's qualified name before its bytes, and the receiver finds the class by this name.
FlatArray.__qualname__ = Array.__qualname__


def _flat_array(values: np.ndarray) -> FlatArray:
    return FlatArray(values)


def pack(parts: Mapping[str, Mapping[str, np.ndarray]]) -> ArrayRecord:
    """Pack parts (part name -> tensor name -> array) into one record of few flat arrays."""
    manifest = {part: [[name, list(v.shape), str(v.dtype)] for name, v in own.items()] for part, own in parts.items()}
    arrays = {MANIFEST: _json_bytes(manifest)}
    for part, tensors in parts.items():
        for dtype in dict.fromkeys(str(value.dtype) for value in tensors.values()):
            flat = [np.ravel(value) for value in tensors.values() if str(value.dtype) == dtype]
            arrays[f"{part}:{dtype}"] = np.concatenate(flat)
    return record_of(arrays)


def record_of(arrays: Mapping[str, np.ndarray | Array]) -> ArrayRecord:
    """Return arrays as a record, without copies; ``ArrayRecord(dict)`` would serialise each of them."""
    record = ArrayRecord()
    for key, values in arrays.items():
        record[key] = values if isinstance(values, Array) else FlatArray(values)
    return record


def arrays_in(record: ArrayRecord | None) -> dict[str, np.ndarray]:
    """Return the values of a record by key, without the manifest; none if there is no record."""
    return {key: array.numpy() for key, array in (record or {}).items() if key != MANIFEST}


def is_packed(record: ArrayRecord) -> bool:
    """Return whether a record was made by :func:`pack`; a plain ``ArrayRecord(state_dict)`` was not."""
    return MANIFEST in record


class TensorEntry(NamedTuple):
    """A tensor of a model, and its place in the array that contains it."""

    name: str
    shape: tuple[int, ...]
    place: slice | EllipsisType


@lru_cache(maxsize=64)
def _layout(manifest: bytes) -> dict[str, list[tuple[str, TensorEntry]]]:
    """Return the tensors of each part, each after the key of its array."""
    layout: dict[str, list[tuple[str, TensorEntry]]] = {}
    for part, tensors in json.loads(manifest).items():
        ends: dict[str, int] = {}
        layout[part] = []
        for name, shape, dtype in tensors:
            start = ends.get(dtype, 0)
            ends[dtype] = start + prod(shape)
            layout[part].append((f"{part}:{dtype}", TensorEntry(name, tuple(shape), slice(start, ends[dtype]))))
    return layout


def unpack(record: ArrayRecord) -> dict[str, dict[str, np.ndarray]]:
    """Return the parts of a packed record, as read-only views into its flat arrays."""
    flat, layout = arrays_in(record), _layout(record[MANIFEST].numpy().tobytes())
    return {
        part: {tensor.name: flat[key][tensor.place].reshape(tensor.shape) for key, tensor in tensors}
        for part, tensors in layout.items() if all(key in flat for key, _ in tensors)
    }  # fmt: skip


def tensors_in(arrays: ArrayRecord) -> dict[str, list[TensorEntry]]:
    """Return the tensors of every array by its key: those of a packed array, or the array itself."""
    if not is_packed(arrays):
        return {key: [TensorEntry(key, tuple(array.shape), ...)] for key, array in arrays.items()}
    entries: dict[str, list[TensorEntry]] = {key: [] for key in arrays if key != MANIFEST}
    for tensors in _layout(arrays[MANIFEST].numpy().tobytes()).values():
        for key, tensor in tensors:
            if key in entries:
                entries[key].append(tensor)
    return entries


def part_of(key: str) -> str:
    """Return the part to which a key of a packed record belongs."""
    return key.rpartition(":")[0]


def task_of(part: str) -> str:
    """Return the task to which a part belongs, or ``""`` if all tasks share it.

    >>> [task_of(part) for part in ("encoder", "decoder.lungs", "cross.lungs", "stem.0", "input.ct")]
    ['', 'lungs', 'lungs', '', '']
    """
    prefix, _, task = part.partition(".")
    return task if prefix in (DECODER, CROSS) else ""


def decoder_part(task: str) -> str:
    """Return the name of the part that contains a task's decoder."""
    return f"{DECODER}.{task}"


def is_decoder(part: str) -> bool:
    """Return whether a part is a task's decoder."""
    return part.startswith(decoder_part(""))


def input_part(name: str) -> str:
    """Return the name of the part that only images of a kind pass through."""
    return f"{INPUT}.{name}"


def input_of(part: str) -> str:
    """Return the kind of images to which a part belongs, or ``""`` if it is no input part.

    >>> [input_of(part) for part in ("input.ct", "input.3d", "encoder", "decoder.lungs")]
    ['ct', '3d', '', '']
    """
    prefix, _, name = part.partition(".")
    return name if prefix == INPUT else ""


def select(record: ArrayRecord, parts: Iterable[str]) -> ArrayRecord:
    """Return the record with only some parts; arrays are not copied, and the manifest stays complete."""
    selected = set(parts)
    return record_of({key: array for key, array in record.items() if key == MANIFEST or part_of(key) in selected})


def repack(record: ArrayRecord, parts: Mapping[str, Mapping[str, np.ndarray]]) -> ArrayRecord:
    """Return a record with the layout of the given one, and the values of ``parts``."""
    layout = _layout(record[MANIFEST].numpy().tobytes())
    packed: dict[str, np.ndarray | Array] = {MANIFEST: record[MANIFEST]}
    for key in arrays_in(record):
        values, tensors = parts[part_of(key)], layout[part_of(key)]
        packed[key] = np.concatenate([np.ravel(values[tensor.name]) for own, tensor in tensors if own == key])
    return record_of(packed)


def values_of(key: str, array: Array) -> np.ndarray:
    """Return an array's values; raise ``ValueError`` if a site sent bytes that are not an array."""
    try:
        values = array.numpy()
        if not isinstance(values, np.ndarray):
            raise TypeError(f"expected one array, got {type(values).__name__}")  # NumPy also reads archives
        return values
    except Exception as error:  # NumPy's reader raises whatever the readers of its formats raise
        raise ValueError(f"{key!r} cannot be read as an array: {type(error).__name__}: {error}") from None


def _json_bytes(content: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(content, separators=(",", ":")).encode(), np.uint8)


def json_record(content: Any) -> ArrayRecord:
    """Return JSON content as a record of one array of bytes, for a checkpoint."""
    return record_of({"json": _json_bytes(content)})


def read_json_record(record: ArrayRecord) -> Any:
    """Return the content that :func:`json_record` stored."""
    return json.loads(record["json"].numpy().tobytes())


def record_in(content: RecordDict, name: str, record_type: type[RecordType]) -> RecordType | None:
    """Return a message's record of a name, or ``None`` if it is missing or has another type.

    This does not use ``content.array_records``, which creates a reference cycle on each access; that keeps the arrays
    of every reply in memory until the next garbage collection.
    """
    record = content.get(name)
    return record if isinstance(record, record_type) else None


def array_bytes(content: RecordDict) -> int:
    """Return the total size in bytes of a message's arrays."""
    arrays = [array for record in content.values() if isinstance(record, ArrayRecord) for array in record.values()]
    return sum(array.numpy().nbytes if isinstance(array, FlatArray) else len(array.data) for array in arrays)
