"""WFDB header files: strict where a wrong number would give a wrong signal, lenient elsewhere.

Headers in the wild that the `wfdb` package (4.3) refuses are read: an ISO date in the record line
(CinC 2017), date before time (``E07500.mat 12 500 5000 05-May-2020 09:49:17``, Georgia), blanks in
record and file names, Latin-1 text, and lines that end in CR alone. A start time that cannot be
parsed becomes None. A signal whose units are not a voltage stays in the header and is marked:
blood pressure beside an ECG does not cost the ECG.

Source: https://wfdb.io/spec/header-files.html
"""

import math
import re
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from typing import NamedTuple

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason

DEFAULT_FS = 250.0
DEFAULT_GAIN = 200.0  # ADC units per mV, what the specification says for "uncalibrated"
MAX_HEADER_BYTES = 1 << 20
MAX_SIGNALS = 512
MAX_FS = 100_000.0
# Values that are read into memory at once: 2.1 GB as float32, a day of 12 leads at 500 Hz.
MAX_VALUES = 1 << 29
# A week of 12 leads at 500 Hz. A header that promises more is taken for damage.
MAX_STORED_VALUES = 1 << 32
# Units of the header -> mV. Nothing else is a voltage: a pulse wave in NU is not an ECG lead.
MILLIVOLTS_PER_UNIT = {
    **dict.fromkeys(("v", "volt", "volts"), 1e3),
    **dict.fromkeys(("mv", "milliv", "millivolt", "millivolts"), 1.0),
    **dict.fromkeys(("uv", "µv", "μv", "mcv", "microv", "microvolt", "microvolts"), 1e-3),
    **dict.fromkeys(("nv", "nanov", "nanovolt", "nanovolts"), 1e-6),
}


class SignalSpec(NamedTuple):
    """One signal line: where its samples are and how they become mV."""

    file_name: str
    fmt: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float
    """ADC units per mV, whatever the header's units were; NaN where they are not a voltage."""
    baseline: int
    """ADC value of 0 mV."""
    initial_value: int
    """ADC value before the first difference, in format 8."""
    units: str
    name: str

    @property
    def is_voltage(self) -> bool:
        """True if the samples can be given in mV."""
        return not math.isnan(self.gain)


@dataclass(frozen=True)
class RecordHeader:
    """A header file; `num_samples` is None where it is left to the size of the signal file."""

    name: str
    fs: float
    num_samples: int | None
    signals: tuple[SignalSpec, ...]
    segments: tuple[tuple[str, int], ...] = ()
    """(record name, length) of each segment of a multi-segment record, which has no signals."""
    start_time: datetime | None = None
    comments: tuple[str, ...] = ()

    @property
    def lead_names(self) -> tuple[str, ...]:
        """The signals' descriptions, in stored order."""
        return tuple(spec.name for spec in self.signals)


def header_error(detail: str) -> RejectedRecordError:
    """Return the rejection of a header that cannot be understood."""
    return RejectedRecordError(RejectReason.UNREADABLE_HEADER, detail)


def decode_header(content: bytes) -> str:
    """Return the header's text: UTF-8, else Latin-1 (a micro sign, names of patients and drugs).

    Raises:
        RejectedRecordError: UNREADABLE_HEADER for empty, oversized or binary content.
    """
    if not content.strip():
        raise header_error("header file is empty")
    if len(content) > MAX_HEADER_BYTES:
        raise header_error(f"header file is larger than {MAX_HEADER_BYTES} bytes")
    if b"\0" in content:
        raise header_error("header file holds NUL bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def header_lines(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of a header that are not empty, and its comments.

    A comment is a line that begins with `#`: a `#` elsewhere is part of a name ("ECG #1").
    """
    lines: list[str] = []
    comments: list[str] = []
    for raw in text.replace("\r", "\n").split("\n"):
        if line := raw.strip():
            if line.startswith("#"):
                comments.append(line.strip(" \t#"))
            else:
                lines.append(line)
    return lines, comments


def parse_header(text: str) -> RecordHeader:
    """Return the parsed header.

    Raises:
        RejectedRecordError: UNREADABLE_HEADER, BAD_SAMPLING_RATE, TOO_SHORT (a header that promises
            no samples) or MISSING_SIGNAL_FILE (one that names none).
    """
    lines, comments = header_lines(text)
    if not lines:
        raise header_error("header file has no record line")

    body = lines[1:]
    name, num_segments, num_signals, fs, num_samples, start_time = _parse_record_line(
        lines[0], len(body)
    )
    if num_segments is not None:
        if len(body) != num_segments:
            raise header_error(f"{num_segments} segments announced, {len(body)} listed")
        segments = tuple(_parse_segment_line(line) for line in body)
        return RecordHeader(name, fs, num_samples, (), segments, start_time, tuple(comments))
    if num_signals == 0:
        raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "header names no signal file")
    if len(body) != num_signals:
        raise header_error(f"{num_signals} signals announced, {len(body)} listed")
    signals = tuple(_parse_signal_line(line) for line in body)
    frame = sum(spec.samples_per_frame for spec in signals)
    if num_samples is not None and num_samples * frame > MAX_STORED_VALUES:
        raise header_error(f"header promises {num_samples} samples of {num_signals} signals")
    return RecordHeader(name, fs, num_samples, signals, (), start_time, tuple(comments))


_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER = r"[-+]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?"
_FS = re.compile(rf"({_NUMBER})(?:/{_NUMBER}(?:\({_NUMBER}\))?)?")
_FORMAT = re.compile(r"([0-9]{1,4})(?:x([0-9]{1,6}))?(?::([0-9]{1,9}))?(?:\+([0-9]{1,12}))?")
_GAIN = re.compile(rf"({_NUMBER})(?:\(([-+]?[0-9]{{1,10}})\))?(?:/(\S+))?")
_SIGNED = re.compile(r"[-+]?[0-9]{1,10}")
_MAX_BLANKS_LINE = 1000
"""Characters: a megabyte of blanks would keep the pattern busy for hours."""
_BLANKS_IN_FILE_NAME = re.compile(
    rf"(?P<file>\S.*?)\s+(?P<rest>{_FORMAT.pattern}(?:\s+{_GAIN.pattern}(?:\s.*)?)?)$"
)


def _integer(text: str, what: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise header_error(f"{what} is not a whole number")
    return int(text)


def _parse_record_line(
    line: str, num_lines: int
) -> tuple[str, int | None, int, float, int | None, datetime | None]:
    fields = line.split()
    if len(fields) > 2 and fields[1] != str(num_lines):
        fields = _with_blanks_in_name(fields, num_lines)
    if len(fields) < 2:
        raise header_error("record line has fewer than two fields")
    name, slash, segments = fields[0].rpartition("/") if "/" in fields[0] else (fields[0], "", "")
    num_segments = _integer(segments, "number of segments") if slash else None
    num_signals = _integer(fields[1], "number of signals")
    if num_signals > MAX_SIGNALS:
        raise header_error(f"header announces {num_signals} signals")
    fs = DEFAULT_FS
    if len(fields) > 2:
        match = _FS.fullmatch(fields[2])
        if match is None:
            raise header_error("sampling rate is not a number")
        fs = float(match[1])
    if not 0 < fs <= MAX_FS:
        raise RejectedRecordError(RejectReason.BAD_SAMPLING_RATE, f"header says {fs:g} Hz")
    num_samples = None
    rest = fields[3:]
    if rest and not (":" in rest[0] or "-" in rest[0][1:]):
        num_samples = _integer(rest.pop(0), "number of samples")
        if num_samples == 0:
            raise RejectedRecordError(RejectReason.TOO_SHORT, "header promises 0 samples")
    return name, num_segments, num_signals, fs, num_samples, _parse_start(rest)


def _with_blanks_in_name(fields: list[str], num_lines: int) -> list[str]:
    """Return the fields of a record line with a name of several words as the first one.

    The number of signals (or, behind a slash, of segments) ends the name: it is that of the lines
    that follow, and the sampling rate stands behind it.
    """
    for place in range(1, len(fields)):
        is_rate = place + 1 == len(fields) or _FS.fullmatch(fields[place + 1])
        counted = fields[place] == str(num_lines) or fields[place - 1].endswith(f"/{num_lines}")
        if is_rate and counted and _INTEGER.fullmatch(fields[place]):
            return [" ".join(fields[:place]), *fields[place:]]
    return fields


def _parse_segment_line(line: str) -> tuple[str, int]:
    name, _, length = line.replace("\t", " ").rpartition(" ")
    if not name.strip():
        raise header_error("segment line has fewer than two fields")
    if name.strip() != "~":
        check_file_name(name.strip())
    return name.strip(), _integer(length, "segment length")


def layout_names(text: str) -> tuple[str, ...]:
    """Return the signal names in the header of a layout segment, which has no signal files."""
    lines, _ = header_lines(text)
    fields = [line.split(None, 8) for line in lines[1 : MAX_SIGNALS + 1]]
    return tuple(each[8].strip() if len(each) > 8 else "" for each in fields)


@lru_cache(maxsize=64)
def check_file_name(name: str) -> None:
    """Raise UNREADABLE_HEADER unless `name` is a plain file name beside the header.

    A header is a stranger's file: one that names ``../../etc/passwd``, ``/dev/zero``, standard
    input (``-``) or a URL must not have it opened.
    """
    if name.startswith((".", "-")) or "/" in name or "\\" in name or ":" in name:
        raise header_error("signal file is not a plain file name beside the header")


def _parse_signal_line(line: str) -> SignalSpec:
    fields = line.split(None, 8)
    if len(fields) < 2:
        raise header_error("signal line has fewer than two fields")
    if not _FORMAT.fullmatch(fields[1]):
        match = _BLANKS_IN_FILE_NAME.match(line) if len(line) < _MAX_BLANKS_LINE else None
        fields = [match["file"], *match["rest"].split(None, 7)] if match else fields
    file_name = fields[0]
    if file_name == "~":
        raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "signal has no file (~)")
    check_file_name(file_name)
    fmt, per_frame, skew, offset = _parse_format(fields[1])
    gain, baseline, units = (
        _parse_gain(fields[2]) if len(fields) > 2 else (DEFAULT_GAIN, None, "mV")
    )
    if baseline is None:  # "if the baseline is missing, it is the ADC zero"
        baseline = _signed(fields, 4, "ADC zero")
    initial_value = _signed(fields, 5, "initial value") if fmt == 8 else 0
    name = fields[8].strip() if len(fields) > 8 else ""
    return SignalSpec(
        file_name, fmt, per_frame, skew, offset, gain, baseline, initial_value, units, name
    )


def _signed(fields: list[str], place: int, what: str) -> int:
    if len(fields) <= place:
        return 0
    if not _SIGNED.fullmatch(fields[place]):
        raise header_error(f"{what} is not a whole number")
    return int(fields[place])


# Twelve leads repeat the same two or three tokens; so do the next million records.
@lru_cache(maxsize=1024)
def _parse_format(token: str) -> tuple[int, int, int, int]:
    """Return (format, samples per frame, skew, byte offset)."""
    match = _FORMAT.fullmatch(token)
    if match is None:
        raise header_error("signal format is not understood")
    fmt, per_frame, skew, offset = (int(group) if group else 0 for group in match.groups())
    return fmt, per_frame or 1, skew, offset


@lru_cache(maxsize=1024)
def _parse_gain(token: str) -> tuple[float, int | None, str]:
    """Return (ADC units per mV, baseline if it is stated, units)."""
    match = _GAIN.fullmatch(token)
    if match is None:
        raise header_error("gain is not a number")
    gain = float(match[1]) or DEFAULT_GAIN
    baseline = int(match[2]) if match[2] else None
    units = match[3] or "mV"
    scale = MILLIVOLTS_PER_UNIT.get(units.lower())
    if scale is None:
        return math.nan, baseline, units
    gain /= scale
    # A negative gain is that of a signal stored upside down.
    if not (math.isfinite(gain) and 1e-3 <= abs(gain) <= 1e9):
        raise header_error(f"gain of {gain:g} ADC units per mV")
    return gain, baseline, units


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATES = (
    re.compile(r"(?P<y>[0-9]{4})[-/](?P<m>[0-9]{1,2})[-/](?P<d>[0-9]{1,2})"),
    re.compile(r"(?P<d>[0-9]{1,2})[-/](?P<m>[0-9]{1,2}|[A-Za-z]{3})[-/](?P<y>[0-9]{4})"),
)
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{1,2})(?::([0-9]{1,2})(?:\.([0-9]{1,6}))?)?")


def _parse_start(fields: list[str]) -> datetime | None:
    """Return the start of the recording from time and date in any order, else None."""
    day: date | None = None
    clock: time | None = None
    tokens = [part for field in fields for part in (field.split("T") if "T" in field else [field])]
    try:
        for token in tokens:
            for pattern in _DATES:
                if day is None and (match := pattern.fullmatch(token)):
                    month = match["m"].lower()
                    number = int(month) if month.isdigit() else _MONTHS.index(month) + 1
                    day = date(int(match["y"]), number, int(match["d"]))
            if clock is None and (match := _TIME.fullmatch(token)):
                hour, minute, second = (int(group or 0) for group in match.groups()[:3])
                clock = time(hour, minute, second, int((match[4] or "0").ljust(6, "0")))
    except ValueError:
        return None
    return datetime.combine(day, clock) if day and clock else None
