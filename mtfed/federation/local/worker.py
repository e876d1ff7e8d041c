"""Resident worker processes: forked once torch is imported, with one thread each, and given one message at a time.

A worker keeps everything that the ClientApp caches between messages: its model and the shards that it has read. It
waits on a pipe, never polls, and ends when the process that forked it ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any
from weakref import finalize

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from .shared_memory import Buffer, Writer, restore

CRASHED = 8  # flwr's ErrorCode.CLIENT_APP_CRASHED
RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class Worker:
    """A forked process, as its parent sees it.

    Args:
        client_app: the ClientApp that handles the messages.
        run_config: the run's config, which is part of the ClientApp's context.
        alive: both ends of a pipe that closes when the parent ends.
        siblings: the workers that exist already; the new process closes the pipes that it inherits from them.
    """

    def __init__(
        self, client_app: ClientApp, run_config: UserConfig, alive: tuple[int, int], siblings: list[Worker]
    ) -> None:
        self.pipe, child_pipe = get_context("fork").Pipe()
        inherited = [self.pipe, *(worker.pipe for worker in siblings)]
        arguments = (child_pipe, inherited, alive, client_app, run_config)
        self.process = get_context("fork").Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        child_pipe.close()
        self.jobs: deque[Any] = deque()  # sent and not answered yet, oldest first
        self.cached_nodes: set[int] = set()  # nodes whose shard the worker has in memory
        self._sent: Buffer | None = None
        self._reply_buffers: dict[int, Buffer] = {}
        self._freed: list[int] = []  # keys of reply buffers that nothing refers to any more

    def send(
        self, job: Any, node: int, node_config: UserConfig, packed: bytes, state: RecordDict, buffer: Buffer
    ) -> None:
        """Send a message for a node: its metadata and records, pickled, and the buffer with its arrays."""
        self.jobs.append(job)
        self.cached_nodes.add(node)
        if buffer is not self._sent:
            self.pipe.send(("buffer", buffer.size))
            buffer.send(self.pipe, self.process.pid or 0)
            self._sent = buffer
        freed, self._freed = self._freed, []
        self.pipe.send(("message", node_config, state, freed))
        self.pipe.send_bytes(packed)

    def receive(self) -> tuple[Any, Message, RecordDict, float]:
        """Return the oldest job, its reply, the node's state and the seconds that it took.

        The reply's arrays are views of the worker's memory, which it reuses once nothing refers to them.

        Raises:
            EOFError: if the worker died.
        """
        while True:
            message_type, *values = self.pipe.recv()
            if message_type == "buffer":
                key, size, outgrown = values
                for old in outgrown:
                    self._reply_buffers.pop(old).close()
                self._reply_buffers[key] = Buffer.receive(self.pipe, size)
                continue
            metadata, flat, error, state, seconds, key = values
            if error is not None:
                return self.jobs.popleft(), make_message(metadata, error=Error(*error)), state, seconds
            memory = None
            if key is not None:
                memory = self._reply_buffers[key].array()
                finalize(memory, self._free_reply_buffer, key)
            return self.jobs.popleft(), make_message(metadata, restore(flat, memory)), state, seconds

    def _free_reply_buffer(self, key: int) -> None:
        self._freed.append(key)

    def end(self) -> None:
        """End the process, at once if it is busy."""
        if self.jobs:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        for buffer in self._reply_buffers.values():
            buffer.close()
        self._reply_buffers.clear()


def wait_for_any(workers: list[Worker], timeout: float | None) -> list[Worker]:
    """Wait until a busy worker has replied or died, or until the timeout; return those workers."""
    by_pipe = {worker.pipe: worker for worker in workers if worker.jobs}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout)]  # type: ignore[index]


def _serve(
    pipe: Connection, inherited: list[Connection], alive: tuple[int, int], client_app: ClientApp, run_config: UserConfig
) -> None:
    """Handle messages until the pipe closes. Runs in the forked process."""
    for parent_pipe in inherited:
        parent_pipe.close()
    os.close(alive[1])
    threading.Thread(target=_end_with_parent, args=(alive[0],), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    received: Buffer | None = None
    reply_buffers: dict[int, Buffer] = {}
    free: list[int] = []
    while True:
        try:
            message_type, *values = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)
        if message_type == "buffer":
            if received is not None:
                received.close()
            received = Buffer.receive(pipe, values[0])
            continue
        node_config, state, freed = values
        metadata, flat = pickle.loads(pipe.recv_bytes())
        free.extend(freed)
        start = time.perf_counter()
        context = Context(metadata.run_id, metadata.dst_node_id, node_config, state, run_config)
        assert received is not None
        message = make_message(metadata, restore(flat, received.array()))
        writer = Writer()
        try:
            reply = client_app(message, context)
            error = (reply.error.code, reply.error.reason) if reply.has_error() else None
            records = [] if error else writer.flatten(reply.content)
        except Exception as exception:
            reason = f"{type(exception).__name__}: {exception}\n{traceback.format_exc()}"
            error, records = (RAISED, reason), []
            reply = Message(Error(*error), reply_to=message)
        key = _reply_buffer(writer.size, reply_buffers, free, pipe) if writer.size else None
        if key is not None:
            writer.write(reply_buffers[key])
        pipe.send(("reply", reply.metadata, records, error, context.state, time.perf_counter() - start, key))


def _reply_buffer(size: int, buffers: dict[int, Buffer], free: list[int], pipe: Connection) -> int:
    """Return the key of a free reply buffer that is large enough; make a new one if there is none."""
    for key in free:
        if buffers[key].size >= size:
            free.remove(key)
            return key
    outgrown = list(free)
    for key in outgrown:
        buffers.pop(key).close()
    free.clear()
    key = max(buffers, default=-1) + 1
    buffers[key] = Buffer(size)
    pipe.send(("buffer", key, size, outgrown))
    buffers[key].send(pipe, os.getppid())
    return key


def _end_with_parent(alive: int) -> None:
    """Wait until a pipe closes that only the parent can close, then exit."""
    os.read(alive, 1)
    os._exit(1)
