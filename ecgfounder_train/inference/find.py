"""Which recordings `input=` means: a file, a folder, a glob, or a list of files."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import RejectedRecordError, UserError
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
from ecgfounder_train.inference.inputs.text_layout import PATH_COLUMNS, Layout, layout
from ecgfounder_train.records import EcgRecord, read_header

_TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
_AMBIGUOUS = (*_TABLE_SUFFIXES, ".xml", ".ecg", ".json", ".rec")
"""Suffixes of many things: in a folder, such a file counts only where its content fits."""
_NOT_ECGS = (".yaml", ".yml", ".md", ".html", ".pdf", ".png", ".parquet", ".py", ".log")
_RATE_COLUMNS = ("fs", "sampling_rate", "sample_rate")
_UNIT_COLUMNS = ("unit", "units")
_PATIENT_COLUMNS = ("patient", "patient_id", "patient_key", "subject_id")
_ITEM_COLUMNS = ("item", "exam")
_NUM_NAMED = 3
MANY = "::"
"""Separates a file and the recording in it, where it holds many."""


@dataclass(frozen=True)
class RecordReference:
    """One recording that is still to be read.

    Attributes:
        name: What tables call it: the path as it was given or found.
        path: Its file; None for a recording that is in memory.
        item: Which recording of the file.
        options: What the file does not state.
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
    """The recordings that `input=` means, and how it was understood.

    Attributes:
        records: In order of their names.
        summary: Of what was found, in a sentence.
        not_read: Name and reason of every file that was left out.
    """

    records: tuple[RecordReference, ...]
    summary: str
    not_read: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def in_words(self) -> str:
        """The summary under its earlier name, which scripts of users may hold."""
        return self.summary

    @property
    def num_left_out(self) -> int:
        """Files that were left out, hidden ones not counted."""
        return sum(reason != _HIDDEN for _, reason in self.not_read)


_HIDDEN = "hidden"


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
        return _of_files((item for item in found if not item.is_dir()), options, f"glob {pattern}")
    if path.is_file() and path.suffix.lower() in _TABLE_SUFFIXES:
        return _of_table(path, options)
    if (header := wfdb_files.header_of(path)) is not None:
        return _found([_wfdb(header, options)], f"WFDB record {pattern}")
    if not path.is_file():
        kind = "not a regular file" if path.exists() else "neither a file, a folder nor a glob"
        raise UserError(f"input={pattern!r} is {kind}, and no WFDB record (no .hea file).")
    if identify(path) is None:
        known = "; ".join(f"{item.name} ({', '.join(item.suffixes)})" for item in FORMATS)
        raise UserError(f"{pattern} is in none of the known formats: {known}.")
    references = list(_expanded(path, options))
    what = "one recording" if len(references) == 1 else f"{len(references):,} recordings"
    found_format = identify(path)
    assert found_format is not None
    return _found(references, f"{what} in {pattern} ({found_format.name})")


def _found(
    references: Sequence[RecordReference], how: str, not_read: Sequence[tuple[str, str]] = ()
) -> FoundRecords:
    return FoundRecords(tuple(references), f"input: {how}", tuple(not_read))


def _wfdb(header: Path, options: InputOptions) -> RecordReference:
    """Return the reference to a record, which is called like its header without the suffix."""
    return RecordReference(str(header.with_suffix("")), header, "", options)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder; a linked folder is followed once."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        info = Path(place).stat()
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders.sort()
        yield from (Path(place) / name for name in sorted(names))


def _of_files(paths: Iterable[Path], options: InputOptions, how: str) -> FoundRecords:
    headers: set[Path] = set()
    signals: dict[Path, list[Path]] = {}
    others: list[Path] = []
    not_read: list[tuple[str, str]] = []
    for path in paths:
        if PARTIAL_MARK in path.name:
            continue
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            not_read.append((str(path), _HIDDEN))
        elif not path.is_file():
            link = path.is_symlink() and not path.exists()
            not_read.append((str(path), "a broken link" if link else "not a regular file"))
        elif suffix == ".hea":
            headers.add(path)
        elif suffix in wfdb_files.SUFFIXES:
            header = wfdb_files.header_of(path)
            if header is not None:
                headers.add(header)
            else:
                signals.setdefault(path.parent, []).append(path)
        elif (reason := _why_not(path)) is None:
            others.append(path)
        else:
            not_read.append((str(path), reason))
    references = [_wfdb(header, options) for header in headers]
    for folder, files in signals.items():
        # A header may name files of other stems; one that no header names is rejected by name.
        named = _named_in_headers(header for header in headers if header.parent == folder)
        references += [
            _reference(path, "", options, many=False) for path in files if path.name not in named
        ]
    for path in others:
        references.extend(_expanded(path, options))
    counted = _summary_of(not_read)
    if not references:
        suffixes = ", ".join(suffix for item in FORMATS for suffix in item.suffixes)
        raise UserError(
            f"{how} finds no recording ({suffixes}){counted}. Quote a glob for the shell and for "
            "Hydra: input='\"folder/**/*.hea\"'."
        )
    references.sort(key=lambda item: item.name)
    num_files = len({item.path for item in references})
    return _found(
        references,
        f"{len(references):,} recordings in {num_files:,} files of {how}{counted}",
        sorted(not_read),
    )


def _summary_of(not_read: Sequence[tuple[str, str]]) -> str:
    """Return how many files were left out for which reason, with the names of the first."""
    reasons = Counter(reason for _, reason in not_read)
    num_hidden = reasons.pop(_HIDDEN, 0)
    parts = []
    for reason, count in reasons.most_common():
        names = [Path(name).name for name, why in not_read if why == reason]
        more = ", ..." if count > _NUM_NAMED else ""
        parts.append(f"{count:,} {reason} ({', '.join(names[:_NUM_NAMED])}{more})")
    text = f"; {reasons.total():,} other files were not read: {'; '.join(parts)}" if parts else ""
    return text + (f"; {num_hidden:,} hidden files" if num_hidden else "")


def _named_in_headers(headers: Iterable[Path]) -> set[str]:
    """Return the names of the signal files that headers refer to."""
    names: set[str] = set()
    for header in headers:
        try:
            names |= {signal.file_name for signal in read_header(header).signals}
        except RejectedRecordError:
            continue  # its own rejection states the reason
    return names


def _why_not(path: Path) -> str | None:
    """Return why a file of a folder is not a recording, None where it is one or claims to be."""
    suffix = path.suffix.lower()
    if suffix in _NOT_ECGS:
        return f"of type {suffix}"
    if suffix in _AMBIGUOUS:
        head = first_bytes(path)
        if any(item.recognises(head) for item in FORMATS if item.suffixes):
            return None
        if suffix in _TABLE_SUFFIXES:
            how = layout(head)
            if how is None:
                return "text without a table" if head else "empty"
            return "list of files" if how.is_list else "text without samples"
        return f"{suffix} of a kind that is not read"
    if any(suffix in item.suffixes for item in FORMATS):
        return None
    # Such as DICOM, whose files often have no suffix.
    if identify(path) is not None:
        return None
    return f"{suffix or 'file without a suffix'} in none of the known formats"


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
        raise UserError(f"{path} is empty or not a text file.")
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
    return any(map(_is_there, candidates)) if named else False


def _is_there(path: Path) -> bool:
    return path.is_file() or wfdb_files.header_of(path) is not None


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
        if not _is_there(file) and _is_there(Path(named)):
            file = Path(named)
        items = (item,) if item else list_items(file)
        for each in items:
            name = f"{named}{MANY}{each}" if len(items) > 1 or item else named
            references.append(RecordReference(name, file, each, own, patient))
    if not references:
        raise UserError(f"The list {path} has no rows.")
    return _found(references, f"{path} is a list of {frame.height:,} files (column {column!r})")
