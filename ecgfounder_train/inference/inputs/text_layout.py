"""How a text table is written: separator, decimal mark, head, units row, and what is stated above.

Exports of devices and web sites put lines of text before the samples (Apple Watch, PhysioBank ATM),
a row of units below the head, or numbers as a head (pandas). Everything here works on the first
bytes of a file.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ecgfounder_train.inference.inputs.reading import HEAD_BYTES, millivolts_per, number_in
from ecgfounder_train.records import STANDARD_LEADS, canonical_lead

PATH_COLUMNS = (
    *("record", "path", "file", "filename", "file_name", "record_path", "record_name"),
    *("filename_hr", "filename_lr", "ecg_file", "ecg_path"),
)
"""Head of the column that makes a table a list of files."""
SECONDS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nsec", "nanosecond", "nanoseconds"), 1e-9),
}
COUNTERS = ("", "index", "sample", "samples", "sample #", "n", "column_1_index", "unnamed: 0",
            "sample_number", "sample_index", "sample interval")  # fmt: skip
_MISSING = ("", "na", "nan", "null", "-")
_CLOCK = re.compile(r"\[?\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d+)?\]?")
_DATE_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(?:[.,]\d+)?\s*(?:Z|[+-]\d\d:?\d\d)?"
)
_CLOCK_UNIT = re.compile(r"h+:m+(?::s+)?(?:[.,]\w+)?", re.I)
_BRACKETED = re.compile(r"^(.*?)[\s_,]*[\[({]\s*([^\])}]*?)\s*[\])}]$")
_UNIT_ENDING = re.compile(
    r"^(.+?)(?:[\s_,]+|\s+in\s+)(mv|uv|nv|ms|us|ns|s|sec|secs|seconds)$", re.I
)
_RAW_UNITS = ("adu", "adc", "counts", "count", "raw", "digit", "digits", "bit", "bits", "lsb",
              "a.u.", "au")  # fmt: skip
_OTHER_UNITS = ("mmhg", "bpm", "%", "nu", "ohm", "g", "m/s2", "m/s^2", "deg/s", "degc", "rpm",
                "1/min", "/min", "l/min", "pm")  # fmt: skip
_RATE_KEY = re.compile(
    r"sampl\w*[\s_-]*(?:rate|freq)|\bfs\b|abtast|chantillonnage|muestreo|campionament|amostragem"
    r"|pr[oó]bkowania|bemonster|^(?:rate|frequency)$",
    re.I,
)
_NOT_A_RATE = re.compile(r"filter|pass|notch|cut|band|mains|heart|puls|[hl]p\b|line", re.I)
_HERTZ = re.compile(r"(k?)(?:hz|hertz)\b", re.I)
_PER_MILLIVOLT = re.compile(
    r"(?:digit|adu|adc|count|lsb|bit|unit|step)s?\s*(?:/|per)\s*(mv|millivolts?|uv|microvolts?|v\b)",
    re.I,
)
_VOLTS_PER_STEP = re.compile(
    r"([a-z]*volts?|[munµμ]?v)\s*(?:/|per)\s*(?:digit|adu|adc|count|lsb|bit|unit|step)", re.I
)
_LEAD_AT_END = re.compile(r"^(\D*?)\s*\b(III|II|I|aV[RLF]|V[1-6])$")
_LEAD_KEY = re.compile(r"lead|ableitung|d[eé]riv|channel|kanal", re.I)
_NUM_PROBED = 20


@dataclass(frozen=True)
class Stated:
    """What the lines above a table state about all of it."""

    fs: float | None = None
    unit: str | None = None
    lead: str | None = None


@dataclass(frozen=True)
class Column:
    """One column: its name without a unit, the unit it states, and what it is."""

    name: str
    unit: str | None
    kind: str
    """lead, time, counter, rate, other."""


@dataclass(frozen=True)
class Layout:
    """How a text table is written, by its first lines.

    Attributes:
        separator: Between cells; a blank means any number of blanks.
        has_head: Whether a line names the columns.
        columns: Names, `column_N` without a head.
        first_row: Cells of the first row of values.
        num_skipped: Lines before the rows of values.
        units: Of a row of units below the head, one per column.
        decimal_comma: Whether a comma is a decimal mark.
        stated: By comments and lines above the table.
    """

    separator: str
    has_head: bool
    columns: tuple[str, ...]
    first_row: tuple[str, ...]
    num_skipped: int = 0
    units: tuple[str, ...] = ()
    decimal_comma: bool = False
    stated: Stated = Stated()
    is_numeric: bool = False
    """Whether the rows could be samples."""

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

    def described(self) -> list[Column]:
        """Return what each column is."""
        if not self.has_head:
            return [Column(name, None, "lead") for name in self.columns]
        units = self.units or ("",) * len(self.columns)
        return [_described(name, unit) for name, unit in zip(self.columns, units, strict=True)]


def _described(name: str, unit_below: str) -> Column:
    bare, unit = name, None
    if (found := _BRACKETED.match(name)) and found[1]:
        token = found[2].strip().lower()
        if is_unit(token) or token in (*_RAW_UNITS, *_OTHER_UNITS):
            bare, unit = found[1].strip(), found[2].strip()
    elif found := _UNIT_ENDING.match(name):
        bare, unit = found[1].strip(), found[2]
    unit = unit_below.strip() or unit
    lowered = bare.strip().lower()
    if lowered in COUNTERS or (unit or "").lower() in ("samples", "sample"):
        return Column(bare, None, "counter")
    if lowered in ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "rate_hz"):
        return Column(bare, None, "rate")
    if lowered in SECONDS:
        return Column(bare, unit or lowered, "time")
    if re.search(r"time|stamp|^t$|^zeit$|^temps$|^tiempo$|^elapsed$|^datum$", lowered):
        return Column(bare, unit, "time")
    if unit is not None and (unit.lower() in _OTHER_UNITS or unit.lower() in SECONDS):
        return Column(bare, unit, "other")
    return Column(bare, unit, "lead")


def is_unit(text: str) -> bool:
    """Whether a cell names a unit of voltage or time, or a clock's format."""
    lowered = text.strip().lower()
    return (
        millivolts_per(lowered) is not None
        or lowered in SECONDS
        or _CLOCK_UNIT.fullmatch(lowered) is not None
    )


def is_number(text: str) -> bool:
    """Whether a cell is a number, a decimal comma included, or a mark of a missing one."""
    try:
        float(text.replace(",", "."))
    except ValueError:
        return text.lower() in _MISSING
    return True


def is_clock(text: str) -> bool:
    """Whether a cell is a time of day, an elapsed time or a date with a time."""
    return bool(_CLOCK.fullmatch(text) or _DATE_TIME.fullmatch(text))


def split(line: str, separator: str) -> tuple[str, ...]:
    """Return the cells of a line without quotes and blanks."""
    found = [line.split()] if separator == " " else csv.reader([line], delimiter=separator)
    return tuple(cell.strip().strip("\"'").strip() for cell in next(iter(found), []))


def decode(head: bytes) -> str | None:
    """Return text in UTF-8, UTF-16 with its mark, or Latin-1; None for binary content."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", errors="replace")
    if b"\0" in head:
        return None
    text = head.decode("utf-8-sig", errors="replace")
    if "\ufffd" in text.rstrip("\ufffd"):
        text = head.decode("latin-1")
    return text


def layout(head: bytes) -> Layout | None:
    """Return how a text table is written, None where the bytes are not a table."""
    text = decode(head)
    if text is None:
        return None
    raw = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(head) >= HEAD_BYTES and len(raw) > 1:
        raw = raw[:-1]  # cut in the middle
    lines = [(place, line) for place, line in enumerate(raw) if line.strip()]
    comments = [line for _, line in lines if line.lstrip().startswith("#")]
    rows = [(place, line) for place, line in lines if not line.lstrip().startswith("#")]
    if not rows:
        return None
    as_list = _table_of_text(rows)
    if as_list.is_list:
        return as_list
    separator = _separator(rows[-1][1])
    start = _first_values(rows, separator)
    if start is None:
        return as_list
    above = [line for _, line in rows[:start]]
    stated = _stated([*comments, *above])
    values = [line for _, line in rows[start : start + _NUM_PROBED]]
    decimal = _is_decimal_comma(values, above, stated) if separator == "," else separator != ","
    if separator == "," and decimal:
        # One column; the mark is none of the usual separators.
        separator = ";"
    return _with_head(rows, start, comments, separator, decimal, stated)


def _separator(line: str) -> str:
    # Beside a semicolon, a tab or between blanks, a comma is a decimal one.
    words = line.split()
    if len(words) > 1 and all(re.fullmatch(r"[-+]?\d+,\d+", word) for word in words):
        return "\t" if "\t" in line else " "
    found = next((mark for mark in "\t;," if mark in line), "")
    return found or (" " if len(words) > 1 else ",")


def _first_values(rows: Sequence[tuple[int, str]], separator: str) -> int | None:
    """Return the place of the first of three rows that hold numbers in the same number of cells.

    A column of text beside them (annotations) is allowed where no row is without text.
    """
    width = len(_trimmed(split(rows[-1][1], separator)))
    for least in (1.0, 0.5):
        for start in range(len(rows)):
            probe = [_trimmed(split(line, separator)) for _, line in rows[start : start + 3]]
            if start > 2 and len(probe) < 2:
                break  # one row of numbers below text is not a table
            if all(
                cells
                and (len(cells) == width or (least == 1.0 and start + 3 >= len(rows)))
                and _numeric_part(cells) >= least
                and (is_number(cells[0]) or is_clock(cells[0]))
                and any(cell.lower() not in _MISSING for cell in cells)
                for cells in probe
            ):
                return start
    return None


def _trimmed(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Return the cells without the empty one behind a separator at the end of the line."""
    return cells[:-1] if len(cells) > 1 and cells[-1] == "" else cells


def _numeric_part(cells: tuple[str, ...]) -> float:
    return sum(is_number(cell) or is_clock(cell) for cell in cells) / len(cells)


def _table_of_text(rows: Sequence[tuple[int, str]]) -> Layout:
    separator = _separator(rows[min(1, len(rows) - 1)][1])
    columns = split(rows[0][1], separator)
    values = split(rows[1][1], separator) if len(rows) > 1 else ()
    return Layout(separator, True, columns, values, rows[0][0] + 1)


def _is_decimal_comma(values: Sequence[str], above: Sequence[str], stated: Stated) -> bool:
    """Whether rows such as ``-30,125`` are one number: two cells and one look the same."""
    if not all(re.fullmatch(r"\s*[-+]?\d+,\d+\s*", line) for line in values):
        return False
    one_name = bool(above) and "," not in above[-1] and not is_number(above[-1].strip())
    leading_zero = any(re.fullmatch(r"\s*[-+]?\d+,0\d+\s*", line) for line in values)
    return stated.lead is not None or one_name or leading_zero


def _with_head(
    rows: Sequence[tuple[int, str]],
    start: int,
    comments: Sequence[str],
    separator: str,
    decimal: bool,
    stated: Stated,
) -> Layout:
    first = split(rows[start][1], separator)
    width = len(first)
    numbers = [split(line, separator) for _, line in rows[start : start + _NUM_PROBED]]
    above = [split(line, separator) for _, line in rows[:start]]
    units: tuple[str, ...] = ()
    if above and len(above[-1]) == width and _is_units_row(above[-1]):
        units = above.pop()
    columns: tuple[str, ...] | None = None
    # Above a single column ``Unit,µV`` states a unit and is not a name.
    if above and _names_columns(above[-1], width) and (width > 1 or "," not in above[-1][0]):
        columns = above[-1]
    elif comments and _has_leads(split(comments[-1].lstrip("# "), separator), width):
        columns = split(comments[-1].lstrip("# "), separator)
    if columns is not None and len(columns) == width - 1:
        # R and some devices leave the head of the row numbers out, or end each row with a mark.
        columns = (*columns, "") if first[-1] == "" else ("", *columns)
    skipped = rows[start][0]
    if columns is None and _is_numbered_head(numbers):
        columns = first
        numbers = numbers[1:]
        skipped += 1
    has_head = columns is not None
    if columns is None:
        columns = tuple(f"column_{number + 1}" for number in range(width))
    return Layout(
        separator,
        has_head,
        columns,
        numbers[0] if numbers else (),
        skipped,
        units,
        decimal,
        stated,
        is_numeric=True,
    )


def _is_units_row(cells: tuple[str, ...]) -> bool:
    known = [is_unit(cell) or cell.lower() in _OTHER_UNITS for cell in cells if cell]
    return bool(known) and all(known) and any(is_unit(cell) for cell in cells)


def _names_columns(cells: tuple[str, ...], width: int) -> bool:
    """Whether a line above the numbers is their head."""
    if len(cells) == width:
        return any(cell and not is_number(cell) for cell in cells) or _is_numbered(cells[1:])
    if len(cells) == width - 1:
        return width > 2 and all(cell and not is_number(cell) for cell in cells)
    return False


def _has_leads(cells: tuple[str, ...], width: int) -> bool:
    return len(cells) == width and any(canonical_lead(cell) in STANDARD_LEADS for cell in cells)


def _is_numbered(cells: Sequence[str]) -> bool:
    """Whether cells are 0, 1, 2 ... or 1, 2, 3 ..."""
    try:
        numbers = [int(cell) for cell in cells]
    except ValueError:
        return False
    return bool(numbers) and numbers in (
        list(range(len(numbers))),
        list(range(1, len(numbers) + 1)),
    )


def _is_numbered_head(rows: Sequence[tuple[str, ...]]) -> bool:
    """Whether the first row is a head of column numbers (pandas): consecutive above real numbers.

    Of one or two columns that is certain only where every value below has a decimal mark.
    """
    if len(rows) < 2:
        return False
    cells = rows[0][1:] if rows[0][0] == "" else rows[0]
    if not _is_numbered(cells) or _is_numbered(rows[1]):
        return False
    if len(cells) > 2:
        return True
    values = [
        cell for row in rows[1:] for cell in row[-len(cells) :] if cell.lower() not in _MISSING
    ]
    return all("." in cell or "," in cell for cell in values)


def _stated(lines: Sequence[str]) -> Stated:
    """Return rate, unit and lead that lines of text state: ``key: value``, ``key,value`` ..."""
    fs: float | None = None
    hertz: list[float] = []
    unit: str | None = None
    lead: str | None = None
    for line in lines:
        key, value = _key_and_value(line)
        number = number_in(value)
        if number is not None and number > 0:
            kilo = _HERTZ.search(value) or _HERTZ.search(key)
            rate = number * (1000.0 if kilo and kilo[1] else 1.0)
            if _RATE_KEY.search(key) and not _NOT_A_RATE.search(key):
                fs = fs or rate
            elif kilo and not _NOT_A_RATE.search(key) and rate >= 100:
                hertz.append(rate)  # the key may be in any language
            elif step := _step_size(f"{key} {value}", number):
                unit = unit or step
        if re.fullmatch(r"units?", key, re.I) and value and not is_number(value):
            unit = unit or value
        elif len(value) > 1 and not re.search(r"\d", value) and millivolts_per(value):
            unit = unit or value  # the key may be in any language
        if found := _LEAD_AT_END.match(value):
            before = found[1].strip().lower()  # ``Lead,Lead I``, ``Ableitung: Ableitung I``
            if before in (key.lower(), "lead") if before else _LEAD_KEY.search(key):
                lead = lead or canonical_lead(found[2])
    if fs is None and len(set(hertz)) == 1:
        fs = hertz[0]
    return Stated(fs, unit, lead)


def _step_size(text: str, number: float) -> str | None:
    """Return the size of a converter's step that a gain or a resolution states: ``0.001 mV``."""
    if found := _PER_MILLIVOLT.search(text):
        size = millivolts_per(found[1])
        return f"{size / number:.9g} mV" if size else None
    if found := _VOLTS_PER_STEP.search(text):
        size = millivolts_per(found[1])
        return f"{size * number:.9g} mV" if size else None
    return None


def _key_and_value(line: str) -> tuple[str, str]:
    text = line.strip().lstrip("#").strip()
    found = re.search(r"[:=,;\t]", text)
    if found is None:
        return "", text
    key, value = text[: found.start()], text[found.end() :]
    value = value.strip().strip(",;\t").strip().strip("\"'").strip()
    return key.strip().strip("\"'"), value
