"""Resident worker processes: forked once torch is warm, one thread each, handed one message at a time.

A worker keeps what the ClientApp keeps between messages: its model, the shards it has read. It waits on a pipe, never
polls, and ends when the process that forked it does.
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
    """One forked process, seen from its parent."""

    def __init__(
        self, client_app: ClientApp, run_config: UserConfig, alive: tuple[int, int], others: list[Worker]
    ) -> None:
        self.pipe, child_pipe = get_context("fork").Pipe()
        sibling_pipes = [worker.pipe for worker in others]
        self.process = get_context("fork").Process(
            target=_serve, args=(child_pipe, self.pipe, sibling_pipes, alive, client_app, run_config), daemon=True
        )
        self.process.start()
        child_pipe.close()
        self.jobs: deque[Any] = deque()  # what it was given and has not answered, in that order
        self.cached_nodes: set[int] = set()  # nodes whose shard it has in memory
        self._sent: Buffer | None = None
        self._replies: dict[int, Buffer] = {}  # its reply buffers by key
        self._freed: list[int] = []  # reply buffers that nobody looks at any more

    def give(
        self, job: Any, node: int, node_config: UserConfig, packed: bytes, state: RecordDict, buffer: Buffer
    ) -> None:
        """Hand over a message to a node: its metadata and records, pickled, and the buffer that its arrays lie in."""
        self.jobs.append(job)
        self.cached_nodes.add(node)
        if buffer is not self._sent:
            self.pipe.send(("buffer", buffer.size))
            buffer.send(self.pipe, self.process.pid or 0)
            self._sent = buffer
        freed, self._freed = self._freed, []
        self.pipe.send(("message", node_config, state, freed))
        self.pipe.send_bytes(packed)

    def take(self) -> tuple[Any, Message, RecordDict, float]:
        """Return the oldest job, its reply, the node's state and the seconds it took.

        The reply's arrays are views of the worker's memory, which it uses again once nobody holds them any more.
        Raises ``EOFError`` if the worker died.
        """
        while True:
            kind, *rest = self.pipe.recv()
            if kind == "buffer":
                key, size, outgrown = rest
                for old in outgrown:
                    self._replies.pop(old).close()
                self._replies[key] = Buffer.receive(self.pipe, size)
                continue
            metadata, flat, error, state, seconds, key = rest
            if error is not None:
                return self.jobs.popleft(), make_message(metadata, error=Error(*error)), state, seconds
            memory = None
            if key is not None:
                memory = self._replies[key].array()
                finalize(memory, self._freed_later, key)
            return self.jobs.popleft(), make_message(metadata, restore(flat, memory)), state, seconds

    def _freed_later(self, key: int) -> None:
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
        for buffer in self._replies.values():
            buffer.close()
        self._replies.clear()


def ready(workers: list[Worker], timeout: float | None) -> list[Worker]:
    """Wait until some busy worker has something to say (or died), or the time is over."""
    by_pipe = {worker.pipe: worker for worker in workers if worker.jobs}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout)]  # type: ignore[index]


def _serve(
    pipe: Connection,
    parents_end: Connection,
    sibling_pipes: list[Connection],
    alive: tuple[int, int],
    client_app: ClientApp,
    run_config: UserConfig,
) -> None:
    """Handle messages until the pipe closes (in the forked process)."""
    for inherited in (parents_end, *sibling_pipes):
        inherited.close()
    os.close(alive[1])
    threading.Thread(target=_end_with_parent, args=(alive[0],), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    received: Buffer | None = None
    replies: dict[int, Buffer] = {}
    free: list[int] = []
    while True:
        try:
            kind, *rest = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)
        if kind == "buffer":
            if received is not None:
                received.close()
            received = Buffer.receive(pipe, rest[0])
            continue
        node_config, state, freed = rest
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
            answer = [] if error else writer.flatten(reply.content)
        except Exception as exception:
            reason = f"{type(exception).__name__}: {exception}\n{traceback.format_exc()}"
            error, answer = (RAISED, reason), []
            reply = Message(Error(*error), reply_to=message)
        key = _reply_buffer(writer.size, replies, free, pipe) if writer.size else None
        if key is not None:
            writer.write(replies[key])
        pipe.send(("reply", reply.metadata, answer, error, context.state, time.perf_counter() - start, key))


def _reply_buffer(size: int, replies: dict[int, Buffer], free: list[int], pipe: Connection) -> int:
    """Return the key of a reply buffer that is free and large enough; make one if there is none."""
    for key in free:
        if replies[key].size >= size:
            free.remove(key)
            return key
    outgrown = list(free)
    for key in outgrown:
        replies.pop(key).close()
    free.clear()
    key = max(replies, default=-1) + 1
    replies[key] = Buffer(size)
    pipe.send(("buffer", key, size, outgrown))
    replies[key].send(pipe, os.getppid())
    return key


def _end_with_parent(alive: int) -> None:
    """Wait for the end of a pipe that only the parent can close; then there is nobody left to work for."""
    os.read(alive, 1)
    os._exit(1)
