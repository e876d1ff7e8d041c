"""Processes that look at files, one after the other; a file that ends a process is named, and the rest goes on."""

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
CHUNK = 8  # items that a process is given at once: it is not kept waiting, and at most so many are given again


@dataclass(frozen=True)
class Died:
    """What ended the process that looked at an item."""

    code: int | None  # of its exit; below 0 the signal

    def __str__(self) -> str:
        if self.code is not None and self.code < 0:
            return f"signal {_signal(-self.code)}"
        return f"exit code {self.code}"


@dataclass
class IsolatedWorker:
    """A process, and the items that it has yet to answer, in this order."""

    process: BaseProcess
    left: deque[int]


def outcomes(work: Callable[[int], T], count: int, jobs: int) -> Iterator[tuple[int, T | Died]]:
    """Yield what ``work`` returns for 0, 1, ... in processes, as it comes, with its number.

    Args:
        work: what may be pickled, as a partial of a module's function; it is to return its errors, not to raise them.
        count: of the items.
        jobs: processes at once.
    """
    # Forked where that is possible, as importing what reads images takes seconds.
    forks = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if forks else None)
    waiting = deque(deque(range(start, min(start + CHUNK, count))) for start in range(0, count, CHUNK))
    hands: dict[Connection, IsolatedWorker] = {}

    def give(pipe: Connection, hand: IsolatedWorker) -> None:
        if waiting:
            hand.left = waiting.popleft()
            pipe.send(list(hand.left))
        else:
            del hands[pipe]
            pipe.close()  # which ends it
            hand.process.join()

    def begin() -> None:
        ours, theirs = context.Pipe()
        # A forked process must let go of our ends, else none would notice that we closed one, or died.
        inherited = (ours, *hands) if forks else ()
        process = context.Process(target=_serve, args=(theirs, inherited, work), daemon=True)  # type: ignore[attr-defined]
        process.start()
        theirs.close()  # so that its end is noticed
        hands[ours] = IsolatedWorker(process, deque())
        give(ours, hands[ours])

    try:
        for _ in range(min(jobs, len(waiting))):
            begin()
        while hands:
            for pipe in wait(list(hands)):
                assert isinstance(pipe, Connection)
                hand = hands[pipe]
                try:
                    outcome = pipe.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    hand.process.join()
                    del hands[pipe]
                    pipe.close()
                    yield hand.left.popleft(), Died(hand.process.exitcode)
                    if hand.left:
                        waiting.appendleft(hand.left)
                    if waiting:
                        begin()
                    continue
                number = hand.left.popleft()
                if not hand.left:
                    give(pipe, hand)
                yield number, outcome
    finally:
        for hand in hands.values():
            hand.process.kill()
            hand.process.join()


def _serve(pipe: Connection, inherited: tuple[Connection, ...], work: Callable[[int], T]) -> None:
    """Answer items until there are no more."""
    for end in inherited:
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever began us ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _one_thread()
    while True:
        try:
            numbers = pipe.recv()
        except (EOFError, OSError):
            return
        for number in numbers:
            pipe.send(work(number))


def _one_thread() -> None:
    """Compute in one thread: there are as many processes as cores."""
    import torch

    torch.set_num_threads(1)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
