"""Messages between processes of one machine: arrays in shared memory, the rest pickled over a pipe.

Both ends are forks of one process, so nothing that is read here comes from outside.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from ...strategies.wire import FlatArray

ALIGNMENT = 64  # bytes
RECORDS = {"array": ArrayRecord, "metric": MetricRecord, "config": ConfigRecord}
ArrayLocation = tuple[str, tuple[int, ...], str, int, int]  # dtype, shape, serialisation ("" = raw), offset, bytes
FlatRecords = list[tuple[str, str, dict[str, Any]]]  # for each record: name, type, and its values or array locations


class Buffer:
    """Shared memory in a file without a name, which is freed once no process maps it, even after a crash."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.fd = _nameless_file(size) if fd is None else fd
        self.size = size
        self.memory = mmap.mmap(self.fd, size)

    def send(self, pipe: Connection, pid: int) -> None:
        """Give the process at the other end of a pipe access to this memory."""
        send_handle(pipe, self.fd, pid)

    @classmethod
    def receive(cls, pipe: Connection, size: int) -> Buffer:
        """Return the buffer that the other end of a pipe sent with :meth:`send`."""
        return cls(size, recv_handle(pipe))

    def array(self) -> np.ndarray:
        """Return the memory as bytes; every view of the array keeps the mapping alive."""
        return np.frombuffer(self.memory, np.uint8)

    def close(self) -> None:
        """Close the file; the mapping is released with its last view."""
        os.close(self.fd)


def _nameless_file(size: int) -> int:
    if hasattr(os, "memfd_create"):  # limited by the machine's memory, not by the size of /dev/shm
        fd = os.memfd_create("mtfed")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


class Writer:
    """Lay out the arrays of several messages in one buffer. An array that is in several messages is stored once."""

    def __init__(self) -> None:
        self.size = 0
        self._locations: dict[int, ArrayLocation] = {}
        self._pending: list[tuple[int, Any]] = []
        self._referenced: list[Array] = []  # an id is only valid while its object lives

    def flatten(self, content: RecordDict) -> FlatRecords:
        """Return the records of a message with locations in place of arrays."""
        flat: FlatRecords = []
        for name, record in content.items():
            if isinstance(record, ArrayRecord):
                flat.append((name, "array", {key: self._locate(array) for key, array in record.items()}))
            else:
                flat.append((name, "metric" if isinstance(record, MetricRecord) else "config", dict(record)))
        return flat

    def _locate(self, array: Array) -> ArrayLocation:
        location = self._locations.get(id(array))
        if location is None:
            is_raw = isinstance(array, FlatArray)
            data = array.numpy().reshape(-1).view(np.uint8) if is_raw else array.data
            offset = -(-self.size // ALIGNMENT) * ALIGNMENT
            location = (array.dtype, tuple(array.shape), "" if is_raw else array.stype, offset, len(data))
            self._locations[id(array)] = location
            self._pending.append((offset, data))
            self._referenced.append(array)
            self.size = offset + len(data)
        return location

    def write(self, buffer: Buffer) -> None:
        """Copy every array to its location."""
        view = memoryview(buffer.memory)
        for offset, data in self._pending:
            view[offset : offset + len(data)] = data
        view.release()


def restore(flat: FlatRecords, memory: np.ndarray | None) -> RecordDict:
    """Rebuild a message's records; raw arrays are views of ``memory`` (bytes), and keep it alive."""
    content = RecordDict()
    for name, record_type, values in flat:
        if record_type != "array":
            content[name] = RECORDS[record_type](values)
            continue
        record = ArrayRecord()
        for key, (dtype, shape, stype, offset, size) in values.items():
            assert memory is not None
            data = memory[offset : offset + size]
            raw = data if stype else data.view(dtype).reshape(shape)
            record[key] = Array(dtype, shape, stype, raw.tobytes()) if stype else FlatArray(raw)
        content[name] = record
    return content
