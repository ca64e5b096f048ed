"""Batches of one rank: which rows, which labels, which denominator."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import EpochPlan, EvaluationBatches, Position, SampleReader
from ecgfounder_train.loader.batches import RankShape, TrainingBatches
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
        def read(self, rows):  # type: ignore[no-untyped-def]
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
