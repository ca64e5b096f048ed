"""A shard set opened for reading."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.shards.index import INDEX_NAME, open_index, probe_index
from ecgfounder_train.shards.manifest import Manifest, read_manifest
from ecgfounder_train.shards.sample import BadTarError, Sample, SampleLayout


@dataclass(frozen=True)
class ShardSet:
    """Manifest, memory-mapped index and layout of one folder of shards."""

    folder: Path
    manifest: Manifest
    index: NDArray[np.void]

    @classmethod
    def open(cls, folder: Path | str, check_files: bool = True) -> "ShardSet":
        """Return the shards in `folder`.

        Args:
            folder: What prepare wrote.
            check_files: Look that each shard is there with its size (one stat per shard).

        Raises:
            UserError: Missing or damaged manifest, index or shard, or files that do not belong
                together; the message names the file and the remedy.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        index = open_index(folder / INDEX_NAME, len(manifest.labels))
        shards = cls(folder, manifest, index)
        shards._check_index()
        if check_files:
            shards._check_files()
        return shards

    @cached_property
    def layout(self) -> SampleLayout:
        """Byte layout of a sample."""
        return self.manifest.layout

    def __len__(self) -> int:
        """Return the number of samples of all splits."""
        return len(self.index)

    def shard_path(self, number: int) -> Path:
        """Return the file of shard `number` (an index row's ``shard``)."""
        return self.folder / self.manifest.shards[number].name

    def row_ranges(self, split: str) -> list[range]:
        """Return the index rows of each shard of a split, without touching the index.

        Raises:
            UserError: No such split.
        """
        if split not in SPLITS:
            raise UserError(f"There is no split {split!r}.{did_you_mean(split, SPLITS)}")
        ranges, start = [], 0
        for entry in self.manifest.shards:
            if entry.split == split and entry.num_samples:
                ranges.append(range(start, start + entry.num_samples))
            start += entry.num_samples
        return ranges

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the index rows of a split in file order."""
        pieces = [np.arange(rows.start, rows.stop) for rows in self.row_ranges(split)]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def read_sample(self, row: int) -> Sample:
        """Return one sample, every byte checked. For tools and reports; the loader is faster.

        Raises:
            UserError: The shard is damaged there.
        """
        entry = self.index[row]
        path = self.shard_path(int(entry["shard"]))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            block = os.pread(descriptor, self.layout.block_bytes, int(entry["offset"]))
        finally:
            os.close(descriptor)
        try:
            sample = self.layout.decode(block)
        except BadTarError as error:
            raise UserError(f"{path} is damaged at byte {entry['offset']}: {error}.") from error
        if sample.record_key.encode() != entry["record_key"] or sample.xxh3 != entry["xxh3"]:
            raise UserError(f"{path} is damaged at byte {entry['offset']}: checksum differs.")
        return sample

    def _check_index(self) -> None:
        stated, path = self.manifest.index, self.folder / INDEX_NAME
        counted = sum(entry.num_samples for entry in self.manifest.shards)
        size = path.stat().st_size
        remedy = (
            "One of the files belongs to another data set or is damaged. Run prepare again with "
            "the same arguments: it restores them from its records."
        )
        if not len(self.index) == stated.rows == counted or size != stated.bytes:
            raise UserError(
                f"{path} has {len(self.index)} rows ({size} bytes), the manifest says "
                f"{stated.rows} ({stated.bytes} bytes), its shards {counted}. {remedy}"
            )
        if f"{probe_index(path):016x}" != stated.probe_xxh3:
            raise UserError(f"{path} does not belong to the manifest in its folder. {remedy}")

    def _check_files(self) -> None:
        for number, entry in enumerate(self.manifest.shards):
            path = self.shard_path(number)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise UserError(
                    f"Shard {path} is missing. Run prepare again with the same arguments: it "
                    "makes what is missing."
                ) from None
            due = self.layout.shard_bytes(entry.num_samples)
            if not size == entry.bytes == due:
                raise UserError(
                    f"Shard {path} has {size} bytes, but {due} are due for its "
                    f"{entry.num_samples} samples and the manifest says {entry.bytes}: it is "
                    "truncated or of another data set. Run prepare again with the same arguments."
                )
