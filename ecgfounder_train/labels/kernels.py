"""The compiled loops over packed labels: gathered from statements, and counted."""

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled

NOT_COUNTED = 255
"""Part of a record that is left out of the counts."""


@compiled
def gather_bits(
    numbers: NDArray[np.unsignedinteger],
    ends: NDArray[np.int64],
    bits: NDArray[np.uint8],
    left_open: NDArray[np.uint8],
    weakens: NDArray[np.bool_],
    opens_weakened: NDArray[np.bool_],
    firm: NDArray[np.uint8],
    weak: NDArray[np.uint8],
) -> None:
    """Set the bits of each record's statements, those after a weakener in `weak`."""
    width = firm.shape[1]
    leaves_open = left_open.any()  # of most vocabularies no statement leaves anything open
    for row in range(len(firm)):
        is_weakened = False  # what ends one record says nothing about the next
        for place in range(ends[row], ends[row + 1]):
            number = numbers[place]
            target = weak if is_weakened or opens_weakened[number] else firm
            for byte in range(width):
                target[row, byte] |= bits[number, byte]
            if leaves_open:
                for byte in range(width):
                    weak[row, byte] |= left_open[number, byte]
            is_weakened = weakens[number]


@compiled
def count_labels(
    values: NDArray[np.uint8],
    observed: NDArray[np.uint8],
    parts: NDArray[np.uint8],
    positives: NDArray[np.int64],
    seen: NDArray[np.int64],
    together: NDArray[np.int64],
) -> None:
    """Add to positives and observed by part, and to how often two labels come together.

    Shape: values, observed (records, bytes); positives, seen (parts, 8 * bytes); together
        (8 * bytes, 8 * bytes), or empty where it is not wanted.
    """
    width = values.shape[1]
    found = np.empty(8 * width, np.int64)
    masks = np.zeros((len(seen), width, 256), np.int64)  # counted whole: nearly all are alike
    for row in range(len(values)):
        part = parts[row]
        if part == NOT_COUNTED:
            continue
        number = 0
        for byte in range(width):
            mask = observed[row, byte]
            if mask == 0:
                continue
            masks[part, byte, mask] += 1
            value = values[row, byte] & mask
            if value:
                for bit in range(8):
                    if value & (128 >> bit):
                        found[number] = 8 * byte + bit
                        number += 1
        for first in range(number):
            positives[part, found[first]] += 1
            if len(together):
                for second in range(number):
                    together[found[first], found[second]] += 1
    for part in range(len(seen)):
        for byte in range(width):
            for mask in range(256):
                for bit in range(8):
                    if mask & (128 >> bit):
                        seen[part, 8 * byte + bit] += masks[part, byte, mask]


@compiled
def count_agreement(
    values: NDArray[np.uint8],
    observed: NDArray[np.uint8],
    other_values: NDArray[np.uint8],
    other_observed: NDArray[np.uint8],
    parts: NDArray[np.uint8],
    table: NDArray[np.int64],
) -> None:
    """Add to `table` how often both, only the first, only the second, or none say a label.

    Shape: table (8 * bytes, 4).
    """
    width = values.shape[1]
    neither = np.zeros((width, 256), np.int64)  # counted whole: nearly all are alike
    for row in range(len(values)):
        if parts[row] == NOT_COUNTED:
            continue
        for byte in range(width):
            mask = observed[row, byte] & other_observed[row, byte]
            if mask == 0:
                continue
            one, other = values[row, byte] & mask, other_values[row, byte] & mask
            said = one | other
            neither[byte, mask & ~said] += 1
            if said:
                for bit in range(8):
                    place = 128 >> bit
                    if said & place:
                        column = (0 if other & place else 1) if one & place else 2
                        table[8 * byte + bit, column] += 1
    for byte in range(width):
        for mask in range(256):
            for bit in range(8):
                if mask & (128 >> bit):
                    table[8 * byte + bit, 3] += neither[byte, mask]
