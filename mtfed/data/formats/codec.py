"""Decode what only GDCM decodes (JPEG lossless, JPEG-LS) in a process of its own, for a broken file can end it.

The process is started when there is the first such file, kept for the next, and started anew where one has ended it. It
is this file, run as a script: a DICOM file on its input gives the values of its pixels on its output.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np

MAX_MEMORY = 6 * 2**30  # bytes of address space of the process
MAX_SECONDS = 120  # of computing for one file
LENGTH = struct.Struct("<Q")


class Decoder:
    """The process, of which a process here has at most one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, content: bytes) -> np.ndarray:
        """Return the values of a DICOM file's pixels; raise ``ValueError`` if they cannot be decoded."""
        with self._lock:
            child = self._start()
            assert child.stdin and child.stdout
            try:
                child.stdin.write(LENGTH.pack(len(content)))
                child.stdin.write(content)
                child.stdin.flush()
                told = json.loads(_exactly(child.stdout, *LENGTH.unpack(_exactly(child.stdout, LENGTH.size))))
                values = _exactly(child.stdout, told["size"])
            except (OSError, EOFError):
                child.kill()
                child.wait()
                self._child = None
                raise ValueError("the decoder broke down") from None
        if "shape" not in told:
            raise ValueError(told["error"])
        return np.frombuffer(values, told["dtype"]).reshape(told["shape"])

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None or self._owner != os.getpid():
            # -P: the modules beside this file must not be taken for the libraries that they are named after.
            self._child = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._owner = os.getpid()
        return self._child


DECODER = Decoder()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + MAX_SECONDS, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def main() -> None:
    """Answer file after file until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import io

    import pydicom

    while head := sys.stdin.buffer.read(LENGTH.size):
        content = _exactly(sys.stdin.buffer, *LENGTH.unpack(head))
        _limit()
        values = b""
        try:
            array = pydicom.dcmread(io.BytesIO(content)).pixel_array
            told: dict[str, object] = {"shape": array.shape, "dtype": array.dtype.str}
            values = array.tobytes()
        except Exception as error:
            told = {"error": str(error)}
        line = json.dumps(told | {"size": len(values)}).encode()
        answers.write(LENGTH.pack(len(line)) + line + values)
        answers.flush()


if __name__ == "__main__":
    main()
