"""The in-process engine: the real ServerApp, Strategy and ClientApp, without Ray and without a network.

The ServerApp runs here; the ClientApp runs in resident worker processes (:mod:`.worker`) behind Flower's ``Grid``.
Flower's deployment and Ray engines run the same objects, and give the same weights bit for bit.
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
from .shared_memory import Buffer, Flat, Writer
from .worker import CRASHED, Worker, ready

FIRST_NODE = 1000
SHORT_JOB = 0.5  # seconds
SMALL = 32 * 1024  # bytes that a pipe takes while nobody reads
LOOK_AHEAD = 32  # jobs among which a worker looks for one of a node that it has served before


@dataclass
class Job:
    """A message on its way to a worker."""

    message: Message
    flat: Flat
    batch: Broadcast

    @cached_property
    def packed(self) -> bytes:
        """Return what goes through the pipe, once made: many jobs may be queued before one is looked at."""
        return pickle.dumps((self.message.metadata, self.flat), pickle.HIGHEST_PROTOCOL)


class Broadcast:
    """The messages of one call: their arrays share a buffer, which is free again when the last reply is in."""

    def __init__(self, messages: int, buffer: Buffer) -> None:
        self.left = messages
        self.buffer = buffer


class LocalGrid(Grid):
    """Flower's ``Grid`` over resident worker processes on this machine.

    Args:
        client_app: the ClientApp; its module's state at the time of the first message is what workers start from.
        node_configs: one per simulated node.
        run_config: the run's config, as a ClientApp sees it in its context.
        workers: processes; default one per core.
    """

    def __init__(
        self, client_app: ClientApp, node_configs: list[UserConfig], run_config: UserConfig, workers: int | None = None
    ) -> None:
        self._client_app = client_app
        self._nodes = {FIRST_NODE + i: config for i, config in enumerate(node_configs)}
        self._states = {node: RecordDict() for node in self._nodes}
        self._run_config = run_config
        self._count = min(workers or usable_cores(), len(self._nodes))
        self._workers: list[Worker] = []
        self._alive = os.pipe()
        self._ids = count(1)
        self._queue: list[Job] = []
        self._replies: dict[str, Message] = {}  # by the id of the message that they answer
        self._free: list[Buffer] = []
        self._seconds: dict[tuple[int, str], float] = {}  # of a node's last job of a kind: long jobs go first
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
        """Return a new message (Flower's older way; ``Message(...)`` does the same)."""
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
        batch = Broadcast(len(messages), self._buffer(writer.size))
        writer.write(batch.buffer)
        for message, records in zip(messages, flat, strict=True):
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
            self._queue.append(Job(message, records, batch))
        self._queue.sort(key=lambda job: -self._seconds.get(_job_key(job.message), 0.0))
        self._dispatch()
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are in, without waiting."""
        self._collect(timeout=0)
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and return an iterator over the replies as they come in.

        Work starts at once. After ``timeout`` seconds the iterator ends; sites that are still busy are stopped.
        """
        return self._receive(self.push_messages(messages), None if timeout is None else time.monotonic() + timeout)

    def _receive(self, message_ids: list[str], deadline: float | None) -> Iterator[Message]:
        waiting = dict.fromkeys(message_ids)
        while waiting:
            # Another call may have collected our replies while this iterator was suspended: look before waiting.
            if key := next((key for key in self._replies if key in waiting), None):
                del waiting[key]
                yield self._replies.pop(key)
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self._abandon(set(waiting))
                return
            self._collect(left)

    def close(self) -> None:
        """End the workers and let go of the shared memory."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        for end in self._alive:
            os.close(end)
        for buffer in self._free:
            buffer.close()

    def _dispatch(self) -> None:
        """Give workers their next jobs: those of nodes that they have served before, else the longest.

        While plenty is left, a worker that does short jobs has one more in hand, so that it need not wait for this
        process between two. Long jobs and the last ones are given out one at a time: nobody else could take one that
        waits.
        """
        while len(self._workers) < self._count:
            self._workers.append(Worker(self._client_app, self._run_config, self._alive, self._workers))
        for in_hand in (0, 1):
            for worker in self._workers:
                if len(worker.jobs) == in_hand and self._queue:
                    near = islice(enumerate(self._queue), LOOK_AHEAD)
                    at_home = (i for i, job in near if job.message.metadata.dst_node_id in worker.cached_nodes)
                    index = next(at_home, 0)
                    node = self._queue[index].message.metadata.dst_node_id
                    if in_hand and not self._may_wait(self._queue[index]):
                        continue
                    job = self._queue.pop(index)
                    try:
                        worker.give(job, node, self._nodes[node], job.packed, self._states[node], job.batch.buffer)
                    except OSError:  # it died while it had nothing to do
                        self._drop(worker)
                        return self._dispatch()

    def _may_wait(self, job: Job) -> bool:
        """Say whether a job may be sent to a worker that is still busy: it must be short, and fit into the pipe.

        Sending more than a pipe holds would wait for the worker, which may itself wait for us to take its reply.
        """
        return (
            self._seconds.get(_job_key(job.message), math.inf) < SHORT_JOB
            and not self._states[job.message.metadata.dst_node_id]
            and len(job.packed) < SMALL
        )

    def _collect(self, timeout: float | None) -> None:
        """Wait for replies, file them, and give the workers that are free more work."""
        for worker in ready(self._workers, timeout):
            try:
                job, reply, state, seconds = worker.take()
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
        """Forget messages that took too long, and stop the workers that are busy with them."""

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
        """End a worker; what it has not answered goes back to the head of the queue."""
        self._queue[:0] = worker.jobs
        self._workers.remove(worker)
        worker.end()

    def _finish(self, job: Job) -> None:
        job.batch.left -= 1
        if not job.batch.left:
            self._free.append(job.batch.buffer)

    def _buffer(self, size: int) -> Buffer:
        """Return a free buffer that is large enough; free ones that are not have had their day."""
        for buffer in self._free:
            if buffer.size >= size:
                self._free.remove(buffer)
                return buffer
        while self._free:
            self._free.pop().close()
        return Buffer(max(size, 1))


def _job_key(message: Message) -> tuple[int, str]:
    return message.metadata.dst_node_id, message.metadata.message_type


def run_local(
    server_app: ServerApp, client_app: ClientApp, run_config: UserConfig, sites: int, workers: int | None = None
) -> None:
    """Run an app with simulated sites on this machine; whatever happens, no process is left behind."""
    # Flower's messages ask this process-wide identity who sends them; its own engines set it the same way.
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    threads = 0
    if (torch := sys.modules.get("torch")) is not None:
        # Before any tensor work: a worker forked from a process that has computed with several threads hangs when it
        # computes with several itself, as torch-threads may ask it to.
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
