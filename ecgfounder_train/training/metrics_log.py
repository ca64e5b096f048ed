"""metrics.csv and the loggers beside it: one row per logged step or validation.

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
"""Columns of every run; what its validation measures stands behind them."""


class MetricsLog:
    """Appends rows to metrics.csv and hands them to the loggers; a logger's failure is a warning.

    Args:
        path: The CSV file.
        samples_seen: Where the run stands; later rows of an existing file are dropped.
        loggers: Lightning loggers that get the same numbers.
        validation_columns: What the run's validation measures.
    """

    def __init__(
        self,
        path: Path,
        samples_seen: int,
        loggers: Sequence[Logger],
        validation_columns: Sequence[str],
    ) -> None:
        self.path = path
        self.loggers = list(loggers)
        self.columns = (*COLUMNS, *validation_columns)
        kept = _rows_until(path, samples_seen, self.columns) if path.is_file() else []
        with atomic_file(path, "w") as handle:
            writer = csv.DictWriter(handle, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; values keep every digit (repr of a float)."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as handle:
                csv.DictWriter(handle, self.columns).writerow(row)
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
                print(f"warning: {type(logger).__name__} failed ({error}); it is switched off.")
                self.loggers.remove(logger)

    def close(self) -> None:
        """Let the loggers finish."""
        for logger in self.loggers:
            try:
                logger.finalize("success")
            except Exception as error:  # the run is complete whatever its logger says
                print(f"warning: {type(logger).__name__} failed at the end ({error}).")


def _rows_until(path: Path, samples_seen: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    kept = []
    with open(path, newline="", encoding="utf-8", errors="replace") as handle:
        for row in csv.DictReader(line.replace("\0", "") for line in handle):
            # A row cut by a kill misses columns or holds text that is no number.
            if None in row.values() or not (row.get("samples_seen") or "").isdecimal():
                continue
            if int(row["samples_seen"]) <= samples_seen:
                kept.append({name: row.get(name, "") for name in columns})
    return kept
