"""The compiled loops of the filters: biquads, a sliding median, polyphase resampling.

numba rather than SciPy: on a 12 x 5000 recording SciPy takes 1.0 ms for a notch, 1.4 ms for a
band-pass of order 4 and 3.3 ms for a 201-sample running median; these take 0.1, 0.3 and 0.5 ms.
Compiling takes ten seconds, once per machine (the result is kept beside the source).
None of them reorders a sum or fuses a multiplication with an addition, so that every machine makes
the same bytes whatever its vector width is.

Sources: scipy.signal.sosfiltfilt, medfilt and resample_poly define the results, and the tests hold
the kernels to them.
"""

from typing import Any

import numpy as np
from numba.cpython.unsafe import numbers as bit_counts
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled

leading_zeros: Any = bit_counts.leading_zeros
trailing_zeros: Any = bit_counts.trailing_zeros

LEADS_AT_ONCE = 6
_SORT_BITS = 11
_SORT_BINS = 1 << _SORT_BITS
_PIECE = 5000
"""Outputs of the running median per sort; more of them at once leave the first-level cache."""
_FIR_PIECE = 1024
"""Outputs of the FIR filter that are summed up together, for the same reason."""


@compiled
def forward_backward(
    ecg: NDArray[np.float64],
    sections: NDArray[np.float64],
    start: NDArray[np.float64],
    gain: float,
    pad: int,
) -> NDArray[np.float64]:
    """Return every lead through the cascade forwards, then backwards.

    The ends are extended by point reflection and both directions begin in the steady state of
    their first sample: scipy.signal.sosfiltfilt with ``padtype="odd"``.

    Source: transposed direct form II, Gustafsson's predecessor in `filtfilt` (reflection and
    steady state rather than optimal initial conditions).

    Args:
        ecg: The leads.
        sections: b1, b2, a1, a2 of each second-order section, scaled to b0 = a0 = 1.
        start: Both states of each section in the steady state of a constant 1.
        gain: Product of the sections' b0, for one direction.
        pad: Samples of reflection at each end; fewer than there are samples.

    Shape:
        ecg: (num_leads, num_samples); sections: (num_sections, 4); start: (num_sections, 2).
        Returns (num_leads, num_samples).
    """
    num_leads, num_samples = ecg.shape
    length = num_samples + 2 * pad
    factor = gain * gain
    result = np.empty_like(ecg)
    # A recurrence waits ten cycles for its last result; six leads fill them. Spare rows stay zero.
    work = np.zeros((LEADS_AT_ONCE, length))
    for begin in range(0, num_leads, LEADS_AT_ONCE):
        count = min(LEADS_AT_ONCE, num_leads - begin)
        work[count:] = 0.0
        for lead in range(count):
            row, source = work[lead], ecg[begin + lead]
            first, last = 2 * source[0], 2 * source[num_samples - 1]
            for i in range(pad):
                row[i] = factor * (first - source[pad - i])
                row[pad + num_samples + i] = factor * (last - source[num_samples - 2 - i])
            for i in range(num_samples):
                row[pad + i] = factor * source[i]
        _cascade(work, sections, start, False)
        _cascade(work, sections, start, True)
        result[begin : begin + count] = work[:count, pad : pad + num_samples]
    return result


@compiled
def _cascade(
    work: NDArray[np.float64],
    sections: NDArray[np.float64],
    start: NDArray[np.float64],
    backwards: bool,
) -> None:
    """Run six leads through all sections, in place."""
    length = work.shape[1]
    r0, r1, r2, r3, r4, r5 = work[0], work[1], work[2], work[3], work[4], work[5]
    begin = length - 1 if backwards else 0
    # The steady state follows from the signal's first sample, before any section has changed it.
    e0, e1, e2, e3, e4, e5 = r0[begin], r1[begin], r2[begin], r3[begin], r4[begin], r5[begin]
    for section in range(sections.shape[0]):
        b1, b2, a1, a2 = sections[section]
        p, q = start[section]
        p0, p1, p2, p3, p4, p5 = p * e0, p * e1, p * e2, p * e3, p * e4, p * e5
        q0, q1, q2, q3, q4, q5 = q * e0, q * e1, q * e2, q * e3, q * e4, q * e5
        for step in range(length):
            i = length - 1 - step if backwards else step
            x0, x1, x2, x3, x4, x5 = r0[i], r1[i], r2[i], r3[i], r4[i], r5[i]
            y0, y1, y2, y3, y4, y5 = x0 + p0, x1 + p1, x2 + p2, x3 + p3, x4 + p4, x5 + p5
            p0 = (b1 * x0 + q0) - a1 * y0
            p1 = (b1 * x1 + q1) - a1 * y1
            p2 = (b1 * x2 + q2) - a1 * y2
            p3 = (b1 * x3 + q3) - a1 * y3
            p4 = (b1 * x4 + q4) - a1 * y4
            p5 = (b1 * x5 + q5) - a1 * y5
            q0 = b2 * x0 - a2 * y0
            q1 = b2 * x1 - a2 * y1
            q2 = b2 * x2 - a2 * y2
            q3 = b2 * x3 - a2 * y3
            q4 = b2 * x4 - a2 * y4
            q5 = b2 * x5 - a2 * y5
            r0[i], r1[i], r2[i], r3[i], r4[i], r5[i] = y0, y1, y2, y3, y4, y5


@compiled
def subtract_median(ecg: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return every lead minus the median of the `width` samples around each sample.

    Beyond the ends counts as zero: scipy.signal.medfilt, bit for bit. A piece of the lead is
    ranked once; the window is then a set of bits, one per rank, in which the median moves by at
    most one set bit per sample.

    Args:
        ecg: The leads; must be finite.
        width: Odd.

    Shape:
        ecg and result: (num_leads, num_samples).
    """
    num_leads, num_samples = ecg.shape
    half = width // 2
    most = min(_PIECE, num_samples) + 2 * half
    padded = np.zeros(num_samples + 2 * half)
    keys, packed = np.empty(most, np.uint64), np.empty(most, np.uint64)
    ranks, ascending = np.empty(most, np.int64), np.empty(most)
    bits = np.empty((most >> 6) + 1, np.uint64)
    counts = np.empty((2, _SORT_BINS), np.int64)
    result = np.empty_like(ecg)
    for lead in range(num_leads):
        padded[half : half + num_samples] = ecg[lead]
        for begin in range(0, num_samples, _PIECE):
            end = min(begin + _PIECE, num_samples)
            values = padded[begin : end + 2 * half]
            _rank(values, ranks, ascending, keys, packed, counts)
            _slide(ecg[lead, begin:end], ranks, ascending, bits, width, result[lead, begin:end])
    return result


@compiled
def _rank(
    values: NDArray[np.float64],
    ranks: NDArray[np.int64],
    ascending: NDArray[np.float64],
    keys: NDArray[np.uint64],
    packed: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    """Fill the values in ascending order and each value's place there."""
    total = len(values)
    low, high = values[0], values[0]
    for i in range(total):
        low, high = min(low, values[i]), max(high, values[i])
    spread = high - low
    # A radix sort of 22-bit keys (a nanovolt, for a recording of 4 mV) in two passes ...
    scale = (_SORT_BINS * _SORT_BINS - 1) / spread if spread > 0 else 0.0
    mask, index_mask = np.uint64(_SORT_BINS - 1), np.uint64(0xFFFFFFFF)
    low_shift, high_shift = np.uint64(32), np.uint64(32 + _SORT_BITS)
    for i in range(total):
        keys[i] = np.uint64((values[i] - low) * scale) << low_shift | np.uint64(i)
    counts[:] = 0
    for i in range(total):
        counts[0, keys[i] >> low_shift & mask] += 1
        counts[1, keys[i] >> high_shift & mask] += 1
    below_low: Any = 0
    below_high: Any = 0
    for digit in range(_SORT_BINS):
        here = counts[0, digit]
        counts[0, digit] = below_low
        below_low += here
        here = counts[1, digit]
        counts[1, digit] = below_high
        below_high += here
    for i in range(total):
        digit = keys[i] >> low_shift & mask
        packed[counts[0, digit]] = keys[i]
        counts[0, digit] += 1
    for i in range(total):
        digit = packed[i] >> high_shift & mask
        keys[counts[1, digit]] = packed[i]
        counts[1, digit] += 1
    # ... and the few values whose keys are the same by insertion, so that the order is exact.
    for i in range(total):
        ascending[i] = values[keys[i] & index_mask]
    for i in range(1, total):
        if ascending[i] < ascending[i - 1]:
            value, key = ascending[i], keys[i]
            j = i
            while j > 0 and ascending[j - 1] > value:
                ascending[j], keys[j] = ascending[j - 1], keys[j - 1]
                j -= 1
            ascending[j], keys[j] = value, key
    for i in range(total):
        ranks[keys[i] & index_mask] = i


@compiled
def _slide(
    ecg: NDArray[np.float64],
    ranks: NDArray[np.int64],
    ascending: NDArray[np.float64],
    bits: NDArray[np.uint64],
    width: int,
    result: NDArray[np.float64],
) -> None:
    """Fill `ecg` minus the median of the `width` values that begin at each sample's place."""
    one, all_ones = np.uint64(1), ~np.uint64(0)
    bits[:] = 0
    for i in range(width):
        bits[ranks[i] >> 6] |= one << np.uint64(ranks[i] & 63)
    median: Any = -1
    below_or_here: Any = 0
    while below_or_here <= width // 2:
        median += 1
        below_or_here += np.int64(bits[median >> 6] >> np.uint64(median & 63) & one)
    result[0] = ecg[0] - ascending[median]
    for i in range(1, len(ecg)):
        gone, new = ranks[i - 1], ranks[i + width - 1]
        bits[new >> 6] |= one << np.uint64(new & 63)
        bits[gone >> 6] &= ~(one << np.uint64(gone & 63))
        if new > median:
            if gone <= median:
                place = median + 1
                word = place >> 6
                left = bits[word] & (all_ones << np.uint64(place & 63))
                while left == 0:
                    word += 1
                    left = bits[word]
                median = (word << 6) + np.int64(trailing_zeros(left))
        elif gone >= median:
            word = median >> 6
            left = bits[word] & ((one << np.uint64(median & 63)) - one)
            while left == 0:
                word -= 1
                left = bits[word]
            median = (word << 6) + 63 - np.int64(leading_zeros(left))
        result[i] = ecg[i] - ascending[median]


@compiled
def polyphase(
    ecg: NDArray[np.float64],
    taps: NDArray[np.float64],
    up: int,
    down: int,
    first: int,
    num_outputs: int,
) -> NDArray[np.float64]:
    """Return samples `first` and on of the FIR-filtered signal at up / down times its rate.

    Output m is the sum over i of ``ecg[i] * taps[half + m * down - i * up]``, as in
    scipy.signal.resample_poly with a filter whose gain is `up`; beyond the ends counts as zero.
    All outputs of one phase meet the same taps, so the innermost loop runs over outputs and every
    output adds up in the order of the taps.

    Args:
        ecg: The leads.
        taps: Of odd length.
        up: Interpolation.
        down: Decimation.
        first: Number of the first output.
        num_outputs: How many outputs.

    Shape:
        ecg: (num_leads, num_samples). Returns (num_leads, num_outputs).
    """
    num_leads, num_samples = ecg.shape
    half = len(taps) // 2
    result = np.zeros((num_leads, num_outputs))
    # Inputs i, i + down, i + 2 down ... side by side: consecutive outputs of a phase use those.
    columns = -(-num_samples // down)
    strided = np.zeros((down, columns))
    total = np.empty(-(-num_outputs // up))
    for lead in range(num_leads):
        for row in range(min(down, num_samples)):
            for place, i in enumerate(range(row, num_samples, down)):
                strided[row, place] = ecg[lead, i]
        for phase in range(min(up, num_outputs)):
            count = -(-(num_outputs - phase) // up)
            position = (first + phase) * down  # of the phase's first output, in steps of 1 / up
            total[:count] = 0.0
            lowest = -((half - position) // up)
            for i in range(lowest, (position + half) // up + 1):
                tap = taps[half + position - i * up]
                column, row = i // down, i % down
                begin, end = max(0, -column), min(count, columns - column)
                if begin < end:
                    # Slices, because an index that might be negative is not vectorised.
                    target, source = total[begin:end], strided[row, column + begin : column + end]
                    for j in range(len(target)):
                        target[j] += tap * source[j]
            for j in range(count):
                result[lead, phase + j * up] = total[j]
    return result


@compiled
def symmetric_fir(ecg: NDArray[np.float64], taps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the samples of every lead that all taps reach: numpy.convolve with mode "valid".

    Args:
        ecg: The leads, extended by half the filter's length at each end.
        taps: Of odd length, the same backwards.

    Shape:
        ecg: (num_leads, num_samples + len(taps) - 1). Returns (num_leads, num_samples).
    """
    num_leads, length = ecg.shape
    last = len(taps) - 1
    half = last // 2
    num_samples = length - last
    result = np.empty((num_leads, num_samples))
    for lead in range(num_leads):
        row = ecg[lead]
        for begin in range(0, num_samples, _FIR_PIECE):
            count = min(_FIR_PIECE, num_samples - begin)
            target = result[lead, begin : begin + count]
            centre = row[begin + half : begin + half + count]
            for j in range(count):
                target[j] = taps[half] * centre[j]
            for k in range(half % 2, half, 2):  # two pairs at once, half the loads of the target
                tap, next_tap = taps[k], taps[k + 1]
                a, b = row[begin + k :][:count], row[begin + last - k :][:count]
                c, d = row[begin + k + 1 :][:count], row[begin + last - k - 1 :][:count]
                for j in range(count):
                    target[j] += tap * (a[j] + b[j]) + next_tap * (c[j] + d[j])
            if half % 2:
                a, b = row[begin:][:count], row[begin + last :][:count]
                for j in range(count):
                    target[j] += taps[0] * (a[j] + b[j])
    return result


@compiled
def straight_lines(ecg: NDArray[np.float64], step: float, num_outputs: int) -> NDArray[np.float64]:
    """Return the signal at places 0, step, 2 step ... by linear interpolation, the end held.

    Shape:
        ecg: (num_leads, num_samples). Returns (num_leads, num_outputs).
    """
    num_leads, num_samples = ecg.shape
    result = np.empty((num_leads, num_outputs))
    for lead in range(num_leads):
        row = ecg[lead]
        for k in range(num_outputs):
            place = k * step
            left = min(int(place), max(num_samples - 2, 0))
            right = min(left + 1, num_samples - 1)
            weight = min(place - left, 1.0)
            result[lead, k] = row[left] * (1 - weight) + row[right] * weight
    return result
