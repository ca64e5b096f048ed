"""Reading HEEDB's tables: narrow columns, joined on a hash of the file's stem."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from ecgfounder_train.core.ages import CAPPED_YEARS, OLDEST_YEARS
from ecgfounder_train.core.cells import CellSplitter, take_lists
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.records.sources.file_names import match_rows, parse_file_names
from ecgfounder_train.records.sources.rows import CONTRADICTION
from ecgfounder_train.records.sources.table import (
    clean_id,
    clean_number,
    clean_sex,
    collect,
    find_column,
    scan_strings,
)
from ecgfounder_train.records.storage import list_files

DAYS_PER_YEAR = 365.25
_HEADERS_AT_ONCE = 1_000_000


@dataclass
class SiteTable:
    """One site's records and what each reader said of them, row by row."""

    name: str
    records: pl.DataFrame
    """record_path, year, stem, stem_check, patient_id, sex, age_days, age_years."""
    readings: dict[str, pl.Series] = field(default_factory=dict)
    """By reader: places in the splitter's names."""
    counts: Counter[str] = field(default_factory=Counter)


def read_metadata(path: Path, name: str, prefix: str, years: bool = False) -> SiteTable:
    """Return one row per line of a metadata table; of its 28 columns only four are ever kept.

    Args:
        prefix: Folder of the records below the source's root.
        years: The age column holds years (release 2.0), not days.

    Raises:
        UserError: A column is missing, or the file is damaged.
    """
    frame, columns = scan_strings(path)
    file_name = find_column(columns, ["FileName"], path)
    age = clean_number(find_column(columns, ["Age"] if years else ["AgeAtAcquisition"], path))
    table = collect(
        frame.select(
            pl.col(file_name).alias("file_name"),
            pl.col(find_column(columns, ["BDSPPatientID"], path)).alias("patient_id"),
            clean_sex(find_column(columns, ["SexDSC", "Sex"], path))
            .cast(pl.Enum(["F", "M"]))  # a byte a row, as text sixteen
            .alias("sex"),
            (age * DAYS_PER_YEAR if years else age).alias("age_days"),
        ),
        path,
    )
    # Most sites write plain digits; only where one does not are ten million ids looked at closely.
    if not table["patient_id"].str.contains(r"^[0-9]+$").all(ignore_nulls=False):
        table = table.with_columns(clean_id("patient_id").alias("patient_id"))
    names = parse_file_names(table["file_name"], prefix)
    assert names.places is not None
    in_years = pl.col("age_days").cast(pl.Float64) / DAYS_PER_YEAR
    records = pl.concat(
        [names.places, names.hashes, table.drop("file_name")], how="horizontal"
    ).with_columns(
        pl.when(in_years > OLDEST_YEARS)
        .then(CAPPED_YEARS)
        .when(in_years > 0)
        .then(in_years)
        .cast(pl.Float32)
        .alias("age_years"),
        pl.lit(None, dtype=pl.Categorical).alias("reject_reason"),
    )
    site = SiteTable(name, records)
    _count_quirks(site)
    if site.counts["stem_seen_before"]:
        _reject_contradictions(site)
    return site


def _reject_contradictions(site: SiteTable) -> None:
    """Reject records of two patients; an age or sex on which the rows differ becomes unknown."""
    stem = pl.struct("stem", "stem_check")
    several = pl.col("stem").is_not_null() & stem.is_duplicated()
    repeated = site.records.filter(several).group_by("stem", "stem_check")
    different = repeated.agg(pl.col("patient_id", "age_days", "sex").drop_nulls().n_unique())
    for name in ("patient_id", "age_days", "sex"):
        wrong = different.filter(pl.col(name) > 1).select("stem", "stem_check")
        if wrong.is_empty():
            continue
        site.counts[f"{CONTRADICTION}{name.removesuffix('_days')}"] = wrong.height
        hit = stem.is_in(wrong.select(stem).to_series().implode())
        if name == "patient_id":
            reason = pl.lit(RejectReason.CONTRADICTORY_ROWS.value, dtype=pl.Categorical)
            value = pl.when(hit).then(reason).otherwise("reject_reason").alias("reject_reason")
            site.records = site.records.with_columns(value)
        else:
            columns = ("age_days", "age_years") if name == "age_days" else (name,)
            site.records = site.records.with_columns(
                pl.when(~hit).then(pl.col(c)).alias(c) for c in columns
            )


def _count_quirks(site: SiteTable) -> None:
    age = pl.col("age_days")
    found = site.records.select(
        pl.len().alias("rows"),
        pl.col("patient_id").drop_nulls().n_unique().alias("patients"),
        pl.col("patient_id").is_null().sum().alias("patient_id_blank"),
        pl.col("stem").is_null().sum().alias("file_name_blank"),
        (pl.col("stem").drop_nulls().len() - pl.col("stem").drop_nulls().n_unique()).alias(
            "stem_seen_before"
        ),
        age.is_null().sum().alias("age_missing"),
        (age <= 0).sum().alias("age_not_positive"),
        (age / DAYS_PER_YEAR > OLDEST_YEARS).sum().alias("age_capped"),
        pl.col("sex").is_null().sum().alias("sex_unknown"),
    )
    site.counts.update(found.row(0, named=True))


@dataclass(frozen=True)
class LabelTable:
    """Columns of codes as a table has them, and where each row belongs."""

    cells: pl.DataFrame
    hashes: pl.DataFrame
    newlines: int
    """File names with a line break inside."""


def read_labels(
    path: Path, name_column: str, columns: Mapping[str, str], separator: str = ","
) -> LabelTable:
    """Return the named columns of codes.

    Args:
        columns: Name of the column in the table, by what it is called here.

    Raises:
        UserError: A column is missing, or the file is damaged.
    """
    frame, present = scan_strings(path, separator=separator)
    file_name = find_column(present, [name_column], path)
    table = collect(
        frame.select(
            pl.col(file_name).alias("file_name"),
            *(pl.col(column).alias(name) for name, column in columns.items()),
        ),
        path,
    )
    names = table["file_name"]
    return LabelTable(
        table.drop("file_name"),
        parse_file_names(names, None).hashes,
        int(names.str.contains("\n", literal=True).sum() or 0),
    )


@dataclass(frozen=True)
class Attached:
    """How the rows of a label table fit a site's records."""

    rows: int
    blank: pl.DataFrame
    """One column per reader: which rows of the table say nothing."""
    stems_seen_before: int
    without_metadata: int
    metadata_without_row: int

    def empty(self, readers: Sequence[str]) -> int:
        """Return in how many rows none of the readers says anything."""
        return self.blank.select(pl.all_horizontal(readers).sum()).item() if self.rows else 0


def attach(site: SiteTable, table: LabelTable, splitter: CellSplitter) -> Attached:
    """Add each column of a label table to the site's readings, row by row beside its records.

    The statements of all rows of a stem are united.
    """
    keys = site.records.select("stem", "stem_check")
    rows, seen_before, matched = match_rows(keys, table.hashes)
    blank = {}
    for name in table.cells.columns:
        numbers = splitter.split(table.cells[name])
        blank[name] = numbers.is_null()
        if seen_before:
            numbers = _united(table.hashes, numbers)
        site.readings[name] = take_lists(numbers, rows)
    num_rows = table.cells.height
    return Attached(
        num_rows,
        pl.DataFrame(blank),
        seen_before,
        num_rows - seen_before - matched,
        int((rows < 0).sum()),
    )


def _united(hashes: pl.DataFrame, numbers: pl.Series) -> pl.Series:
    """Return the lists with those of a stem's later rows added to its first row's."""
    several = pl.struct("stem", "stem_check").is_duplicated() & pl.col("stem").is_not_null()
    rows = hashes.with_columns(numbers.alias("numbers")).with_row_index("row")
    united = (
        rows.filter(several)
        .group_by("stem", "stem_check")
        .agg(
            pl.col("row").first(),
            pl.col("numbers").explode().drop_nulls().unique(maintain_order=True).alias("all"),
            pl.col("numbers").is_null().all().alias("silent"),
        )
        .filter(~pl.col("silent"))
    )
    joined = rows.select("row", "numbers").join(
        united.select("row", "all"), on="row", how="left", maintain_order="left"
    )
    return joined.select(pl.coalesce("all", "numbers").alias(numbers.name))[numbers.name]


def count_headers(site: SiteTable, folder: Path) -> None:
    """Count the headers on disk that no table row names, and rows without a header.

    Only names are compared: twenty million files are listed, none is opened.

    Raises:
        UserError: The folder cannot be listed.
    """
    batch: list[str] = []
    parts: list[pl.Series] = []

    def finish() -> None:
        hashes = parse_file_names(pl.Series(batch, dtype=pl.String), None).hashes
        parts.append(hashes["stem"])
        batch.clear()

    try:
        for name in list_files(folder, [".hea"]):
            batch.append(name)
            if len(batch) == _HEADERS_AT_ONCE:
                finish()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}). With source.scan_headers=false it need "
            "not be."
        ) from error
    finish()
    on_disk = pl.concat(parts).alias("stem").to_frame()
    in_table = site.records.select(pl.col("stem").drop_nulls().unique())
    site.counts["headers_on_disk"] = on_disk.height
    site.counts["headers_without_table_row"] = on_disk.join(in_table, on="stem", how="anti").height
    site.counts["table_rows_without_header"] = (
        in_table.join(on_disk, on="stem", how="anti").height + site.counts["file_name_blank"]
    )
