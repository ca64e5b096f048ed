"""CSV, TSV and text tables: a column per lead, a row per sample.

With or without a head; separated by comma, semicolon, tab or blanks; decimal commas; lines of text
before the samples and a row of units below the head (`text_layout` recognises them). A time column
gives the rate where no rate is stated, in the unit it states; one called `fs` and lines such as
``# fs: 500`` or ``Sample Rate,512 hertz`` state it. Without a head the longer side is the time.
The table is read in blocks, so that memory holds the samples and little else.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.inputs.reading import (
    HEAD_BYTES,
    MAX_LEADS,
    MAX_VALUES_IN_MEMORY,
    InputFormat,
    InputOptions,
    SourceRecord,
    from_array,
    left_out,
    regular_file_bytes,
    too_large,
    unreadable,
)
from ecgfounder_train.inference.inputs.text_layout import (
    SECONDS,
    Column,
    Layout,
    is_clock,
    is_number,
    layout,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import STANDARD_LEADS, canonical_lead

MAX_BYTES = 1 << 29
_BLOCK_BYTES = 1 << 24
_WIDE = 1000
"""Columns from which a table is one row per lead; polars would take a gigabyte for its schema."""
_MAX_JITTER = 0.5
_LOWEST_FS = 20.0
"""Between this rate and 1,000 times it, exactly one of s, ms, us and ns makes a step an ECG's."""


@dataclass
class _Columns:
    """The columns of a table by what they are, and their values."""

    leads: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    rate: int | None = None
    others: list[str] = field(default_factory=list)


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the recording in a table of samples."""
    how = layout(regular_file_bytes(path, HEAD_BYTES))
    if how is None:
        raise unreadable("the file is not a table of numbers")
    if how.is_list:
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, "a list of files, not a recording; give it as input="
        )
    if not how.is_numeric:
        has_rows = any(how.first_row)
        raise unreadable(
            "the table holds text where samples should be" if has_rows else "the table has no rows"
        )
    if len(how.columns) > _WIDE:
        if how.has_head:
            raise unreadable(f"{len(how.columns)} columns with a head are not leads")
        return from_array(_wide(path, how), options, fs=how.stated.fs, unit=how.stated.unit)
    described = how.described()
    columns = _by_kind(how, described)
    values, times, rates = _blocks_read(path, how, columns)
    remarks = left_out(columns.others)
    fs = how.stated.fs
    if fs is None and len(rates):
        fs = float(rates[0])
    clocks = []
    for number, each in times.items():
        column = described[number]
        is_seconds = is_clock(_cell(how, number))  # converted
        clocks.append((replace(column, unit="s") if is_seconds else column, each))
    fs = _rate(fs, clocks, options, remarks)
    return _recording(how, [described[number] for number in columns.leads], values, fs, options,
                      remarks)  # fmt: skip


def _cell(how: Layout, number: int) -> str:
    return how.first_row[number] if number < len(how.first_row) else ""


def _by_kind(how: Layout, described: list[Column]) -> _Columns:
    found = _Columns()
    for number, column in enumerate(described):
        cell = _cell(how, number)
        if column.kind == "time":
            found.times.append(number)
        elif column.kind == "rate":
            found.rate = number
        elif column.kind == "lead":
            if not is_number(cell) and canonical_lead(column.name) not in STANDARD_LEADS:
                found.others.append(f"column {column.name[:20]!r} of text")
            else:
                found.leads.append(number)
        elif column.kind == "other":
            found.others.append(f"column {column.name[:20]!r} in {column.unit}")
    if not found.leads:
        raise unreadable("no column of the table is a lead")
    return found


def _recording(
    how: Layout,
    leads: list[Column],
    values: NDArray[np.float32],
    fs: float | None,
    options: InputOptions,
    remarks: list[Remark],
) -> SourceRecord:
    if not how.has_head:
        names = [how.stated.lead] if how.stated.lead and len(leads) == 1 else None
        # Without names the longer side is the time.
        table = values.T if names else values
        return from_array(table, options, names=names, fs=fs, unit=how.stated.unit, remarks=remarks)
    units = [column.unit or how.stated.unit for column in leads]
    names = [column.name for column in leads]
    if all(name.isdigit() for name in names):
        names = None  # numbers of columns are not names
    return from_array(
        values.T,
        options,
        names=names,
        fs=fs,
        unit=units if any(units) else None,
        remarks=remarks,
    )


def _wide(path: Path, how: Layout) -> NDArray[np.float64]:
    """Return a table of one row per lead. Shape: (num_leads, num_samples)."""
    rows: list[NDArray[np.float64]] = []
    for block in _blocks(path, how.num_skipped):
        for line in block.decode("utf-8", errors="replace").splitlines():
            cells = line.split(None if how.separator == " " else how.separator)
            if cells and not cells[-1].strip():
                cells = cells[:-1]
            if how.decimal_comma:
                cells = [cell.replace(",", ".") for cell in cells]
            try:
                rows.append(np.array(cells, np.float64))
            except ValueError:
                raise unreadable(f"row {len(rows) + 1} holds text among its numbers") from None
            if len(rows) > MAX_LEADS or len({len(row) for row in rows}) > 1:
                raise unreadable(f"{len(cells)} columns without a head are not leads")
    return np.stack(rows)


def _blocks(path: Path, num_skipped: int) -> Iterator[bytes]:
    """Yield the table's rows in blocks of whole lines without blank ones."""
    handle: io.BufferedIOBase
    if regular_file_bytes(path, 2) in (b"\xff\xfe", b"\xfe\xff"):
        handle = io.BytesIO(regular_file_bytes(path).decode("utf-16", errors="replace").encode())
    else:
        handle = open(path, "rb")  # noqa: SIM115
    with handle:
        rest = b""
        to_skip = num_skipped
        while piece := handle.read(_BLOCK_BYTES):
            rest += piece
            if len(rest) > 8 * _BLOCK_BYTES:
                raise too_large(f"lines of more than {len(rest)} bytes")
            held = b"\r" if rest.endswith(b"\r") else b""  # its line feed may follow
            text = rest[: len(rest) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            end = text.rfind(b"\n") + 1
            block, rest = text[:end], text[end:] + held
            if block:
                block, to_skip = _without_lines(block, to_skip)
                yield from _nonblank(block)
        rest, _ = _without_lines(rest.rstrip(b"\r"), to_skip)
        yield from _nonblank(rest)


def _without_lines(block: bytes, count: int) -> tuple[bytes, int]:
    place = 0
    while count:
        found = block.find(b"\n", place)
        if found < 0:
            return b"", count
        place, count = found + 1, count - 1
    return block[place:], 0


def _nonblank(block: bytes) -> Iterator[bytes]:
    block = re.sub(rb"\n[ \t]*(?=\n)", b"", block).strip(b"\n")
    if block.strip():
        yield block


def _blocks_read(
    path: Path, how: Layout, columns: _Columns
) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float64]], NDArray[np.float64]]:
    """Return the leads (num_samples, num_leads), the time columns, and the rate column's values."""
    parts: list[NDArray[np.float32]] = []
    times: dict[int, list[NDArray[np.float64]]] = {number: [] for number in columns.times}
    rates: NDArray[np.float64] = np.empty(0)
    num_values = 0
    for block in _blocks(path, how.num_skipped):
        frame = _frame(block, how)
        for number in columns.times:
            times[number].append(_times(frame, number, how))
        if columns.rate is not None and not len(rates):
            stated = _numbers(frame, [columns.rate], strict=False)[:, 0].astype(np.float64)
            rates = stated[np.isfinite(stated)]
        parts.append(_numbers(frame, columns.leads, strict=True))
        num_values += parts[-1].size
        if num_values > MAX_VALUES_IN_MEMORY:
            raise too_large(f"more than {MAX_VALUES_IN_MEMORY} values in a table of text")
    if not parts:
        raise unreadable("the table has no rows")
    joined = {number: np.concatenate(each) for number, each in times.items()}
    return np.concatenate(parts), joined, rates


def _frame(block: bytes, how: Layout) -> pl.DataFrame:
    """Return the cells of a block as text, columns called by their number, None where empty."""
    separator = how.separator
    if separator == " ":
        separator = "\t"
        block = re.sub(rb"[ \t]+", b"\t", re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", block))
    try:
        frame = pl.read_csv(
            block,
            separator=separator,
            has_header=False,
            infer_schema=False,
            encoding="utf8-lossy",
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else "no table"
        raise unreadable(f"the table cannot be read: {reason}") from None
    width = len(how.columns)
    if frame.width == width + 1 and frame[:, -1].is_null().all():
        frame = frame[:, :-1]  # a separator at the end of each row
    if frame.width != width:
        raise unreadable(f"rows of {frame.width} cells in a table of {width} columns")
    frame.columns = [str(number) for number in range(width)]
    frame = frame.with_columns(pl.all().str.strip_chars(" \t\"'"))
    if how.decimal_comma:
        frame = frame.with_columns(pl.all().str.replace(",", ".", literal=True))
    missing = pl.all().str.to_lowercase().is_in(["", "na", "nan", "null", "-"])
    return frame.with_columns(pl.when(missing).then(None).otherwise(pl.all()).name.keep())


def _numbers(frame: pl.DataFrame, columns: list[int], strict: bool) -> NDArray[np.float32]:
    """Return columns of numbers, NaN where a cell is empty."""
    chosen = frame.select([str(number) for number in columns])
    numbers = chosen.with_columns(pl.all().cast(pl.Float64, strict=False))
    for name in chosen.columns:
        if strict and numbers[name].null_count() != chosen[name].null_count():
            place = int(name) + 1
            raise unreadable(f"column {place} of the table holds text among its numbers")
    values: NDArray[np.float32] = numbers.fill_null(np.nan).to_numpy().astype(np.float32)
    return values


def _times(frame: pl.DataFrame, number: int, how: Layout) -> NDArray[np.float64]:
    """Return a time column as numbers; clocks and dates in seconds."""
    cells = frame[str(number)]
    first = _cell(how, number)
    if not is_clock(first):
        return cells.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    if re.match(r"\d{4}-", first):
        text = cells.str.replace("T", " ", literal=True).str.extract(r"^([0-9 :.-]+)")
        stamps = text.str.strip_chars(" -").str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False)
        return stamps.dt.epoch("us").cast(pl.Float64).fill_null(np.nan).to_numpy() / 1e6
    parts = pl.DataFrame(cells.str.strip_chars("[]").str.split(":").alias("part"))
    seconds = parts.select(
        pl.col("part").list.get(-1).cast(pl.Float64, strict=False)
        + 60 * pl.col("part").list.get(-2, null_on_oob=True).cast(pl.Float64, strict=False)
        + 3600
        * pl.col("part").list.get(-3, null_on_oob=True).cast(pl.Float64, strict=False).fill_null(0)
    ).to_series()
    return seconds.fill_null(np.nan).to_numpy()


def _rate(
    stated: float | None,
    times: list[tuple[Column, NDArray[np.float64]]],
    options: InputOptions,
    remarks: list[Remark],
) -> float | None:
    """Return the rate: stated by the file, by a time column with a unit, by the user, or guessed.

    Raises:
        RejectedRecordError: A time column is all there is, and it does not give one rate.
    """
    if not times:
        return stated
    problem: RejectedRecordError | None = None
    # A unit that is stated outranks one that has to be guessed.
    for column, values in sorted(times, key=lambda entry: _seconds(entry[0]) is None):
        seconds = _seconds(column)
        try:
            step = _step(values)
            if seconds is None:
                return _guessed(step, values, stated, options, remarks)
        except RejectedRecordError as error:
            problem = problem or error
            continue
        fs = _rounded(1 / (step * seconds))
        if stated is not None:
            if abs(fs - stated) > 0.01 * stated:
                detail = f"the file says {stated:g} Hz, which is used; its time column {fs:g} Hz"
                remarks.append(Remark(WarningCode.RATE_CONFLICT, detail))
            return stated
        unit = {1.0: "s", 1e-3: "ms", 1e-6: "us", 1e-9: "ns"}[seconds]
        detail = f"{fs:g} Hz by the time column, read in {unit}"
        remarks.append(Remark(WarningCode.RATE_DERIVED, detail))
        return fs
    if stated is not None:
        return stated
    if options.fs is not None:
        detail = f"input_fs {options.fs:g} Hz is used; the time column does not rise in equal steps"
        remarks.append(Remark(WarningCode.RATE_CONFLICT, detail))
        return None
    assert problem is not None
    raise problem


def _seconds(column: Column) -> float | None:
    """Return the size of a time column's unit in seconds, None where it is not stated."""
    unit = (column.unit or "").strip().lower().replace("\u00b5", "u").replace("\u03bc", "u")
    return SECONDS.get(unit)


def _step(values: NDArray[np.float64]) -> float:
    """Return the mean step of a time column; that of single rows is rounded."""
    times = values.astype(np.float64)
    steps = np.diff(times)
    if len(steps) and np.nanmin(steps) < -43200 and times.max() <= 86400:
        # A clock that passes midnight.
        times = times + 86400.0 * np.concatenate([[0], np.cumsum(steps < -43200)])
        steps = np.diff(times)
    step = float(np.median(steps)) if len(steps) else float("nan")
    if not step > 0 or not np.abs(steps - step).max() <= _MAX_JITTER * step:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE,
            "the time column does not rise in equal steps; drop it and give input_fs=HZ",
        )
    return float((times[-1] - times[0]) / (len(times) - 1))


def _guessed(
    step: float,
    values: NDArray[np.float64],
    stated: float | None,
    options: InputOptions,
    remarks: list[Remark],
) -> float | None:
    """Return the rate of a time column whose unit is not stated; what is stated outranks it."""
    known = stated if stated is not None else options.fs
    counts = bool(step == 1.0 and (values == np.round(values)).all())
    if known is not None:
        rates = [1 / (step * seconds) for seconds in set(SECONDS.values())]
        if not counts and not any(abs(rate - known) <= 0.01 * known for rate in rates):
            detail = f"{known:g} Hz is stated and used; no unit of the time column gives that rate"
            remarks.append(Remark(WarningCode.RATE_CONFLICT, detail))
        return stated
    if counts:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE,
            "the time column counts 0, 1, 2 ...: samples or milliseconds; give input_fs=HZ",
        )
    fits = [
        (name, 1 / (step * seconds))
        for name, seconds in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
        if _LOWEST_FS <= 1 / (step * seconds) < 1000 * _LOWEST_FS
    ]
    if not fits:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE,
            f"steps of {step:g} in the time column are not an ECG's; give input_fs=HZ",
        )
    unit, fs = fits[0]
    detail = f"{_rounded(fs):g} Hz by the time column, read in {unit} (its unit is not stated)"
    remarks.append(Remark(WarningCode.RATE_DERIVED, detail))
    return _rounded(fs)


def _rounded(fs: float) -> float:
    """Return the rate without the rounding of the times: 359.99 Hz of a long table is 360."""
    whole = round(fs)
    return float(whole) if whole and abs(fs - whole) < 2e-4 * whole else round(fs, 3)


def looks_like_samples(head: bytes) -> bool:
    """Whether a text file's first bytes are a table of numbers."""
    how = layout(head)
    return how is not None and not how.is_list and how.is_numeric


FORMAT = InputFormat(
    "table of samples",
    (".csv", ".tsv", ".txt"),
    looks_like_samples,
    read,
    max_bytes=MAX_BYTES,
)
