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

_TOLERANCE_MV = 1e-3
_MIN_LEVEL_MV, _MAX_LEVEL_MV = 0.2, 5.0
_MIN_PULSE_S, _MAX_PULSE_S = 0.05, 1.0
_MAX_ZEROS_S = 2.0
"""Between the pulse and the end of the strip."""
_INNER_ZEROS_S = 0.1
"""Removed before the pulse; more only where as many follow it (an ECG may be zero there, too)."""
_NUM_EDGE_SAMPLES = 3


def without_calibration_pulse(source: SourceRecord) -> SourceRecord:
    """Return the recording without a calibration pulse at its start or end, and what was removed.

    A pulse is a plateau of 0.05 to 1 s at which all leads have the same constant value. The zeros
    behind it, and as many before it, go with it.
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
    longest = round((_MAX_ZEROS_S + _MAX_PULSE_S + 1) * fs)
    first = signal[:, : min(longest, signal.shape[1] // 2)]
    shortest = max(round(_MIN_PULSE_S * fs), 2)
    lead = first[0]
    equal = np.ptp(first, axis=0) <= _TOLERANCE_MV  # NaN is not
    zero = equal & (np.abs(lead) <= _TOLERANCE_MV)
    outer = _run(zero, 0)
    if outer > _MAX_ZEROS_S * fs:
        return 0
    for start in range(outer, outer + _NUM_EDGE_SAMPLES + 1):
        if start + shortest >= first.shape[1] or not equal[start]:
            return 0
        level = float(lead[start])
        length = _run(equal & (np.abs(lead - level) <= _TOLERANCE_MV), start)
        if length >= shortest:
            break
    else:
        return 0
    if not (_MIN_LEVEL_MV <= level <= _MAX_LEVEL_MV and length <= _MAX_PULSE_S * fs):
        return 0
    end = start + length
    edge = next((n for n in range(_NUM_EDGE_SAMPLES + 1) if zero[end + n : end + n + 1].any()), 0)
    inner = _run(zero, end + edge)
    # One lead alone may well be clipped: only zeros on both sides make that a pulse.
    if len(signal) == 1 and not (outer and inner):
        return 0
    return end + edge + min(inner, max(outer, round(_INNER_ZEROS_S * fs)))


def _run(flags: NDArray[np.bool_], start: int) -> int:
    """Return how many flags from `start` on are true without a break."""
    stop = np.flatnonzero(~flags[start:])
    return int(stop[0]) if len(stop) else len(flags) - start
