"""Pool of batch buffers, reused as soon as no tensor refers to the batch."""

import weakref
from collections import deque

import numpy as np
import numpy.typing as npt
import torch


class BufferPool:
    """Hands out memory for the signals of batches of one shape.

    A buffer returns to the pool when the last tensor that shares it is freed, so a batch may be
    kept for any time; where none is kept, the pool settles at the few buffers that are
    read ahead. Fresh memory for every batch would cost a page fault per 4 KiB.

    Pinned memory is left to torch's own pool, which also knows when a copy to the GPU that still
    runs has let go of it.

    Args:
        shape: (n, num_leads, num_samples).
        pinned: Page-locked memory, for copies to a GPU that do not block.
    """

    def __init__(self, shape: tuple[int, int, int], pinned: bool = False) -> None:
        self.shape = shape
        self.pinned = pinned
        self.num_buffers = 0
        self._free: deque[npt.NDArray[np.int16]] = deque()

    def take(self) -> torch.Tensor:
        """Return uninitialised memory for one batch.

        Shape: `shape`, int16.
        """
        if self.pinned:
            return torch.empty(self.shape, dtype=torch.int16, pin_memory=True)
        try:
            buffer = self._free.popleft()
        except IndexError:
            buffer = np.empty(self.shape, np.int16)
            self.num_buffers += 1
        # The tensor holds `lent`, and views of the tensor hold its storage; so the end of `lent` is
        # the end of all of them.
        lent = buffer[:]
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent)
