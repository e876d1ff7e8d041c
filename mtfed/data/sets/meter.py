"""Show the progress of a long operation: a bar on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

LINE_INTERVAL = 10.0  # seconds between lines without a terminal
REFRESH_INTERVAL = 0.1  # seconds between updates of the bar
OnProgress = Callable[[int, int], None]  # called with the amount done and the total (0: unknown)


def ignore_progress(done: int, total: int) -> None:
    """Show nothing."""


class Meter:
    """Context that returns an :data:`OnProgress` function, which shows the progress.

    Args:
        action: what is being done.
        unit: "bytes", which are shown in MiB, or the noun for what is counted.
    """

    def __init__(self, action: str, unit: str) -> None:
        self.action, self.unit = action, unit
        self._bar: Any = _bar() if sys.stdout.isatty() else None
        self._task = None if self._bar is None else self._bar.add_task(action, total=None, note="")
        self._last_update = time.monotonic()

    def __enter__(self) -> OnProgress:
        if self._bar is not None:
            self._bar.start()
        return self.update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show the amount done, unless the last update was a moment ago."""
        now = time.monotonic()
        is_last = bool(total) and done >= total
        interval = LINE_INTERVAL if self._bar is None else REFRESH_INTERVAL
        if now - self._last_update < interval and not (is_last and self._bar is not None):
            return
        self._last_update = now
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total or None, note=self._amount(done, total))
            self._bar.refresh()
        else:
            print(f"{self.action}: {self._amount(done, total)}", flush=True)

    def _amount(self, done: int, total: int) -> str:
        if self.unit == "bytes":
            return f"{done / 2**20:.1f}" + (f" of {total / 2**20:.1f} MiB" if total else " MiB")
        return f"{done}" + (f" of {total} {self.unit}" if total else f" {self.unit}")


def _bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    return Progress(*columns, auto_refresh=False)
