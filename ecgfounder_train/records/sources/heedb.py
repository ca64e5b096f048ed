"""HEEDB (Harvard-Emory ECG Database, BDSP): release and sites, discovered below the root.

What its tables are like, and what is made of it:

* The tables of a site join on the file **stem**; path prefixes differ from table to table, and v24
  has a newline inside the quoted file name. Of a stem that a label table holds twice the first row
  counts. Rows of a label table without a metadata row have no patient; they are only counted.
* Ids parse as floats where one is blank, so every column is read as text.
* `AgeAtAcquisition` is in days. Missing or not positive means unknown; above 89 years becomes 90.
* Dates are shifted per patient: `year` is the year of the folder, never that of the file name.
* Cells of codes separate by ``, `` or ``,``; an empty cell says nothing.

Which over-read gives the labels, and when a record counts as read (otherwise it is unobserved,
never negative):

| `label_source` | statements | read when |
|---|---|---|
| `physician` | `codes_physician` | a physician confirmed or changed the report (81 % and 99.9 %) |
| `software` | `codes_software` of the cart | the cart printed any statement |
| `v24` | 12SL version 24, run again on the stored signal | it gave any statement |
| `physician_else_software` | the physician's, else the cart's | either of them |

Releases 2.0 to 4.0 are read as well (see `heedb_old`): they have one column of codes.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources.heedb_old import DIAGNOSES, find_release_2, read_release_2
from ecgfounder_train.records.sources.table import (
    SourceTable,
    check_choice,
    clean,
    clean_id,
    clean_number,
    clean_sex,
    collect,
    complete,
    find_column,
    scan_strings,
    stem_of,
)

LABEL_SOURCES = ("physician", "software", "v24", "physician_else_software")
DAYS_PER_YEAR = 365.25
OLDEST_YEARS = 89.0
"""Ages above are shown as 90, as the archive's own rules have it."""

_METADATA = Path("metadata") / "metadata.csv"
_ACQUISITION = Path("12SL_diagnoses") / "diagnoses_acquisition.csv"
_V24 = Path("12SL_diagnoses") / "diagnoses_v24.csv"
_DICTIONARY = Path("12SL_diagnoses") / "diagnoses_dictionary.csv"
_MERGES = "PatientMergeHistory"


@dataclass(frozen=True)
class HeedbSource:
    """HEEDB of any release. The root may be the archive, its `ECG` folder, or a site's folder."""

    REMOTE_FILES: ClassVar = tuple(
        f"{place}{table}"
        for place in ("", "*/", "ECG/*/", "*/ECG/*/")
        for table in ("metadata/*.csv", "12SL_diagnoses/*.csv", "Metadata/*", f"{_MERGES}/*.csv")
    )
    root: Path
    label_source: str = "physician"

    def read(self) -> SourceTable:
        """Return one row per line of the sites' metadata tables.

        Raises:
            UserError: No site below the root, no label table, or a column missing.
        """
        check_choice("label_source", self.label_source, LABEL_SOURCES)
        counts: Counter[str] = Counter()
        texts: dict[str, str] = {}
        tables = []
        sites = self._sites()
        if not sites:
            tables.append(self._read_release_2(counts))
        for site in sites:
            tables.append(self._read_site(site, counts))
            for code, text in _read_dictionary(site / _DICTIONARY).items():
                texts.setdefault(code, text)
        merges = _read_merges(self._merge_folders(sites), counts)
        records = pl.concat([table.lazy() for table in tables]).with_columns(
            # Split late and lazily: as lists the codes take five times the memory.
            pl.col("codes").str.replace_all(r"\s+", "").str.split(",").alias("statements")
        )
        records = records.with_columns(
            pl.col("statements").list.filter(pl.element() != "").alias("statements")
        )
        return SourceTable(complete(records), self.root, merges, dict(counts), texts)

    def _sites(self) -> list[Path]:
        """Return the folders of the sites; none for a release 2.0, which has no such folders."""
        candidates = [self.root]
        for pattern in ("*", "ECG/*", "*/ECG/*"):
            candidates += sorted(self.root.glob(pattern))
        sites = [folder for folder in candidates if (folder / _METADATA).is_file()]
        if sites:
            return sites
        if find_release_2(self.root):
            return []
        raise UserError(
            f"No HEEDB site below {self.root}: looked for {_METADATA} in it, in its folders and in "
            "ECG/*, and for Metadata/demographics_ECG.csv of release 2.0. source.root must be the "
            "folder that holds ECG/I0001 and ECG/I0006 (or ECG, or one site). For other WFDB "
            "folders use source=wfdb_folder."
        )

    def _merge_folders(self, sites: list[Path]) -> list[Path]:
        # The table is a sibling of ECG/, so it is outside when the root is ECG or a site.
        nearby = {self.root, self.root.parent} | {site.parent.parent for site in sites}
        return sorted({folder / _MERGES for folder in nearby if (folder / _MERGES).is_dir()})

    def _read_release_2(self, counts: Counter[str]) -> pl.DataFrame:
        tables = find_release_2(self.root)
        assert tables is not None
        table = read_release_2(self.root, tables, counts)
        count_quirks(table, counts)
        return table.drop("stem", "age_days")

    def _read_site(self, site: Path, counts: Counter[str]) -> pl.DataFrame:
        table = _read_metadata(site, site.relative_to(self.root).as_posix())
        labels = self._read_labels(site, counts)
        count_quirks(table, counts)
        counts["label_rows_without_metadata"] += labels.join(table, on="stem", how="anti").height
        joined = table.join(labels, on="stem", how="left", maintain_order="left")
        counts["metadata_without_label_row"] += joined["has_row"].null_count()
        counts["without_statement"] += joined["codes"].null_count()
        return joined.drop("stem", "has_row", "age_days").with_columns(
            pl.lit(site.name).alias("site")
        )

    def _read_labels(self, site: Path, counts: Counter[str]) -> pl.DataFrame:
        path = site / (_V24 if self.label_source == "v24" else _ACQUISITION)
        is_old = (site / DIAGNOSES).is_file() and not (site / _ACQUISITION).is_file()
        if is_old:
            path = site / DIAGNOSES
        if not path.is_file():
            raise UserError(
                f"No labels table: {path} does not exist, and source.label_source="
                f"{self.label_source} reads it. Fetch the folder 12SL_diagnoses of each site, or "
                f"choose another label_source ({', '.join(LABEL_SOURCES)})."
            )
        frame, columns = scan_strings(path)
        file_name = find_column(columns, ["FileName"], path)
        physician, software = "codes_physician", "codes_software"
        if is_old or self.label_source == "v24":
            codes = clean(find_column(columns, ["codes", "codes_v24", "diagnoses"], path))
        elif self.label_source == "physician_else_software":
            codes = pl.coalesce(
                clean(find_column(columns, [physician], path)),
                clean(find_column(columns, [software], path)),
            )
        else:
            name = physician if self.label_source == "physician" else software
            codes = clean(find_column(columns, [name], path))
        table = collect(
            frame.select(stem_of(file_name).alias("stem"), codes.alias("codes")), path
        ).with_columns(pl.lit(True).alias("has_row"))
        counts["label_rows"] += table.height
        if is_old:
            counts["label_rows_of_unknown_reader"] += table.height
        counts["label_rows_empty"] += table["codes"].null_count()
        unique = table.unique("stem", keep="first", maintain_order=True)
        counts["label_rows_of_a_stem_seen_before"] += table.height - unique.height
        return unique


def count_quirks(table: pl.DataFrame, counts: Counter[str]) -> None:
    """Add to `counts` what is odd about one site's metadata."""
    age = pl.col("age_days")
    counts["rows"] += table.height
    for name, condition in {
        "patient_id_blank": pl.col("patient_id").is_null(),
        "stem_seen_before": pl.col("stem").is_duplicated() & ~pl.col("stem").is_first_distinct(),
        "age_missing": age.is_null(),
        "age_not_positive": age <= 0,
        "age_capped": age / DAYS_PER_YEAR > OLDEST_YEARS,
        "sex_unknown": pl.col("sex").is_null(),
    }.items():
        counts[name] += table.filter(condition).height


def _read_metadata(site: Path, prefix: str) -> pl.DataFrame:
    path = site / _METADATA
    frame, columns = scan_strings(path)  # only five of its 28 columns are ever parsed
    file_name = find_column(columns, ["FileName"], path)
    prefix = "" if prefix == "." else prefix + "/"
    below_wfdb = (
        pl.col(file_name)
        .str.strip_chars()
        .str.replace(r"(?i)\.(hea|dat|mat)$", "")
        .str.replace(r"^(\./|/)+", "")
        .str.replace(r"^WFDB/", "")
    )
    years = clean_number(find_column(columns, ["AgeAtAcquisition"], path)) / DAYS_PER_YEAR
    return collect(
        frame.select(
            stem_of(file_name).alias("stem"),
            (pl.lit(f"{prefix}WFDB/") + below_wfdb).alias("record_path"),
            clean_id(find_column(columns, ["BDSPPatientID"], path)).alias("patient_id"),
            clean_sex(find_column(columns, ["SexDSC", "Sex"], path)).alias("sex"),
            clean_number(find_column(columns, ["AgeAtAcquisition"], path)).alias("age_days"),
            pl.when(years > OLDEST_YEARS)
            .then(90.0)
            .when(years > 0)
            .then(years)
            .otherwise(None)
            .alias("age_years"),
        ),
        path,
    ).with_columns(
        (pl.lit(site.name + "/") + pl.col("stem")).alias("record_id"),
        pl.col("record_path")
        .str.extract(r"/((?:19|20)\d\d)/(?:[^/]+/)*[^/]+$")
        .cast(pl.Int32)
        .alias("year"),
    )


def _read_dictionary(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    frame, columns = scan_strings(path)
    code = find_column(columns, ["codes", "code"], path)
    text = find_column(columns, ["diagnoses", "diagnosis"], path)
    table = collect(frame.select(clean_id(code), clean(text).alias("text")), path)
    return dict(table.drop_nulls().iter_rows())


def _read_merges(folders: list[Path], counts: Counter[str]) -> pl.DataFrame | None:
    parts = []
    for path in [path for folder in folders for path in sorted(folder.rglob("*.csv"))]:
        frame, columns = scan_strings(path)
        # The published names vary; which of the two survived does not matter here.
        ids = [name for name in columns if "patient" in name.lower()]
        ids = ids if len(ids) >= 2 else [name for name in columns if "id" in name.lower()]
        ids = ids if len(ids) >= 2 else list(columns)
        if len(ids) < 2:
            raise UserError(
                f"{path} must have two columns of patient ids (found: {', '.join(columns)})."
            )
        pair = frame.select(clean_id(ids[0]).alias("from"), clean_id(ids[1]).alias("to"))
        parts.append(collect(pair, path).drop_nulls())
    if not parts:
        return None
    merges = pl.concat(parts).filter(pl.col("from") != pl.col("to")).unique(maintain_order=True)
    counts["merged_patient_pairs"] += merges.height
    return merges


SOURCE = HeedbSource
