"""Samples by index row: one positioned read per sample, straight into the batch's memory."""

import os
import resource
import sys
import weakref
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from ecgfounder_train.loader.cache import CachedShardSet
from ecgfounder_train.loader.files import BadSampleError, LocalFiles, ShardFiles
from ecgfounder_train.loader.rows import IndexRows
from ecgfounder_train.shards import ShardSet

IntArray = npt.NDArray[np.int64]
ON_BAD_SAMPLE = ("stop", "quarantine", "report")


@dataclass(frozen=True)
class SampleArrays:
    """Samples as stored in the shards.

    Shape:
        ecg: (n, num_leads, num_samples) int16, microvolt.
        stats: (n, num_leads, 2) float32, mean and standard deviation in mV.
        bad: Places of samples that could not be had, whose rows are zero.
        error: What is wrong with the first of them.
    """

    ecg: npt.NDArray[np.int16]
    stats: npt.NDArray[np.float32]
    bad: list[int] = field(default_factory=list)
    error: str | None = None


class SampleReader:
    """Reads samples at random through the index, with a checksum over every byte returned.

    One `preadv` per sample fills the signal, skips the tar header between, and fills the
    statistics. Files stay open, as many as the process may hold; a reader may be used by one thread
    at a time (others take a `clone`) and closes its files when it is dropped.

    Args:
        shards: The opened shard set.
        checksum: Compare each sample with the xxh3 its index row holds (about 15 % of the reading
            rate; without it only a short read is noticed).
        on_bad_sample: `stop` raises; `quarantine` leaves the row empty and warns; `report` leaves
            it empty and leaves the rest to the caller.
        files: Where shards are opened; None: in the set's own cache or folder.
    """

    def __init__(
        self,
        shards: ShardSet,
        checksum: bool = True,
        on_bad_sample: str = "stop",
        files: ShardFiles | None = None,
    ) -> None:
        assert on_bad_sample in ON_BAD_SAMPLE
        self.shards = shards
        self.checksum = checksum
        self.on_bad_sample = on_bad_sample
        if files is None:
            files = shards.cache if isinstance(shards, CachedShardSet) else LocalFiles(shards)
        self.files = files
        self.index = IndexRows(shards.index)
        self._descriptors: dict[int, int] = {}
        self._most_open = _most_open_files(len(shards.manifest.shards))
        self._warned: set[int] = set()
        weakref.finalize(self, _close, self._descriptors)
        layout = shards.layout
        self._gap = bytearray(layout.gap_bytes)
        self._start = layout.ecg.offset
        self._span = layout.stats.offset + layout.stats.num_bytes - self._start

    def share_files(self, num_readers: int) -> None:
        """Hold no more files than this reader's share: it and its clones are that many."""
        self._most_open = _most_open_files(len(self.shards.manifest.shards), num_readers)

    def clone(self) -> "SampleReader":
        """Return another reader of the same samples, with files of its own."""
        other = type(self)(self.shards, self.checksum, self.on_bad_sample, self.files)
        other._most_open = self._most_open
        return other

    def read(self, rows: IntArray) -> SampleArrays:
        """Return the samples in these index rows; a row below 0 stays zero (padding).

        Raises:
            UserError: A shard is missing, cut short, or a sample's checksum does not match.
        """
        layout = self.shards.layout
        ecg = np.empty((len(rows), layout.num_leads, layout.num_samples), np.int16)
        return self.read_into(ecg, rows, self.index.take(np.maximum(rows, 0)))

    def read_into(
        self, ecg: npt.NDArray[np.int16], rows: IntArray, entries: npt.NDArray[np.void]
    ) -> SampleArrays:
        """Fill `ecg` with the samples in these index rows, and return it with their statistics.

        Args:
            ecg: C-contiguous, one row per index row; what it held is overwritten.
            rows: Index rows, below 0 for padding.
            entries: The index at these rows (anything at padding).

        Raises:
            BadSampleError: As `read`, if bad samples are to stop.
        """
        stats = np.zeros((len(rows), self.shards.layout.num_leads, 2), np.float32)
        bad: list[int] = []
        message: str | None = None
        # In file order: neighbours in a batch that share a shard cost the file system less.
        order = np.lexsort((entries["offset"], entries["shard"]))
        # Plain lists: a field of a structured row costs more than the read of a short sample.
        shards, offsets = entries["shard"].tolist(), entries["offset"].tolist()
        sums, real = entries["xxh3"].tolist(), (rows >= 0).tolist()
        for place in order.tolist():
            signal = ecg[place]
            if not real[place]:
                signal[:] = 0
                continue
            try:
                self._read_one(shards[place], offsets[place], sums[place], signal, stats[place])
            except BadSampleError as error:
                if self.on_bad_sample == "stop":
                    raise
                signal[:] = 0
                stats[place] = 0
                bad.append(place)
                message = message or str(error)
                if self.on_bad_sample == "quarantine":
                    self._warn(shards[place], error)
        for shard in [shard for shard in self._descriptors if not self.files.is_wanted(shard)]:
            os.close(self._descriptors.pop(shard))
        return SampleArrays(ecg, stats, bad, message)

    def _read_one(
        self,
        shard: int,
        offset: int,
        xxh3: int,
        ecg: npt.NDArray[np.int16],
        stats: npt.NDArray[np.float32],
    ) -> None:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._open(shard)
        signal, moments = ecg.data, stats.data
        try:
            got = os.preadv(descriptor, [signal, self._gap, moments], offset + self._start)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise BadSampleError(self._damaged(shard, offset, reason)) from error
        if got != self._span:
            raise BadSampleError(self._damaged(shard, offset, "ends too early"))
        if self.checksum:
            # As `shards.signal_checksum` does, without its checks of what is known here.
            digest = xxhash.xxh3_64(signal)
            digest.update(moments)
            if digest.intdigest() != xxh3:
                raise BadSampleError(self._damaged(shard, offset, "does not match its checksum"))

    def _open(self, shard: int) -> int:
        while len(self._descriptors) >= self._most_open:
            os.close(self._descriptors.pop(next(iter(self._descriptors))))
        self._descriptors[shard] = self.files.open(shard)
        return self._descriptors[shard]

    def _damaged(self, shard: int, offset: int, what: str) -> str:
        name = self.shards.manifest.shards[shard].name
        return (
            f"The sample at byte {offset:,} of shard {name} {what}. "
            f"Run scripts/verify.py shards={self.shards.folder}; delete the shard it names and run "
            "the prepare command again to rebuild it."
        )

    def _warn(self, shard: int, error: BadSampleError) -> None:
        if shard not in self._warned:
            self._warned.add(shard)
            print(
                f"warning: quarantined a sample (further ones of its shard are only counted): "
                f"{error}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Close the shard files."""
        _close(self._descriptors)


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()


def _most_open_files(wanted: int, num_readers: int = 1) -> int:
    """Return how many shards each of so many readers may hold open.

    HEEDB makes 5,300 shards and a shell allows 1,024 files; what the system allows at most is
    usually far more, and is ours to ask for. Three quarters of the limit are left to further
    readers (validation), other ranks' sockets, checkpoints and logs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < min(4 * wanted * num_readers, most):
        soft = min(4 * wanted * num_readers, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(soft // 4 // num_readers, 1)
