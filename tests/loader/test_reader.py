"""What the indexed reader returns, and what it says of damaged shards."""

import gc
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import SampleReader
from ecgfounder_train.loader.batches import EvaluationBatches, RankShape, ReadAhead
from ecgfounder_train.shards import ShardSet


@pytest.fixture
def damaged(tiny_shards: ShardSet, tmp_path: Path) -> ShardSet:
    """A copy of the shards that was whole when it was opened."""
    shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    return ShardSet.open(tmp_path / "shards")


def shard_of(shards: ShardSet, row: int) -> Path:
    return shards.shard_path(int(shards.index[row]["shard"]))


def test_reader_returns_what_lies_in_the_shards(tiny_shards: ShardSet) -> None:
    rows = np.random.default_rng(0).permutation(len(tiny_shards))
    read = SampleReader(tiny_shards).read(rows)
    for place, row in enumerate(rows):
        sample = tiny_shards.read_sample(int(row))
        assert (read.ecg[place] == sample.ecg).all()
        assert (read.stats[place] == sample.stats).all()


def test_padding_rows_stay_zero_and_repeated_rows_are_read(tiny_shards: ShardSet) -> None:
    read = SampleReader(tiny_shards).read(np.array([4, -1, 4, -1]))
    assert not read.ecg[[1, 3]].any() and not read.stats[[1, 3]].any()
    assert read.ecg[0].any() and (read.ecg[0] == read.ecg[2]).all()


@pytest.mark.parametrize("part", ["ecg", "stats"])
def test_flipped_bit_names_the_shard(damaged: ShardSet, part: str) -> None:
    row = 5
    offset = int(damaged.index[row]["offset"]) + getattr(damaged.layout, part).offset + 9
    with shard_of(damaged, row).open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 4]))
    with pytest.raises(UserError, match=f"{shard_of(damaged, row).name} does not match"):
        SampleReader(damaged).read(np.arange(10))
    assert len(SampleReader(damaged).read(np.array([row - 1, row + 1])).ecg) == 2
    assert len(SampleReader(damaged, checksum=False).read(np.array([row])).ecg) == 1


def test_truncated_shard_is_named_even_without_checksums(damaged: ShardSet) -> None:
    row = 11
    path = shard_of(damaged, row)
    os.truncate(path, int(damaged.index[row]["offset"]) + damaged.layout.ecg.offset + 100)
    with pytest.raises(UserError, match=f"{path.name} ends too early"):
        SampleReader(damaged, checksum=False).read(np.array([row]))


def test_vanished_shard_is_named(damaged: ShardSet) -> None:
    path = shard_of(damaged, 0)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name}: No such file.*verify\.py"):
        SampleReader(damaged).read(np.array([0]))


def test_shard_that_cannot_be_read_is_named(damaged: ShardSet) -> None:
    path = shard_of(damaged, 0)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{path.name} cannot be read: Is a directory"):
        SampleReader(damaged).read(np.array([0]))


def test_more_shards_than_open_files_are_read(tiny_shards: ShardSet) -> None:
    reader = SampleReader(tiny_shards)
    reader._most_open = 2
    rows = np.arange(len(tiny_shards))
    assert (reader.read(rows).ecg == SampleReader(tiny_shards).read(rows).ecg).all()
    assert len(reader._descriptors) == 2


Limits = dict[int, tuple[int, int]]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """What this process may have, soft and hard; to be filled in, and changed by what is tried."""
    limits: Limits = {}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    return limits


def test_reader_raises_a_low_limit_of_open_files(tiny_shards: ShardSet, limits: Limits) -> None:
    limits[resource.RLIMIT_NOFILE] = (20, 4096)
    num_shards = len(tiny_shards.manifest.shards)
    assert SampleReader(tiny_shards)._most_open >= num_shards
    assert limits[resource.RLIMIT_NOFILE] == (4 * num_shards, 4096)


def test_readers_of_many_threads_share_a_low_limit_of_open_files(
    tiny_shards: ShardSet, limits: Limits
) -> None:
    limits[resource.RLIMIT_NOFILE] = (64, 64)
    reader = SampleReader(tiny_shards)
    batches = EvaluationBatches(
        reader, np.arange(len(tiny_shards)), RankShape(4), ReadAhead(num_workers=8)
    )
    assert len(list(batches)) == len(batches)
    clones = [reader.clone() for _ in range(7)]
    for one in (reader, *clones):
        one.read(np.arange(len(tiny_shards)))
    assert sum(len(one._descriptors) for one in (reader, *clones)) <= 16


def test_dropped_reader_closes_its_files(tiny_shards: ShardSet) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before = num_open()
    reader = SampleReader(tiny_shards)
    reader.read(np.arange(len(tiny_shards)))
    assert num_open() == before + len(tiny_shards.manifest.shards) + 1  # and the index
    del reader
    gc.collect()
    assert num_open() == before
