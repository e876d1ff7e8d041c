"""Decode the formats that only GDCM decodes (JPEG lossless, JPEG-LS) in a child process, which a broken file can crash.

The process is started at the first such file, reused for the next ones, and restarted after a crash. It runs this file
as a script: it reads a DICOM file from its input and writes the values of the pixels to its output.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np

MAX_MEMORY = 6 * 2**30  # bytes of address space of the process
MAX_SECONDS = 120  # seconds of CPU time for one file
LENGTH = struct.Struct("<Q")


class Decoder:
    """The child process; each process has at most one."""

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
                reply = json.loads(_exactly(child.stdout, *LENGTH.unpack(_exactly(child.stdout, LENGTH.size))))
                values = _exactly(child.stdout, reply["size"])
            except (OSError, EOFError):
                child.kill()
                child.wait()
                self._child = None
                raise ValueError("the decoder broke down") from None
        if "shape" not in reply:
            raise ValueError(reply["error"])
        return np.frombuffer(values, reply["dtype"]).reshape(reply["shape"])

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None or self._owner != os.getpid():
            # -P: some modules in this folder have the names of libraries and must not shadow them.
            streams: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._child = subprocess.Popen([sys.executable, "-P", __file__], env=environment, **streams)
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
    """Decode one file after the other until the input ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text that a library prints must not get into the output
    import io

    import pydicom

    while head := sys.stdin.buffer.read(LENGTH.size):
        content = _exactly(sys.stdin.buffer, *LENGTH.unpack(head))
        _limit()
        values = b""
        try:
            array = pydicom.dcmread(io.BytesIO(content)).pixel_array
            reply: dict[str, object] = {"shape": array.shape, "dtype": array.dtype.str}
            values = array.tobytes()
        except Exception as error:
            reply = {"error": str(error)}
        line = json.dumps(reply | {"size": len(values)}).encode()
        output.write(LENGTH.pack(len(line)) + line + values)
        output.flush()


if __name__ == "__main__":
    main()
