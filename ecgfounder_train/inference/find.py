"""Which recordings `input=` means: a file, a folder, a glob, or a list of files."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import PARTIAL_MARK
from ecgfounder_train.inference.inputs import (
    FORMATS,
    InputOptions,
    SourceRecord,
    first_bytes,
    identify,
    list_items,
    read_file,
    wfdb_files,
)
from ecgfounder_train.inference.inputs.delimited_files import PATH_COLUMNS, Layout, layout
from ecgfounder_train.records import EcgRecord

_TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
_AMBIGUOUS = (*_TABLE_SUFFIXES, ".xml", ".ecg")
"""Suffixes of many things: in a folder, such a file counts only where its content fits."""
_NOT_ECGS = (".json", ".yaml", ".yml", ".md", ".html", ".pdf", ".png", ".parquet", ".py", ".log")
_RATE_COLUMNS = ("fs", "sampling_rate", "sample_rate")
_UNIT_COLUMNS = ("unit", "units")
_PATIENT_COLUMNS = ("patient", "patient_id", "patient_key", "subject_id")
_ITEM_COLUMNS = ("item", "exam")
MANY = "::"
"""Stands between a file and the recording in it, where it holds many."""


@dataclass(frozen=True)
class RecordReference:
    """One recording that is still to be read.

    Attributes:
        name: What tables call it: the path as it was given or found.
        path: Its file; None for a recording that is in memory.
        item: Which recording of the file.
        options: What the file does not say.
        patient: From a list of files; kept in the table as it is.
        source: The recording itself, where it is in memory.
    """

    name: str
    path: Path | None
    item: str = ""
    options: InputOptions = field(default_factory=InputOptions)
    patient: str | None = None
    source: SourceRecord | None = None

    def read(self) -> SourceRecord:
        """Return the recording.

        Raises:
            RejectedRecordError: It cannot be read.
        """
        if self.source is not None:
            return self.source
        assert self.path is not None
        return read_file(self.path, self.item, self.options)

    @classmethod
    def of_record(cls, record: EcgRecord, name: str) -> "RecordReference":
        """Return the reference to a recording in memory."""
        return cls(name, None, source=SourceRecord(record))


@dataclass(frozen=True)
class FoundRecords:
    """The recordings that `input=` means, and how it was understood."""

    records: tuple[RecordReference, ...]
    summary: str
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.records)


def find_records(pattern: str, options: InputOptions | None = None) -> FoundRecords:
    """Return the recordings that a glob, a folder, a file or a list of files means.

    A single table of text is a list of files where one of its columns is called like one
    (`PATH_COLUMNS`) and holds no numbers; it is a recording where its rows are numbers.

    Raises:
        UserError: There are none, or a table is neither a list nor a recording.
    """
    options = options or InputOptions()
    path = Path(pattern)
    if path.is_dir():
        return _of_files(_walk(path), options, f"folder {pattern}")
    if any(mark in pattern for mark in "*?[") and not path.exists():
        # Path.glob takes no absolute pattern.
        found = (Path(item) for item in glob.glob(pattern, recursive=True))  # noqa: PTH207
        return _of_files((item for item in found if item.is_file()), options, f"glob {pattern}")
    if path.is_file() and path.suffix.lower() in _TABLE_SUFFIXES:
        return _of_table(path, options)
    record = path.with_suffix("") if path.suffix in wfdb_files.FORMAT.suffixes else path
    if record.with_name(record.name + ".hea").is_file():
        return _found([_reference(record, "", options, many=False)], f"WFDB record {pattern}")
    if not path.is_file():
        raise UserError(
            f"input={pattern!r} is no file, no folder, no glob and no WFDB record (no .hea file)."
        )
    if identify(path) is None:
        known = "; ".join(f"{item.name} ({', '.join(item.suffixes)})" for item in FORMATS)
        raise UserError(f"{pattern} is in none of the known formats: {known}.")
    references = list(_expanded(path, options))
    what = "one recording" if len(references) == 1 else f"{len(references):,} recordings"
    found_format = identify(path)
    assert found_format is not None
    return _found(references, f"{what} in {pattern} ({found_format.name})")


def _found(references: Sequence[RecordReference], how: str, left_out: int = 0) -> FoundRecords:
    return FoundRecords(tuple(references), f"input: {how}", left_out)


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-1:]):
            yield path


def _of_files(paths: Iterable[Path], options: InputOptions, how: str) -> FoundRecords:
    records: set[Path] = set()
    others: list[Path] = []
    left_out = 0
    for path in paths:
        suffix = path.suffix.lower()
        if PARTIAL_MARK in path.name:
            continue
        if suffix in wfdb_files.FORMAT.suffixes:
            # A record is what has a header, or claims to be one.
            records.add(path.with_suffix(""))
        elif _is_ecg(path):
            others.append(path)
        else:
            left_out += 1
    references = [_reference(path, "", options, many=False) for path in records]
    for path in others:
        references.extend(_expanded(path, options))
    if not references:
        suffixes = ", ".join(suffix for item in FORMATS for suffix in item.suffixes)
        raise UserError(
            f"{how} finds no recording ({suffixes}). Quote a glob for the shell and for Hydra: "
            "input='\"folder/**/*.hea\"'."
        )
    references.sort(key=lambda item: item.name)
    files = len(records) + len(others)
    counted = f"{len(references):,} recordings in {files:,} files of {how}"
    if left_out:
        counted += f"; {left_out:,} other files are no ECGs and were left out"
    return _found(references, counted, left_out)


def _is_ecg(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in _NOT_ECGS:
        return False
    if suffix in _AMBIGUOUS:
        head = first_bytes(path)
        return any(item.recognises(head) for item in FORMATS if suffix in item.suffixes)
    if any(suffix in item.suffixes for item in FORMATS):
        return True
    found = identify(path)  # such as DICOM, whose files often have no suffix
    return found is not None


def _reference(path: Path, item: str, options: InputOptions, many: bool) -> RecordReference:
    name = f"{path}{MANY}{item}" if many else str(path)
    return RecordReference(name, path, item, options)


def _expanded(path: Path, options: InputOptions) -> Iterator[RecordReference]:
    items = list_items(path)
    for item in items:
        yield _reference(path, item, options, many=len(items) > 1)


def _of_table(path: Path, options: InputOptions) -> FoundRecords:
    how = layout(first_bytes(path))
    if how is None:
        raise UserError(f"{path} is empty or no text.")
    # Records are often called by numbers (100.hea): then their being there decides.
    if how.path_cell is not None and (how.is_list or _exists(path, how.path_cell[1])):
        return _of_list(path, how, how.path_cell[0], options)
    if not how.has_head and len(how.columns) == 1 and not how.is_numeric:
        return _of_list(path, how, None, options)
    if how.has_head and len(how.columns) == 1 and _exists(path, how.columns[0]):
        return _of_list(path, how, None, options)
    if not how.is_numeric:
        raise UserError(
            f"{path} is neither a list of files nor a recording. A list has a column called "
            f"{', '.join(PATH_COLUMNS[:5])}, ...; a recording has a lead per column and nothing "
            f"but numbers. Its columns are {', '.join(how.columns[:8])}."
        )
    return _found(
        list(_expanded(path, options)), f"{path} is one recording ({len(how.columns)} columns)"
    )


def _exists(table: Path, named: str) -> bool:
    candidates = (table.parent / named, Path(named))
    return any(p.is_file() or p.with_name(p.name + ".hea").is_file() for p in candidates if named)


def _of_list(path: Path, how: Layout, column: str | None, options: InputOptions) -> FoundRecords:
    separator = "," if how.separator == " " else how.separator
    try:
        frame = pl.read_csv(
            path, separator=separator, has_header=column is not None, infer_schema=False,
            comment_prefix="#",
        )  # fmt: skip
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"The list {path} cannot be read: {error}") from error
    frame = frame.rename({name: name.strip() for name in frame.columns})
    column = column if column is not None else frame.columns[0]
    lowered = {name.lower(): name for name in frame.columns}

    def values(names: Sequence[str]) -> list[str | None]:
        name = next((lowered[item] for item in names if item in lowered), None)
        return frame[name].to_list() if name is not None else [None] * frame.height

    references: list[RecordReference] = []
    rows = zip(
        frame[column].to_list(),
        values(_RATE_COLUMNS),
        values(_UNIT_COLUMNS),
        values(_PATIENT_COLUMNS),
        values(_ITEM_COLUMNS) if column.lower() not in _ITEM_COLUMNS else [None] * frame.height,
        strict=True,
    )
    for number, (named, fs, unit, patient, item) in enumerate(rows, start=2):
        if not named or not named.strip():
            raise UserError(f"{path} line {number}: column {column!r} names no file.")
        named = named.strip()
        try:
            own = options.updated(float(fs) if fs else None, unit or None)
        except ValueError as error:
            raise UserError(f"{path} line {number}: {error}") from error
        # As the list's own folder sees it, else as the command does.
        file = path.parent / named
        if not _exists(path, named) or not (
            file.is_file() or file.with_name(file.name + ".hea").is_file()
        ):
            file = Path(named) if _exists(Path(), named) else file
        items = (item,) if item else list_items(file)
        for each in items:
            name = f"{named}{MANY}{each}" if len(items) > 1 or item else named
            references.append(RecordReference(name, file, each, own, patient))
    if not references:
        raise UserError(f"The list {path} has no rows.")
    return _found(references, f"{path} is a list of {frame.height:,} files (column {column!r})")
