"""Cells that hold several statements, split: each different statement once, and numbers per record.

As lists of text the statements of eleven million records take five gigabytes; as numbers of two
bytes each, with the few hundred different statements beside them, they take two hundred megabytes.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.text_columns import text_column

_CHUNK_ROWS = 1_000_000
_SLOTS = 1 << 18
_MOST_NAMES = _SLOTS // 2
_BLANKS = np.frombuffer(b" \t\n\v\f\r", np.uint8)
_FREE, _NOTHING = -1, -2
MISSING_WORDS = ("", "nan", "na", "n/a", "none", "null", "nat", "<na>")
"""What tables write, in any case, where they have nothing to say."""


@dataclass(frozen=True)
class Statements:
    """What was said of each record, in its order; null where nobody said anything."""

    names: tuple[str, ...]
    numbers: pl.Series
    """Per record a list of places in `names`."""

    def texts(self, column: str) -> pl.Expr:
        """Return the expression that turns a column of `numbers` into lists of names, lazily."""
        return pl.col(column).list.eval(
            pl.lit(pl.Series(self.names, dtype=pl.String)).gather(pl.element())
        )

    def else_of(self, other: "Statements") -> "Statements":
        """Return these statements, and the other's where there are none. Both share their names."""
        assert self.names == other.names
        return Statements(
            self.names, self.numbers.zip_with(self.numbers.is_not_null(), other.numbers)
        )


class CellSplitter:
    """Splits the cells of any number of columns, which then share one list of names."""

    def __init__(self, separator: str = ",") -> None:
        assert len(separator.encode()) == 1
        self._separator = separator.encode()[0]
        self._names: list[str] = []
        self._hashes = np.zeros(_SLOTS, np.uint64)
        self._slots = np.full(_SLOTS, _FREE, np.int32)
        for word in MISSING_WORDS[1:]:
            for variant in {word, word.upper(), word.title(), word.replace("nan", "NaN")}:
                _put(np.frombuffer(variant.encode(), np.uint8), self._hashes, self._slots)

    @property
    def names(self) -> tuple[str, ...]:
        """All different statements so far, in the order in which they came."""
        return tuple(self._names)

    def split(self, cells: pl.Series) -> pl.Series:
        """Return the statements of each cell as a list of places in `names`.

        Statements lose the white space around them; a cell without any, or with nothing but a word
        for nothing, becomes null.

        Raises:
            UserError: More different statements than any vocabulary could know.
        """
        parts = [
            self._split_chunk(cells.slice(start, _CHUNK_ROWS))
            for start in range(0, max(len(cells), 1), _CHUNK_ROWS)
        ]
        kind = pl.UInt16 if len(self._names) <= 2**16 else pl.UInt32
        return pl.concat([part.cast(pl.List(kind)) for part in parts]).alias(cells.name)

    def _split_chunk(self, cells: pl.Series) -> pl.Series:
        data, offsets, _ = text_column(cells)
        num_bytes = int(offsets[-1] - offsets[0])
        # A statement takes a byte and a separator at least.
        numbers = np.empty(num_bytes // 2 + len(cells) + 1, np.uint32)
        ends = np.zeros(len(cells) + 1, np.int64)
        new = np.empty((_MOST_NAMES - len(self._names), 2), np.int64)
        total, added = _split(
            *(data, offsets, self._separator, self._hashes, self._slots),
            *(len(self._names), numbers, ends, new),
        )
        if added < 0:
            raise UserError(
                f"More than {_MOST_NAMES:,} different statements in the column {cells.name!r}: is "
                "it free text? Name the column that holds statement codes."
            )
        for start, end in new[:added].tolist():
            self._names.append(bytes(data[start:end]).decode("utf-8", "replace").strip())
        array = pa.LargeListArray.from_arrays(
            pa.array(ends), pa.array(numbers[:total].copy()), mask=pa.array(np.diff(ends) == 0)
        )
        kind = pl.UInt16 if len(self._names) <= 2**16 else pl.UInt32
        return pl.Series(cells.name, array).cast(pl.List(kind))


def take_lists(numbers: pl.Series, rows: NDArray[np.int32]) -> pl.Series:
    """Return the lists at `rows`; null where a row is negative. Polars takes ten times as long."""
    array = numbers.rechunk().to_arrow()
    values = array.values.to_numpy(zero_copy_only=False)
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    ends = np.zeros(len(rows) + 1, np.int64)
    lengths = np.append(np.diff(offsets), 0)  # a row of -1 takes the last, of nothing
    np.cumsum(lengths[rows], out=ends[1:])
    taken = np.empty(ends[-1], values.dtype)
    _take(values, offsets, rows, ends, taken)
    lists = pa.LargeListArray.from_arrays(
        pa.array(ends), pa.array(taken), mask=pa.array(np.diff(ends) == 0)
    )
    return pl.Series(numbers.name, lists)


@compiled
def _take(
    values: NDArray[np.unsignedinteger],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int32],
    ends: NDArray[np.int64],
    taken: NDArray[np.unsignedinteger],
) -> None:
    for place in range(len(rows)):
        if rows[place] >= 0:
            source = offsets[rows[place]]
            for target in range(ends[place], ends[place + 1]):
                taken[target] = values[source]
                source += 1


@compiled
def _find(
    data: NDArray[np.uint8],
    first: int,
    last: int,
    hashes: NDArray[np.uint64],
    slots: NDArray[np.int32],
) -> tuple[np.uint64, np.uint64]:
    """Return the hash of a statement, and its slot in the table or the free one for it."""
    mask = np.uint64(len(hashes) - 1)
    value = np.uint64(0xCBF29CE484222325)
    for place in range(first, last):
        value = (value ^ np.uint64(data[place])) * np.uint64(0x100000001B3)
    slot = (value ^ (value >> np.uint64(32))) & mask
    while slots[slot] != _FREE and hashes[slot] != value:
        slot = (slot + np.uint64(1)) & mask
    return value, slot


@compiled
def _put(word: NDArray[np.uint8], hashes: NDArray[np.uint64], slots: NDArray[np.int32]) -> None:
    value, slot = _find(word, 0, len(word), hashes, slots)
    hashes[slot], slots[slot] = value, _NOTHING


@compiled
def _split(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    separator: int,
    hashes: NDArray[np.uint64],
    slots: NDArray[np.int32],
    num_names: int,
    numbers: NDArray[np.uint32],
    ends: NDArray[np.int64],
    new: NDArray[np.int64],
) -> tuple[int, int]:
    """Fill `numbers` and `ends`, and the places of new names; return how many of both.

    Names are told apart by FNV-1a of 64 bits: among 100,000 a collision is a matter of one in 10^9.
    """
    total, added = 0, 0
    for row in range(len(offsets) - 1):
        end_of_cell = offsets[row + 1]
        start = offsets[row]
        while start < end_of_cell:
            end = start
            while end < end_of_cell and data[end] != separator:
                end += 1
            first, last = start, end
            while first < last and data[first] in _BLANKS:
                first += 1
            while last > first and data[last - 1] in _BLANKS:
                last -= 1
            start = end + 1
            if first == last:
                continue
            value, slot = _find(data, first, last, hashes, slots)
            if slots[slot] == _NOTHING:
                continue
            if slots[slot] == _FREE:
                if added == len(new):
                    return total, -1
                hashes[slot] = value
                slots[slot] = num_names + added
                new[added, 0], new[added, 1] = first, last
                added += 1
            numbers[total] = slots[slot]
            total += 1
        ends[row + 1] = total
    return total, added
