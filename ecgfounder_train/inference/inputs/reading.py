"""What every file format returns, and the conversion of an array of numbers to a recording."""

import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord
from ecgfounder_train.records.header import MAX_FS, MAX_VALUES, MILLIVOLTS_PER_UNIT

HEAD_BYTES = 1 << 16
EIGHT_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
"""The leads an electrocardiograph measures; the other four are computed from I and II."""
MAX_LEADS = 64
MAX_VALUES_IN_MEMORY = 1 << 27
"""0.5 GB as float32. Longer signals are read in windows, where their format allows it."""
RATE_NAMES = ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "samplingrate",
              "samplerate", "samplingfrequency", "rate_hz", "frequency")  # fmt: skip
LEAD_NAMES = ("leads", "lead_names", "lead_name", "sig_name", "sig_names", "channels",
              "channel_names")  # fmt: skip
UNIT_NAMES = ("unit", "units", "sig_units")

_UNIT_WORDS = {
    f"{prefix}{ending}": unit
    for prefixes, unit in (
        (("micro", "mikro"), "uv"),
        (("milli",), "mv"),
        (("nano",), "nv"),
        (("",), "v"),
    )
    for prefix in prefixes
    for ending in ("v", "volt", "volts")
}
_MICRO_SIGNS = str.maketrans({"\u00b5": "u", "\u03bc": "u"})
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?(?:e[-+]?\d+)?", re.I)


@dataclass(frozen=True)
class InputOptions:
    """What the user states about files.

    Attributes:
        fs: Sampling rate in Hz of files that state none; it overrides every guess, not a rate
            that a file states.
        unit: Unit of the numbers (mV, uV, nV, V), **whatever the file states**: units are what
            files get wrong.
        leads: Names of the leads in stored order, whatever the file states.
    """

    fs: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.fs is not None and not 0 < self.fs <= MAX_FS:
            raise UserError(f"input_fs={self.fs!r} is not a sampling rate in Hz.")
        if self.unit is not None and millivolts_per(self.unit) is None:
            raise UserError(f"input_unit={self.unit!r} is not a voltage. Valid: mV, uV, nV, V.")
        if self.leads is not None and len(set(self.leads)) != len(self.leads):
            raise UserError(f"input_leads={', '.join(self.leads)} names a lead twice.")

    def updated(self, fs: float | None, unit: str | None) -> "InputOptions":
        """Return the options with a list's own values for one file; None keeps these."""
        if fs is None and unit is None:
            return self
        return replace(self, fs=fs or self.fs, unit=unit or self.unit)


@dataclass(frozen=True)
class WindowedSignal:
    """A recording that is read piece by piece, for files larger than memory should hold.

    Attributes:
        lead_names: As stored.
        fs: Sampling rate in Hz.
        num_samples: Length.
        read: Returns the samples from `start` to `stop` as float32 (num_leads, stop - start) in mV.
    """

    lead_names: tuple[str, ...]
    fs: float
    num_samples: int
    read: Callable[[int, int], NDArray[np.float32]]

    def to_record(self) -> EcgRecord:
        """Return the whole recording.

        Raises:
            RejectedRecordError: It has more values than fit into memory.
        """
        if self.num_samples * len(self.lead_names) > MAX_VALUES:
            raise too_large(f"{len(self.lead_names)} leads of {self.num_samples} samples")
        return EcgRecord(self.read(0, self.num_samples), self.lead_names, self.fs)


@dataclass(frozen=True)
class SourceRecord:
    """A recording as its file states it, with what had to be assumed."""

    signal: EcgRecord | WindowedSignal
    remarks: tuple[Remark, ...] = ()

    @cached_property
    def record(self) -> EcgRecord:
        """The recording in memory."""
        if isinstance(self.signal, EcgRecord):
            return self.signal
        return self.signal.to_record()


Reader = Callable[[Path, str, InputOptions], SourceRecord]


@dataclass(frozen=True)
class InputFormat:
    """One file format.

    Attributes:
        name: What messages call it.
        suffixes: Of its files, lower case, with the dot.
        recognises: Whether the first bytes of a file (`HEAD_BYTES` at most) are of this format.
        read: Returns the recording `item` of a file; raises RejectedRecordError.
        items: Names of the recordings in a file, found without reading the signals. None: one
            recording per file, whose name is "".
        has_main_item: Whether `read` with the item "" returns the main recording of several and
            states in a remark what it left out.
        max_bytes: Of a file that is read as a whole; None where only parts are read.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    read: Reader
    items: Callable[[Path], Sequence[str]] | None = None
    has_main_item: bool = False
    max_bytes: int | None = None


def millivolts_per(unit: str) -> float | None:
    """Return the size of a unit in mV, None where it is not a voltage.

    Spelled-out names (`microvolts`, `microV`), brackets, both micro signs and a size
    (`4.88 uV`) are understood.
    """
    text = unit.strip().strip("[](){}\"' ").translate(_MICRO_SIGNS).lower()
    size = 1.0
    if (found := _NUMBER.match(text)) and found.end() < len(text):
        size, text = float(found[0].replace(",", ".")), text[found.end() :].strip()
    millivolts = MILLIVOLTS_PER_UNIT.get(_UNIT_WORDS.get(text, text))
    return millivolts * size if millivolts is not None and size > 0 else None


def number_in(value: Any) -> float | None:
    """Return the number a file states (`500`, `"500 Hz"`, an array of one), None for anything else.

    Only finite numbers count: `NA`, empty arrays and text are nothing stated.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        found = _NUMBER.match(value.strip())
        value = found[0].replace(",", ".") if found else "nan"
    try:
        array = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return None
    return float(array[0]) if array.size and math.isfinite(array[0]) else None


def texts_in(value: Any) -> list[str] | None:
    """Return the texts a file states (a list, an array, or one comma-separated text), else None."""
    if isinstance(value, str | bytes):
        return [part.strip() for part in _text(value).split(",") if part.strip()] or None
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    if array.dtype.kind not in "USO" or not array.size or array.size > MAX_LEADS:
        return None
    items = array.reshape(-1).tolist()
    if not all(isinstance(item, str | bytes) for item in items):
        return None
    if len(items) == 1:
        return texts_in(items[0])
    return [_text(item).strip() for item in items]


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def unreadable(detail: str) -> RejectedRecordError:
    """Return the rejection of a file whose content is not what its format promises."""
    return RejectedRecordError(RejectReason.UNREADABLE_SIGNAL, detail)


def too_large(what: str) -> RejectedRecordError:
    """Return the rejection of a file that would take more memory than an ECG needs."""
    return unreadable(f"{what} are more than is read at once; split the recording")


def left_out(parts: Sequence[str]) -> list[Remark]:
    """Return the remark that names the parts of a file that were not read, if there are any."""
    if not parts:
        return []
    named = list(parts[:6])
    if len(parts) > len(named):
        named.append(f"{len(parts) - len(named)} more")
    return [Remark(WarningCode.PARTLY_READ, f"not read: {'; '.join(named)}")]


def regular_file_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the first `limit` bytes of a regular file (all without one).

    A pipe or a device is never opened for waiting: it would block the reader.

    Raises:
        RejectedRecordError: The file is absent, not a regular file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "file is absent") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise unreadable(f"cannot be opened: {reason}") from None
    with open(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise unreadable("not a regular file")
        try:
            return handle.read() if limit is None else handle.read(limit)
        except OSError as error:
            raise unreadable(f"cannot be read: {error.strerror}") from None


def from_array(
    values: NDArray[Any],
    options: InputOptions,
    *,
    names: Sequence[str] | None = None,
    fs: float | None = None,
    unit: str | Sequence[str | None] | None = None,
    remarks: Sequence[Remark] = (),
) -> SourceRecord:
    """Return the recording in a table of numbers, time along either axis.

    Args:
        values: One or two axes; the leads are the axis of `names`' length, else the shorter one.
            A memory map of a long recording stays one and is read in windows.
        options: What the user states.
        names: Lead names the file states.
        fs: Sampling rate the file states.
        unit: Unit the file states, one for all or one per lead.
        remarks: What the reader had to state so far.

    Raises:
        RejectedRecordError: The numbers cannot be an ECG, or their rate is not stated anywhere.
    """
    remarks = list(remarks)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or 0 in values.shape:
        raise unreadable(f"an array of shape {values.shape} is not a recording (leads, time)")
    if values.dtype.kind not in "iuf":
        raise unreadable(f"values of type {values.dtype} are not a recording")
    wanted = options.leads or (tuple(names) if names else None)
    rows, columns = values.shape
    if (rows > columns) if wanted is None else (rows != len(wanted) == columns):
        values = values.T
    wanted = _lead_names(len(values), wanted, remarks)
    rate = stated_rate(fs, options, remarks)
    scale = _scale(unit, wanted, options, remarks)[:, None]

    def read(start: int, stop: int) -> NDArray[np.float32]:
        # A copy: the caller's array is not changed.
        signal = np.array(values[:, start:stop], np.float32, order="C")
        signal *= scale
        signal[~np.isfinite(signal)] = np.nan
        return signal

    num_samples = values.shape[1]
    if values.size > MAX_VALUES_IN_MEMORY:
        return SourceRecord(WindowedSignal(wanted, rate, num_samples, read), tuple(remarks))
    return SourceRecord(EcgRecord(read(0, num_samples), wanted, rate), tuple(remarks))


def _lead_names(
    num_leads: int, names: tuple[str, ...] | None, remarks: list[Remark]
) -> tuple[str, ...]:
    if names is not None:
        if len(names) != num_leads:
            raise RejectedRecordError(
                RejectReason.MISSING_LEADS,
                f"{num_leads} leads are stored, but {len(names)} names are given "
                f"({', '.join(names)})",
            )
        return names
    assumed = {12: STANDARD_LEADS, 8: EIGHT_LEADS, 1: ("I",)}.get(num_leads)
    if assumed is None:
        raise RejectedRecordError(
            RejectReason.MISSING_LEADS,
            f"{num_leads} leads without names; name them in stored order with input_leads=[...]",
        )
    detail = f"the file names no leads; taken as {', '.join(assumed)} in this order"
    remarks.append(Remark(WarningCode.LEAD_ORDER_ASSUMED, detail))
    return assumed


def stated_rate(fs: float | None, options: InputOptions, remarks: list[Remark]) -> float:
    """Return the rate the file states, else the one the user states.

    Raises:
        RejectedRecordError: Neither states one, or it is not a rate.
    """
    if fs is None:
        if options.fs is None:
            raise RejectedRecordError(
                RejectReason.BAD_SAMPLING_RATE,
                "the file does not say its sampling rate; give it with input_fs=HZ",
            )
        return options.fs
    if not (np.isfinite(fs) and 0 < fs <= MAX_FS):
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE, f"{fs:g} Hz is not a sampling rate of an ECG"
        )
    if options.fs is not None and abs(options.fs - fs) > 0.01 * fs:
        detail = f"the file says {fs:g} Hz, which is used, and input_fs {options.fs:g} Hz"
        remarks.append(Remark(WarningCode.RATE_CONFLICT, detail))
    return float(fs)


def _scale(
    unit: str | Sequence[str | None] | None,
    names: tuple[str, ...],
    options: InputOptions,
    remarks: list[Remark],
) -> NDArray[np.float32]:
    """Return the size of each lead's stored numbers in mV. Shape: (num_leads,)."""
    if options.unit is not None:
        chosen: list[str | None] = [options.unit] * len(names)
    elif unit is None or isinstance(unit, str):
        chosen = [unit] * len(names)
    elif len(unit) == 1:
        chosen = list(unit) * len(names)
    elif len(unit) != len(names):
        raise RejectedRecordError(
            RejectReason.UNKNOWN_UNITS,
            f"{len(unit)} units for {len(names)} leads; give one for all with input_unit=",
        )
    else:
        chosen = list(unit)
    sizes = []
    for name, each in zip(names, chosen, strict=True):
        size = 1.0 if each is None else millivolts_per(each)
        if size is None:
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS,
                f"unit {str(each)[:20]!r} of lead {name} is not a voltage; give the right one with "
                "input_unit=",
            )
        sizes.append(size)
    if None in chosen:
        without = [name for name, each in zip(names, chosen, strict=True) if each is None]
        which = "its unit" if len(without) == len(names) else f"the unit of {', '.join(without)}"
        detail = f"the file does not say {which}; taken as mV (input_unit=uV overrides that)"
        remarks.append(Remark(WarningCode.UNIT_ASSUMED, detail))
    return np.array(sizes, np.float32)


def with_options(
    source: EcgRecord | WindowedSignal,
    stated_units: Sequence[str | None],
    options: InputOptions,
    remarks: Sequence[Remark],
) -> SourceRecord:
    """Return a recording that is in mV already, with the options that override its file.

    Args:
        source: Converted to mV by what the file states.
        stated_units: Units the file states for the leads; `options.unit` replaces them. None: the
            lead's numbers were left as they are.
        options: What overrides the file.
        remarks: What the reader had to state.
    """
    found = list(remarks)
    stated_rate(source.fs, options, found)
    if options.leads is not None:
        named = _lead_names(len(source.lead_names), options.leads, found)
        source = replace(source, lead_names=named)
    if options.unit is not None:
        size = millivolts_per(options.unit) or 1.0
        stated = [millivolts_per(unit or "mV") or 1.0 for unit in stated_units]
        factors = np.array([size / each for each in stated], np.float32)[:, None]
        if (factors != 1).any():
            if isinstance(source, EcgRecord):
                source = replace(source, signal=source.signal * factors)
            else:
                read = source.read
                source = replace(source, read=lambda start, stop: read(start, stop) * factors)
    return SourceRecord(source, tuple(found))
