"""Shards as a WebDataset stream: what it promises, and what it refuses."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import EvaluationBatches, RankShape
from ecgfounder_train.loader.epoch_plan import Position
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import SplitRows
from ecgfounder_train.loader.stream import StreamBatches, StreamEvaluation, StreamSource
from ecgfounder_train.settings.training import DataSettings
from ecgfounder_train.shards import ShardSet


def pipe(shards: ShardSet) -> StreamSource:
    return StreamSource(shards, f"pipe:cat {shlex.quote(str(shards.folder))}/{{name}}")


def signals(batches: StreamBatches, epoch: int) -> list[bytes]:
    return [
        row.numpy().tobytes()
        for batch in batches
        if batch["epoch"] == epoch
        for row in batch["ecg"]
    ]


def all_signals(shards: ShardSet, split: str) -> list[bytes]:
    return [row.tobytes() for row in SampleReader(shards).read(shards.rows(split)).ecg]


def test_one_rank_streams_every_sample_of_an_epoch_before_any_comes_again(
    tiny_shards: ShardSet,
) -> None:
    size = len(tiny_shards.rows("train"))
    stream = StreamBatches(pipe(tiny_shards), size, 0, RankShape(7), Position(), 2 * size)
    assert len(stream) == 2 * -(-size // 7) == len(list(stream))
    first, second = signals(stream, 0), signals(stream, 1)
    assert (
        sorted(first[:size]) == sorted(all_signals(tiny_shards, "train")) == sorted(second[:size])
    )
    assert first != second


def test_stream_resumes_in_its_epoch_by_dropping_what_came_before(tiny_shards: ShardSet) -> None:
    size = len(tiny_shards.rows("train"))

    def read(start: Position) -> list[torch.Tensor]:
        source = StreamSource(tiny_shards)
        return [b["ecg"] for b in StreamBatches(source, size, 3, RankShape(8), start, size)]

    whole, rest = read(Position()), read(Position(0, 24))
    assert len(rest) == len(whole) - 3
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_ranks_stream_from_shards_of_their_own_for_equally_many_batches(
    tiny_shards: ShardSet,
) -> None:
    size = len(tiny_shards.rows("train"))
    parts = []
    for rank in range(2):
        shape = RankShape(4, 2, rank, 2)
        stream = StreamBatches(StreamSource(tiny_shards), size, 0, shape, Position(), size)
        parts.append(signals(stream, 0))
    # Weaker than the indexed reader: shares are equal, shards are not, so some come twice.
    assert len(parts[0]) == len(parts[1])
    assert not set(parts[0]) & set(parts[1])


def test_validation_by_stream_covers_its_part_once_with_the_indexed_readers_batches(
    tiny_shards: ShardSet,
) -> None:
    rows = SplitRows.of(tiny_shards, "val")
    for rank in range(3):
        shape = RankShape(4, 1, rank, 3)
        streamed = list(StreamEvaluation(pipe(tiny_shards), "val", len(rows), shape))
        read = list(EvaluationBatches(SampleReader(tiny_shards), rows, shape))
        assert len(streamed) == len(read)
        for a, b in zip(streamed, read, strict=True):
            for key in ("ecg", "stats", "targets", "observed", "present", "valid_num_samples"):
                assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_broken_pipe_is_an_error_of_the_user(
    tiny_shards: ShardSet, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    path = shards.shard_path(int(shards.index[shards.rows("train")[0]]["shard"]))
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2 + 100])
    size = len(shards.rows("train"))
    stream = StreamBatches(pipe(shards), size, 0, RankShape(4), Position(), size)
    with pytest.raises(UserError, match=r"stream of shards broke.*data\.stream"):
        list(stream)


def test_what_a_stream_cannot_do_is_refused(tiny_shards: ShardSet) -> None:
    for key, value in (
        ("order", "shard_blocks"),
        ("cache_dir", "somewhere"),
        ("last_batch", "drop"),
        ("on_bad_sample", "quarantine"),
        ("patient_fraction", 0.5),
    ):
        with pytest.raises(UserError, match=rf"reader=webdataset .* data\.{key}"):
            DataSettings.from_config({"reader": "webdataset", key: value})
    with pytest.raises(UserError, match=r"data\.stream is read by"):
        DataSettings.from_config({"stream": "pipe:cat {name}"})
    with pytest.raises(UserError, match="has no place for a shard's file name"):
        StreamSource(tiny_shards, "pipe:cat shard.tar")
    with pytest.raises(UserError, match="for 64 ranks"):
        StreamBatches(StreamSource(tiny_shards), 63, 0, RankShape(1, 1, 0, 64), Position(), 63)


def test_labels_and_facts_of_the_stream_are_those_of_the_shards(tiny_shards: ShardSet) -> None:
    size = len(tiny_shards.rows("train"))
    by_signal = {}
    for row in tiny_shards.rows("train"):
        sample = tiny_shards.read_sample(int(row))
        by_signal[sample.ecg.tobytes()] = sample
    for batch in StreamBatches(pipe(tiny_shards), size, 0, RankShape(9), Position(), size):
        for place in range(9):
            sample = by_signal[batch["ecg"][place].numpy().tobytes()]
            assert (batch["targets"][place].numpy() == sample.labels[0]).all()
            assert (batch["observed"][place].numpy() == sample.labels[1]).all()
            assert np.array_equal(batch["stats"][place].numpy(), sample.stats)
            assert batch["valid_num_samples"][place] == sample.facts["valid_num_samples"]
        assert batch["loss_denominator"] == batch["observed"].sum()
