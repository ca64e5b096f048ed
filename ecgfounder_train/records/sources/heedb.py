"""HEEDB (Harvard-Emory ECG Database, BDSP): release and sites, discovered below the root.

Properties of its tables, and how they are read:

* The tables of a site join on the file **stem**; path prefixes differ from table to table, and v24
  has a newline inside the quoted file name. The statements of all rows of a stem are united. Rows
  of a label table without a metadata row have no patient; they are only counted.
* Ids parse as floats where one is blank, so every column is read as text.
* `AgeAtAcquisition` is in days. Missing or not positive means unknown; above 89 years becomes 90.
* Dates are shifted per patient: `year` is the year of the folder, never that of the file name.
* Cells of codes separate by ``, `` or ``,``; an empty cell is unobserved.
* Headers that no table names have no patient: `scan_headers` counts them, nothing reads them.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from ecgfounder_train.core.cells import CellSplitter, Statements
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.memory import return_freed_memory
from ecgfounder_train.records.sources.heedb_old import DIAGNOSES, find_release_2, read_release_2
from ecgfounder_train.records.sources.heedb_published import DICTIONARY_CODES, PUBLISHED
from ecgfounder_train.records.sources.heedb_tables import (
    Attached,
    SiteTable,
    attach,
    count_headers,
    read_labels,
    read_metadata,
)
from ecgfounder_train.records.sources.table import (
    Quirk,
    SourceTable,
    check_choice,
    clean,
    clean_id,
    collect,
    complete,
    find_column,
    scan_strings,
)

LABEL_SOURCES = ("physician", "software", "v24", "physician_else_software")
UNKNOWN_READER = "unknown"

_METADATA = Path("metadata") / "metadata.csv"
_ACQUISITION = Path("12SL_diagnoses") / "diagnoses_acquisition.csv"
_V24 = Path("12SL_diagnoses") / "diagnoses_v24.csv"
_DICTIONARY = Path("12SL_diagnoses") / "diagnoses_dictionary.csv"
_MERGES = "PatientMergeHistory"
_COLUMNS: Mapping[str, tuple[Path, tuple[str, ...]]] = {
    "physician": (_ACQUISITION, ("codes_physician",)),
    "software": (_ACQUISITION, ("codes_software",)),
    "v24": (_V24, ("codes", "codes_v24", "diagnoses")),
    UNKNOWN_READER: (DIAGNOSES, ("codes", "diagnoses")),
}
"""Table and column of each reader's codes."""
_BLANK = {
    "physician": "over_read_missing",
    "software": "software_codes_missing",
    "v24": "v24_rows_empty",
}
"""Count of blank cells, by reader."""
_KEPT = ("record_path", "year", "patient_id", "sex", "age_years", "reject_reason")


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
    compare_readers: bool = True
    """Read the statements of the other readers as well, for prevalences and agreement."""
    scan_headers: bool = False

    def read(self) -> SourceTable:
        """Return one row per line of the sites' metadata tables.

        Raises:
            UserError: No site below the root, no label table, or a column missing.
        """
        return_freed_memory()
        check_choice("label_source", self.label_source, LABEL_SOURCES)
        splitter = CellSplitter()
        texts: dict[str, str] = {}
        folders = self._sites()
        sites = [] if folders else [self._read_release_2(splitter)]
        for folder in folders:
            site = self._read_site(folder, splitter)
            sites.append(site)
            for code, text in _read_dictionary(folder / _DICTIONARY, site.counts).items():
                texts.setdefault(code, text)
        counts: Counter[str] = Counter()
        for site in sites:
            counts.update(site.counts)
        merges = _read_merges(self._merge_folders(folders), counts)
        readings = _together(sites, splitter.names)
        label_source = self._choose(readings)
        said = readings[label_source]
        counts["without_statement"] = said.numbers.null_count()
        names = pl.Enum(sorted({site.name for site in sites}))  # a byte a row, as text sixteen
        frame = pl.concat(
            site.records.select(*_KEPT, pl.lit(site.name, dtype=names).alias("site"))
            for site in sites
        ).with_columns(said.numbers.alias("numbers"))
        for site in sites:  # the frame holds what is still needed of them
            site.records, site.readings = pl.DataFrame(), {}
        stem = pl.col("record_path").str.split("/").list.last()
        records = frame.lazy().with_columns(
            (pl.col("site").cast(pl.String) + "/" + stem).alias("record_id"),
            said.texts("numbers").alias("statements"),
        )
        return SourceTable(
            complete(records),
            self.root,
            merges,
            dict(counts),
            texts,
            label_source=label_source,
            readings=readings,
            quirks=tuple(quirk for site in sites for quirk in _quirks(site)),
        )

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

    def _readers(self) -> tuple[str, ...]:
        """Return the readers whose statements are the labels, in order of precedence."""
        if self.label_source == "physician_else_software":
            return ("physician", "software")
        return (self.label_source,)

    def _choose(self, readings: dict[str, Statements]) -> str:
        """Return the name of the reading that gives the labels; a combined one is added."""
        if set(readings) == {UNKNOWN_READER}:
            return UNKNOWN_READER  # one column of codes does not state who assigned them
        readers = self._readers()
        if len(readers) > 1:
            readings[self.label_source] = readings[readers[0]].else_of(readings[readers[1]])
        return self.label_source

    def _read_release_2(self, splitter: CellSplitter) -> SiteTable:
        site, table = read_release_2(self.root, UNKNOWN_READER)
        _count_labels(site, attach(site, table, splitter), [UNKNOWN_READER])
        return site

    def _read_site(self, folder: Path, splitter: CellSplitter) -> SiteTable:
        tables = self._tables(folder)  # a missing one must not wait for three gigabytes
        prefix = folder.relative_to(self.root).as_posix()
        below = "WFDB/" if prefix == "." else f"{prefix}/WFDB/"
        site = read_metadata(folder / _METADATA, folder.name, below)
        for name, columns in tables.items():
            table = read_labels(folder / name, "FileName", columns)
            attached = attach(site, table, splitter)
            if name == _ACQUISITION:
                site.counts["acquisition_rows"] = attached.rows
            elif name == _V24:
                site.counts["v24_rows"] = attached.rows
                site.counts["v24_newline_in_file_name"] = table.newlines
            for reader in columns:
                if reader in _BLANK:
                    site.counts[_BLANK[reader]] = attached.empty([reader])
            chosen = [reader for reader in (*self._readers(), UNKNOWN_READER) if reader in columns]
            if chosen:
                _count_labels(site, attached, chosen)
        if self.scan_headers:
            count_headers(site, folder / "WFDB")
        return site

    def _tables(self, folder: Path) -> dict[Path, dict[str, str]]:
        """Return the label tables to read: by path, each reader's column.

        Raises:
            UserError: The table or column of the label source is missing.
        """
        is_old = (folder / DIAGNOSES).is_file() and not (folder / _ACQUISITION).is_file()
        needed = (UNKNOWN_READER,) if is_old else self._readers()
        wanted = [*needed]
        if self.compare_readers and not is_old:
            wanted += [
                reader for reader in ("physician", "software", "v24") if reader not in needed
            ]
        tables: dict[Path, dict[str, str]] = {}
        for reader in wanted:
            name, names = _COLUMNS[reader]
            path = folder / name
            if not path.is_file():
                if reader not in needed:
                    continue
                raise UserError(
                    f"No labels table: {path} does not exist, and source.label_source="
                    f"{self.label_source} reads it. Fetch the folder 12SL_diagnoses of each site, "
                    f"or choose another label_source ({', '.join(LABEL_SOURCES)})."
                )
            present = scan_strings(path)[1]
            if reader not in needed and not {n.lower() for n in names} & {
                column.strip().lower() for column in present
            }:
                continue
            tables.setdefault(name, {})[reader] = find_column(present, names, path)
        return tables


def _count_labels(site: SiteTable, attached: Attached, readers: Sequence[str]) -> None:
    site.counts.update(
        {
            "label_rows": attached.rows,
            "label_rows_empty": attached.empty(readers),
            "label_rows_of_a_stem_seen_before": attached.stems_seen_before,
            "label_rows_without_metadata": attached.without_metadata,
            "metadata_without_label_row": attached.metadata_without_row,
        }
    )
    if UNKNOWN_READER in readers:
        site.counts["label_rows_of_unknown_reader"] = attached.rows


def _together(sites: Sequence[SiteTable], names: tuple[str, ...]) -> dict[str, Statements]:
    """Return each reader's statements of all sites' records; null where a site lacks the reader."""
    kind = pl.List(pl.UInt16 if len(names) <= 2**16 else pl.UInt32)
    together: dict[str, Statements] = {}
    for reader in {reader: None for site in sites for reader in site.readings}:
        parts = [
            site.readings.pop(
                reader, pl.Series([None], dtype=kind).new_from_index(0, site.records.height)
            ).cast(kind)
            for site in sites
        ]
        together[reader] = Statements(names, pl.concat(part.alias(reader) for part in parts))
    return together


def _quirks(site: SiteTable) -> list[Quirk]:
    published = {**PUBLISHED.get(site.name, {}), "dictionary_codes": DICTIONARY_CODES}
    return [
        Quirk(site.name, name, count, published.get(name)) for name, count in site.counts.items()
    ]


def _read_dictionary(path: Path, counts: Counter[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    frame, columns = scan_strings(path)
    code = find_column(columns, ["codes", "code"], path)
    text = find_column(columns, ["diagnoses", "diagnosis"], path)
    acronym = pl.col("acronym") if "acronym" in columns else pl.lit("?")
    table = collect(
        frame.select(clean_id(code), clean(text).alias("text"), clean(acronym).alias("acronym")),
        path,
    )
    counts["dictionary_codes"] = table.height
    counts["dictionary_without_acronym"] = table["acronym"].null_count()
    words = table["text"].drop_nulls().str.to_lowercase()
    counts["dictionary_texts_of_two_codes"] = words.filter(words.is_duplicated()).n_unique()
    return dict(table.select(pl.exclude("acronym")).drop_nulls().iter_rows())


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
