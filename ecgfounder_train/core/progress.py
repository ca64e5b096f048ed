"""Progress with rate and time left: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ecgfounder_train.core.logging import Cadence, get_logger

Item = TypeVar("Item")
log = get_logger(__name__)
RATE_WINDOW_S = 60.0


class ProgressMeter:
    """Shows progress, rate and time left on stderr; a context manager.

    The rate is that of the last minute: a mean since the start hides that a job has slowed down.

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
        self._cadence = Cadence()
        self._points = deque([(time.monotonic(), done)])
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
        """Units per second over the last minute."""
        start_s, start = self._points[0]
        return (self.done - start) / max(time.monotonic() - start_s, 1e-9)

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` units of the total are done; `note` is shown until the next one."""
        self.done = min(done, self.total)
        self.note = note or self.note
        if not self._enabled:
            return
        now = time.monotonic()
        while len(self._points) > 1 and now - self._points[1][0] >= RATE_WINDOW_S:
            self._points.popleft()
        if now - self._points[-1][0] >= 1.0:
            self._points.append((now, self.done))
        if self._bar:
            self._bar.update(self._task, completed=self.done, tail=self._tail())
        elif self._cadence.is_due() or self.done >= self.total:
            count = f"{self.done:,}/{self.total:,} {self.unit}"
            log.info("%s: %s, %s", self.description, count, self._tail())

    def _tail(self) -> str:
        if self.done == self._first:
            return self.note or "starting"
        rate = self.rate
        left = format_duration((self.total - self.done) / rate) if rate > 0 else "unknown time"
        tail = f"{rate:,.0f} {self.unit}/s, {left} left"
        return f"{tail}, {self.note}" if self.note else tail


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
