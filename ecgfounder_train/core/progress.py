"""Progress with rate and time left: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Item = TypeVar("Item")
LOG_INTERVAL_S = 10.0


class ProgressMeter:
    """Shows how far, how fast and how long still, on stderr; a context manager.

    The rate is that of this process since it began: what a resumed run had done before is in
    `done` but not in the rate.

    Args:
        description: What is being done, in a few words.
        total: How many units there are in all.
        unit: What is counted.
        done: Units done before.
        enabled: False on ranks that do not print.
    """

    def __init__(
        self, description: str, total: int, unit: str, done: int = 0, enabled: bool = True
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = self._first = done
        self.note = ""
        self._start = self._last_line = time.monotonic()
        console = Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._enabled = enabled
        if enabled and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[tail]}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(description, total=total, completed=done, tail="")

    def __enter__(self) -> "ProgressMeter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Units per second since the meter was made."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` units of the total are done; `note` is shown until the next one."""
        self.done = min(done, self.total)
        self.note = note or self.note
        if not self._enabled:
            return
        left_s = (self.total - self.done) / max(self.rate, 1e-9)
        tail = f"{self.rate:,.0f} {self.unit}/s, {format_duration(left_s)} left"
        tail += f", {self.note}" if self.note else ""
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self.done, tail=tail)
        elif now - self._last_line >= LOG_INTERVAL_S or self.done >= self.total:
            self._last_line = now
            line = f"{self.description}: {self.done:,}/{self.total:,} {self.unit}, {tail}"
            print(line, file=sys.stderr, flush=True)


def track(
    items: Iterable[Item], description: str, total: int, unit: str = "records", weight: int = 1
) -> Iterator[Item]:
    """Yield `items` and show progress.

    Args:
        items: What to go through; an item counts when the next one is asked for.
        description: What is being done, in a few words.
        total: How many units there are in all.
        unit: What is counted.
        weight: Units per item.
    """
    with ProgressMeter(description, total, unit) as meter:
        for item in items:
            yield item
            meter.update(meter.done + weight)


def format_duration(seconds: float) -> str:
    """Return ``h:mm:ss`` (or ``m:ss`` below an hour)."""
    whole = round(max(seconds, 0.0))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
