"""Tables: the catalog of HEEDB at its true size against plain pandas on a part of it.

Ours reads three label tables, joins, packs the labels of all readers, counts their agreement, makes
keys, merges patients, splits and counts. pandas reads the needed columns, joins, and packs the
physician's labels; it runs on a tenth of the rows, because it would need more memory than most
machines have.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate import write_full_tables


@dataclass(frozen=True)
class Settings:
    """Rows of both sites, and where the tables lie."""

    rows_mgh: int = 10_608_417
    rows_emory: int = 998_844
    pool_patients: int = 20_000
    reference_share: float = 0.1
    folder: str | None = None
    seed: int = 0


SMALL: dict[str, Any] = {
    "rows_mgh": 150_000,
    "rows_emory": 15_000,
    "pool_patients": 1500,
    "reference_share": 1.0,
}


def run(settings: Settings) -> Outcome:
    """Return rows per second and peak memory of both sides.

    Raises:
        UserError: pandas is not installed, or a side failed.
    """
    with _tables(settings) as root:
        sites = (settings.rows_mgh, settings.rows_emory)
        ours = _side("ours", root, sites)
        reference = _side(
            "pandas", root, [round(number * settings.reference_share) for number in sites]
        )
    rate, reference_rate = (side["rows"] / side["seconds"] for side in (ours, reference))
    per_cpu, reference_per_cpu = (side["rows"] / side["cpu_s"] for side in (ours, reference))
    record = {
        "ratio": round(rate / reference_rate, 1),
        "ratio_cpu": round(per_cpu / reference_per_cpu, 1),
        "rows": ours["rows"],
        "seconds": round(ours["seconds"], 1),
        "cpu_s": round(ours["cpu_s"], 1),
        "read_s": round(ours["read_s"], 1),
        "write_s": round(ours["write_s"], 1),
        "peak_bytes": ours["peak_bytes"],
        "rows_per_s": round(rate),
        "reference_rows": reference["rows"],
        "reference_s": round(reference["seconds"], 1),
        "reference_cpu_s": round(reference["cpu_s"], 1),
        "reference_peak_bytes": reference["peak_bytes"],
        "reference_rows_per_s": round(reference_rate),
        "with_label": ours["with_label"],
        "positives": ours["positives"],
        "reference_with_label": reference["with_label"],
        "reference_positives": reference["positives"],
    }
    lines = [
        f"{'':<26}{'rows':>12}{'wall s':>9}{'CPU s':>9}{'rows/s':>10}{'peak GB':>9}",
        *(
            f"{name:<26}{side['rows']:>12,}{side['seconds']:>9.1f}{side['cpu_s']:>9.1f}"
            f"{side['rows'] / side['seconds']:>10,.0f}{side['peak_bytes'] / 1e9:>9.2f}"
            for name, side in (("ours, all of a catalog", ours), ("pandas, labels only", reference))
        ),
        f"Per row {record['ratio']} times faster by the clock, {record['ratio_cpu']} by CPU time.",
        *(
            f"{quirk['site']} {quirk['name']:<28}{quirk['found']:>12,}"
            + (f"   published {quirk['published']:,}" if quirk["published"] is not None else "")
            for quirk in ours["quirks"]
        ),
    ]
    return Outcome("\n".join(lines), record)


@contextmanager
def _tables(settings: Settings) -> Iterator[Path]:
    """Give the folder of the tables, written unless `folder` holds them already."""
    rows = {"I0001": settings.rows_mgh, "I0006": settings.rows_emory}
    if settings.folder is not None:
        root = Path(settings.folder).expanduser()
        if not (root / "ECG").is_dir():
            write_full_tables(root, rows, seed=settings.seed, pool_patients=settings.pool_patients)
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="bench-tables-") as folder:
        root = Path(folder) / "heedb"
        write_full_tables(root, rows, seed=settings.seed, pool_patients=settings.pool_patients)
        yield root


def _side(name: str, root: Path, rows: Sequence[int]) -> dict[str, Any]:
    command = [sys.executable, "-m", "ecgfounder_train.benchmarks._tables_sides", name]
    done = subprocess.run(
        [*command, str(root), *map(str, rows)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise UserError(f"The side {name} of the benchmark failed: {last[0]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
