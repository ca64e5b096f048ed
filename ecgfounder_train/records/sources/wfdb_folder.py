"""Any folder of WFDB records, walked in sorted order, with or without a CSV table beside them.

Every header (`.hea`) below the root is one record, unless another header lists it as its segment.
Statements, age and sex come from the table where one is named, else from the header's comments as
PhysioNet's challenges write them (`#Dx: 426783006`, `#Age: 81`, `#Sex: Female`). A record without
statements in either is unobserved, never negative.

The root may be a URL: headers are then fetched several at a time, signals stay where they are.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.remote import fetched
from ecgfounder_train.records.sources.rows import gather_rows
from ecgfounder_train.records.sources.table import (
    RECORD_COLUMNS,
    STAND_IN_PATIENT,
    SourceTable,
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
from ecgfounder_train.records.storage import (
    is_remote,
    join,
    list_files,
    local_copy,
    open_bytes,
    reading,
)

_COMMENT = re.compile(r"#\s*<?(dx|diagnosis|diagnoses|age|sex)>?\s*:\s*(.*)", re.IGNORECASE)
_HEADER_BYTES = 65_536
"""No header with more comments than that is known; a wrong file named `.hea` may be any size."""
_NUM_FETCHES = 64
"""Headers fetched at once from a URL: one takes the storage's latency, whatever its size."""


@dataclass(frozen=True)
class WfdbFolderSource:
    """A folder of WFDB records; the columns of its table are named in the settings."""

    root: Path | str
    table: str | None = None
    """A CSV file; a relative path starts at the root."""
    table_header: bool = True
    """False: the first line is a row; columns are then named column_1, column_2, ..."""
    table_separator: str = ","
    record_column: str | None = None
    """Record name or path (default: the first column)."""
    patient_column: str | None = None
    statement_columns: Sequence[str] = field(default_factory=tuple)
    statement_separator: str = ","
    statement_pattern: str | None = None
    """A regular expression instead of a separator: its first group, wherever it fits in a cell."""
    age_column: str | None = None
    sex_column: str | None = None
    site_column: str | None = None
    split_column: str | None = None
    header_comments: bool = True
    site_from_folder: bool = False
    """The first folder below the root is the site."""
    require_labels: bool = True
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """What fsspec needs to open a root that is a URL."""

    def read(self) -> SourceTable:
        """Return one row per header below the root.

        Raises:
            UserError: No header, no such table or column, no row of it fits, or no statements.
        """
        counts: Counter[str] = Counter()
        paths = self._walk(counts)
        rows: list[dict[str, Any]] = []
        segments: set[str] = set()
        masters: set[str] = set()
        for path, text in zip(paths, self._headers(paths), strict=True):
            rows.append(self._from_header(path, text, counts))
            if of_record := _segments(path, text or ""):
                masters.add(path)
                segments |= of_record
        records = pl.DataFrame(rows, schema=_HEADER_SCHEMA)
        if segments := segments - masters:  # else the same signal twice, perhaps in two parts
            paths = [path for path in paths if path not in segments]
            records = records.filter(~pl.col("record_path").is_in(segments))
            counts["headers_of_segments"] = counts["rows"] - len(paths)
            counts["rows"] = len(paths)
        if self.table is not None:
            records = _merge(records, self._from_table(paths, counts))
        unknown_patient = pl.col("patient_id").is_null()
        counts["patient_unknown_record_stands_in"] = records.filter(unknown_patient).height
        counts["without_statement"] = records["statements"].null_count()
        if self.require_labels and counts["without_statement"] == records.height:
            raise UserError(
                f"No labels table: none of the {records.height:,} records below {self.root} has a "
                "statement (looked for '#Dx:' in the headers"
                + (f" and in {self.table}" if self.table else "")
                + "). Name a CSV with source.table, source.record_column and "
                "source.statement_columns, or set source.require_labels=false."
            )
        stand_in = pl.lit(STAND_IN_PATIENT) + pl.col("record_id")
        records = records.with_columns(
            pl.when(unknown_patient).then(stand_in).otherwise("patient_id").alias("patient_id")
        )
        return SourceTable(
            complete(records.lazy()),
            self.root,
            None,
            dict(counts),
            storage_options=self.storage_options,
        )

    def _walk(self, counts: Counter[str]) -> list[str]:
        headers: list[str] = []
        signals: list[str] = []
        with reading(self.root):
            for name in list_files(self.root, (".hea", ".dat", ".mat"), self.storage_options):
                # A name that is no UTF-8 cannot stand in a table: its record is found, and rejected
                # as not there.
                stem = name[:-4].encode("utf-8", "replace").decode()
                if stem.rpartition("/")[2]:
                    (headers if name.endswith(".hea") else signals).append(stem)
        if not headers:
            raise UserError(
                f"No WFDB record below {self.root}: looked for *.hea in it and all its folders. "
                "Check source.root; headers are needed beside the .dat or .mat files."
            )
        counts["rows"] = len(headers)
        counts["signal_files_without_header"] = len(set(signals) - set(headers))
        return sorted(headers)

    def _headers(self, paths: list[str]) -> Iterator[str | None]:
        """Yield the text of each record's header, None where it cannot be opened."""

        def read(record_path: str) -> str | None:
            url = join(self.root, f"{record_path}.hea")
            try:
                return open_bytes(url, self.storage_options, limit=_HEADER_BYTES).decode(
                    "utf-8", errors="replace"
                )
            except OSError:
                if is_remote(self.root):
                    raise  # nothing is known about the record then
                return None

        if not is_remote(self.root):
            yield from map(read, paths)
            return
        with reading(self.root):
            for result in fetched(paths, read, _NUM_FETCHES):
                yield result()

    def _from_header(
        self, record_path: str, text: str | None, counts: Counter[str]
    ) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(_HEADER_SCHEMA)
        row["record_path"] = row["record_id"] = record_path
        folders = PurePosixPath(record_path).parts[:-1]
        by_folder = self.site_from_folder and folders
        row["site"] = folders[0] if by_folder else PurePosixPath(self.root).name
        if text is None:
            counts["headers_that_cannot_be_opened"] += 1
            return row
        lines = text.splitlines()
        row["fs"] = _sampling_rate(lines)
        for line in lines if self.header_comments else ():
            found = _COMMENT.match(line)
            if not found:
                continue
            key, value = found[1].lower(), found[2].strip()
            if key == "age":
                row["age_years"] = _age(value)
            elif key == "sex":
                row["sex"] = {"f": "F", "m": "M"}.get(value[:1].lower())
            elif value and value.lower() not in ("unknown", "nan", "none"):
                parts = [part.strip() for part in value.split(",")]
                # Several such lines add up: what only the first says is not negative.
                row["statements"] = [*(row["statements"] or []), *filter(None, parts)] or None
        return row

    def _from_table(self, paths: list[str], counts: Counter[str]) -> pl.DataFrame:
        path = local_copy(self.root, str(self.table), self.storage_options)
        if not path.is_file():
            raise UserError(
                f"No labels table: {join(self.root, str(self.table))} does not exist. source.table "
                "is a CSV file relative to source.root; leave it out to use the headers' comments "
                "alone."
            )
        frame, columns = scan_strings(path, self.table_header, self.table_separator)
        record_column = find_column(columns, [self.record_column or columns[0]], path)
        chosen = [stem_of(record_column).alias("stem"), clean(record_column).alias("record_name")]
        optional: Mapping[str, tuple[str | None, Any]] = {
            "patient_id": (self.patient_column, clean_id),
            "age_years": (self.age_column, clean_number),
            "sex": (self.sex_column, clean_sex),
            "site": (self.site_column, clean),
            "split": (self.split_column, clean),
        }
        for name, (column, cleaned) in optional.items():
            if column is None:
                chosen.append(pl.lit(None, dtype=RECORD_COLUMNS[name]).alias(name))
            else:
                chosen.append(cleaned(find_column(columns, [column], path)).alias(name))
        names = self.statement_columns
        cells = [
            self._split(clean(find_column(columns, [name], path)))
            for name in ([names] if isinstance(names, str) else names)
        ]
        if cells:
            spoken = pl.concat_list(
                cell.list.eval(pl.element().str.strip_chars()).fill_null([]) for cell in cells
            ).list.filter(pl.element() != "")
            spoken = pl.when(spoken.list.len() > 0).then(spoken).otherwise(None)
        else:
            spoken = pl.lit(None, dtype=pl.List(pl.String))
        table = collect(frame.select(*chosen, spoken.alias("statements")), path)
        _require_utf8(table, path)
        table = table.with_columns(
            pl.Series("record_path", _match_records(table, paths, counts), dtype=pl.String)
        ).drop_nulls("record_path")
        if table.is_empty():
            raise UserError(
                f"No row of {path} fits a record below {self.root}: column {record_column!r} must "
                "hold record names or paths. Set source.record_column."
            )
        table = gather_rows(table.drop("stem", "record_name"), "record_path", counts)
        counts["records_without_table_row"] = len(paths) - table.height
        return table

    def _split(self, cell: pl.Expr) -> pl.Expr:
        if self.statement_pattern is None:
            return cell.str.split(self.statement_separator)
        try:
            pattern = re.compile(self.statement_pattern)
        except re.error as error:
            raise UserError(
                f"source.statement_pattern={self.statement_pattern} is no regular expression: "
                f"{error}."
            ) from error
        if pattern.groups != 1:
            raise UserError(
                f"source.statement_pattern={self.statement_pattern} must have one group, in "
                "parentheses: what it holds is the statement."
            )
        return cell.str.extract_all(self.statement_pattern).list.eval(
            pl.element().str.extract(self.statement_pattern, 1)
        )


_HEADER_SCHEMA: dict[str, pl.DataType] = {
    name: kind for name, kind in RECORD_COLUMNS.items() if name not in ("reject_reason", "year")
}


def _require_utf8(table: pl.DataFrame, path: Path) -> None:
    """Raise if texts were lost: a statement that no label knows any more would count as negative.

    Raises:
        UserError: Rows hold bytes that are no UTF-8.
    """
    lost = pl.any_horizontal(
        pl.col(pl.String).str.contains("\ufffd", literal=True).fill_null(False),
        pl.col("statements").list.join("").str.contains("\ufffd", literal=True).fill_null(False),
    )
    if rows := table.filter(lost).height:
        raise UserError(
            f"{path} is not in UTF-8: {rows:,} of {table.height:,} rows hold other characters "
            "(Latin-1, Windows-1252?). Save it as UTF-8, such as with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.csv"
        )


def _match_records(table: pl.DataFrame, paths: list[str], counts: Counter[str]) -> list[str | None]:
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(path.rsplit("/", 1)[-1], []).append(path)
    rows = table.select("stem", "record_name")
    folders: dict[str, set[tuple[str, ...]]] = {}
    for stem, name in rows.iter_rows():
        folders.setdefault(stem or "", set()).add(_folders(name or ""))
    matched: list[str | None] = []
    for stem, name in rows.iter_rows():
        candidates = by_stem.get(stem or "", [])
        # The same name in several folders, here or in the table (of an archive that is here in
        # part): the folder must tell.
        if len(candidates) > 1 or len(folders[stem or ""]) > 1:
            candidates = [path for path in candidates if _same_end(path, name or "")]
        if not candidates:
            counts["table_rows_without_record"] += 1
        elif len(candidates) > 1:
            counts["table_rows_of_several_records"] += 1
        matched.append(candidates[0] if len(candidates) == 1 else None)
    return matched


def _same_end(record_path: str, name: str) -> bool:
    ours, theirs = _folders(record_path), _folders(name)
    shared = min(len(ours), len(theirs))
    return shared > 0 and ours[-shared:] == theirs[-shared:]


def _folders(name: str) -> tuple[str, ...]:
    return tuple(name.strip().strip("./").split("/")[:-1])


def _merge(records: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    joined = records.join(
        table, on="record_path", how="left", suffix="_table", maintain_order="left"
    )
    both = [name for name in table.columns if name in records.columns and name != "record_path"]
    return joined.with_columns(pl.coalesce(f"{name}_table", name).alias(name) for name in both)


def _segments(record_path: str, text: str) -> set[str]:
    """Return the paths of a multi-segment record's segments, which are no records themselves."""
    lines = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    (head, *listed) = [line for line in lines if line] or [[""]]
    if "/" not in head[0]:
        return set()
    folder = record_path.rpartition("/")[0]
    return {f"{folder}/{line[0]}" if folder else line[0] for line in listed}


def _sampling_rate(lines: list[str]) -> float | None:
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    tokens = first.split()
    found = re.match(r"\d+(\.\d+)?", tokens[2]) if len(tokens) > 2 else None
    return float(found[0]) if found and float(found[0]) > 0 else None


def _age(text: str) -> float | None:
    try:
        years = float(text)
    except ValueError:
        return None
    return years if 0 <= years < 1000 else None


SOURCE = WfdbFolderSource
