"""The order of a column of texts: what sorting gives, several times faster for long common heads.

Comparing two paths of an archive walks over folders that nearly all of them share, each in memory
of its own. Here eight bytes of every text are read at a time, and only texts that agree so far are
looked at again.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled
from ecgfounder_train.core.text_columns import text_column


def text_order(texts: pl.Series) -> NDArray[np.uint32]:
    """Return the rows in the order of their texts as bytes, nulls first.

    The order of equal texts is not defined.
    """
    data, offsets, is_null = text_column(texts)
    rows = np.arange(len(texts), dtype=np.uint32)
    missing = int(is_null.sum())
    if missing:
        rows = np.concatenate((rows[is_null], rows[~is_null]))
    starts, ends = np.array([missing]), np.array([len(rows)])
    depth = int(_common_head(data, offsets, rows[missing:])) if len(rows) > missing else 0
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        while len(starts):
            # Groups of like size for each thread; what is alike still comes back as groups.
            shares = _shares(ends - starts, 4 * pl.thread_pool_size())
            done = pool.map(
                lambda share, at=depth, first=starts, last=ends: _sort_groups(
                    data, offsets, rows, first[share], last[share], at
                ),
                shares,
            )
            groups = [pair for pair in done if len(pair[0])]
            depth += 8
            if not groups:
                break
            starts, ends = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    return rows


def _shares(sizes: NDArray[np.int64], number: int) -> list[slice]:
    totals = np.cumsum(sizes)
    edges = np.searchsorted(totals, np.linspace(0, totals[-1], number + 1)[1:-1])
    places = np.unique(np.concatenate(([0], edges, [len(sizes)])))
    return [slice(start, end) for start, end in pairwise(places)]


@compiled
def _common_head(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], rows: NDArray[np.uint32]
) -> int:
    first = offsets[rows[0]]
    head = int(offsets[rows[0] + 1] - first)
    for row in rows:
        start = offsets[row]
        head = min(head, offsets[row + 1] - start)
        place = 0
        while place < head and data[start + place] == data[first + place]:
            place += 1
        head = place
    return head


@compiled
def _sort_groups(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    rows: NDArray[np.uint32],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    depth: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort each group of rows by its next eight bytes; return the groups that are alike in them."""
    largest = 0
    for group in range(len(starts)):
        largest = max(largest, ends[group] - starts[group])
    keys, other_keys = np.empty(largest, np.uint64), np.empty(largest, np.uint64)
    other_rows = np.empty(largest, np.uint32)
    total = 0
    for group in range(len(starts)):
        total += (ends[group] - starts[group]) // 2
    new_starts, new_ends = np.empty(total, np.int64), np.empty(total, np.int64)
    number = 0
    for group in range(len(starts)):
        start, end = starts[group], ends[group]
        size = end - start
        longest = 0
        for place in range(size):
            row = rows[start + place]
            first, last = offsets[row] + depth, offsets[row + 1]
            longest = max(longest, last - first)
            key = np.uint64(0)
            for byte in range(first, first + 8):
                letter = np.uint64(data[byte]) if byte < last else np.uint64(0)
                key = (key << np.uint64(8)) | letter
            keys[place] = key
        _sort(keys[:size], rows[start:end], other_keys, other_rows)
        place = 0
        while place < size:
            alike = place + 1
            while alike < size and keys[alike] == keys[place]:
                alike += 1
            if alike - place > 1:
                if longest > 8:
                    new_starts[number], new_ends[number] = start + place, start + alike
                    number += 1
                else:  # a text that ends in zero bytes comes after the one without them
                    for at in range(place, alike):
                        row = rows[start + at]
                        keys[at] = np.uint64(offsets[row + 1] - offsets[row])
                    _sort(
                        keys[place:alike],
                        rows[start + place : start + alike],
                        other_keys,
                        other_rows,
                    )
            place = alike
    return new_starts[:number].copy(), new_ends[:number].copy()


@compiled
def _sort(
    keys: NDArray[np.uint64],
    rows: NDArray[np.uint32],
    other_keys: NDArray[np.uint64],
    other_rows: NDArray[np.uint32],
) -> None:
    """Sort the keys, and the rows with them: a few by insertion, more by their bytes in turn."""
    size = len(keys)
    if size <= 64:
        for place in range(1, size):
            key, row = keys[place], rows[place]
            before = place
            while before > 0 and keys[before - 1] > key:
                keys[before], rows[before] = keys[before - 1], rows[before - 1]
                before -= 1
            keys[before], rows[before] = key, row
        return
    differing = np.uint64(0)
    for place in range(1, size):
        differing |= keys[place] ^ keys[0]
    counts = np.empty(257, np.int64)
    for byte in range(8):
        shift = np.uint64(8 * byte)
        if not (differing >> shift) & np.uint64(255):
            continue
        counts[:] = 0
        for place in range(size):
            counts[((keys[place] >> shift) & np.uint64(255)) + np.uint64(1)] += 1
        for value in range(256):
            counts[value + 1] += counts[value]
        for place in range(size):
            value = (keys[place] >> shift) & np.uint64(255)
            target = counts[value]
            counts[value] += 1
            other_keys[target], other_rows[target] = keys[place], rows[place]
        for place in range(size):
            keys[place], rows[place] = other_keys[place], other_rows[place]
