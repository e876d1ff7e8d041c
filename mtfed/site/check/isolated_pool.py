"""Run work in separate processes, so that an item that kills its process is reported and the others go on."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

T = TypeVar("T")
CHUNK = 8  # items sent to a worker at once: the worker never waits, and few items are resent if it dies


@dataclass(frozen=True)
class WorkerDied:
    """The outcome of an item that ended its worker."""

    exit_code: int | None  # negative: the signal

    def __str__(self) -> str:
        if self.exit_code is None or self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"signal {names.get(-self.exit_code, -self.exit_code)}"


@dataclass
class IsolatedWorker:
    """A worker process, and the items whose results it has not sent yet, in the order in which it works on them."""

    process: BaseProcess
    pending: deque[int]


def run_isolated(work: Callable[[int], T], count: int, jobs: int) -> Iterator[tuple[int, T | WorkerDied]]:
    """Call ``work`` for the items 0 to ``count`` - 1 in worker processes; yield each item with its result when done.

    Args:
        work: a function that can be pickled, such as a partial of a function of a module. It must return its errors
            instead of raising them.
        count: number of items.
        jobs: number of processes.
    """
    pool = _Pool(work, count)
    try:
        for _ in range(min(jobs, len(pool.chunks))):
            pool.start_worker()
        while pool.workers:
            for pipe in wait(list(pool.workers)):
                assert isinstance(pipe, Connection)
                worker = pool.workers[pipe]
                try:
                    result = pipe.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    pool.end_worker(pipe)
                    yield worker.pending.popleft(), WorkerDied(worker.process.exitcode)
                    if worker.pending:
                        pool.chunks.appendleft(worker.pending)
                    if pool.chunks:
                        pool.start_worker()
                    continue
                item = worker.pending.popleft()
                if not worker.pending:
                    pool.assign_chunk(pipe)
                yield item, result
    finally:
        for worker in pool.workers.values():
            worker.process.kill()
            worker.process.join()


class _Pool:
    """The workers, and the items that no worker has yet."""

    def __init__(self, work: Callable[[int], T], count: int) -> None:
        self.chunks = deque(deque(range(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK))
        self.workers: dict[Connection, IsolatedWorker] = {}
        self._work = work
        # Fork where possible, because importing the image readers in a new process takes seconds.
        self._can_fork = "fork" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("fork" if self._can_fork else None)

    def start_worker(self) -> None:
        pipe, worker_pipe = self._context.Pipe()
        # A forked process must close its copies of the other pipe ends, or no worker would notice that one is closed.
        inherited = (pipe, *self.workers) if self._can_fork else ()
        arguments = (worker_pipe, inherited, self._work)
        process = self._context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
        process.start()
        worker_pipe.close()  # so that reading from the pipe fails when the worker dies
        self.workers[pipe] = IsolatedWorker(process, deque())
        self.assign_chunk(pipe)

    def assign_chunk(self, pipe: Connection) -> None:
        """Send a worker its next items, or end it if there are none."""
        if self.chunks:
            self.workers[pipe].pending = self.chunks.popleft()
            pipe.send(list(self.workers[pipe].pending))
        else:
            self.end_worker(pipe)

    def end_worker(self, pipe: Connection) -> None:
        pipe.close()  # the worker ends when its pipe is closed
        self.workers.pop(pipe).process.join()


def _serve(pipe: Connection, inherited: tuple[Connection, ...], work: Callable[[int], T]) -> None:
    """Work on the items that arrive until the pipe is closed."""
    for connection in inherited:
        connection.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    torch.set_num_threads(1)  # there are as many processes as cores
    while True:
        try:
            items = pipe.recv()
        except (EOFError, OSError):
            return
        for item in items:
            pipe.send(work(item))
