"""Both pages of a prepared folder: made when something changed, else left as they are."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from ecgfounder_train import __version__
from ecgfounder_train.catalog import Catalog
from ecgfounder_train.core.csv_files import unescape_formula
from ecgfounder_train.core.files import atomic_file, sha256_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.data_report.counts import count_records
from ecgfounder_train.data_report.disclosure import check_min_cell
from ecgfounder_train.data_report.page import ReportPage
from ecgfounder_train.data_report.strips import remove_strips, strips_page
from ecgfounder_train.records.sources import SourceTable
from ecgfounder_train.settings.preparing import ReportSettings
from ecgfounder_train.shards import RecordPlace, ShardSet
from ecgfounder_train.shards.manifest import REPORT_NAME

STRIPS_NAME = "data_strips.local.html"
NOTE_NAME = "data_report.json"
REJECTS_NAME = "rejects.csv"
_FOOTER = f"ecgfounder_train {__version__}. Research use only; not a medical device."


@dataclass(frozen=True)
class ReportOptions(ReportSettings, name="report"):
    """The keys of ``report`` in ``configs/prepare.yaml``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_min_cell(self.min_cell)


def write_data_report(
    folder: Path | str,
    private: Path | str,
    catalog: Catalog,
    table: SourceTable,
    options: ReportOptions,
) -> Path | None:
    """Write the data report of a folder of shards, and the strips; return the report's path.

    The report goes to the shards, the strips to the private folder. Both are left as they are when
    neither the data, the options nor the pages have changed since they were written.

    Args:
        folder: Finished shards.
        private: Where catalog and ledger lie.
        catalog: What the shards were made from.
        table: The source, to read rejected records again.
        options: The keys of ``report``.
    """
    folder, private = Path(folder), Path(private)
    report, strips = folder / REPORT_NAME, private / STRIPS_NAME
    if not options.enabled:
        return None
    assert catalog.facts is not None, "a catalog that was just built has facts"
    shards = ShardSet.open(folder)
    rejects = _read_rejects(private / REJECTS_NAME)
    made_of = fingerprint(
        [
            shards.manifest.to_json(),
            catalog.facts.to_dict(),
            rejects.rows(),
            asdict(options),
            __version__,
        ]
    )
    note = private / NOTE_NAME
    pages = [report, strips] if options.strips else [report]
    if not options.strips:
        remove_strips(strips)
    if _is_current(note, made_of, pages):
        return report
    records = count_records(catalog.frame, rejects["record_key"], shards)
    ReportPage(shards.manifest, catalog.facts, records, options.min_cell).build().write(
        report, _FOOTER
    )
    if options.strips:
        place = RecordPlace(table.root, dict(table.storage_options), table.read_ecg)
        strips_page(shards, rejects, place.read_start, options.strips).write(strips, _FOOTER)
    content = {"made_of": made_of, "sha256": {page.name: sha256_file(page) for page in pages}}
    with atomic_file(note, "w") as handle:
        handle.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return report


def _read_rejects(path: Path) -> pl.DataFrame:
    names = ("record_path", "record_key", "reason", "detail")
    frame = pl.read_csv(path, schema=dict.fromkeys(names, pl.String)).fill_null("")
    return frame.with_columns(
        pl.col("record_path").map_elements(unescape_formula, return_dtype=pl.String)
    )


def _is_current(note: Path, made_of: str, pages: list[Path]) -> bool:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        return content["made_of"] == made_of and all(
            content["sha256"][page.name] == sha256_file(page) for page in pages
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
