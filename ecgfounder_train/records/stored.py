"""A WFDB record on disk, of one segment or many: any range of its leads, at their own rate.

Segments are joined by signal name and in mV: another order of the signals, another gain or unit in
the next segment change nothing, and a gap (`~`) or a signal that a segment lacks becomes missing
samples. A segment of another sampling rate is rejected.

Source: https://wfdb.io/spec/header-files.html (multi-segment records, multi-frequency records)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records.header import (
    MAX_STORED_VALUES,
    MAX_VALUES,
    RecordHeader,
    header_error,
)
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead
from ecgfounder_train.records.record import EcgRecord, UnusedSignal
from ecgfounder_train.records.signal_files import SignalFile

_BLOCK_VALUES = 1 << 22
"""Decoded at once."""

SignalName = tuple[str, int]
"""The description of a signal, and how many signals before it have the same."""


def signal_names(header: RecordHeader) -> list[SignalName]:
    """Return the names of the signals, each once."""
    seen: Counter[str] = Counter()
    names = []
    for spec in header.signals:
        names.append((spec.name, seen[spec.name]))
        seen[spec.name] += 1
    return names


class Segment:
    """The signal files of one header without segments."""

    def __init__(self, folder: Path, header: RecordHeader, root: Path | None) -> None:
        """Check the signal files.

        Raises:
            RejectedRecordError: One is absent, too short or of an unknown format.
        """
        self.header, self.names = header, signal_names(header)
        self.specs = dict(zip(self.names, header.signals, strict=True))
        by_file: dict[str, list[SignalName]] = {}
        for name, spec in self.specs.items():
            by_file.setdefault(spec.file_name, []).append(name)
        self.files = []
        num_frames = header.num_samples
        for file_name, names in by_file.items():
            specs = [self.specs[name] for name in names]
            file = SignalFile(folder / file_name, specs, num_frames, root)
            num_frames = file.num_frames
            self.files.append((names, file))
        assert num_frames is not None
        self.num_frames = num_frames

    def rate(self, name: SignalName) -> float:
        """Return the sampling rate of a signal, Hz."""
        return self.header.fs * self.specs[name].samples_per_frame


@dataclass(frozen=True)
class _Part:
    """Position of a segment in the record, in frames; None: a gap."""

    start: int
    num_frames: int
    segment: Segment | None


class StoredRecord:
    """A record whose headers and files have been checked; `read` gives any range of samples.

    The leads are the voltages at one rate: that of most standard leads, else of most signals that
    are called ECG, else the highest. All others are `unused_signals`.
    """

    def __init__(
        self, header: RecordHeader, parts: Sequence[_Part], layout: Sequence[SignalName] = ()
    ) -> None:
        """Choose the leads.

        Raises:
            RejectedRecordError: BAD_SAMPLING_RATE where a segment or signal changes its rate,
                UNKNOWN_UNITS where no signal is a voltage.
        """
        self.header, self._parts = header, tuple(parts)
        segments = list(dict.fromkeys(part.segment for part in parts if part.segment))
        if not segments:
            raise RejectedRecordError(
                RejectReason.MISSING_SIGNAL_FILE, "record consists of gaps alone"
            )
        for number, part in enumerate(parts, start=1):
            if part.segment and part.segment.header.fs != header.fs:
                raise RejectedRecordError(
                    RejectReason.BAD_SAMPLING_RATE,
                    f"segment {number} is sampled at {part.segment.header.fs:g} Hz, the record at "
                    f"{header.fs:g} Hz",
                )
        stored = dict.fromkeys(name for segment in segments for name in segment.names)
        names = [name for name in dict.fromkeys((*layout, *stored)) if name in stored]
        rates, units = _rates_and_units(names, segments)
        voltages = [name for name in names if name not in units]
        if not voltages:
            listed = ", ".join(sorted({unit[:16] for unit in units.values()}))
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS, f"units {listed} are not a voltage"
            )
        self.fs = _lead_rate(voltages, rates)
        self._leads = [name for name in voltages if rates[name] == self.fs]
        self._unused = tuple(
            _unused(name[0], units.get(name), rates[name], self.fs)
            for name in names
            if name not in self._leads
        )
        self._per_frame = round(self.fs / header.fs)
        self.num_samples = self._per_frame * sum(part.num_frames for part in parts)

    @property
    def lead_names(self) -> tuple[str, ...]:
        """Descriptions of the leads, in stored order."""
        return tuple(name for name, _ in self._leads)

    @property
    def num_values(self) -> int:
        """Samples of all leads together."""
        return self.num_samples * len(self._leads)

    @property
    def start_time(self) -> datetime | None:
        """Start of the recording, where the header states it."""
        return self.header.start_time

    @property
    def comments(self) -> tuple[str, ...]:
        """Comments of the header."""
        return self.header.comments

    def read(self, start: int = 0, stop: int | None = None) -> EcgRecord:
        """Return the leads from sample `start` to `stop`, NaN where a sample is missing.

        Raises:
            RejectedRecordError: A file is damaged, or the range is too large for memory.
        """
        stop = self.num_samples if stop is None else min(stop, self.num_samples)
        if (stop - start) * len(self._leads) > MAX_VALUES:
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL,
                f"{stop - start} samples of {len(self._leads)} leads are too many to be read at "
                "once",
            )
        signal = np.full((len(self._leads), stop - start), np.nan, np.float32)
        for part in self._parts:
            if part.segment is None:
                continue
            first = max(start // self._per_frame, part.start)
            last = min(-(-stop // self._per_frame), part.start + part.num_frames)
            for names, file in part.segment.files:
                rows = [(self._leads.index(name) if name in self._leads else -1) for name in names]
                if max(rows) < 0:
                    continue
                step = max(_BLOCK_VALUES // file.frame_values, 1)
                for begin in range(first, last, step):
                    end = min(begin + step, last)
                    pieces = file.read(begin - part.start, end - part.start)
                    at = begin * self._per_frame - start
                    for row, piece in zip(rows, pieces, strict=True):
                        if row >= 0:
                            cut = piece[max(-at, 0) : signal.shape[1] - at]
                            signal[row, max(at, 0) : max(at, 0) + len(cut)] = cut
        return EcgRecord(
            signal,
            self.lead_names,
            self.fs,
            self.start_time,
            self.comments,
            unused_signals=self._unused,
        )


def _rates_and_units(
    names: Sequence[SignalName], segments: Sequence[Segment]
) -> tuple[dict[SignalName, float], dict[SignalName, str]]:
    """Return the rate of every signal, and the units of those that are not voltages."""
    rates: dict[SignalName, float] = {}
    units: dict[SignalName, str] = {}
    for name in names:
        found = [segment for segment in segments if name in segment.specs]
        own = {segment.rate(name) for segment in found}
        if len(own) > 1:
            raise RejectedRecordError(
                RejectReason.BAD_SAMPLING_RATE,
                f"signal {name[0]} changes its rate between segments: "
                f"{', '.join(f'{rate:g}' for rate in sorted(own))} Hz",
            )
        rates[name] = own.pop()
        for spec in [segment.specs[name] for segment in found]:
            if not spec.is_voltage:
                units[name] = spec.units
    return rates, units


def _unused(name: str, units: str | None, rate: float, lead_rate: float) -> UnusedSignal:
    if units is not None:
        detail = f"in {units[:16]}, not a voltage"
        return UnusedSignal(name, RejectReason.UNKNOWN_UNITS, detail)
    return UnusedSignal(
        name,
        RejectReason.BAD_SAMPLING_RATE,
        f"sampled at {rate:g} Hz, the other leads at {lead_rate:g} Hz",
    )


def _lead_rate(voltages: Sequence[SignalName], rates: dict[SignalName, float]) -> float:
    def rank(rate: float) -> tuple[int, int, float]:
        names = [signal[0] for signal in voltages if rates[signal] == rate]
        standard = {canonical_lead(name) for name in names} & set(STANDARD_LEADS)
        called = sum(any(word in name.lower() for word in ("ecg", "ekg")) for name in names)
        return len(standard), called, rate

    return max((rates[name] for name in voltages), key=rank)


def open_segments(
    folder: Path,
    header: RecordHeader,
    root: Path | None,
    read_header: Callable[[str], RecordHeader],
    layout: Sequence[SignalName],
) -> StoredRecord:
    """Return the record that a header with segments describes.

    Raises:
        RejectedRecordError: A segment cannot be read, is shorter than listed, or has segments.
    """
    opened: dict[str, Segment] = {}
    parts = []
    at = 0
    for number, (name, num_frames) in enumerate(header.segments, start=1):
        if num_frames == 0:
            continue
        if name != "~" and name not in opened:
            own = read_header(name)
            if own.segments:
                raise header_error(f"segment {number} consists of segments, which WFDB excludes")
            opened[name] = Segment(folder, own, root)
        segment = None if name == "~" else opened[name]
        if segment and segment.num_frames < num_frames:
            raise RejectedRecordError(
                RejectReason.TRUNCATED_SIGNAL,
                f"segment {number} has {segment.num_frames} samples, {num_frames} are listed",
            )
        parts.append(_Part(at, num_frames, segment))
        at += num_frames
    signals = max((len(segment.specs) for segment in opened.values()), default=1)
    if at * signals > MAX_STORED_VALUES:
        raise header_error(f"header promises {at} samples of {signals} signals")
    return StoredRecord(header, parts, layout)


def open_single(folder: Path, header: RecordHeader, root: Path | None) -> StoredRecord:
    """Return the record of a header without segments."""
    segment = Segment(folder, header, root)
    return StoredRecord(header, [_Part(0, segment.num_frames, segment)])
