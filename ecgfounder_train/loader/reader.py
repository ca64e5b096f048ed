"""Samples by index row: one positioned read per sample, straight into the batch's memory."""

import os
import resource
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet, signal_checksum

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampleArrays:
    """Samples as they lie in the shards.

    Shape:
        ecg: (n, num_leads, num_samples) int16, microvolt.
        stats: (n, num_leads, 2) float32, mean and standard deviation in mV.
    """

    ecg: npt.NDArray[np.int16]
    stats: npt.NDArray[np.float32]


class SampleReader:
    """Reads samples at random through the index, with a checksum over every byte returned.

    One `preadv` per sample fills the signal, skips the tar header between, and fills the
    statistics. Files stay open, as many as the process may hold; a reader may be used by one thread
    at a time and closes its files when it is dropped.

    Args:
        shards: The opened shard set.
        checksum: Compare each sample with the xxh3 its index row holds (about 15 % of the reading
            rate; without it only a short read is noticed).
    """

    def __init__(self, shards: ShardSet, checksum: bool = True) -> None:
        self.shards = shards
        self.checksum = checksum
        self._descriptors: dict[int, int] = {}
        self._most_open = _most_open_files(len(shards.manifest.shards))
        weakref.finalize(self, _close, self._descriptors)
        layout = shards.layout
        self._gap = bytearray(layout.gap_bytes)
        self._start = layout.ecg.offset
        self._span = layout.stats.offset + layout.stats.num_bytes - self._start

    def read(self, rows: IntArray) -> SampleArrays:
        """Return the samples in these index rows; a row below 0 stays zero (padding).

        Raises:
            UserError: A shard is missing, cut short, or a sample's checksum does not match.
        """
        layout = self.shards.layout
        ecg = np.zeros((len(rows), layout.num_leads, layout.num_samples), np.int16)
        stats = np.zeros((len(rows), layout.num_leads, 2), np.float32)
        real = np.flatnonzero(rows >= 0)
        entries = self.shards.index[rows[real]]
        # In file order: neighbours in a batch that share a shard cost the file system less.
        for place in np.lexsort((entries["offset"], entries["shard"])):
            self._read_one(entries[place], ecg[real[place]], stats[real[place]])
        return SampleArrays(ecg, stats)

    def _read_one(
        self, entry: Any, ecg: npt.NDArray[np.int16], stats: npt.NDArray[np.float32]
    ) -> None:
        shard, offset = int(entry["shard"]), int(entry["offset"])
        descriptor = self._descriptor(shard)
        try:
            got = os.preadv(descriptor, [ecg.data, self._gap, stats.data], offset + self._start)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise UserError(self._damaged(shard, offset, reason)) from error
        if got != self._span:
            raise UserError(self._damaged(shard, offset, "ends too early"))
        if self.checksum and signal_checksum(ecg, stats) != int(entry["xxh3"]):
            raise UserError(self._damaged(shard, offset, "does not match its checksum"))

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            path = self.shards.shard_path(shard)
            while len(self._descriptors) >= self._most_open:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            try:
                self._descriptors[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UserError(
                    f"Cannot open shard {path}: {error.strerror}. Run scripts/verify.py "
                    f"shards={self.shards.folder}, then prepare again to rebuild what is missing."
                ) from error
        return self._descriptors[shard]

    def _damaged(self, shard: int, offset: int, what: str) -> str:
        return (
            f"The sample at byte {offset:,} of shard {self.shards.shard_path(shard).name} {what}. "
            f"Run scripts/verify.py shards={self.shards.folder}; delete the shard it names and run "
            "the prepare command again to rebuild it."
        )

    def close(self) -> None:
        """Close the shard files."""
        _close(self._descriptors)


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


def _most_open_files(wanted: int) -> int:
    """Return how many shards one reader may hold open.

    HEEDB makes 5,300 shards and a shell allows 1,024 files; what the system allows at most is
    usually far more, and is ours to ask for. Three quarters of the limit are left to a second
    reader (validation), other ranks' sockets, checkpoints and logs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < min(4 * wanted, most):
        soft = min(4 * wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(soft // 4, 1)
