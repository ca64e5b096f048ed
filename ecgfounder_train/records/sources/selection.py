"""A part of a source: `source.records` names records by list, file or glob."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ecgfounder_train.core.cells import Statements
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources.table import (
    Source,
    SourceTable,
    collect,
    scan_strings,
)

_CHUNK_RECORDS = 500_000
_COLUMNS = ("record_path", "record", "path", "file_name", "filename", "file", "record_id", "name",
            "ecg_id", "exam_id", "study_id")  # fmt: skip
"""What a CSV may call the column of records; else its first one counts."""


def record_names(records: pl.DataFrame) -> pl.DataFrame:
    """Return the names that a list of records may use: `record_id`, `record_path` and the stem."""
    return records.select(
        "record_id",
        "record_path",
        pl.col("record_path").str.split("/").list.last().alias("stem"),
    )


def clean_record_names(entries: pl.Series) -> list[str]:
    """Return entries of a list of records without blanks, extension, `./` and leading slash."""
    entries = entries.drop_nulls().str.strip_chars().str.strip_chars('"')
    entries = entries.str.replace(r"(?i)\.(hea|dat|mat)$", "").str.replace(r"^(\./|/)+", "")
    return entries.filter(entries != "").to_list()


@dataclass(frozen=True)
class SelectedSource:
    """A source of which only the records named are read on."""

    inner: Source
    entries: Sequence[str]

    def read(self) -> SourceTable:
        """Return the rows of the selected records.

        Raises:
            UserError: None of the entries fits a record.
        """
        table = self.inner.read()
        plain = pl.Series([e for e in self.entries if not _is_glob(e)], dtype=pl.String)
        globs = [_pattern(e) for e in self.entries if _is_glob(e)]
        records = table.records.drop("statements")
        height = int(records.select(pl.len()).collect().item())
        found: set[str] = set()
        masks = []
        for start in range(0, max(height, 1), _CHUNK_RECORDS):
            names = record_names(records.slice(start, _CHUNK_RECORDS).collect())
            mask = np.zeros(names.height, np.bool_)
            for column in names.columns:
                hit = names[column].is_in(plain.implode()).fill_null(False)
                found.update(names[column].filter(hit))
                mask |= hit.to_numpy()
            for pattern in globs:
                hit = names["record_path"].str.contains(pattern).fill_null(False)
                if hit.any():
                    found.add(pattern)
                mask |= hit.to_numpy()
            masks.append(mask)
        chosen = pl.Series("chosen", np.concatenate(masks))
        if not chosen.any():
            raise UserError(
                f"source.records fits none of the {height:,} records of the source. An entry is a "
                "record's path below source.root, its file name or its id, or a glob of paths "
                f"such as 'a/*' (here: {', '.join(self.entries[:3])})."
            )
        counts = {
            **table.counts,
            "records_not_selected": height - int(chosen.sum()),
            "selected_entries_unknown": len(set(plain)) + len(set(globs)) - len(found),
        }
        readings = {
            reader: Statements(said.names, said.numbers.filter(chosen))
            for reader, said in table.readings.items()
        }
        return replace(
            table,
            records=table.records.filter(pl.lit(chosen)),
            readings=readings,
            counts=counts,
        )


def read_selection(value: Any) -> tuple[str, ...]:
    """Return the entries of a `source.records` setting: a list, a glob, or the path of a file.

    Raises:
        UserError: A file that cannot be read or is empty.
    """
    if not isinstance(value, str):
        if not isinstance(value, Sequence) or isinstance(value, Mapping) or not value:
            raise UserError(
                f"source.records={value} must be a list of records, a glob, or a file of them."
            )
        return tuple(clean_record_names(pl.Series([str(entry) for entry in value])))
    if _is_glob(value):
        return tuple(clean_record_names(pl.Series([value])))
    path = Path(value).expanduser()
    if not path.is_file():
        raise UserError(
            f"source.records={value}: the file does not exist. Give a CSV or a text file with one "
            "record a line, a glob of paths in quotes, or a list such as [r1,r2]."
        )
    if path.suffix.lower() in (".csv", ".tsv"):
        frame, columns = scan_strings(
            path, separator="\t" if path.suffix.lower() == ".tsv" else ","
        )
        named = {column.strip().lower(): column for column in columns}
        column = next((named[name] for name in _COLUMNS if name in named), columns[0])
        entries = collect(frame.select(column), path)[column]
    else:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        entries = pl.Series([line for line in lines if not line.startswith("#")], dtype=pl.String)
    names = tuple(dict.fromkeys(clean_record_names(entries)))
    if not names:
        raise UserError(f"source.records={value} holds no record.")
    return names


def _is_glob(entry: str) -> bool:
    return any(mark in entry for mark in "*?[")


def _pattern(entry: str) -> str:
    """Return a glob as a regular expression of a whole path; `*` goes across folders."""
    parts = re.split(r"(\*|\?|\[[^\]]+\])", entry)
    marks = {"*": ".*", "?": "."}
    return "^(?s:" + "".join(
        marks.get(part) or (part.replace("[!", "[^", 1) if part[:1] == "[" else re.escape(part))
        for part in parts
    ) + ")$"  # fmt: skip
