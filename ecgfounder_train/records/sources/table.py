"""The table every source gives, how a source is found by its name, and how CSV files are read."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args, get_origin, get_type_hints

import polars as pl

from ecgfounder_train.core.cells import MISSING_WORDS, Statements
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.records.record import EcgRecord, StoredRecording
from ecgfounder_train.records.storage import fetch_tables, is_remote

RECORD_COLUMNS: dict[str, pl.DataType] = {
    "record_path": pl.String(),
    "record_id": pl.String(),
    "patient_id": pl.String(),
    "site": pl.String(),
    "year": pl.Int32(),
    "age_years": pl.Float32(),
    "sex": pl.String(),
    "fs": pl.Float32(),
    "statements": pl.List(pl.String()),
    "split": pl.String(),
    "fold": pl.Int16(),
    "reject_reason": pl.String(),
}
"""Columns of a source's table.

`record_path` is relative to the root and has no extension; `statements` null means that the
recording was not interpreted; `split` is the source's own train, val or test, and `fold` its number
of the fold where it has numbered ones; `reject_reason` is set where the source itself rules a
record out (a `core.errors.RejectReason` value).
"""


class Quirk(NamedTuple):
    """One irregularity of the tables of a site: its count and the published one."""

    site: str
    name: str
    found: int
    published: int | None = None


_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)

STAND_IN_PATIENT = "record:"
"""Prefix of the patient id of a record whose patient is unknown: each is its own patient."""


@dataclass(frozen=True)
class SourceTable:
    """One row per recording of a source, lazily, and counts of irregularities of its tables."""

    records: pl.LazyFrame
    root: Path | str
    """What the record paths are relative to: a folder, or a URL that fsspec opens."""
    merges: pl.DataFrame | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    """Text of each statement code, where the source has a dictionary."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """What fsspec needs to open the root, where it is a URL."""
    read_ecg: Callable[[str], EcgRecord | StoredRecording] | None = None
    """Reads the recording at a `record_path` of other files than WFDB; picklable."""
    label_source: str = ""
    """Which of the `readings` the records' statements are."""
    readings: Mapping[str, Statements] = field(default_factory=dict)
    """Statements by reader, row by row beside the records, where a source has several readers or
    too many records for lists of text."""
    quirks: tuple[Quirk, ...] = ()
    """Known irregularities of the tables, counted by site."""
    files_left_out: pl.DataFrame | None = None
    """Files below the root that belong to no record: columns `file` and `reason`."""


class Source(Protocol):
    """A source of recordings."""

    def read(self) -> SourceTable:
        """Return its table. Raises UserError where the layout is not what the source expects."""
        ...


def source_names() -> tuple[str, ...]:
    """Return the names `open_source` takes: the modules of this folder that define `SOURCE`."""
    folder = str(Path(__file__).parent)
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules([folder])
            if hasattr(importlib.import_module(f"{__package__}.{module.name}"), "SOURCE")
        )
    )


def open_source(config: Mapping[str, Any]) -> Source:
    """Return the source that `config` names, with its settings checked.

    Args:
        config: `name`, `root` (a folder or an fsspec URL), `storage_options` for a URL, `records`
            (a part: list, file or glob), and the settings of that source. With `based_on` the
            module of that name reads it, and `name` is what reports, manifests and pseudonyms call
            the data set.

    Raises:
        UserError: Unknown source or setting, or a root that is missing, empty or not a folder.
    """
    name = str(config.get("name", ""))
    key = "based_on" if config.get("based_on") else "name"
    module = str(config.get(key, ""))
    if module not in source_names():
        hint = did_you_mean(module, source_names())
        raise UserError(f"source.{key}={module} is not a source.{hint}")
    if not _NAME.fullmatch(name):
        raise UserError(f"source.name={name!r} must be letters, digits, '.', '_' and '-'.")
    source = importlib.import_module(f"{__package__}.{module}").SOURCE
    valid: dict[str, Any] = {item.name: item for item in fields(source)}
    settings = {str(key): config[key] for key in config if key not in ("name", "based_on")}
    chosen = settings.pop("records", None)
    if chosen is not None:
        from ecgfounder_train.records.sources.selection import SelectedSource, read_selection

        entries = read_selection(chosen)  # a missing list must not wait for the tables
        return SelectedSource(open_source({**config, "records": None}), entries)
    for key in settings:
        if key not in valid and key != "storage_options":
            raise UserError(
                f"source.{key} is not a setting of source {name}.{did_you_mean(key, valid)}"
            )
    for key, item in valid.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and settings.get(key) in (None, "", "???"):
            raise UserError(
                f"source.{key} is missing. Set it on the command line: source.{key}=..."
            )
    options = settings.pop("storage_options", None) or {}
    if not isinstance(options, Mapping):
        raise UserError(
            f"source.storage_options={options} must hold settings, such as "
            "source.storage_options={requester_pays: true}."
        )
    root = settings["root"]
    if not isinstance(root, str | Path):
        raise UserError(f"source.root={root} is not a path or URL.")
    hints = get_type_hints(source)
    for key, value in settings.items():
        _check_type(key, value, hints[key])
    opened: Source
    if not is_remote(root):
        opened = source(**{**settings, "root": existing_folder(root, "source.root")})
        return opened
    if "storage_options" in valid:  # it reads from URLs itself
        opened = source(**settings, storage_options=dict(options))
        return opened
    if settings.get("scan_headers"):
        raise UserError("source.scan_headers=true lists millions of files; it needs a local root.")
    patterns = getattr(source, "REMOTE_FILES", ())
    if not patterns:
        raise UserError(
            f"source.root={root}: the source {name} reads from a local folder only. Copy the "
            "archive, or mount it."
        )
    settings["root"] = fetch_tables(str(root), patterns, options)
    return _RemoteSource(source(**settings), str(root), dict(options))


def _check_type(key: str, value: Any, hint: Any) -> None:
    """Raise a UserError unless a setting has a simple type that its field names, or is a list."""
    kinds = {get_origin(kind) or kind for kind in (get_args(hint) or (hint,))}
    if get_origin(hint) is Sequence:
        kinds = {Sequence}
    if Path in kinds:
        return
    if hint == Sequence[int]:
        if not isinstance(value, Sequence) or not all(type(v) is int for v in value):
            raise UserError(f"source.{key}={value} must be a list of numbers, such as [1,8,9].")
    elif Sequence in kinds:
        listed = [value] if isinstance(value, str | None) else value
        if not isinstance(listed, Sequence) or not all(isinstance(v, str | None) for v in listed):
            raise UserError(f"source.{key}={value} must be a list of names, such as [a,b].")
    elif not (type(value) in kinds or (float in kinds and type(value) is int)):
        names = " or ".join(sorted("null" if k is type(None) else k.__name__ for k in kinds))
        raise UserError(f"source.{key}={value} is not {names}.")


@dataclass(frozen=True)
class _RemoteSource:
    """A source whose tables were copied from a URL, where its signals stay."""

    tables: Source
    url: str
    storage_options: Mapping[str, Any]

    def read(self) -> SourceTable:
        return replace(self.tables.read(), root=self.url, storage_options=self.storage_options)


def existing_folder(path: str | Path, key: str) -> Path:
    """Return the folder at `path`, made absolute.

    Raises:
        UserError: Missing, not a folder, empty, or not readable.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"{key}={path}: the folder does not exist. Check the path or mount it.")
    if not folder.is_dir():
        raise UserError(f"{key}={path} is a file; give the folder that holds the recordings.")
    try:
        next(folder.iterdir())
    except StopIteration:
        raise UserError(f"{key}={path}: the folder is empty. Is the archive unpacked?") from None
    except PermissionError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}.") from error
    return folder.resolve()


def check_choice(key: str, value: object, valid: Iterable[object]) -> None:
    """Raise a UserError unless `value` is one of `valid`."""
    choices = tuple(valid)
    if value not in choices:
        names = [str(item) for item in choices]
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise UserError(f"source.{key}={value} must be one of {', '.join(names)}.{hint}")


def scan_strings(
    path: Path, has_header: bool = True, separator: str = ","
) -> tuple[pl.LazyFrame, tuple[str, ...]]:
    """Return a lazy CSV whose columns are all text, and the names of its columns.

    Types are never guessed: one blank id would turn the whole column into floats. Quoted fields
    may hold newlines (HEEDB's v24 table has one in every row).

    Raises:
        UserError: Not a CSV file.
    """
    try:
        frame = pl.scan_csv(
            path,
            has_header=has_header,
            separator=separator,
            infer_schema=False,
            encoding="utf8-lossy",
            truncate_ragged_lines=True,
        )
        names = frame.collect_schema().names()
        if not has_header:
            numbered = {name: f"column_{number}" for number, name in enumerate(names, start=1)}
            frame = frame.rename(numbered)
            names = list(numbered.values())
        return frame, tuple(names)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}.") from error


def collect(frame: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """Return the rows of a lazy CSV.

    Raises:
        UserError: The file is damaged.
    """
    try:
        return frame.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}.") from error


def find_column(columns: Iterable[str], names: Iterable[str], path: Path) -> str:
    """Return the column that has one of `names`, whatever the case and surrounding spaces.

    Raises:
        UserError: There is none.
    """
    present = {column.strip().lower(): column for column in columns}
    wanted = tuple(names)
    for name in wanted:
        if name.lower() in present:
            return present[name.lower()]
    if len(present) == 1 and (mark := next((m for m in ";\t|" if m in min(present)), "")):
        raise UserError(
            f"{path} separates its columns by {mark!r}. Save it with commas between them."
        )
    raise UserError(
        f"{path} has no column {' or '.join(repr(name) for name in wanted)}"
        f" (found: {', '.join(present.values()) or 'nothing'}).{did_you_mean(wanted[0], present)}"
    )


def clean(column: str | pl.Expr) -> pl.Expr:
    """Return the text without surrounding white space; null where it means missing."""
    text = (pl.col(column) if isinstance(column, str) else column).str.strip_chars()
    return pl.when(text.str.to_lowercase().is_in(MISSING_WORDS)).then(None).otherwise(text)


def clean_id(column: str) -> pl.Expr:
    """Return ids as plain text: ``179020000.0`` and ``1.7902e8`` are ``179020000``."""
    text = clean(column)
    number = text.cast(pl.Float64, strict=False)
    is_float = text.str.contains(r"^\d+(\.\d*)?([eE]\+?\d+)?$") & text.str.contains(r"[.eE]")
    whole = is_float & (number == number.floor()) & (number < 2**53)
    return pl.when(whole).then(number.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)


def clean_number(column: str) -> pl.Expr:
    """Return the number in a text column as float32; null where there is none."""
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number).otherwise(None).cast(pl.Float32)


def clean_sex(column: str) -> pl.Expr:
    """Return ``F``, ``M`` or null for female/male in the ways archives write it."""
    text = pl.col(column).str.strip_chars().str.to_lowercase()
    female, male = ("f", "female", "w", "woman"), ("m", "male", "man")
    letters = {**dict.fromkeys(female, "F"), **dict.fromkeys(male, "M")}
    return text.replace_strict(letters, default=None, return_dtype=pl.String)


def stem_of(column: str) -> pl.Expr:
    """Return the last component of a path, without a header or signal file's extension."""
    return (
        pl.col(column)
        .str.strip_chars()
        .str.split("/")
        .list.last()
        .str.replace(r"(?i)\.(hea|dat|mat)$", "")
        .str.strip_chars()
    )


def complete(records: pl.LazyFrame) -> pl.LazyFrame:
    """Return the records with exactly `RECORD_COLUMNS`; what a source lacks is null."""
    present = records.collect_schema().names()
    return records.select(
        (pl.col(name) if name in present else pl.lit(None)).cast(kind).alias(name)
        for name, kind in RECORD_COLUMNS.items()
    )
