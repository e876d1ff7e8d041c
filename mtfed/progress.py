"""Terminal output of long work, by rich: progress bars on a terminal, plain lines otherwise, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import Any, TypeVar

T = TypeVar("T")


class Progress:
    """Show the rounds of a run: sites, loss, metrics and time left."""

    def __init__(self, name: str, strategy: str, first_round: int, rounds: int) -> None:
        self.title = f"{name} · {strategy}"
        self.rounds = rounds
        self._first = first_round
        self._start = time.monotonic()
        self._bar: Any = _make_bar() if sys.stdout.isatty() else None
        self._overall = self._round = None  # the bar's tasks
        if self._bar is not None:
            self._overall = self._bar.add_task(self.title, total=rounds, completed=first_round - 1, note="", left="")
            self._round = self._bar.add_task("", total=1, note="", left="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def follow(self, server_round: int, action: str, replies: Iterable[T], total: int) -> Iterator[T]:
        """Yield the replies and count them."""
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
        """Report a finished round: how many of the asked sites answered, its duration, and its figures."""
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
            line = f"round {server_round}/{self.rounds}  {sites}  {note}  {seconds:.1f} s, {left:.0f} s left"
            print(line, flush=True)


def counted(items: Iterable[T], total: int, title: str, quiet: float = 2.0) -> Iterator[T]:
    """Yield the items; on a terminal, show a bar once they have taken ``quiet`` seconds.

    Worker processes show no bar, because the terminal belongs to their parent.
    """
    start, bar, last_update = time.monotonic(), None, 0.0
    shows_bar = sys.stdout.isatty() and parent_process() is None
    try:
        for done, item in enumerate(items):
            if shows_bar and (now := time.monotonic()) - start > quiet and now - last_update > 0.1:
                last_update = now
                if bar is None:
                    bar = _make_bar()
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
    """Print a title, a table whose first column is left-aligned and the others right-aligned, and a note."""
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    table = Table(box=HEAVY_HEAD if on_terminal else None)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    # A pipe or log file has no width: lines are never cut or wrapped there.
    console = Console(file=sys.stdout) if on_terminal else Console(file=sys.stdout, width=1000)
    console.print(Text(title, "italic"), soft_wrap=True)  # the title of a Table would be wrapped to its width
    console.print(table)
    if note:
        print(note)
    sys.stdout.flush()


def _make_bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    # Refreshed explicitly: a refreshing thread could hold locks while workers are forked.
    return Bar(
        TextColumn("{task.description:32}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
        auto_refresh=False,
    )
