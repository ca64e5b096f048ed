"""Windows of a long recording, one piece of it in memory at a time.

A day of 12 leads at 500 Hz has 518 million samples: 4 GB as float64, several times that on the way
through the filters. It is read and filtered in overlapping pieces instead (measured with 12 leads,
24 h, 500 Hz: `prepare` peaks at 530 MB). The overlap is many times the settling time of a filter,
so that a window equals that of the whole recording to a microvolt.

Two things differ from a short record, because in a day of Holter monitoring a lead is often off for
a minute. The profile's limits (missing samples, amplitude, constant leads) are judged per window: a
window beyond them is left out and counted, and the recording is rejected if none is left. And the
statistics of a window are its own, taken at the profile's place among the stages.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import filters
from ecgfounder_train.records.filters import Signal
from ecgfounder_train.records.profiles import (
    SignalProfile,
    Window,
    moments,
    within_nyquist,
)
from ecgfounder_train.records.record import StoredRecording

_PIECE_VALUES = 1 << 22
"""Samples of all leads in the middle of a piece: 34 MB as float64, and a few copies of them."""
MARGIN_S, MARGIN_PERIODS = 30.0, 20.0
"""Overlap: what a notch of usual quality rings for, and periods of the lowest filter edge."""
MAX_WINDOWS = 100_000
"""A sample's name has five digits for the window."""


@dataclass
class WindowStream:
    """The windows of a long recording; iterate once, then `left_out` is complete.

    Attributes:
        native_fs: Rate of the recording, Hz.
        dropped_stages: As in `ProfiledRecord`.
        derived_leads: As in `ProfiledRecord`.
        num_planned: Windows that the recording is long enough for.
        left_out: Windows beyond the profile's limits, by reject reason.
    """

    native_fs: float
    dropped_stages: tuple[str, ...]
    derived_leads: tuple[str, ...]
    num_planned: int
    windows: Iterator[Window]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Span:
    """One window: its number, and the place of its valid samples at the target rate."""

    number: int
    start: int
    length: int


@dataclass(frozen=True)
class _Grid:
    """Positions that are whole samples at every rate: input `unit_in` steps, output `unit_out`."""

    unit_in: int
    unit_out: int

    @classmethod
    def of(cls, *rates: float) -> "_Grid":
        """Return the grid of a chain of rates, the first that of the recording."""
        unit_in = unit_out = 1
        for fs_in, fs_out in itertools.pairwise(rates):
            # As the polyphase filter rounds a rate that is not a ratio of small numbers.
            ratio = Fraction(fs_out / fs_in).limit_denominator(1000)
            factor = ratio.denominator // math.gcd(unit_out, ratio.denominator)
            unit_in, unit_out = unit_in * factor, unit_out * factor
            unit_out = unit_out * ratio.numerator // ratio.denominator
        return cls(unit_in, unit_out)


def stream_windows(
    profile: SignalProfile,
    recording: StoredRecording,
    site: str | None = None,
    on_share: Callable[[float], None] = lambda share: None,
) -> WindowStream:
    """Return the windows of a recording after the first half of the profile.

    Args:
        profile: What is done to the signal.
        recording: Read piece by piece.
        site: For the profile's overrides.
        on_share: Called with the share of the windows that is done.

    Raises:
        RejectedRecordError: Rate, leads or length are not what the profile takes. While iterating:
            a file is damaged, or no window is left.
    """
    profile.check_rate(recording.fs)
    first = profile.to_leads(recording.read(0, 1))
    parameters = profile.parameters_of(site)
    kept, dropped = within_nyquist(profile.stages, parameters, recording.fs)
    spans = _plan(profile, recording)
    stream = WindowStream(recording.fs, dropped, first.derived_leads, len(spans), iter(()))
    pieces = _Pieces(profile, recording, kept, parameters)
    stream.windows = _windows(pieces, spans, stream.left_out, on_share)
    return stream


def _plan(profile: SignalProfile, recording: StoredRecording) -> list[_Span]:
    duration_s = recording.num_samples / recording.fs
    profile.check_duration(duration_s, recording.fs)
    total = round(recording.num_samples * profile.fs / recording.fs)
    spans = [_Span(n, start, length) for n, (start, length) in enumerate(profile.spans(total))]
    if len(spans) > MAX_WINDOWS:
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL, f"{len(spans)} windows, more than {MAX_WINDOWS}"
        )
    return spans


def _windows(
    pieces: "_Pieces",
    spans: list[_Span],
    left_out: Counter[str],
    on_share: Callable[[float], None],
) -> Iterator[Window]:
    profile = pieces.profile
    per_piece = max(_PIECE_VALUES // (len(profile.leads) * profile.num_samples), 1)
    last: RejectedRecordError | None = None
    num_given = 0
    for at in range(0, len(spans), per_piece):
        group = spans[at : at + per_piece]
        for item in pieces.cut(group):
            if isinstance(item, RejectedRecordError):
                last = item
                left_out[item.reason.value] += 1
            else:
                num_given += 1
                yield item
        on_share((at + len(group)) / len(spans))
    if last is not None and not num_given:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        raise RejectedRecordError(
            last.reason, f"no window of {len(spans)} is left ({reasons}; last: {last.detail})"
        )


class _Pieces:
    """Reads, filters and cuts one piece of a recording after the other."""

    def __init__(
        self,
        profile: SignalProfile,
        recording: StoredRecording,
        stages: list[str],
        parameters: dict[str, dict[str, float]],
    ) -> None:
        self.profile, self.recording = profile, recording
        self.stages, self.parameters = stages, parameters
        working_fs = profile.working_fs(stages, recording.fs)
        self.grid = _Grid.of(recording.fs, max(working_fs, recording.fs), profile.fs)
        edges = [
            value
            for options in parameters.values()
            for key, value in options.items()
            if key in ("low_hz", "cutoff_hz") and value
        ]
        margin_s = MARGIN_S + MARGIN_PERIODS / min(edges, default=1.0)
        self.margin = round(margin_s * profile.fs)

    def cut(self, spans: list[_Span]) -> Iterator[Window | RejectedRecordError]:
        """Yield each window, or why it is left out."""
        profile, grid = self.profile, self.grid
        low = max(spans[0].start - self.margin, 0) // grid.unit_out
        high = -(-(spans[-1].start + spans[-1].length + self.margin) // grid.unit_out)
        start = low * grid.unit_in
        stop = min(high * grid.unit_in, self.recording.num_samples)
        record = profile.to_leads(self.recording.read(start, stop))
        offset = low * grid.unit_out
        raw = record.signal
        ecg = np.nan_to_num(filters.interpolate_missing(raw.astype(np.float64)))
        taken: list[tuple[Signal, float]] = []
        out = profile.through_stages(
            ecg, record.fs, self.stages, self.parameters, lambda s, fs: taken.append((s, fs))
        )
        for span in spans:
            begin = span.start - offset
            part = out[:, begin : begin + span.length]
            if part.shape[1] < span.length:  # a rate that is rounded to a ratio: hold the last one
                part = np.pad(part, ((0, 0), (0, span.length - part.shape[1])), mode="edge")
            try:
                profile.check_limits(_slice(raw, record.fs, span, offset, profile.fs))
                stats = self._stats(taken, span, offset, part)
                yield profile.window(span.number, part, stats)
            except RejectedRecordError as error:
                yield error

    def _stats(
        self, taken: list[tuple[Signal, float]], span: _Span, offset: int, part: Signal
    ) -> NDArray[np.float32]:
        if not taken:
            return moments(part)
        signal, fs = taken[0]
        own: Signal = _slice(signal, fs, span, offset, self.profile.fs)
        return moments(own)


def _slice(
    signal: NDArray[Any], fs: float, span: _Span, offset: int, target_fs: float
) -> NDArray[Any]:
    """Return the samples at another rate that belong to a window."""
    begin = round((span.start - offset) * fs / target_fs)
    end = round((span.start - offset + span.length) * fs / target_fs)
    return signal[:, begin : max(end, begin + 1)]
