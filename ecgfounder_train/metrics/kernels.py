"""The compiled loops: one walk over sorted records for a label's components, and the bootstrap's.

numba rather than numpy: tie groups and sums per patient need six passes with temporaries there.
The functions hold no lock, so that threads run one label each.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled

Item = TypeVar("Item")
Result = TypeVar("Result")


_DIGIT_BITS = 11
_NUM_DIGITS = 1 << _DIGIT_BITS


def sort_marks(
    scores: NDArray[np.floating], marks: NDArray[np.int32]
) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Return the scores ascending, as keys that only tell equal from unequal, and their marks.

    float32 goes through a radix sort that carries the marks along: 835k in 15 ms, where argsort
    takes 150 and leaves three gathers to do.
    """
    if scores.dtype == np.float32:
        # Adding zero turns -0.0, which has other bits, into 0.0.
        return _radix_sort((scores + np.float32(0)).view(np.uint32), marks)
    order = np.argsort(scores, kind="stable")
    return scores[order], marks[order]


@compiled
def _radix_sort(
    bits: NDArray[np.uint32], marks: NDArray[np.int32]
) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Return float32 values given as bits in ascending order, as ordered integers, and marks."""
    total = len(bits)
    keys, places = np.empty(total, np.uint32), marks.copy()
    other_keys, other_places = np.empty(total, np.uint32), np.empty(total, np.int32)
    counts = np.zeros((3, _NUM_DIGITS), np.int64)
    for i in range(total):
        value = bits[i]
        # Negative numbers order backwards as integers: flip them whole, the others above them.
        if value & np.uint32(0x80000000):
            key = np.uint32(~value)
        else:
            key = np.uint32(value | np.uint32(0x80000000))
        keys[i] = key
        for digit in range(3):
            counts[digit, (key >> np.uint32(digit * _DIGIT_BITS)) & np.uint32(_NUM_DIGITS - 1)] += 1
    for digit in range(3):
        shift = np.uint32(digit * _DIGIT_BITS)
        position = 0
        for value in range(_NUM_DIGITS):
            count = counts[digit, value]
            counts[digit, value] = position
            position += count
        for i in range(total):
            value = (keys[i] >> shift) & np.uint32(_NUM_DIGITS - 1)
            place = counts[digit, value]
            counts[digit, value] = place + 1
            other_keys[place], other_places[place] = keys[i], places[i]
        keys, other_keys = other_keys, keys
        places, other_places = other_places, places
    return keys, places


@compiled
def components(
    keys: NDArray[np.generic],
    marks: NDArray[np.int32],
    num_positives: int,
    of_positives: NDArray[np.float64],
    of_negatives: NDArray[np.float64],
) -> tuple[int, float]:
    """Add one label's components per patient; return twice the wins and the precision.

    A record's component for the AUROC is the share of the other class it beats, ties counting half
    (DeLong's structural component); for the average precision it is the part of the influence
    function that does not need the average itself.

    Shape:
        keys, marks: (n,) ascending; a mark is twice the patient's number, plus 1 if positive.
        of_positives: (num_patients, 3), zeros on entry: records, wins, precision.
        of_negatives: (num_patients, 2), zeros on entry: wins, precision.
    """
    total = len(keys)
    num_negatives = total - num_positives
    twice_wins = 0
    precision_sum = 0.0
    positives_below = 0
    reached = 0.0  # sum over positives at or below of 1 / (records at or above)
    discounted = 0.0  # the same, times the precision there
    beating = 1.0
    start = 0
    while start < total:
        key = keys[start]
        end = start
        group_positives = 0
        while end < total and keys[end] == key:
            group_positives += marks[end] & 1
            end += 1
        if group_positives == 0:
            for i in range(start, end):
                patient = marks[i] >> 1
                of_negatives[patient, 0] += beating
                of_negatives[patient, 1] -= discounted
            start = end
            continue
        group_negatives = end - start - group_positives
        negatives_below = start - positives_below
        from_here = total - start
        precision = (num_positives - positives_below) / from_here
        precision_sum += group_positives * precision
        reached += group_positives / from_here
        discounted += group_positives * precision / from_here
        twice_wins += group_positives * (2 * negatives_below + group_negatives)
        beaten = (negatives_below + 0.5 * group_negatives) / num_negatives
        beating_here = (num_positives - positives_below - 0.5 * group_positives) / num_positives
        for i in range(start, end):
            patient = marks[i] >> 1
            if marks[i] & 1:
                of_positives[patient, 0] += 1.0
                of_positives[patient, 1] += beaten
                of_positives[patient, 2] += precision + reached - discounted
            else:
                of_negatives[patient, 0] += beating_here
                of_negatives[patient, 1] -= discounted
        positives_below += group_positives
        beating = (num_positives - positives_below) / num_positives
        start = end
    return twice_wins, precision_sum / num_positives


LANES = 64
"""Resamples that one walk over the records serves: a patient's weights fill a cache line."""

_LONGEST_RUN = 257  # of weights up to 255 that a uint16 can add up

_TIED, _LAST_OF_TIE, _FLAG_BITS = 2, 4, 3


@compiled
def bootstrap_marks(keys: NDArray[np.generic], marks: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return marks in descending order of score with flags where ties matter.

    Only a group of equal scores that holds a positive needs care; the order of equal negatives is
    no matter.

    Shape:
        keys, marks: (n,) ascending, as `sort_marks` returns them.
        result: (n,); patient * 8 + 4 (last of a tie) + 2 (in a tie) + 1 (positive).
    """
    total = len(keys)
    result = np.empty(total, np.int32)
    end = total
    while end > 0:
        start = end - 1
        num_positives = marks[start] & 1
        while start > 0 and keys[start - 1] == keys[end - 1]:
            start -= 1
            num_positives += marks[start] & 1
        tied = num_positives > 0 and end - start > 1
        for i in range(start, end):
            mark = ((marks[i] >> 1) << _FLAG_BITS) | (marks[i] & 1)
            result[total - 1 - i] = mark | _TIED if tied else mark
        if tied:
            result[total - 1 - start] |= _LAST_OF_TIE
        end = start
    return result


@compiled
def weighted_ranking(
    marks: NDArray[np.int32],
    weights: NDArray[np.uint8],
    area: NDArray[np.float64],
    precision: NDArray[np.float64],
) -> None:
    """Write AUROC and average precision of one label under each column of patient weights.

    Shape:
        marks: (n,), of `bootstrap_marks`. weights: (num_patients, LANES).
        area, precision: (LANES,), NaN where a column leaves no positive or no negative.
    """
    hits, alarms = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    tied_hits, tied_alarms = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    twice_lost, found = np.zeros(LANES, np.int64), np.zeros(LANES, np.float64)
    run = np.zeros(LANES, np.uint16)
    total, i = len(marks), 0
    while i < total:
        mark = marks[i]
        if not mark & (_TIED | 1):
            # Most records are such negatives. Adding up a run of them in 16 bits halves the time.
            end = min(total, i + _LONGEST_RUN)
            for lane in range(LANES):
                run[lane] = 0
            while i < end and not marks[i] & (_TIED | 1):
                row = weights[marks[i] >> _FLAG_BITS]
                for lane in range(LANES):
                    run[lane] += row[lane]
                i += 1
            for lane in range(LANES):
                alarms[lane] += run[lane]
            continue
        row = weights[mark >> _FLAG_BITS]
        if not mark & _TIED:
            for lane in range(LANES):
                weight = np.int32(row[lane])
                hits[lane] += weight
                twice_lost[lane] += np.int64(2 * weight) * alarms[lane]
                called = np.float64(max(hits[lane] + alarms[lane], 1))
                found[lane] += np.float64(weight) * np.float64(hits[lane]) / called
        else:
            if mark & 1:
                for lane in range(LANES):
                    tied_hits[lane] += row[lane]
            else:
                for lane in range(LANES):
                    tied_alarms[lane] += row[lane]
            if mark & _LAST_OF_TIE:
                for lane in range(LANES):
                    weight = tied_hits[lane]
                    pairs = np.int64(2 * alarms[lane]) + tied_alarms[lane]
                    twice_lost[lane] += np.int64(weight) * pairs
                    hits[lane] += weight
                    alarms[lane] += tied_alarms[lane]
                    called = np.float64(max(hits[lane] + alarms[lane], 1))
                    found[lane] += np.float64(weight) * np.float64(hits[lane]) / called
                    tied_hits[lane] = 0
                    tied_alarms[lane] = 0
        i += 1
    for lane in range(LANES):
        if hits[lane] > 0 and alarms[lane] > 0:
            pairs = 2 * np.int64(hits[lane]) * np.int64(alarms[lane])
            area[lane] = (pairs - twice_lost[lane]) / pairs
            precision[lane] = found[lane] / hits[lane]
        else:
            area[lane] = np.nan
            precision[lane] = np.nan


@compiled
def weighted_sums(
    codes: NDArray[np.int32],
    bins: NDArray[np.int64],
    values: NDArray[np.float64],
    weights: NDArray[np.uint8],
    sums: NDArray[np.float64],
) -> None:
    """Add each record's value, times its patient's weight, to its bin, in every column of weights.

    Shape:
        codes, bins, values: (n,). weights: (num_patients, LANES). sums: (num_bins, LANES).
    """
    for i in range(len(codes)):
        row, target, value = weights[codes[i]], sums[bins[i]], values[i]
        for lane in range(LANES):
            target[lane] += row[lane] * value


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[Result]:
    """Yield `function` of each item in order, a few at a time.

    `Executor.map` would take in all items at once, and with them a second copy of every score.
    """
    threads = num_threads or num_cores()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
