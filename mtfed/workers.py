"""Resident worker processes: forked once torch is warm, one thread each, handed one message at a time.

A worker keeps what the ClientApp keeps between messages: its model, the shards it has read. It waits on a pipe, never
polls, and ends when the process that forked it does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from .shared import Buffer, Flat, Writer, restore

CRASHED = 8  # flwr's ErrorCode.CLIENT_APP_CRASHED
RAISED = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class Worker:
    """One forked process, seen from its parent."""

    def __init__(self, client_app: ClientApp, run_config: UserConfig, alive: tuple[int, int], others: list[Worker]) -> None:
        self.pipe, child_pipe = get_context("fork").Pipe()
        strangers = [worker.pipe for worker in others]
        self.process = get_context("fork").Process(
            target=_serve, args=(child_pipe, self.pipe, strangers, alive, client_app, run_config), daemon=True
        )
        self.process.start()
        child_pipe.close()
        self.job: Any = None  # what it is working on
        self.homes: set[int] = set()  # nodes whose shard it has in memory
        self._sent: Buffer | None = None
        self._reply: Buffer | None = None

    def give(self, job: Any, node_config: UserConfig, metadata: Metadata, flat: Flat, state: RecordDict, buffer: Buffer) -> None:
        """Hand over a message whose arrays lie in a buffer."""
        self.job = job
        if buffer is not self._sent:
            self.pipe.send(("buffer", buffer.size))
            buffer.send(self.pipe, self.process.pid or 0)
            self._sent = buffer
        self.homes.add(metadata.dst_node_id)
        self.pipe.send(("message", node_config, metadata, flat, state))

    def take(self) -> tuple[Message, RecordDict, float]:
        """Return the reply, the node's state and the seconds it took; raises ``EOFError`` if the worker died."""
        while True:
            kind, *rest = self.pipe.recv()
            if kind == "buffer":
                if self._reply is not None:
                    self._reply.close()
                self._reply = Buffer.receive(self.pipe, rest[0])
                continue
            metadata, flat, error, state, seconds = rest
            if error is not None:
                return Message(metadata=metadata, error=Error(*error)), state, seconds
            content = restore(flat, self._reply, copy=True)
            return Message(metadata=metadata, content=content), state, seconds

    def end(self) -> None:
        """End the process, at once if it is busy."""
        if self.job is not None:
            self.process.kill()
        self.pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if self._reply is not None:
            self._reply.close()


def ready(workers: list[Worker], timeout: float | None) -> list[Worker]:
    """Wait until some busy worker has something to say (or died), or the time is over."""
    by_pipe = {worker.pipe: worker for worker in workers if worker.job is not None}
    return [by_pipe[pipe] for pipe in wait(list(by_pipe), timeout)]  # type: ignore[index]


def _serve(
    pipe: Connection, parents_end: Connection, strangers: list[Connection], alive: tuple[int, int],
    client_app: ClientApp, run_config: UserConfig,
) -> None:
    """Handle messages until the pipe closes (in the forked process)."""
    for inherited in (parents_end, *strangers):
        inherited.close()
    os.close(alive[1])
    threading.Thread(target=_end_with_parent, args=(alive[0],), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    received = replies = None
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
        node_config, metadata, flat, state = rest
        start = time.perf_counter()
        context = Context(metadata.run_id, metadata.dst_node_id, node_config, state, run_config)
        message = Message(metadata=metadata, content=restore(flat, received, copy=False))
        writer = Writer()
        try:
            reply = client_app(message, context)
            error = (reply.error.code, reply.error.reason) if reply.has_error() else None
            answer = [] if error else writer.flatten(reply.content)
        except Exception as exception:
            reason = f"{type(exception).__name__}: {exception}\n{traceback.format_exc()}"
            error, answer = (RAISED, reason), []
            reply = Message(Error(*error), reply_to=message)
        if writer.size and (replies is None or replies.size < writer.size):
            if replies is not None:
                replies.close()
            replies = Buffer(writer.size)
            pipe.send(("buffer", replies.size))
            replies.send(pipe, os.getppid())
        if writer.size:
            assert replies is not None
            writer.write(replies)
        pipe.send(("reply", reply.metadata, answer, error, context.state, time.perf_counter() - start))


def _end_with_parent(alive: int) -> None:
    """Wait for the end of a pipe that only the parent can close; then there is nobody left to work for."""
    os.read(alive, 1)
    os._exit(1)
