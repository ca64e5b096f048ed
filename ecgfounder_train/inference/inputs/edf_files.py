"""EDF and EDF+ recordings, read in windows.

Own code instead of `ecgdatakit`, whose parser holds a file as float64 (24 h of 12 leads at 500 Hz:
more than 4 GB) and keeps whole Hz: here the data records are a memory map, rates are exact, and a
discontinuous file (EDF+D) gets missing samples in its gaps.

Signals with a voltage as their dimension and the rate of the ECG are leads; others (respiration,
SpO2, annotations, EEG at another rate) are named as not read.

Source: https://www.edfplus.info/specs/edf.html, https://www.edfplus.info/specs/edfplus.html
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.inputs.reading import (
    MAX_VALUES_IN_MEMORY,
    InputFormat,
    InputOptions,
    SourceRecord,
    WindowedSignal,
    left_out,
    millivolts_per,
    number_in,
    regular_file_bytes,
    too_large,
    unreadable,
    with_options,
)
from ecgfounder_train.inference.leads import device_lead
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import STANDARD_LEADS
from ecgfounder_train.records.header import MAX_FS

_MAX_SIGNALS = 512
_ANNOTATIONS = "EDF Annotations"
_ONSET = re.compile(rb"^([+-]\d+(?:\.\d*)?)(?:\x15[\d.]*)?\x14")
_ECG = re.compile(r"\b(?:ecg|ekg)\b", re.I)
_MAX_GAPS_S = 7 * 86400.0


@dataclass(frozen=True)
class _Signal:
    """One signal of the header."""

    label: str
    unit: str
    gain: float
    offset: float
    samples_per_record: int
    first: int
    """Place of its first sample in a data record."""

    @property
    def is_voltage(self) -> bool:
        return millivolts_per(self.unit) is not None


@dataclass(frozen=True)
class _Header:
    signals: tuple[_Signal, ...]
    num_bytes: int
    num_records: int
    record_s: float
    record_samples: int
    discontinuous: bool


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the ECG signals of a file."""
    head = regular_file_bytes(path, 256 * (_MAX_SIGNALS + 1))
    header = _header(head)
    num_records, remarks = _stored_records(header, path.stat().st_size)
    data: NDArray[Any] = np.memmap(
        path, "<i2", "r", header.num_bytes, (num_records, header.record_samples)
    )
    leads, others = _leads(header, options)
    fs = leads[0].samples_per_record / header.record_s
    if not 0 < fs <= MAX_FS:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE, f"{fs:g} Hz is not a sampling rate of an ECG"
        )
    onsets = _onsets(header, data)
    source = _windowed(header, leads, data, fs, onsets, options)
    if header.discontinuous and onsets is not None:
        gaps_s = float(onsets[-1] - onsets[0] - (num_records - 1) * header.record_s)
        if gaps_s > 0.5 / fs:
            detail = f"the recording was interrupted: {gaps_s:.1f} s are missing samples"
            remarks.append(Remark(WarningCode.GAP, detail))
    units = [lead.unit if lead.is_voltage else None for lead in leads]
    remarks = [*left_out(others), *remarks]
    short = source.num_samples * len(leads) <= MAX_VALUES_IN_MEMORY
    return with_options(source.to_record() if short else source, units, options, remarks)


def _header(head: bytes) -> _Header:
    """Return what the header states.

    Raises:
        RejectedRecordError: It is not an EDF header, or its numbers are impossible.
    """
    if head[:8] == b"\xffBIOSEMI":
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, "BDF (24 bit) is not read; export it as EDF"
        )
    if len(head) < 256 or head[:8].strip() != b"0":
        raise unreadable("not an EDF header")
    count = _whole(head[252:256], "number of signals")
    if not 0 < count <= _MAX_SIGNALS or len(head) < 256 * (count + 1):
        raise unreadable(f"{count} signals in an EDF header of {len(head)} bytes")
    record_s = number_in(head[244:252].decode("latin-1")) or 0.0
    place = 256
    fields: dict[str, list[bytes]] = {}
    for name, size in (
        *(("label", 16), ("transducer", 80), ("unit", 8), ("pmin", 8), ("pmax", 8), ("dmin", 8)),
        *(("dmax", 8), ("filter", 80), ("samples", 8), ("reserved", 32)),
    ):
        fields[name] = [head[place + n * size : place + (n + 1) * size] for n in range(count)]
        place += size * count
    signals = []
    first = 0
    for number in range(count):
        samples = _whole(fields["samples"][number], "samples per data record")
        if not 0 < samples <= 1 << 24:
            raise unreadable(f"{samples} samples per data record")
        low, high, bottom, top = (
            number_in(fields[name][number].decode("latin-1")) or 0.0
            for name in ("pmin", "pmax", "dmin", "dmax")
        )
        unit = fields["unit"][number].decode("latin-1").strip()
        gain = (high - low) / (top - bottom) if top > bottom and high != low else 0.0
        label = fields["label"][number].decode("latin-1").strip()
        # Without a range the samples are plain numbers, without a stated unit.
        stated = (unit, gain, low - gain * bottom) if gain else ("", 1.0, 0.0)
        signals.append(_Signal(label, *stated, samples, first))
        first += samples
    if record_s <= 0:
        raise RejectedRecordError(RejectReason.BAD_SAMPLING_RATE, f"data records of {record_s:g} s")
    return _Header(
        tuple(signals),
        256 * (count + 1),
        _whole(head[236:244], "number of data records"),
        record_s,
        first,
        head[192:197] == b"EDF+D",
    )


def _whole(text: bytes, what: str) -> int:
    number = number_in(text.decode("latin-1"))
    if number is None or number != int(number):
        raise unreadable(f"{what} is {text.decode('latin-1').strip()[:10]!r}")
    return int(number)


def _stored_records(header: _Header, num_bytes: int) -> tuple[int, list[Remark]]:
    """Return the number of whole data records, and a remark if the header states more."""
    stored = (num_bytes - header.num_bytes) // (2 * header.record_samples)
    if stored < 1 or header.num_records == 0:
        raise RejectedRecordError(
            RejectReason.TRUNCATED_SIGNAL,
            f"{num_bytes} bytes hold no whole data record of {header.record_samples} samples",
        )
    if header.num_records < 0 or header.num_records == stored:
        return stored, []  # -1: the recorder did not close the file
    if header.num_records < stored:
        return header.num_records, []
    if header.num_records > stored:
        detail = f"the header announces {header.num_records} data records, {stored} are there"
        return stored, [Remark(WarningCode.PARTLY_READ, detail)]
    return stored, []


def _leads(header: _Header, options: InputOptions) -> tuple[list[_Signal], list[str]]:
    """Return the ECG signals, all of one rate, and the names of the other signals."""
    signals = [signal for signal in header.signals if signal.label != _ANNOTATIONS]
    if options.leads is not None and len(options.leads) == len(signals):
        candidates = signals
    else:
        ecg = [s for s in signals if _is_ecg(s.label)]
        candidates = ecg or [s for s in signals if s.is_voltage or not s.unit]
    if not candidates:
        there = ", ".join(f"{s.label[:16]} ({s.unit or 'no unit'})" for s in signals[:8])
        raise RejectedRecordError(
            RejectReason.MISSING_LEADS, f"no signal of the file is an ECG: {there or 'none'}"
        )
    rates = [signal.samples_per_record for signal in candidates]
    rate = max(set(rates), key=lambda each: (rates.count(each), each))
    leads = [signal for signal in candidates if signal.samples_per_record == rate]
    for lead in leads:
        if not lead.is_voltage and options.unit is None:
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS,
                f"signal {lead.label[:16]} is in {lead.unit or 'no unit'}; "
                "give input_unit=uV or mV",
            )
    others = [
        f"signal {s.label[:16]} ({s.unit or 'no unit'}, "
        f"{s.samples_per_record / header.record_s:g} Hz)"
        for s in signals
        if s not in leads
    ]
    return leads, others


def _is_ecg(label: str) -> bool:
    return device_lead(label).removeprefix("-") in STANDARD_LEADS or bool(_ECG.search(label))


def _onsets(header: _Header, data: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return the start of each data record of a discontinuous file in s, None of another.

    Raises:
        RejectedRecordError: They do not rise, or the gaps are longer than a week.
    """
    marks = [signal for signal in header.signals if signal.label == _ANNOTATIONS]
    if not header.discontinuous or not marks:
        return None
    onsets = np.empty(len(data))
    for number in range(len(data)):
        place = marks[0].first
        text = data[number, place : place + marks[0].samples_per_record].tobytes()
        found = _ONSET.match(text)
        if found is None:
            raise unreadable(f"data record {number + 1} of a discontinuous file states no start")
        onsets[number] = float(found[1])
    steps = np.diff(onsets)
    if len(steps) and steps.min() < header.record_s * 0.999:
        raise unreadable("the data records of a discontinuous file overlap")
    if onsets[-1] - onsets[0] > len(data) * header.record_s + _MAX_GAPS_S:
        raise too_large("interruptions of more than a week")
    return onsets


def _windowed(
    header: _Header,
    leads: Sequence[_Signal],
    data: NDArray[Any],
    fs: float,
    onsets: NDArray[np.float64] | None,
    options: InputOptions,
) -> WindowedSignal:
    """Return the leads as a signal that is read data record by data record."""
    size = leads[0].samples_per_record
    starts = np.arange(len(data), dtype=np.int64) * size
    if onsets is not None:
        starts = np.rint((onsets - onsets[0]) * fs).astype(np.int64)
    scales = [millivolts_per(lead.unit) or 1.0 for lead in leads]
    gains = np.array([s * lead.gain for s, lead in zip(scales, leads, strict=True)], np.float32)
    offsets = np.array([s * lead.offset for s, lead in zip(scales, leads, strict=True)], np.float32)

    def samples(start: int, stop: int) -> NDArray[np.float32]:
        signal = np.full((len(leads), stop - start), np.nan, np.float32)
        first = max(int(np.searchsorted(starts, start, "right")) - 1, 0)
        last = int(np.searchsorted(starts, stop, "left"))
        for number in range(first, last):
            begin = int(starts[number])
            inside = slice(max(start - begin, 0), min(stop - begin, size))
            if inside.start >= inside.stop:
                continue
            to = begin + inside.start - start
            width = inside.stop - inside.start
            for row, lead in enumerate(leads):
                place = lead.first
                signal[row, to : to + width] = data[
                    number, place + inside.start : place + inside.stop
                ]
        signal *= gains[:, None]
        signal += offsets[:, None]
        return signal

    names = tuple(lead.label for lead in leads)
    return WindowedSignal(names, fs, int(starts[-1]) + size, samples)


FORMAT = InputFormat(
    "EDF",
    (".edf", ".rec"),
    lambda head: head.startswith(b"0       ") and len(head) >= 256 and b"\0" not in head[:8],
    read,
)
