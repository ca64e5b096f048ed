"""Calibration pulses at the ends of a strip: recognised, removed and named.

Electrocardiographs that store the strip as printed append (or prepend) a rectangular pulse of 1 mV
for 0.2 s on **all** leads between stretches of zeros: Philips Sierra XML has it in each of four
independent public files. Read as ECG it raises the standard deviation by up to 48 % and makes the
limb leads inconsistent (1 is not 1 - 1).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.inference.inputs.reading import SourceRecord
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import EcgRecord

_TOLERANCE_MV = 0.011
"""Two steps of 5 microvolts, the coarsest usual resolution, and one of rounding."""
_MIN_LEVEL_MV, _MAX_LEVEL_MV = 0.2, 5.0
_MIN_PULSE_S, _MAX_PULSE_S = 0.05, 1.0
_LONGEST_S = 3.0
"""Of the pulse with its zeros; what is longer is a record, not a mark at its end."""


def without_calibration_pulse(source: SourceRecord) -> SourceRecord:
    """Return the recording without a calibration pulse at its start or end, and what was removed.

    A pulse is where all leads have the same value, zero or one constant level, with one or two
    plateaus of 0.05 to 1 s. The zeros around it go with it.
    """
    record = source.signal
    if not isinstance(record, EcgRecord):
        return source
    end = _pulse_samples(record.signal[:, ::-1], record.fs)
    start = _pulse_samples(record.signal, record.fs)
    total = record.signal.shape[1]
    if not (start or end) or start + end >= total:
        return source
    places = [
        f"{count / record.fs:.2f} s at the {place}"
        for count, place in ((start, "start"), (end, "end"))
        if count
    ]
    remark = Remark(WarningCode.PARTLY_READ, f"not read: calibration pulse ({', '.join(places)})")
    trimmed = replace(record, signal=record.signal[:, start : total - end])
    return SourceRecord(trimmed, (*source.remarks, remark))


def _pulse_samples(signal: NDArray[np.float32], fs: float) -> int:
    """Return the number of samples from the start that are a calibration pulse, else 0."""
    longest = min(round(_LONGEST_S * fs), signal.shape[1] // 2)
    if longest < 2:
        return 0
    first = signal[:, :longest]
    lead = first[0]
    high = np.flatnonzero(np.abs(lead) > _TOLERANCE_MV)
    if not len(high):
        return 0
    level = float(lead[high[0]])
    at_level = np.abs(first - level).max(axis=0) <= _TOLERANCE_MV
    at_zero = np.abs(first).max(axis=0) <= _TOLERANCE_MV
    outside = np.flatnonzero(~(at_level | at_zero))  # NaN is outside
    length = int(outside[0]) if len(outside) else longest
    plateau = at_level[:length]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], plateau, [False]]).astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    is_pulse = (
        _MIN_LEVEL_MV <= level <= _MAX_LEVEL_MV
        and len(outside) > 0
        and 1 <= len(runs) <= 2
        and bool((runs >= _MIN_PULSE_S * fs).all() and (runs <= _MAX_PULSE_S * fs).all())
        # One lead alone may well be clipped: only zeros on both sides make that a pulse.
        and (len(signal) > 1 or (at_zero[0] and at_zero[length - 1]))
    )
    return length if is_pulse else 0
