"""What every file format hands over, and the way from an array of numbers to a recording."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord
from ecgfounder_train.records.header import MAX_FS, MAX_VALUES, MILLIVOLTS_PER_UNIT

HEAD_BYTES = 4096
EIGHT_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
"""What electrocardiographs measure; the other four follow from I and II."""
MAX_LEADS = 64


@dataclass(frozen=True)
class InputOptions:
    """What a file does not say about itself.

    Attributes:
        fs: Sampling rate in Hz, for files that hold none.
        unit: Unit of the numbers (mV, uV, nV, V), **whatever the file says**: units are what
            files get wrong.
        leads: Names of the leads in stored order, whatever the file says.
    """

    fs: float | None = None
    unit: str | None = None
    leads: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.fs is not None and not 0 < self.fs <= MAX_FS:
            raise UserError(f"input_fs={self.fs!r} is not a sampling rate in Hz.")
        if self.unit is not None and millivolts_per(self.unit) is None:
            raise UserError(f"input_unit={self.unit!r} is no voltage. Valid: mV, uV, nV, V.")
        if self.leads is not None and len(set(self.leads)) != len(self.leads):
            raise UserError(f"input_leads={', '.join(self.leads)} names a lead twice.")

    def updated(self, fs: float | None, unit: str | None) -> "InputOptions":
        """Return the options with a list's own values for one file; None keeps these."""
        if fs is None and unit is None:
            return self
        return replace(self, fs=fs or self.fs, unit=unit or self.unit)


@dataclass(frozen=True)
class SourceRecord:
    """A recording as its file gives it, with what had to be assumed."""

    record: EcgRecord
    remarks: tuple[Remark, ...] = ()


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
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    read: Reader
    items: Callable[[Path], Sequence[str]] | None = None


def millivolts_per(unit: str) -> float | None:
    """Return the size of a unit in mV, None where it is no voltage."""
    return MILLIVOLTS_PER_UNIT.get(unit.strip().lower())


def unreadable(detail: str) -> RejectedRecordError:
    """Return the rejection of a file whose content is not what its format promises."""
    return RejectedRecordError(RejectReason.UNREADABLE_SIGNAL, detail)


def from_array(
    values: NDArray[Any],
    options: InputOptions,
    *,
    names: Sequence[str] | None = None,
    fs: float | None = None,
    unit: str | None = None,
    remarks: Sequence[Remark] = (),
) -> SourceRecord:
    """Return the recording in a table of numbers, time along either axis.

    Args:
        values: One or two axes; the leads are the axis of `names`' length, else the shorter one.
        options: What the file does not say.
        names: Lead names the file gives.
        fs: Sampling rate the file gives.
        unit: Unit the file gives.
        remarks: What the reader had to say so far.

    Raises:
        RejectedRecordError: The numbers cannot be an ECG, or nobody says at which rate.
    """
    remarks = list(remarks)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or 0 in values.shape:
        raise unreadable(f"an array of shape {values.shape} is no recording (leads, time)")
    if values.size > MAX_VALUES or values.dtype.kind not in "iuf":
        raise unreadable(f"{values.size} values of type {values.dtype} are no recording")
    wanted = options.leads or (tuple(names) if names else None)
    rows, columns = values.shape
    if (rows > columns) if wanted is None else (rows != len(wanted) == columns):
        values = values.T
    wanted = _lead_names(len(values), wanted, remarks)
    rate = _rate(fs, options, remarks)
    scale = _scale(unit, options, remarks)
    signal = np.array(values, np.float32, order="C")  # a copy: the caller's array stays as it is
    signal *= np.float32(scale)
    signal[~np.isfinite(signal)] = np.nan
    return SourceRecord(EcgRecord(signal, wanted, rate), tuple(remarks))


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


def _rate(fs: float | None, options: InputOptions, remarks: list[Remark]) -> float:
    if fs is None:
        if options.fs is None:
            raise RejectedRecordError(
                RejectReason.BAD_SAMPLING_RATE,
                "the file does not say its sampling rate; give it with input_fs=HZ",
            )
        return options.fs
    if not (np.isfinite(fs) and 0 < fs <= MAX_FS):
        raise RejectedRecordError(RejectReason.BAD_SAMPLING_RATE, f"{fs:g} Hz cannot be")
    if options.fs is not None and abs(options.fs - fs) > 0.01 * fs:
        detail = f"the file says {fs:g} Hz, which is used, and input_fs {options.fs:g} Hz"
        remarks.append(Remark(WarningCode.RATE_CONFLICT, detail))
    return float(fs)


def _scale(unit: str | None, options: InputOptions, remarks: list[Remark]) -> float:
    """Return the size of the stored numbers' unit in mV."""
    chosen = options.unit or unit
    if chosen is None:
        detail = "the file does not say its unit; taken as mV (input_unit=uV says otherwise)"
        remarks.append(Remark(WarningCode.UNIT_ASSUMED, detail))
        return 1.0
    scale = millivolts_per(chosen)
    if scale is None:
        raise RejectedRecordError(
            RejectReason.UNKNOWN_UNITS,
            f"unit {chosen!r} is no voltage; give the right one with input_unit=",
        )
    return scale


def with_options(
    record: EcgRecord, stated_unit: str | None, options: InputOptions, remarks: Sequence[Remark]
) -> SourceRecord:
    """Return a recording that is in mV already, with the options that overrule its file.

    Args:
        record: Converted to mV by what the file says.
        stated_unit: The unit the file's numbers were said to be in; the override replaces it.
        options: What overrules the file.
        remarks: What the reader had to say.
    """
    said = list(remarks)
    _rate(record.fs, options, said)
    if options.leads is not None:
        named = _lead_names(len(record.signal), options.leads, said)
        record = replace(record, lead_names=named)
    if options.unit is not None:
        stated = millivolts_per(stated_unit or "mV") or 1.0
        factor = (millivolts_per(options.unit) or 1.0) / stated
        if factor != 1.0:
            record = replace(record, signal=record.signal * np.float32(factor))
    return SourceRecord(record, tuple(said))
