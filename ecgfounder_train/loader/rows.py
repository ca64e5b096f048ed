"""Index rows of a split, in memory that does not grow with their number."""

import errno
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet

IntArray = npt.NDArray[np.int64]


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
    """Reads rows of the index by positioned reads, not through its mapping.

    The kernel maps 64 KiB and more around a row that is touched in a mapping: a process that has
    read at random for a while would count the whole index as its own. A read of 152 bytes costs a
    fifth of such a page fault.
    """

    def __init__(self, index: npt.NDArray[np.void]) -> None:
        self._index = index
        self._file: int | None = None
        self._first = 0
        # A slice of a mapping has the offset of the whole; it occurs in tests only.
        if isinstance(index, np.memmap) and isinstance(index.base, mmap.mmap) and index.filename:
            self._file = os.open(index.filename, os.O_RDONLY | os.O_CLOEXEC)
            self._first = index.offset
            weakref.finalize(self, os.close, self._file)

    def take(self, rows: IntArray) -> npt.NDArray[np.void]:
        """Return a copy of these rows of the index.

        Raises:
            UserError: The index file cannot be read, or was cut.
        """
        if self._file is None:
            return self._index[rows]
        entries = np.empty(len(rows), self._index.dtype)
        size = entries.itemsize
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self._index):
            raise IndexError(f"rows beyond the {len(self._index):,} of the index")
        into = entries.view(np.uint8).data
        try:
            for place, offset in enumerate((self._first + rows * size).tolist()):
                if os.preadv(self._file, [into[place * size : (place + 1) * size]], offset) != size:
                    raise OSError(errno.EIO, "it was cut while it was read")
        except OSError as error:
            raise UserError(
                f"The index of the shards cannot be read: {error.strerror}. Check the disk, then "
                "run prepare again with the same arguments: it restores the index."
            ) from error
        return entries
