"""Older releases of HEEDB: places of their tables and differences from 5.0.

| release | labels (below a site, or `Metadata/`) | metadata |
|---|---|---|
| 3.0, 4.0 | `12SL_diagnoses/diagnoses.csv` (FileName, codes), sites as in 5.0 | as in 5.0 |
| 2.0 | `ECG_Interpretations.psv` (file_source, diagnostic_codes) | `demographics_ECG.csv` |

One column of codes does not state who assigned them:
`label_source` has no choice there, and the rows are
counted as `label_rows_of_unknown_reader`. Release 2.0 holds one site (MGH, named I0001 here as it
is later), ages in years, and `duplicated.csv` with the records to leave out.
"""

from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.records.sources.file_names import parse_file_names
from ecgfounder_train.records.sources.heedb_tables import (
    LabelTable,
    SiteTable,
    read_labels,
    read_metadata,
)
from ecgfounder_train.records.sources.table import collect, find_column, scan_strings

DIAGNOSES = Path("12SL_diagnoses") / "diagnoses.csv"
"""The table of labels of 3.0 and 4.0, below a site's folder."""
_DEMOGRAPHICS = "demographics_ECG.csv"
_INTERPRETATIONS = "ECG_Interpretations.psv"
_DUPLICATED = "duplicated.csv"
_SITE = "I0001"


def find_release_2(root: Path) -> Path | None:
    """Return the `Metadata` folder of a release 2.0, or None."""
    candidates = [root / "Metadata", root / "ECG" / "Metadata"]
    if root.name == "ECG":  # The tables are beside ECG/, outside this root.
        candidates.append(root.parent / "Metadata")
    return next((folder for folder in candidates if (folder / _DEMOGRAPHICS).is_file()), None)


def read_release_2(root: Path, reader: str) -> tuple[SiteTable, LabelTable]:
    """Return one row per line of the demographics table, and the table of codes.

    Records that `duplicated.csv` names stay in the table as rejected.

    Args:
        reader: What the column of codes is called.

    Raises:
        UserError: A table or a column is missing.
    """
    folder = find_release_2(root)
    assert folder is not None
    path = folder / _INTERPRETATIONS
    if not path.is_file():
        raise UserError(
            f"No labels table: {path} does not exist. HEEDB 2.0 keeps its statements there; fetch "
            "it, or use source=wfdb_folder for recordings without labels."
        )
    codes = find_column(scan_strings(path, separator="|")[1], ["diagnostic_codes"], path)
    labels = read_labels(path, "file_source", {reader: codes}, "|")
    site = read_metadata(folder / _DEMOGRAPHICS, _SITE, _signal_prefix(root), years=True)
    doubled = pl.col("stem").is_in(_read_duplicated(folder / _DUPLICATED).implode())
    site.records = site.records.with_columns(
        pl.when(doubled).then(pl.lit(RejectReason.DUPLICATE_RECORD.value)).alias("reject_reason")
    )
    site.counts["duplicates_left_out"] = site.records["reject_reason"].count()
    return site, labels


def _signal_prefix(root: Path) -> str:
    """Return the folder of the records, relative to the root."""
    for folder in ("ECG/WFDB", "WFDB"):
        if (root / folder).is_dir():
            return f"{folder}/"
    return "WFDB/" if root.name == "ECG" else "ECG/WFDB/"


def _read_duplicated(path: Path) -> pl.Series:
    if not path.is_file():
        return pl.Series("stem", [], dtype=pl.UInt64)
    frame, columns = scan_strings(path)
    name = find_column(columns, ["file_name", "FileName"], path)
    names = collect(frame.select(pl.col(name).alias("name")), path)["name"]
    return parse_file_names(names, None).hashes["stem"].drop_nulls()
