"""The rejects ledger: every rejected record with its reason. It holds paths: private."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.shards.plan import REJECT_COLUMNS

REJECTS_NAME = "rejects.csv"
MISSING_FILES = (RejectReason.MISSING_HEADER.value, RejectReason.MISSING_SIGNAL_FILE.value)


@dataclass(frozen=True)
class RejectLimits:
    """Shares of all records found beyond which a build fails."""

    share: float
    by_reason: Mapping[str, float]
    min_rejects: int


class Ledger:
    """Every rejected record with its reason, and the limits on how many there may be."""

    def __init__(self, limits: RejectLimits, found: int, path: Path) -> None:
        self.limits, self.found, self.path = limits, found, path
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, rows: list[Any]) -> None:
        """Enter rejected records: record_path, record_key, reason, detail."""
        self.rows += rows

    def counts(self) -> dict[str, int]:
        """Return the number of records by reason."""
        return dict(sorted(Counter(reason for _, _, reason, _ in self.rows).items()))

    def check(self) -> None:
        """Stop as soon as a reason is sure to exceed its share of all records found.

        Raises:
            UserError: Names reason, share, most frequent detail and remedy.
        """
        for reason, count in self.counts().items():
            exceptions = self.limits.by_reason
            share = exceptions.get(reason, self.limits.share)
            if count < self.limits.min_rejects or count <= share * self.found:
                continue
            key = "max_reject_share" + (f"_by_reason.{reason}" if reason in exceptions else "")
            details = Counter(row[3] for row in self.rows if row[2] == reason)
            self.write()
            raise UserError(
                f"{count} of {self.found} records ({count / self.found:.1%}) are rejected as "
                f"{reason}, more than build.{key}={share} allows. Most often: "
                f"{details.most_common(1)[0][0]!r}. {self.path} lists them. "
                + (
                    "Fetch the missing files and run again with build.retry_rejected=true, or "
                    "prepare the part that is there: source.records=LIST|'GLOB' (PTB-XL also "
                    "source.folds=[...])."
                    if reason in MISSING_FILES
                    else "Repair the archive and run again with build.retry_rejected=true, or "
                    f"raise build.{key}."
                )
            )

    def write(self) -> None:
        """Write the ledger in path order."""
        columns = dict.fromkeys(REJECT_COLUMNS, pl.String)
        with atomic_file(self.path) as handle:
            write_frame(pl.DataFrame(sorted(self.rows), schema=columns, orient="row"), handle)
