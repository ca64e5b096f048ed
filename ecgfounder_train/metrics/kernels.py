"""The compiled loops: one walk over sorted records for a label's components, and the bootstrap's.

numba rather than numpy: tie groups and sums per patient need six passes with temporaries there.
The functions hold no lock, so that threads run one label each.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])
Item = TypeVar("Item")
Result = TypeVar("Result")

_compiled = cast(Callable[[Function], Function], numba.njit(cache=True, nogil=True))

_DIGIT_BITS = 11
_NUM_DIGITS = 1 << _DIGIT_BITS


def ascending(scores: NDArray[np.floating]) -> NDArray[np.uint32]:
    """Return the order that sorts the scores: radix for float32 (835k in 15 ms, argsort 150)."""
    if scores.dtype == np.float32:
        return _radix_order(np.ascontiguousarray(scores).view(np.uint32))
    return np.argsort(scores, kind="stable").astype(np.uint32)


@_compiled
def _radix_order(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the order of float32 values given as bits; -0.0 comes just before 0.0."""
    total = len(bits)
    keys, order = np.empty(total, np.uint32), np.empty(total, np.uint32)
    other_keys, other_order = np.empty(total, np.uint32), np.empty(total, np.uint32)
    counts = np.zeros((3, _NUM_DIGITS), np.int64)
    for i in range(total):
        value = bits[i]
        # Negative numbers order backwards as integers: flip them whole, the others above them.
        if value & np.uint32(0x80000000):
            key = np.uint32(~value)
        else:
            key = np.uint32(value | np.uint32(0x80000000))
        keys[i], order[i] = key, i
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
            other_keys[place], other_order[place] = keys[i], order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    return order


@_compiled
def components(
    order: NDArray[np.uint32],
    scores: NDArray[np.floating],
    positive: NDArray[np.bool_],
    codes: NDArray[np.int32],
    num_positives: int,
    sums: NDArray[np.float64],
) -> tuple[int, float]:
    """Add one label's components to `sums` per patient; return twice the wins and the precision.

    A record's component for the AUROC is the share of the other class it beats, ties counting half
    (DeLong's structural component); for the average precision it is the part of the influence
    function that does not need the average itself.

    Shape:
        order: (n,) ascending by score. scores, positive, codes: (n,).
        sums: (num_patients, 5), zeros on entry: positives, negatives, wins of the positives, wins
            of the negatives, precision.
    """
    total = len(order)
    num_negatives = total - num_positives
    twice_wins = 0
    precision_sum = 0.0
    positives_below = 0
    reached = 0.0  # sum over positives at or below of 1 / (records at or above)
    discounted = 0.0  # the same, times the precision there
    start = 0
    while start < total:
        score = scores[order[start]]
        end = start
        group_positives = 0
        while end < total and scores[order[end]] == score:
            group_positives += positive[order[end]]
            end += 1
        group_negatives = end - start - group_positives
        negatives_below = start - positives_below
        from_here = total - start
        precision = (num_positives - positives_below) / from_here
        precision_sum += group_positives * precision
        reached += group_positives / from_here
        discounted += group_positives * precision / from_here
        twice_wins += group_positives * (2 * negatives_below + group_negatives)
        beaten = (negatives_below + 0.5 * group_negatives) / num_negatives
        beating = (num_positives - positives_below - 0.5 * group_positives) / num_positives
        for i in range(start, end):
            patient = codes[order[i]]
            if positive[order[i]]:
                sums[patient, 0] += 1.0
                sums[patient, 2] += beaten
                sums[patient, 4] += precision + reached - discounted
            else:
                sums[patient, 1] += 1.0
                sums[patient, 3] += beating
                sums[patient, 4] -= discounted
        positives_below += group_positives
        start = end
    return twice_wins, precision_sum / num_positives


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
