"""metrics.csv and the loggers beside it: one row per logged step or validation, by start.

After a kill the file may hold rows the resumed run will write again. They are dropped at the start,
so that the curve of an interrupted run is that of an undisturbed one.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.logging import get_logger

log = get_logger(__name__)

COLUMNS = (
    "samples_seen",
    "global_step",
    "epoch",
    "train/loss",
    "train/grad_norm",
    "lr",
    "ecg_per_s",
    "data_wait_share",
    "flop_utilisation",
    "gpu_memory_gb",
    "quarantined",
    "skipped_steps",
)
"""Columns of every run; behind them what its validation measures, last the number of the start."""
START_COLUMN = "start"


class MetricsLog:
    """Appends rows to metrics.csv and hands them to the loggers; a logger's failure is a warning.

    Args:
        path: The CSV file.
        samples_seen: Position of the run; later rows of an existing file are dropped.
        loggers: Lightning loggers that get the same numbers.
        validation_columns: What the run's validation measures.
        start: Number of this start of the run, in each of its rows.
    """

    def __init__(
        self,
        path: Path,
        samples_seen: int,
        loggers: Sequence[Logger],
        validation_columns: Sequence[str],
        start: int = 1,
    ) -> None:
        self.path = path
        self.loggers = list(loggers)
        self.start = start
        before, kept = _rows_until(path, samples_seen) if path.is_file() else ([], [])
        # What an earlier start measured stays, also where this one does not measure it.
        measured = dict.fromkeys((*COLUMNS, *validation_columns, *before))
        self.columns = (*(name for name in measured if name != START_COLUMN), START_COLUMN)
        with atomic_file(path, "w") as handle:
            writer = csv.DictWriter(handle, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; values keep every digit (repr of a float)."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as handle:
                writer = csv.DictWriter(handle, self.columns)
                writer.writerow({**row, START_COLUMN: self.start})
        except OSError as error:
            raise UserError(
                f"Cannot write {self.path}: {error.strerror}. The checkpoints are untouched. Free "
                "space, then run the same command again."
            ) from error
        numbers = {name: value for name, value in row.items() if name not in COLUMNS[:2]}
        for logger in list(self.loggers):
            try:
                logger.log_metrics(
                    numbers | {"samples_seen": row["samples_seen"]}, step=int(row["global_step"])
                )
            except Exception as error:  # a logger must never stop training
                log.warning("%s failed (%s); it is switched off.", type(logger).__name__, error)
                self.loggers.remove(logger)

    def close(self) -> None:
        """Let the loggers finish."""
        for logger in self.loggers:
            try:
                logger.finalize("success")
            except Exception as error:  # the run is complete even if its logger fails
                log.warning("%s failed at the end (%s).", type(logger).__name__, error)


def _rows_until(path: Path, samples_seen: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the columns of a file and its whole rows up to a position."""
    kept = []
    with open(path, newline="", encoding="utf-8", errors="replace") as handle:
        reader = csv.DictReader(line.replace("\0", "") for line in handle)
        columns = [name for name in reader.fieldnames or () if name]
        for row in reader:
            # A row cut by a kill lacks columns or holds text that is not a number.
            if None in row or None in row.values():
                continue
            seen = row.get("samples_seen") or ""
            if seen.isdecimal() and int(seen) <= samples_seen:
                kept.append(row)
    return columns, kept
