"""CSV, TSV and text tables: a column per lead, a row per sample.

With or without a head; separated by comma, semicolon, tab or blanks; decimal commas where the
separator is none. A column called `time` gives the rate, one called `fs` too, and comment lines
``# fs: 500``, ``# unit: uV``. A unit may stand in a column's name (``II (uV)``). Without a head
the longer side is the time.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.inputs.reading import (
    HEAD_BYTES,
    MAX_LEADS,
    InputFormat,
    InputOptions,
    SourceRecord,
    from_array,
    millivolts_per,
    unreadable,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode

PATH_COLUMNS = (
    *("record", "path", "file", "filename", "file_name", "record_path", "record_name"),
    *("filename_hr", "filename_lr", "ecg_file", "ecg_path"),
)
"""Head of the column that makes a table a list of files."""
_TIME = re.compile(
    r"^(?:time|t|seconds?|sec|timestamp|elapsed(?:[ _]time)?)(?:[ _]*[\[(]?(s|sec|ms|us)[\])]?)?$",
    re.I,
)
_COUNTERS = ("", "index", "sample", "samples", "n", "column_1_index", "unnamed: 0", "sample_number")
_RATES = ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "rate_hz")
_UNIT_IN_NAME = re.compile(r"^(.*?)[\s_]*[\[(]?\b(mv|uv|µv|μv|nv|v)\b[\])]?$", re.I)
_COMMENT = re.compile(r"^#\s*(fs|sampling[_ ]rate|sample[_ ]rate|units?)\s*[:=]\s*([^\s,;]+)", re.I)
_SECONDS = {"": None, "s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6}
_MAX_JITTER = 0.5


@dataclass(frozen=True)
class Layout:
    """How a text table is written, by its first lines."""

    separator: str
    has_head: bool
    columns: tuple[str, ...]
    first_row: tuple[str, ...]
    num_comments: int
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def path_cell(self) -> tuple[str, str] | None:
        """The column that may name files and its first value; None where no column is called so."""
        if self.has_head:
            for name in PATH_COLUMNS:
                for column, value in zip(self.columns, self.first_row, strict=False):
                    if column.lower() == name:
                        return column, value
        return None

    @property
    def is_list(self) -> bool:
        """Whether a column is called like one of files and does not hold numbers."""
        return self.path_cell is not None and not is_number(self.path_cell[1])

    @property
    def is_numeric(self) -> bool:
        """Whether the first row of values could be samples."""
        values = [value for value in self.first_row if value]
        return bool(values) and all(is_number(value) for value in values)


def layout(head: bytes) -> Layout | None:
    """Return how a text table is written, None where the bytes are no table."""
    if b"\0" in head:
        return None
    text = head.decode("utf-8-sig", errors="replace")
    if "\ufffd" in text.rstrip("\ufffd"):
        text = head.decode("latin-1")
    lines = text.splitlines()
    if len(head) >= HEAD_BYTES and len(lines) > 1:
        lines = lines[:-1]  # cut in the middle
    comments = 0
    facts: dict[str, str] = {}
    while comments < len(lines) and lines[comments].startswith("#"):
        if found := _COMMENT.match(lines[comments]):
            key = "unit" if found[1].lower().startswith("unit") else "fs"
            facts[key] = found[2]
        comments += 1
    rows = [line for line in lines[comments:] if line.strip()]
    if not rows:
        return None
    sample = rows[min(1, len(rows) - 1)]
    # Beside a semicolon or tab, a comma is a decimal one.
    separator = next((mark for mark in "\t;," if mark in sample), "")
    if not separator:
        separator = " " if len(sample.split()) > 1 else ","
    first = split(rows[0], separator)
    has_head = any(value and not is_number(value) for value in first)
    if has_head:
        values = split(rows[1], separator) if len(rows) > 1 else ()
        return Layout(separator, True, first, values, comments, facts)
    names = tuple(f"column_{number + 1}" for number in range(len(first)))
    return Layout(separator, False, names, first, comments, facts)


def split(line: str, separator: str) -> tuple[str, ...]:
    """Return the cells of a line without quotes and blanks."""
    cells = line.split() if separator == " " else line.split(separator)
    return tuple(cell.strip().strip("\"'").strip() for cell in cells)


def is_number(text: str) -> bool:
    """Whether a cell is a number, a decimal comma included, or says that there is none."""
    try:
        float(text.replace(",", "."))
    except ValueError:
        return text.lower() in ("", "na", "null")
    return True


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the recording in a table of samples."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(f"cannot be opened: {error.strerror}") from None
    how = layout(content[:HEAD_BYTES])
    if how is None:
        raise unreadable("the file is no table of numbers")
    if how.is_list:
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, "a list of files, not a recording; give it as input="
        )
    if len(how.columns) > 100 * MAX_LEADS and how.has_head:
        raise unreadable(f"{len(how.columns)} columns with a head are no leads")
    table = _numbers(content, how)
    remarks: list[Remark] = []
    fs, unit = _stated_rate(how), how.facts.get("unit")
    names: list[str] = []
    units: list[str | None] = []
    kept: list[int] = []
    for column, name in enumerate(how.columns):
        if how.has_head and name.lower() in _COUNTERS:
            continue
        if how.has_head and (found := _TIME.match(name)):
            fs = _rate_of(table[:, column], found[1] or "", remarks)
            continue
        if how.has_head and name.lower() in _RATES:
            fs = float(table[0, column])
            continue
        bare = _UNIT_IN_NAME.match(name)
        has_unit = bare is not None and bool(bare[1])
        names.append(bare[1].strip() if bare is not None and has_unit else name)
        units.append(bare[2] if bare is not None and has_unit else None)
        kept.append(column)
    if not kept:
        raise unreadable("no column of the table is a lead")
    values = table[:, kept]
    stated = {item for item in units if item is not None}
    if len(stated) == 1 and None not in units:
        unit = stated.pop()
    elif stated:
        sizes = [millivolts_per(item or unit or "mV") or 1.0 for item in units]
        values = values * np.array(sizes, np.float32)
        unit = "mV"
    if not how.has_head:
        return from_array(values, options, fs=fs, unit=unit, remarks=remarks)
    return from_array(values.T, options, names=names, fs=fs, unit=unit, remarks=remarks)


def _numbers(content: bytes, how: Layout) -> NDArray[np.float32]:
    """Return the table's values, NaN where a cell is empty."""
    text = content.decode("utf-8-sig", errors="replace")
    if how.separator == " ":
        lines = text.splitlines()[how.num_comments :]
        text = "\n".join("\t".join(line.split()) for line in lines)
    else:
        text = "\n".join(text.splitlines()[how.num_comments :])
    try:
        frame = pl.read_csv(
            text.encode(),
            separator="\t" if how.separator == " " else how.separator,
            has_header=how.has_head,
            infer_schema=False,
            truncate_ragged_lines=False,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else "no table"
        raise unreadable(f"the table cannot be read: {reason}") from None
    frame = frame.with_columns(pl.all().str.strip_chars())
    if how.separator != ",":
        frame = frame.with_columns(pl.all().str.replace(",", ".", literal=True))
    missing = pl.all().str.to_lowercase().is_in(["", "na", "nan", "null"])
    frame = frame.with_columns(pl.when(missing).then(None).otherwise(pl.all()).name.keep())
    numbers = frame.with_columns(pl.all().cast(pl.Float64, strict=False))
    for name in frame.columns:
        if numbers[name].null_count() != frame[name].null_count():
            place = frame.columns.index(name) + 1
            raise unreadable(f"column {place} of the table holds text among its numbers")
    if numbers.is_empty():
        raise unreadable("the table has no rows")
    values: NDArray[np.float32] = numbers.fill_null(np.nan).to_numpy()
    return values


def _stated_rate(how: Layout) -> float | None:
    stated = how.facts.get("fs")
    return float(stated) if stated is not None and is_number(stated) else None


def _rate_of(times: NDArray[np.floating], unit: str, remarks: list[Remark]) -> float:
    steps = np.diff(times.astype(np.float64))
    step = float(np.median(steps)) if len(steps) else float("nan")
    if not step > 0 or np.abs(steps - step).max() > _MAX_JITTER * step:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE,
            "the time column does not rise in equal steps; drop it and give input_fs=HZ",
        )
    seconds = _SECONDS[unit.lower()]
    if seconds is None:
        # No ECG is sampled once in half a second, and none 2,000 times in a millisecond.
        seconds = 1.0 if step < 0.1 else 1e-3
    # The mean step: that of single rows is rounded.
    mean = (times[-1] - times[0]) / (len(times) - 1) * seconds
    fs = round(1 / float(mean), 3)
    detail = f"{fs:g} Hz by the time column, read in {'ms' if seconds == 1e-3 else 's'}"
    remarks.append(Remark(WarningCode.RATE_DERIVED, detail))
    return fs


def looks_like_samples(head: bytes) -> bool:
    """Whether a text file's first bytes are a table whose first row is numbers."""
    how = layout(head)
    return how is not None and not how.is_list and how.is_numeric


FORMAT = InputFormat("table of samples", (".csv", ".tsv", ".txt"), looks_like_samples, read)
