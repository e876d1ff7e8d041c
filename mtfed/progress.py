"""What a person sees while a run goes on: a bar a round on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import Any, TypeVar

T = TypeVar("T")


class Progress:
    """Show rounds, sites, loss and time left."""

    def __init__(self, name: str, strategy: str, first_round: int, rounds: int) -> None:
        self.title = f"{name} · {strategy}"
        self.rounds = rounds
        self._first = first_round
        self._start = time.monotonic()
        self._bar: Any = None
        if sys.stdout.isatty():
            self._bar = _bar()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._overall = self._bar.add_task(
                self.title, total=self.rounds, completed=self._first - 1, note="", left=""
            )
            self._round = self._bar.add_task("", total=1, note="", left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def follow(self, server_round: int, action: str, replies: Iterable[T], total: int) -> Iterator[T]:
        """Pass replies on, and count them."""
        if self._bar is not None:
            self._bar.update(self._round, description=f"round {server_round} {action}", total=total, completed=0)
            self._bar.refresh()
        for reply in replies:
            if self._bar is not None:
                self._bar.advance(self._round)
                self._bar.refresh()
            yield reply

    def round_done(
        self, server_round: int, answered: int, asked: int, seconds: float, figures: dict[str, float]
    ) -> None:
        """Say how a round ended: how many of the sites that were asked to train did, its seconds, its figures."""
        done = server_round - self._first + 1
        left = (time.monotonic() - self._start) / done * (self.rounds - server_round)
        sites = f"{asked} site{'s' * (asked != 1)}"
        if answered < asked:
            sites = f"{answered} of {sites}"
        note = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._overall, completed=server_round, note=f"{sites}  {note}", left=f"{left:.0f} s left")
            self._bar.refresh()
        else:
            print(
                f"round {server_round}/{self.rounds}  {sites}  {note}  {seconds:.1f} s, {left:.0f} s left",
                flush=True,
            )


def counted(items: Iterable[T], total: int, title: str, quiet: float = 2.0) -> Iterator[T]:
    """Pass items on; on a terminal, count them in a bar once they have taken ``quiet`` seconds.

    A worker process shows none: the terminal is its parent's.
    """
    start, bar, shown = time.monotonic(), None, 0.0
    talks = sys.stdout.isatty() and parent_process() is None
    try:
        for done, item in enumerate(items):
            if talks and (now := time.monotonic()) - start > quiet and now - shown > 0.1:
                shown = now
                if bar is None:
                    bar = _bar()
                    bar.start()
                    task = bar.add_task(title, total=total, note="", left="")
                bar.update(task, completed=done, left=f"{(now - start) / (done + 1) * (total - done):.0f} s left")
                bar.refresh()
            yield item
    finally:
        if bar is not None:
            bar.update(task, completed=total, left="")
            bar.stop()


def print_table(title: str, header: list[str], rows: list[list[str]], note: str = "") -> None:
    """Print a run's figures as a table, and what there is to note beneath it."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        if note:
            print(note, flush=True)
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(title)
    for row in [header, *rows]:
        print(
            "  "
            + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        )
    if note:
        print(note)
    sys.stdout.flush()


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    # Refreshed by hand: a refreshing thread would hold locks while workers are forked.
    return Bar(
        TextColumn("{task.description:32}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
        auto_refresh=False,
    )
