"""Logging: one line per event with its time on stderr, from rank 0; warnings from every rank.

    log = get_logger(__name__)
    log.info("Resuming run %s ...", name)

`print` is for the result of a command alone, so that stdout can be piped. The handler writes to the
current `sys.stderr`, which a live progress bar or a test may have replaced.
"""

import logging
import sys
import time
import warnings
from typing import TextIO

from ecgfounder_train.core.ranks import process_rank

PACKAGE = "ecgfounder_train"
_QUIET = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric", "submitit")
_STAGES = ((120.0, 10.0), (3600.0, 60.0), (float("inf"), 600.0))
"""Until so many seconds after the start, a progress line every so many seconds."""


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module of this package; the first call attaches the handler."""
    package = logging.getLogger(PACKAGE)
    if not package.handlers:
        handler = _StderrHandler()
        handler.setFormatter(_Formatter())
        handler.addFilter(_of_this_rank)
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        package.propagate = False
    return logging.getLogger(name)


def quieten_libraries() -> None:
    """Show errors alone of libraries whose banners repeat what this package reports itself."""
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


def show_warnings_as_log_lines() -> None:
    """Show Python's warnings as lines of the log, without file and line number."""
    log = get_logger(PACKAGE)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.warning("%s", message)

    warnings.showwarning = show


class Cadence:
    """When the next progress line is due.

    Every 10 s in the first two minutes, then every minute, after an hour every ten minutes: a start
    is watched closely, and the log of three days stays readable.
    """

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a line is due, and count it as written."""
        now = time.monotonic()
        interval = next(every for until, every in _STAGES if now - self._start < until)
        if now - self._last < interval:
            return False
        self._last = now
        return True


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            # None where the process has no stderr.
            if sys.stderr is not None:
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()
        except (OSError, ValueError):
            pass  # the pipe is closed: the work continues


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        rank = process_rank()
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        where = f"rank {rank}: " if rank else ""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{stamp} {where}{level}{record.getMessage()}"


def _of_this_rank(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or process_rank() == 0
