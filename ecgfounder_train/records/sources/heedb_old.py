"""Older releases of HEEDB: where their tables lie and how they differ from 5.0.

| release | labels (below a site, or `Metadata/`) | metadata |
|---|---|---|
| 3.0, 4.0 | `12SL_diagnoses/diagnoses.csv` (FileName, codes), sites as in 5.0 | as in 5.0 |
| 2.0 | `ECG_Interpretations.psv` (file_source, diagnostic_codes) | `demographics_ECG.csv` |

One column of codes does not say who gave them: `label_source` has no choice there, and the rows are
counted as `label_rows_of_unknown_reader`. Release 2.0 holds one site (MGH, named I0001 here as it
is later), ages in years, and `duplicated.csv` with the records to leave out.
"""

from collections import Counter
from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.records.sources.table import (
    clean,
    clean_id,
    clean_number,
    clean_sex,
    collect,
    find_column,
    scan_strings,
    stem_of,
)

DIAGNOSES = Path("12SL_diagnoses") / "diagnoses.csv"
"""The table of labels of 3.0 and 4.0, below a site's folder."""
_DEMOGRAPHICS = "demographics_ECG.csv"
_INTERPRETATIONS = "ECG_Interpretations.psv"
_DUPLICATED = "duplicated.csv"
_SITE = "I0001"
_DAYS_PER_YEAR = 365.25


def find_release_2(root: Path) -> Path | None:
    """Return the `Metadata` folder of a release 2.0, or None."""
    candidates = [root / "Metadata", root / "ECG" / "Metadata"]
    if root.name == "ECG":  # The tables lie beside ECG/, so they are outside this root.
        candidates.append(root.parent / "Metadata")
    return next((folder for folder in candidates if (folder / _DEMOGRAPHICS).is_file()), None)


def read_release_2(root: Path, tables: Path, counts: Counter[str]) -> pl.DataFrame:
    """Return one row per line of the demographics table, with `stem`, `age_days` and `codes`.

    Records that `duplicated.csv` names stay in the table as rejected.

    Raises:
        UserError: A table or a column is missing.
    """
    labels = _read_interpretations(tables / _INTERPRETATIONS, counts)
    records = _read_demographics(tables / _DEMOGRAPHICS, _signal_prefix(root))
    counts["label_rows_without_metadata"] += labels.join(records, on="stem", how="anti").height
    records = records.join(labels, on="stem", how="left", maintain_order="left")
    counts["metadata_without_label_row"] += records["has_row"].null_count()
    counts["without_statement"] += records["codes"].null_count()
    doubled = pl.col("stem").is_in(_read_duplicated(tables / _DUPLICATED).implode())
    records = records.with_columns(
        pl.when(doubled).then(pl.lit(RejectReason.DUPLICATE_RECORD.value)).alias("reject_reason"),
        pl.lit(_SITE).alias("site"),
    )
    counts["duplicates_left_out"] += records["reject_reason"].count()
    return records.drop("has_row")


def _signal_prefix(root: Path) -> str:
    """Return the folder of the records, relative to the root."""
    for folder in ("ECG/WFDB", "WFDB"):
        if (root / folder).is_dir():
            return folder
    return "WFDB" if root.name == "ECG" else "ECG/WFDB"


def _read_demographics(path: Path, prefix: str) -> pl.DataFrame:
    frame, columns = scan_strings(path)
    file_name = find_column(columns, ["FileName"], path)
    below = (
        pl.col(file_name)
        .str.strip_chars()
        .str.replace(r"(?i)\.(hea|dat|mat)$", "")
        .str.replace(r"^(\./|/)+", "")
        .str.replace(r"^(ECG/)?WFDB/", "")
    )
    years = clean_number(find_column(columns, ["Age"], path))
    return collect(
        frame.select(
            stem_of(file_name).alias("stem"),
            (pl.lit(f"{prefix}/") + below).alias("record_path"),
            clean_id(find_column(columns, ["BDSPPatientID"], path)).alias("patient_id"),
            clean_sex(find_column(columns, ["SexDSC", "Sex"], path)).alias("sex"),
            (years * _DAYS_PER_YEAR).alias("age_days"),
            pl.when(years > 89).then(90.0).when(years > 0).then(years).alias("age_years"),
        ),
        path,
    ).with_columns(
        (pl.lit(f"{_SITE}/") + pl.col("stem")).alias("record_id"),
        pl.col("record_path")
        .str.extract(r"/((?:19|20)\d\d)/(?:[^/]+/)*[^/]+$")
        .cast(pl.Int32)
        .alias("year"),
    )


def _read_interpretations(path: Path, counts: Counter[str]) -> pl.DataFrame:
    if not path.is_file():
        raise UserError(
            f"No labels table: {path} does not exist. HEEDB 2.0 keeps its statements there; fetch "
            "it, or use source=wfdb_folder for recordings without labels."
        )
    frame, columns = scan_strings(path, separator="|")
    file_source = find_column(columns, ["file_source"], path)
    codes = clean(find_column(columns, ["diagnostic_codes"], path))
    table = collect(
        frame.select(stem_of(file_source).alias("stem"), codes.alias("codes")), path
    ).with_columns(pl.lit(True).alias("has_row"))
    counts["label_rows"] += table.height
    counts["label_rows_of_unknown_reader"] += table.height
    counts["label_rows_empty"] += table["codes"].null_count()
    unique = table.unique("stem", keep="first", maintain_order=True)
    counts["label_rows_of_a_stem_seen_before"] += table.height - unique.height
    return unique


def _read_duplicated(path: Path) -> pl.Series:
    if not path.is_file():
        return pl.Series("stem", [], dtype=pl.String)
    frame, columns = scan_strings(path)
    name = find_column(columns, ["file_name", "FileName"], path)
    return collect(frame.select(stem_of(name).alias("stem")), path)["stem"]
