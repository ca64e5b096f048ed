"""Which index rows a split has, and what stands in them, in memory that does not grow with them."""

import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ecgfounder_train.shards import ShardSet

IntArray = npt.NDArray[np.int64]

# The kernel maps a neighbourhood of 64 KiB and more around a touched row.
_ROWS_BEFORE_RELEASE = 256


class Rows(Protocol):
    """Index rows by sample number: an array of them, or `SplitRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, samples: Any, /) -> Any: ...


class SplitRows:
    """The index rows of a split, kept as ranges.

    Indexing with sample numbers gives their rows, as an array of all rows would; that array would
    take 80 MB on every rank of a ten-million-record set.

    Args:
        ranges: Rows of each shard of the split, in order; none is empty.
    """

    def __init__(self, ranges: Sequence[range]) -> None:
        self.shard_sizes = tuple(len(rows) for rows in ranges)
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        starts = np.array([rows.start for rows in ranges], np.int64)
        self._shift = starts - (self._ends - np.array(self.shard_sizes, np.int64))

    @classmethod
    def of(cls, shards: ShardSet, split: str) -> "SplitRows":
        """Return the rows of a split of a shard set.

        Raises:
            UserError: No such split.
        """
        return cls(shards.row_ranges(split))

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, samples: IntArray) -> IntArray:
        """Return the rows of samples 0 .. len-1."""
        samples = np.asarray(samples, np.int64)
        rows: IntArray = samples + self._shift[np.searchsorted(self._ends, samples, side="right")]
        return rows


class IndexRows:
    """Reads rows of the memory-mapped index and gives the mapped pages back now and then.

    The pages stay in the system's page cache, which ranks of a node share; without giving them
    back a process that has read at random for a while would count the whole index as its own.
    """

    def __init__(self, index: npt.NDArray[np.void]) -> None:
        self._index = index
        self._map = index.base if isinstance(index.base, mmap.mmap) else None
        self._touched = 0

    def take(self, rows: IntArray) -> npt.NDArray[np.void]:
        """Return a copy of these rows of the index."""
        entries: npt.NDArray[np.void] = self._index[rows]
        self._touched += len(rows)
        if self._map is not None and self._touched >= _ROWS_BEFORE_RELEASE:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return entries
