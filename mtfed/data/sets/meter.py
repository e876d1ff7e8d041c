"""How far something is that takes long: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

EVERY = 10.0  # seconds between lines where there is no terminal
REFRESH = 0.1  # seconds between pictures of the bar


class Meter:
    """Give a function that is told how much is done, of how much (0: not known), and show it.

    Args:
        what: is being done.
        unit: "bytes", which are shown in MiB, or what is counted.
    """

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self._bar: Any = None
        self._shown = time.monotonic()

    def __enter__(self) -> Callable[[int, int], None]:
        if sys.stdout.isatty():
            self._bar = _bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=None, note="")
        return self.tell

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def tell(self, done: int, of: int) -> None:
        """Show that so much is done."""
        now = time.monotonic()
        last = bool(of) and done >= of
        if now - self._shown < (EVERY if self._bar is None else REFRESH) and not (last and self._bar is not None):
            return
        self._shown = now
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=of or None, note=self._amount(done, of))
            self._bar.refresh()
        else:
            print(f"{self.what}: {self._amount(done, of)}", flush=True)

    def _amount(self, done: int, of: int) -> str:
        if self.unit == "bytes":
            return f"{done / 2**20:.1f}" + (f" of {of / 2**20:.1f} MiB" if of else " MiB")
        return f"{done}" + (f" of {of} {self.unit}" if of else f" {self.unit}")


def _bar() -> Any:
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        auto_refresh=False,
    )
