"""Batches of one rank: which rows, which labels, which denominator."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import EpochPlan, EvaluationBatches, Position, SampleReader
from ecgfounder_train.loader.batches import RankShape, ReadAhead, TrainingBatches
from ecgfounder_train.loader.buffers import BufferPool
from ecgfounder_train.loader.rows import IndexRows, SplitRows
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.losses import create_loss
from ecgfounder_train.records import LoadNormalisation
from ecgfounder_train.shards import ShardSet


@pytest.fixture(scope="module")
def plan(tiny_shards: ShardSet) -> EpochPlan:
    return EpochPlan(len(tiny_shards.rows("train")), 0, tiny_shards.manifest.fingerprint)


def batches(
    shards: ShardSet,
    plan: EpochPlan,
    shape: RankShape,
    until: int,
    start: Position | None = None,
) -> TrainingBatches:
    reader = SampleReader(shards)
    return TrainingBatches(reader, shards.rows("train"), plan, shape, start or Position(), until)


@pytest.mark.parametrize(
    ("world_size", "per_rank", "accumulate"), [(1, 16, 1), (1, 4, 4), (2, 4, 2), (3, 5, 1)]
)
def test_ranks_together_read_the_training_split_once(
    tiny_shards: ShardSet, plan: EpochPlan, world_size: int, per_rank: int, accumulate: int
) -> None:
    seen: list[int] = []
    lengths = set()
    for rank in range(world_size):
        shape = RankShape(per_rank, accumulate, rank, world_size)
        one = batches(tiny_shards, plan, shape, plan.num_samples)
        rows = [batch["rows"].numpy() for batch in one]
        lengths |= {len(one), len(rows)}
        seen += [int(row) for row in np.concatenate(rows) if row >= 0]
    assert sorted(seen) == tiny_shards.rows("train").tolist()
    assert len(lengths) == 1


@pytest.mark.parametrize("num_workers", range(9))
def test_batches_are_the_same_with_any_number_of_workers(
    tiny_shards: ShardSet, plan: EpochPlan, num_workers: int
) -> None:
    rows, shape = SplitRows.of(tiny_shards, "train"), RankShape(3, 2, 1, 2)
    expected = list(batches(tiny_shards, plan, shape, 2 * plan.num_samples))
    one = TrainingBatches(
        SampleReader(tiny_shards),
        rows,
        plan,
        shape,
        Position(),
        2 * plan.num_samples,
        ReadAhead(num_workers),
    )
    read = list(one)
    assert len(read) == len(one) == len(expected) == 2 * 2 * -(-plan.num_samples // 12)
    for a, b in zip(read, expected, strict=True):
        assert (a["slots"] == b["slots"]).all() and a["epoch"] == b["epoch"]
        assert a["loss_denominator"] == b["loss_denominator"]
        for key in ("rows", "ecg", "stats", "targets", "observed", "present"):
            assert torch.equal(a[key], b[key])
    evaluated = EvaluationBatches(
        SampleReader(tiny_shards), rows, RankShape(5), ReadAhead(num_workers)
    )
    seen = [row for batch in evaluated for row in batch["rows"][batch["present"]].tolist()]
    assert seen == tiny_shards.rows("train").tolist()


@settings(max_examples=12, deadline=None)
@given(
    world_size=st.integers(1, 64),
    num_workers=st.integers(0, 8),
    per_rank=st.integers(1, 5),
    accumulate=st.integers(1, 3),
)
def test_every_sample_comes_once_at_any_number_of_ranks_and_workers(
    tiny_shards: ShardSet,
    plan: EpochPlan,
    world_size: int,
    num_workers: int,
    per_rank: int,
    accumulate: int,
) -> None:
    rows, reader = SplitRows.of(tiny_shards, "train"), SampleReader(tiny_shards)
    ahead, held_out = ReadAhead(num_workers), SplitRows.of(tiny_shards, "val")
    trained, evaluated, lengths = [], [], set()
    for rank in range(world_size):
        shape = RankShape(per_rank, accumulate, rank, world_size)
        training = TrainingBatches(
            reader, rows, plan, shape, Position(), plan.num_samples, read_ahead=ahead
        )
        evaluation = EvaluationBatches(reader, held_out, shape, ahead)
        lengths.add((len(training), len(evaluation)))
        for batches, seen in ((training, trained), (evaluation, evaluated)):
            for batch in batches:
                assert len(batch["rows"]) == per_rank
                assert not batch["observed"][~batch["present"]].any()
                seen += batch["rows"][batch["present"]].tolist()
    assert sorted(trained) == tiny_shards.rows("train").tolist()
    assert sorted(evaluated) == tiny_shards.rows("val").tolist()
    assert len(lengths) == 1


def test_memory_is_used_again_and_never_while_a_batch_is_held(
    tiny_shards: ShardSet, plan: EpochPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = []
    original = BufferPool.__init__

    def noted(pool: BufferPool, *args: object) -> None:
        original(pool, *args)  # type: ignore[arg-type]
        pools.append(pool)

    monkeypatch.setattr(BufferPool, "__init__", noted)
    first = None
    for batch in batches(tiny_shards, plan, RankShape(2), 20 * plan.num_samples):
        if first is None:
            first = batch["ecg"][0]  # a view keeps the whole buffer
            expected = first.clone()
    assert torch.equal(first, expected)
    # One held, two ready, one being read, one used, one put aside by the loop variable.
    assert pools[0].num_buffers <= 6
    held = list(batches(tiny_shards, plan, RankShape(2), plan.num_samples))
    assert pools[1].num_buffers == len(held)


def test_rows_of_a_split_are_found_without_listing_them(tiny_shards: ShardSet) -> None:
    for split in ("train", "val", "test"):
        rows, listed = SplitRows.of(tiny_shards, split), tiny_shards.rows(split)
        assert len(rows) == len(listed)
        assert (rows[np.arange(len(rows))] == listed).all()
    assert len(SplitRows([])) == 0


def test_rows_of_the_index_are_those_of_its_mapping(tiny_shards: ShardSet) -> None:
    rows = np.random.default_rng(0).integers(0, len(tiny_shards), 500)
    assert IndexRows(tiny_shards.index).take(rows).tobytes() == tiny_shards.index[rows].tobytes()
    part = tiny_shards.index[5:20]
    assert IndexRows(part).take(np.array([3, 0])).tobytes() == part[[3, 0]].tobytes()
    with pytest.raises(IndexError):
        IndexRows(tiny_shards.index).take(np.array([len(tiny_shards)]))


def test_memory_does_not_grow_with_the_index(tmp_path: Path) -> None:
    # Ten million rows without a byte on the disk, read at random.
    size, dtype = 10_000_000, np.dtype([("row", "S152")])
    index = np.lib.format.open_memmap(tmp_path / "index.npy", "w+", dtype, (size,))
    pages = Path("/proc/self/statm")
    rows, draw = IndexRows(index), np.random.default_rng(0)
    before = int(pages.read_text().split()[1])
    for _ in range(50):
        rows.take(draw.integers(0, size, 64))
    grown = (int(pages.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 8e6


def test_index_cut_under_way_is_told(tiny_shards: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    shutil.copy(tiny_shards.folder / "index.npy", path)
    index = np.load(path, mmap_mode="r")
    rows = IndexRows(index)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="cut while it was read"):
        rows.take(np.array([len(index) - 1]))


def test_start_deep_in_an_epoch_computes_and_reads_no_more_than_one_at_its_beginning(
    tiny_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A plan of ten million samples, all read from the few there are.
    size = 10_000_000

    class Tiled:
        def __len__(self) -> int:
            return size

        def __getitem__(self, samples: np.ndarray) -> np.ndarray:
            return samples % len(tiny_shards)

    class Counted(EpochPlan):
        num_slots_computed = 0

        def samples_at(self, epoch: int, slots: np.ndarray) -> np.ndarray:
            Counted.num_slots_computed += len(slots)
            return super().samples_at(epoch, slots)

    def work_of_first_batch(start: Position) -> tuple[int, int]:
        Counted.num_slots_computed = 0
        reader, num_rows = SampleReader(tiny_shards), []
        take = reader.index.take
        monkeypatch.setattr(
            reader.index, "take", lambda rows: (num_rows.append(len(rows)), take(rows))[1]
        )
        plan = Counted(size, 0, "large")
        one = TrainingBatches(reader, Tiled(), plan, RankShape(8), start, size, ReadAhead(0))
        next(iter(one))
        return Counted.num_slots_computed, sum(num_rows)

    assert work_of_first_batch(Position(0, 9_000_000)) == work_of_first_batch(Position()) == (8, 8)


def test_quarantined_sample_keeps_its_slot_and_weighs_nothing(
    tiny_shards: ShardSet, plan: EpochPlan, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    damaged = ShardSet.open(tmp_path / "shards")
    gone = int(damaged.index[damaged.rows("train")[0]]["shard"])
    damaged.shard_path(gone).unlink()

    def read(shards: ShardSet, on_bad_sample: str) -> list[dict[str, Any]]:
        reader = SampleReader(shards, on_bad_sample=on_bad_sample)
        rows = SplitRows.of(shards, "train")
        return list(TrainingBatches(reader, rows, plan, RankShape(8), Position(), plan.num_samples))

    with pytest.raises(UserError, match="Cannot open shard"):
        read(damaged, "stop")
    lost = 0
    for whole, part in zip(read(tiny_shards, "stop"), read(damaged, "quarantine"), strict=True):
        assert torch.equal(whole["rows"], part["rows"])
        assert whole["loss_denominator"] == part["loss_denominator"]
        bad = whole["present"] & ~part["present"]
        in_gone = (damaged.index["shard"][whole["rows"].clamp(min=0)] == gone) & (
            whole["rows"].numpy() >= 0
        )
        assert bad.tolist() == in_gone.tolist()
        assert not part["ecg"][bad].any() and not part["observed"][bad].any()
        assert not part["stats"][bad].any() and not part["valid_num_samples"][bad].any()
        assert torch.equal(whole["ecg"][~bad], part["ecg"][~bad])
        assert torch.equal(whole["targets"][~bad], part["targets"][~bad])
        lost += int(bad.sum())
    assert lost == damaged.manifest.shards[gone].num_samples


def test_batch_carries_labels_of_its_rows_and_masks_padding(
    tiny_shards: ShardSet, plan: EpochPlan
) -> None:
    *_, last = batches(tiny_shards, plan, RankShape(16), plan.num_samples)
    present = last["present"].numpy()
    assert 0 < present.sum() < 16
    assert not last["ecg"][~present].any()
    assert not last["observed"][~present].any()
    assert not last["valid_num_samples"][~present].any()
    for place in np.flatnonzero(present):
        sample = tiny_shards.read_sample(int(last["rows"][place]))
        assert (last["targets"][place].numpy() == sample.labels[0]).all()
        assert (last["observed"][place].numpy() == sample.labels[1]).all()
        assert last["valid_num_samples"][place] == sample.facts["valid_num_samples"]


def test_batches_from_a_position_on_are_those_of_an_undisturbed_run(
    tiny_shards: ShardSet, plan: EpochPlan
) -> None:
    whole = list(batches(tiny_shards, plan, RankShape(8), 2 * plan.num_samples))
    start = Position(0, 24)
    rest = list(batches(tiny_shards, plan, RankShape(8), 2 * plan.num_samples, start))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert one["epoch"] == other["epoch"]
        for key in ("rows", "ecg", "stats", "targets", "observed"):
            assert torch.equal(one[key], other[key])


def test_gradient_of_a_global_batch_does_not_depend_on_its_division(
    tiny_shards: ShardSet, plan: EpochPlan
) -> None:
    # Unobserved labels and padding are unevenly spread over ranks and micro-batches; the last
    # global batch of the epoch (15 of 16 rows) is the hard one.
    loss = create_loss("bce")
    torch.manual_seed(0)
    weights = torch.randn(12, 5, dtype=torch.float64)
    transform = BatchTransform(tiny_shards.manifest.leads, LoadNormalisation())
    start = Position(0, 16 * (plan.num_samples // 16))

    def gradient(world_size: int, per_rank: int, accumulate: int) -> torch.Tensor:
        w = weights.clone().requires_grad_()
        for rank in range(world_size):
            shape = RankShape(per_rank, accumulate, rank, world_size)
            for batch in batches(tiny_shards, plan, shape, plan.num_samples, start):
                signal, targets, observed = transform(batch, training=True)
                features = signal.double()[:, :, ::7].square().mean(-1)
                value = loss(features @ w, targets, observed).sum() / batch["loss_denominator"]
                # What Lightning (accumulation) and DDP (ranks) do.
                (value / accumulate / world_size).backward()
        assert w.grad is not None
        return w.grad

    reference = gradient(1, 16, 1)
    assert reference.abs().max() > 0.01
    for division in [(2, 8, 1), (1, 4, 4), (1, 2, 8), (2, 2, 4), (4, 1, 4), (16, 1, 1)]:
        assert torch.allclose(gradient(*division), reference, rtol=0, atol=1e-6), division


@pytest.mark.parametrize(("world_size", "per_rank"), [(1, 8), (1, 64), (3, 4), (7, 3)])
def test_evaluation_covers_the_split_once_with_equal_batches_on_every_rank(
    tiny_shards: ShardSet, world_size: int, per_rank: int
) -> None:
    rows = tiny_shards.rows("val")
    seen, lengths = [], set()
    for rank in range(world_size):
        one = EvaluationBatches(
            SampleReader(tiny_shards), rows, RankShape(per_rank, 1, rank, world_size)
        )
        read = list(one)
        lengths |= {len(one), len(read)}
        for batch in read:
            assert len(batch["rows"]) == per_rank
            seen += batch["rows"][batch["present"]].tolist()
            assert not batch["observed"][~batch["present"]].any()
    assert sorted(seen) == rows.tolist()
    assert len(lengths) == 1


def test_error_of_the_reading_thread_reaches_the_training_loop(
    tiny_shards: ShardSet, plan: EpochPlan
) -> None:
    class Broken(SampleReader):
        def read_into(self, ecg, rows, entries):  # type: ignore[no-untyped-def]
            raise UserError("shard 3 is gone")

    shape = RankShape(8)
    broken = TrainingBatches(
        Broken(tiny_shards), tiny_shards.rows("train"), plan, shape, Position(), 32
    )
    with pytest.raises(UserError, match="shard 3 is gone"):
        list(broken)


def test_abandoned_iteration_leaves_no_thread(tiny_shards: ShardSet, plan: EpochPlan) -> None:
    before = threading.active_count()
    iterator: Iterator[object] = iter(batches(tiny_shards, plan, RankShape(4), 10_000))
    next(iterator)
    assert threading.active_count() == before + 1
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
