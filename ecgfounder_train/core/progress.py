"""Progress with rate and time left: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")
LOG_INTERVAL_S = 10.0


class RateColumn(ProgressColumn):
    """Shows finished items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} {self.unit}/s")


def track(
    items: Iterable[Item], description: str, total: int, unit: str = "records", weight: int = 1
) -> Iterator[Item]:
    """Yield `items` and show how far, how fast and how long still, on stderr.

    Args:
        items: What to go through; an item counts when the next one is asked for.
        description: What is being done, in a few words.
        total: How many units there are in all.
        unit: What is counted.
        weight: Units per item.
    """
    console = Console(file=sys.stderr)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(description, total=total)
            for item in items:
                yield item
                progress.advance(task, weight)
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done = min(done + weight, total)
        now = time.monotonic()
        if now - last >= LOG_INTERVAL_S or done >= total:
            last = now
            print(_line(description, done, total, now - start, unit), file=sys.stderr, flush=True)


def _line(description: str, done: int, total: int, elapsed_s: float, unit: str) -> str:
    rate = done / max(elapsed_s, 1e-9)
    left_s = (total - done) / max(rate, 1e-9)
    return (
        f"{description}: {done:,}/{total:,} {unit}, {rate:,.0f}/s, {format_duration(left_s)} left"
    )


def format_duration(seconds: float) -> str:
    """Return ``h:mm:ss`` (or ``m:ss`` below an hour)."""
    whole = round(max(seconds, 0.0))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
