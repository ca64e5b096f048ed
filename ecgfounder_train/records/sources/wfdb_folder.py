"""Any folder of WFDB records, walked in sorted order, with or without a CSV table beside them.

Every header (`.hea`) below the root is one record, unless another header lists it as its segment.
Statements, age and sex come from the table where one is named, else from the header's comments as
PhysioNet's challenges write them (`#Dx: 426783006`, `#Age: 81`, `#Sex: Female`). A record without
statements in either is unobserved, never negative.

The root may be a URL: headers are then fetched several at a time, signals stay where they are.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.records.remote import fetched
from ecgfounder_train.records.signal_files import open_regular
from ecgfounder_train.records.sources.label_table import label_columns, require_utf8
from ecgfounder_train.records.sources.rows import gather_rows
from ecgfounder_train.records.sources.table import (
    RECORD_COLUMNS,
    STAND_IN_PATIENT,
    SourceTable,
    clean,
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
"""Largest header read for its comments; a wrong file named `.hea` may have any size."""
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
        headers, others = self._walk(counts)
        paths = sorted(headers)
        rows: list[dict[str, Any]] = []
        segments: set[str] = set()
        masters: set[str] = set()
        signals: set[str] = set()
        for path, text in zip(paths, self._headers([headers[p] for p in paths]), strict=True):
            rows.append(self._from_header(path, text, counts))
            of_record, of_signals = _files_named(path, text or "")
            signals |= of_signals
            if of_record:
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
        left_out = _left_out(others, set(headers), signals, self.table, counts)
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
            files_left_out=left_out,
        )

    def _walk(self, counts: Counter[str]) -> tuple[dict[str, str], list[str]]:
        """Return the header of each record by its path, and all other files."""
        headers: dict[str, str] = {}
        others: list[str] = []
        with reading(self.root):
            for name in list_files(self.root, (), self.storage_options):
                # A name that is not UTF-8 cannot stand in a table: its record is found, and
                # rejected as missing.
                text = name.encode("utf-8", "replace").decode()
                stem = text[:-4]
                is_header = name.lower().endswith(".hea") and stem.rpartition("/")[2]
                if is_header and stem not in headers:
                    headers[stem] = name
                else:
                    others.append(text)
        if not headers:
            raise UserError(
                f"No WFDB record below {self.root}: looked for *.hea in it and all its folders"
                + (f" ({_by_suffix(others)} are there)" if others else "")
                + ". Check source.root; headers are needed beside the .dat or .mat files. Arrays "
                "(.npy, .h5, .zarr) beside a CSV are read by source=arrays."
            )
        counts["rows"] = len(headers)
        return headers, others

    def _headers(self, files: list[str]) -> Iterator[str | None]:
        """Yield the text of each header, None where it cannot be opened."""

        def fetch(file: str) -> bytes:
            return open_bytes(join(self.root, file), self.storage_options, limit=_HEADER_BYTES)

        if not is_remote(self.root):
            root = Path(self.root)
            for file in files:
                content = _local_bytes(root / file, root)
                yield None if content is None else _decoded(content)
            return
        with reading(self.root):
            for result in fetched(files, fetch, _NUM_FETCHES):
                yield _decoded(result())

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
        chosen += label_columns(self, columns, path)
        table = collect(frame.select(*chosen), path)
        require_utf8(table, path)
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


_HEADER_SCHEMA: dict[str, pl.DataType] = {
    name: kind for name, kind in RECORD_COLUMNS.items() if name not in ("reject_reason", "year")
}


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
        # part): the folder decides.
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


def _local_bytes(file: Path, root: Path) -> bytes | None:
    try:
        descriptor = open_regular(
            file, root, RejectReason.MISSING_HEADER, RejectReason.UNREADABLE_HEADER
        )
    except RejectedRecordError:
        return None
    with os.fdopen(descriptor, "rb") as handle:
        return handle.read(_HEADER_BYTES)


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", errors="replace").replace("\r", "\n")


def _files_named(record_path: str, text: str) -> tuple[set[str], set[str]]:
    """Return the paths of a record's segments, and of its signal files."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    folder = record_path.rpartition("/")[0]
    # The first word of a line; of a name with blanks all words but the last fields.
    has_segments = bool(lines) and "/" in lines[0].split()[0]
    pattern = r"\s+\d+\s*$" if has_segments else r"\s+\d+(x\d+)?(:\d+)?(\+\d+)?(\s.*)?$"
    names = {re.sub(pattern, "", line.strip()) for line in lines[1:]}
    paths = {f"{folder}/{name}" if folder else name for name in names}
    return (paths, set()) if has_segments else (set(), paths)


def _left_out(
    others: Sequence[str],
    headers: set[str],
    signals: set[str],
    table: str | None,
    counts: Counter[str],
) -> pl.DataFrame:
    """Return the files that belong to no record, with the reason."""
    used = {name.lower() for name in signals}
    rows = []
    for name in others:
        stem, _, suffix = name.rpartition(".")
        is_signal = suffix.lower() in ("dat", "mat")
        if name.lower() in used or (is_signal and stem in headers) or name == table:
            continue
        if is_signal:
            rows.append((name, f".{suffix.lower()} file without a header (.hea)"))
            counts["signal_files_without_header"] += 1
        elif suffix.lower() == "hea":
            rows.append((name, "header without a name, or a second one of a record"))
        else:
            shown = f".{suffix.lower()}" if stem and "/" not in suffix else "no suffix"
            rows.append((name, f"not a WFDB header or signal file ({shown})"))
    counts["files_left_out"] = len(rows)
    return pl.DataFrame(rows, schema={"file": pl.String, "reason": pl.String}, orient="row")


def _by_suffix(names: Sequence[str]) -> str:
    """Return the most frequent suffixes with their counts."""
    found = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    return ", ".join(f"{number:,} {suffix}" for suffix, number in found.most_common(4))


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
