"""Long recordings (Holter, monitors): leads resolved and windows made piece by piece.

A day of 12 leads at 500 Hz is 518 million samples. It is never in memory as a whole: files that
allow it are read in pieces, filtered with overlap (`records.streaming`), and the network takes the
windows as they come.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from ecgfounder_train.inference.checks import check_signal
from ecgfounder_train.inference.inputs import SourceRecord, WindowedSignal
from ecgfounder_train.inference.leads import resolve_leads
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import EcgRecord, SignalProfile
from ecgfounder_train.records.reader import LONG_VALUES

_CHECKED_S = 30.0
_NUM_CHECKED = 8
"""Pieces, spread over the recording, on which the checks are made."""


@dataclass(frozen=True)
class LongRecording:
    """A long recording with the profile's leads, read piece by piece.

    Attributes:
        signal: As its file holds it.
        profile: Whose leads are wanted.
        derive_leads: Compute absent limb leads from two others.
    """

    signal: WindowedSignal
    profile: SignalProfile
    derive_leads: bool
    comments: tuple[str, ...] = ()

    @property
    def fs(self) -> float:
        """Sampling rate in Hz."""
        return self.signal.fs

    @property
    def num_samples(self) -> int:
        """Length at `fs`."""
        return self.signal.num_samples

    def read(self, start: int = 0, stop: int | None = None) -> EcgRecord:
        """Return the samples from `start` to `stop`."""
        return self.resolve(start, stop)[0]

    def resolve(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[EcgRecord, tuple[Remark, ...]]:
        """Return a piece with exactly the profile's leads, and how they were found.

        Raises:
            RejectedRecordError: Leads are missing, or the piece cannot be read.
        """
        stop = self.num_samples if stop is None else min(stop, self.num_samples)
        piece = EcgRecord(self.signal.read(start, stop), self.signal.lead_names, self.fs)
        profile = self.profile
        return resolve_leads(piece, profile.leads, profile.lead_aliases, self.derive_leads)

    def check(self) -> tuple[Remark, ...]:
        """Return what is unusual about pieces spread over the recording, each code once."""
        size = min(round(_CHECKED_S * self.fs), self.num_samples)
        starts = np.linspace(0, self.num_samples - size, _NUM_CHECKED).astype(int)
        starts = np.unique(starts)
        found: dict[WarningCode, Remark] = {}
        counts: Counter[WarningCode] = Counter()
        for start in starts.tolist():
            piece, remarks = self.resolve(start, start + size)
            for remark in (*remarks, *check_signal(piece, self.profile)):
                found.setdefault(remark.code, remark)
                counts[remark.code] += 1
        return tuple(
            remark._replace(detail=f"{remark.detail} (in {counts[code]} of {len(starts)} pieces)")
            for code, remark in found.items()
        )

    def head(self, seconds: float) -> "LongRecording":
        """Return the beginning of the recording."""
        num_samples = min(round(seconds * self.fs), self.num_samples)
        return replace(self, signal=replace(self.signal, num_samples=num_samples))


def is_long(source: SourceRecord) -> bool:
    """Whether a recording is read and filtered piece by piece."""
    if isinstance(source.signal, EcgRecord):
        return source.signal.signal.size > LONG_VALUES
    return True


def in_pieces(source: SourceRecord) -> WindowedSignal:
    """Return a recording as one that is read in pieces."""
    record = source.signal
    if isinstance(record, WindowedSignal):
        return record
    return WindowedSignal(
        record.lead_names,
        record.fs,
        record.signal.shape[1],
        lambda start, stop: record.signal[:, start:stop],
    )


def left_out_remark(left_out: Counter[str], num_planned: int) -> tuple[Remark, ...]:
    """Return the remark that counts the windows beyond the profile's limits, if there are any."""
    if not left_out:
        return ()
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    detail = f"{left_out.total():,} of {num_planned:,} windows were left out ({reasons})"
    return (Remark(WarningCode.PARTLY_READ, detail),)


def window_start_s(profile: SignalProfile, number: int, duration_s: float) -> float:
    """Return when a window begins, in s from the recording's start."""
    if profile.windows["policy"] == "centre":
        return max((duration_s - profile.duration_s) / 2, 0.0)
    return number * profile.duration_s if profile.windows["policy"] == "consecutive" else 0.0
