"""A folder like HEEDB's: both sites' records, tables and quirks, and the truth beside them.

```
OUT/ECG/I0001/{metadata,12SL_diagnoses,ICD_codes,WFDB}   .mat, format 16+24   (layouts 5.0, 4.0)
OUT/ECG/I0006/...                                        .dat, format 16
OUT/ECG/WFDB, OUT/Metadata                               layout 2.0
OUT/PatientMergeHistory/PatientMergeHistory.csv
OUT/simulation/{truth.csv,summary.json}                  what HEEDB does not have
```
"""

import errno
import json
import multiprocessing
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate.faults import LEADS
from ecgfounder_train.simulate.recordings import generator, write_patients
from ecgfounder_train.simulate.settings import SITES, check_settings
from ecgfounder_train.simulate.tables import (
    MERGE_COLUMNS,
    METADATA_COLUMNS,
    TRUTH_COLUMNS,
    Rows,
    SiteTables,
    TableWriter,
)

__all__ = ["LEADS", "METADATA_COLUMNS", "ArchiveSummary", "write_archive"]

_PATIENTS_PER_TASK = 16
_NOT_SETTINGS = ("out", "gallery")


@dataclass(frozen=True)
class ArchiveSummary:
    """What was written: totals, and by site every quirk with how often it occurs."""

    root: Path
    num_patients: int
    num_records: int
    counts: dict[str, dict[str, int]]

    @property
    def num_headers(self) -> int:
        """Header files on disk: what a reader that walks the folders finds."""
        return sum(site["header_files"] for site in self.counts.values())

    @property
    def num_bad(self) -> int:
        """Records written with one of the faults of `bad_records`."""
        return sum(
            number
            for site in self.counts.values()
            for name, number in site.items()
            if name.startswith("bad_")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without the path, for a file that must not depend on the machine."""
        return {
            "num_patients": self.num_patients,
            "num_records": self.num_records,
            "num_headers": self.num_headers,
            "num_bad": self.num_bad,
            "counts": self.counts,
        }


def write_archive(
    config: Mapping[str, Any], on_progress: Callable[[int, int], None] | None = None
) -> ArchiveSummary:
    """Write a synthetic HEEDB archive into `config["out"]` and return what is in it.

    The archive is built beside `out` and renamed when it is whole.

    Args:
        config: `out` and any of `settings.DEFAULTS`.
        on_progress: Called with (patients done, patients in all).

    Raises:
        UserError: An unknown key, an impossible rate, `out` is not an empty folder, disk full.
    """
    settings = check_settings(
        {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    )
    out = _checked_out(config.get("out"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UserError(f"Cannot write to {out.parent}: {error.strerror}.") from error
    try:
        summary = _write(building, out, settings, on_progress)
        building.chmod(0o755)  # mkdtemp makes folders that only their owner can enter.
        building.replace(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk of {out} is full; nothing was left behind. Free space (a patient takes "
                "about 0.6 MB) or lower num_patients."
            ) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return summary


def _checked_out(value: Any) -> Path:
    if not value:
        raise UserError("out is missing: name the folder to write, for example out=data/heedb.")
    out = Path(str(value)).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file; name a folder that is empty or does not exist.")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"out={out} is not empty; nothing there was touched. Name another folder or delete it."
        )
    return out


def _write(
    building: Path,
    out: Path,
    settings: dict[str, Any],
    on_progress: Callable[[int, int], None] | None,
) -> ArchiveSummary:
    num_patients, layout = settings["num_patients"], settings["layout"]
    # Release 2.0 held one site.
    second_share = 0.0 if layout == "2.0" else settings["sites"]["I0006"]["share"]
    numbers = {"I0006": round(num_patients * second_share)}
    numbers["I0001"] = num_patients - numbers["I0006"]
    patients = [(site, number) for site in SITES for number in range(numbers[site])]
    tasks = [
        patients[first : first + _PATIENTS_PER_TASK]
        for first in range(0, num_patients, _PATIENTS_PER_TASK)
    ]
    tables = {
        site: SiteTables(building, site, layout, _blank_rows(settings, site, numbers[site]))
        for site in SITES
        if numbers[site]
    }
    merges = TableWriter(
        building / "PatientMergeHistory" / "PatientMergeHistory.csv", MERGE_COLUMNS
    )
    truth = TableWriter(building / "simulation" / "truth.csv", TRUTH_COLUMNS)
    done = 0
    for task, results in zip(tasks, _run(tasks, building, settings), strict=True):
        for (site, _), rows in zip(task, results, strict=True):
            tables[site].add(rows)
            merges.add(rows.merges)
            truth.add(rows.truth)
        done += len(task)
        if on_progress:
            on_progress(done, num_patients)
    merges.close()
    truth.close()
    counts = {site: table.close() for site, table in tables.items()}
    summary = ArchiveSummary(
        root=out,
        num_patients=num_patients,
        num_records=sum(site["records"] for site in counts.values()),
        counts=counts,
    )
    text = json.dumps(summary.to_dict(), indent=1, sort_keys=True)
    (building / "simulation" / "summary.json").write_text(text + "\n")
    return summary


def _blank_rows(settings: Mapping[str, Any], site: str, num_patients: int) -> list[int]:
    """Return which metadata rows of the second site have no patient id."""
    if site != "I0006":
        return []
    among = max(1, num_patients // 2)  # Every patient has a row, all but a few.
    number = min(settings["blank_patient_ids"], among)
    rows: list[int] = generator(settings, site).choice(among, number, replace=False).tolist()
    return rows


def _run(
    tasks: Sequence[list[tuple[str, int]]], root: Path, settings: dict[str, Any]
) -> Iterator[list[Rows]]:
    """Yield the rows of every task in order, worked on by this process or by several."""
    num_workers = settings["num_workers"]
    if num_workers == 1:
        for task in tasks:
            yield write_patients(task, root, settings)
        return
    # Not fork: callers may hold threads (torch, polars), which do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        waiting: deque[Future[list[Rows]]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(write_patients, task, root, settings))
                if len(waiting) > 8 * num_workers:  # Finished rows must not pile up in memory.
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
