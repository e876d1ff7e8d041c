"""The in-process engine: the real ServerApp, Strategy and ClientApp, without Ray and without a network.

The ServerApp runs in this process; the ClientApp runs in resident worker processes (:mod:`.worker`) behind Flower's
``Grid``. Flower's deployment and Ray engines run the same objects, and give the same weights bit for bit.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ...cores import usable_cores
from .shared_memory import Buffer, FlatRecords, Writer
from .worker import CRASHED, Worker, wait_for_any

FIRST_NODE = 1000
SHORT_JOB = 0.5  # seconds
PIPE_CAPACITY = 32 * 1024  # bytes that can be written to a pipe while nothing reads from it
LOOK_AHEAD = 32  # jobs at the head of the queue that are searched for one whose node the worker has cached


@dataclass
class Job:
    """A message on its way to a worker."""

    message: Message
    flat: FlatRecords
    broadcast: Broadcast

    @cached_property
    def packed(self) -> bytes:
        """Return the bytes for the pipe. They are made on first use, because many jobs may wait in the queue."""
        return pickle.dumps((self.message.metadata, self.flat), pickle.HIGHEST_PROTOCOL)


@dataclass
class Broadcast:
    """The messages of one call. Their arrays share a buffer, which is free again when the last reply has arrived."""

    unanswered: int
    buffer: Buffer


class LocalGrid(Grid):
    """Flower's ``Grid`` over resident worker processes on this machine.

    Args:
        client_app: the ClientApp. Workers start with the state that its module has when the first message is sent.
        node_configs: one per simulated node.
        run_config: the run's config, which is part of the ClientApp's context.
        workers: number of worker processes; one per core by default.
    """

    def __init__(
        self, client_app: ClientApp, node_configs: list[UserConfig], run_config: UserConfig, workers: int | None = None
    ) -> None:
        self._client_app = client_app
        self._nodes = {FIRST_NODE + i: config for i, config in enumerate(node_configs)}
        self._states = {node: RecordDict() for node in self._nodes}
        self._run_config = run_config
        self._worker_count = min(workers or usable_cores(), len(self._nodes))
        self._workers: list[Worker] = []
        self._alive = os.pipe()
        self._ids = count(1)
        self._queue: list[Job] = []
        self._replies: dict[str, Message] = {}  # replies by the id of the message that they answer
        self._free_buffers: list[Buffer] = []
        self._seconds: dict[tuple[int, str], float] = {}  # duration of a node's last job of a type: long jobs go first
        self._run = Run.create_empty(TaskIdentity.run_id)

    @property
    def run(self) -> Run:
        """Return the run that this grid serves."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the run that this grid serves."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message (Flower's older interface; ``Message(...)`` does the same)."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all simulated nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for their nodes and return their ids."""
        messages, writer = list(messages), Writer()
        if not messages:
            return []
        flat = [writer.flatten(message.content) for message in messages]
        broadcast = Broadcast(len(messages), self._buffer(writer.size))
        writer.write(broadcast.buffer)
        for message, records in zip(messages, flat, strict=True):
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
            self._queue.append(Job(message, records, broadcast))
        self._queue.sort(key=lambda job: -self._seconds.get(_job_key(job.message), 0.0))
        self._dispatch()
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, without waiting."""
        self._collect(timeout=0)
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and return an iterator over the replies as they arrive.

        Work starts at once. After ``timeout`` seconds the iterator ends, and workers that are still busy are stopped.
        """
        return self._receive(self.push_messages(messages), None if timeout is None else time.monotonic() + timeout)

    def _receive(self, message_ids: list[str], deadline: float | None) -> Iterator[Message]:
        waiting = dict.fromkeys(message_ids)
        while waiting:
            # Another call may have collected these replies while this iterator was suspended, so look before waiting.
            if key := next((key for key in self._replies if key in waiting), None):
                del waiting[key]
                yield self._replies.pop(key)
                continue
            seconds = None if deadline is None else deadline - time.monotonic()
            if seconds is not None and seconds <= 0:
                self._abandon(set(waiting))
                return
            self._collect(seconds)

    def close(self) -> None:
        """End the workers and close the shared memory."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        for end in self._alive:
            os.close(end)
        for buffer in self._free_buffers:
            buffer.close()

    def _dispatch(self) -> None:
        """Send workers their next jobs: those of nodes that they have cached, otherwise the longest.

        While the queue is long, a worker with a short job gets a second one, so that it need not wait for this process
        between two jobs. Long jobs and the last ones are sent one at a time, because a job that waits at one worker
        cannot be taken by another.
        """
        while len(self._workers) < self._worker_count:
            self._workers.append(Worker(self._client_app, self._run_config, self._alive, self._workers))
        for pending in (0, 1):
            for worker in self._workers:
                if len(worker.jobs) == pending and self._queue:
                    head = islice(enumerate(self._queue), LOOK_AHEAD)
                    cached = (i for i, job in head if job.message.metadata.dst_node_id in worker.cached_nodes)
                    index = next(cached, 0)
                    node = self._queue[index].message.metadata.dst_node_id
                    if pending and not self._may_wait(self._queue[index]):
                        continue
                    job = self._queue.pop(index)
                    try:
                        worker.send(job, node, self._nodes[node], job.packed, self._states[node], job.broadcast.buffer)
                    except OSError:  # it died while it was idle
                        self._drop(worker)
                        return self._dispatch()

    def _may_wait(self, job: Job) -> bool:
        """Return whether a job may be queued at a busy worker. It must be short and fit into the pipe.

        Sending more than a pipe holds would block until the worker reads, and the worker may itself be blocked until
        this process takes its reply.
        """
        return (
            self._seconds.get(_job_key(job.message), math.inf) < SHORT_JOB
            and not self._states[job.message.metadata.dst_node_id]
            and len(job.packed) < PIPE_CAPACITY
        )

    def _collect(self, timeout: float | None) -> None:
        """Wait for replies, store them, and send more jobs to the workers that are free."""
        for worker in wait_for_any(self._workers, timeout):
            try:
                job, reply, state, seconds = worker.receive()
                self._states[job.message.metadata.dst_node_id] = state
                self._seconds[_job_key(job.message)] = seconds
            except (EOFError, OSError):
                job = worker.jobs.popleft()
                worker.process.join()
                reason = f"its worker process ended (exit code {worker.process.exitcode})"
                reply = Message(Error(CRASHED, reason), reply_to=job.message)
                self._drop(worker)
            self._replies[job.message.metadata.message_id] = reply
            self._finish(job)
        self._dispatch()

    def _abandon(self, message_ids: set[str]) -> None:
        """Give up messages that took too long, and stop the workers that are busy with them."""

        def is_late(job: Job) -> bool:
            return job.message.metadata.message_id in message_ids

        for worker in [worker for worker in self._workers if any(map(is_late, worker.jobs))]:
            self._drop(worker)
        late = [job for job in self._queue if is_late(job)]
        self._queue = [job for job in self._queue if not is_late(job)]
        for job in late:
            self._finish(job)
        self._dispatch()

    def _drop(self, worker: Worker) -> None:
        """End a worker; its unanswered jobs go back to the head of the queue."""
        self._queue[:0] = worker.jobs
        self._workers.remove(worker)
        worker.end()

    def _finish(self, job: Job) -> None:
        job.broadcast.unanswered -= 1
        if not job.broadcast.unanswered:
            self._free_buffers.append(job.broadcast.buffer)

    def _buffer(self, size: int) -> Buffer:
        """Return a free buffer that is large enough. If there is none, free buffers are closed and one is created."""
        for buffer in self._free_buffers:
            if buffer.size >= size:
                self._free_buffers.remove(buffer)
                return buffer
        while self._free_buffers:
            self._free_buffers.pop().close()
        return Buffer(max(size, 1))


def _job_key(message: Message) -> tuple[int, str]:
    return message.metadata.dst_node_id, message.metadata.message_type


def run_local(
    server_app: ServerApp, client_app: ClientApp, run_config: UserConfig, sites: int, workers: int | None = None
) -> None:
    """Run an app with simulated sites on this machine. No process is left behind, even after an error."""
    # Flower's messages take their sender from this process-wide identity; its own engines set it the same way.
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    threads = 0
    if (torch := sys.modules.get("torch")) is not None:
        # This must come before any tensor work: a worker that is forked from a process which has computed with several
        # threads hangs as soon as it uses several itself, as it does with torch-threads above 1.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
    nodes: list[Any] = [{"partition-id": i, "num-partitions": sites} for i in range(sites)]
    grid = LocalGrid(client_app, nodes, run_config, workers)
    try:
        server_app(grid, Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), run_config))
    finally:
        grid.close()
        if torch is not None:
            torch.set_num_threads(threads)
