"""The order of an epoch: every sample once, however the job is cut up or interrupted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfounder_train.loader.epoch_plan import (
    PADDING,
    BlockPlan,
    EpochPlan,
    Position,
    num_steps,
    rank_slots,
)

AROUND_POWERS = sorted({max(2**k + d, 1) for k in range(1, 15) for d in (-1, 0, 1)})
shapes = st.tuples(
    st.integers(1, 64),  # ranks
    st.integers(1, 7),  # samples per rank
    st.integers(1, 4),  # micro-batches
)


def order(plan: EpochPlan, epoch: int = 0) -> np.ndarray:
    return plan.samples_at(epoch, np.arange(plan.num_samples))


def consumed(
    plan: EpochPlan, start: Position, steps: int, shape: tuple[int, int, int]
) -> tuple[list[tuple[int, int]], Position]:
    """Return (epoch, sample) in global order as the ranks of a job read them, and the end."""
    world_size, per_rank, accumulate = shape
    read, position = [], start
    for _ in range(steps):
        slots = np.concatenate(
            [
                rank_slots(position.slots, rank, world_size, per_rank, micro)
                for micro in range(accumulate)
                for rank in range(world_size)
            ]
        )
        assert (slots == position.slots + np.arange(len(slots))).all()
        samples = plan.samples_at(position.epoch, slots)
        read += [(position.epoch, int(s)) for s in samples if s != PADDING]
        position = position.advanced(len(slots), plan.num_slots)
    return read, position


def block_plan(sizes: list[int], block_shards: int, seed: int = 0, drop: int = 0) -> BlockPlan:
    return BlockPlan(sum(sizes), seed, "data", drop, tuple(sizes), block_shards)


plans = st.one_of(
    st.builds(lambda n, seed: EpochPlan(n, seed, "data"), st.integers(1, 700), st.integers(0, 99)),
    st.builds(
        block_plan,
        st.lists(st.integers(1, 60), min_size=1, max_size=15),
        st.integers(1, 6),
        st.integers(0, 99),
    ),
)


@pytest.mark.parametrize("num_samples", AROUND_POWERS)
def test_epoch_is_a_permutation_around_powers_of_two(num_samples: int) -> None:
    assert (np.sort(order(EpochPlan(num_samples, 7, "data"))) == np.arange(num_samples)).all()


@given(num_samples=st.integers(1, 5000), seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    plan = EpochPlan(num_samples, seed, "data")
    assert (np.sort(order(plan, epoch)) == np.arange(num_samples)).all()


@given(num_samples=st.integers(1, 500), extra=st.integers(1, 100))
def test_slots_behind_the_last_sample_are_padding(num_samples: int, extra: int) -> None:
    slots = np.arange(num_samples, num_samples + extra)
    assert (EpochPlan(num_samples, 0, "data").samples_at(0, slots) == PADDING).all()


@settings(max_examples=100, deadline=None)
@given(plan=plans, shape=shapes)
def test_every_sample_comes_exactly_once_per_epoch_on_any_number_of_ranks(
    plan: EpochPlan, shape: tuple[int, int, int]
) -> None:
    num_samples = plan.num_samples
    steps = -(-num_samples // (shape[0] * shape[1] * shape[2]))
    read, end = consumed(plan, Position(4, 0), steps, shape)
    assert [sample for _, sample in read] == order(plan, 4).tolist()
    assert sorted(sample for _, sample in read) == list(range(num_samples))
    assert end == Position(5, 0)


@settings(max_examples=60, deadline=None)
@given(plan=plans, before=shapes, after=shapes, steps=st.integers(0, 40))
def test_resume_goes_on_in_the_same_order_on_another_number_of_ranks(
    plan: EpochPlan, before: tuple[int, int, int], after: tuple[int, int, int], steps: int
) -> None:
    num_samples = plan.num_samples
    first, position = consumed(plan, Position(), steps, before)
    assert position.samples_seen(num_samples) == len(first)
    second, end = consumed(plan, position, 20, after)
    undisturbed = [
        (epoch, int(sample)) for epoch in range(end.epoch + 1) for sample in order(plan, epoch)
    ]
    assert first + second == undisturbed[: len(first) + len(second)]
    assert end.samples_seen(num_samples) == len(first) + len(second)


def test_epochs_seeds_and_data_sets_have_orders_of_their_own() -> None:
    size = 1000
    orders = [
        order(EpochPlan(size, seed, data), epoch)
        for seed, data, epoch in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0)]
    ]
    for number, one in enumerate(orders):
        for other in orders[:number]:
            # Two random orders of 1000 share one place on average; 12 would be a 10-sigma accident.
            assert (one == other).sum() < 12


def test_order_looks_shuffled() -> None:
    size = 20_000
    places = np.arange(size)
    for epoch in range(3):
        shuffled = order(EpochPlan(size, 0, "data"), epoch)
        # Correlations of a random order have a standard deviation of 1 / sqrt(size) = 0.007.
        assert abs(np.corrcoef(places, shuffled)[0, 1]) < 0.035
        assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.035
        # Neighbours in the files (which share a site or a month) do not stay neighbours.
        assert (np.abs(np.diff(shuffled)) == 1).mean() < 0.001
        # Each tenth of the files is spread evenly over each tenth of the epoch.
        counts, _, _ = np.histogram2d(places, shuffled, bins=10)
        assert abs(counts - size / 100).max() < 6 * np.sqrt(size / 100)


def test_order_never_changes() -> None:
    # Checkpoints of earlier versions rely on these numbers.
    assert order(EpochPlan(10, 0, "data")).tolist() == [6, 3, 0, 9, 2, 8, 7, 4, 1, 5]
    assert order(EpochPlan(10, 5, "data"), 3).tolist() == [7, 1, 3, 6, 4, 5, 9, 8, 0, 2]
    assert order(block_plan([3, 1, 4, 2], 2)).tolist() == [5, 8, 7, 4, 9, 6, 2, 3, 0, 1]


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20), block=st.integers(1, 7))
def test_blocks_need_their_own_shards_only_and_each_shard_once_per_epoch(
    sizes: list[int], block: int
) -> None:
    plan = block_plan(sizes, block)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    visited, slot = [], 0
    while slot < plan.num_samples:
        wanted, behind = plan.shards_of(2, slot), plan.slot_behind(2, slot)
        assert plan.shards_of(2, behind - 1) == wanted and len(wanted) <= block
        samples = plan.samples_at(2, np.arange(slot, behind))
        assert sorted(set(shard_of[samples].tolist())) == wanted
        visited += wanted
        slot = behind
    assert sorted(visited) == list(range(len(sizes)))
    assert plan.shards_of(2, plan.num_samples) == plan.shards_of(3, 0)


def test_blocks_mix_their_shards_and_change_with_the_epoch() -> None:
    plan = block_plan([100] * 40, 10)
    shard_of = np.repeat(np.arange(40), 100)
    orders = [order(plan, epoch) for epoch in range(2)]
    for one in orders:
        batches = shard_of[one].reshape(-1, 50)
        # Fifty draws of ten shards hit all of them but one in a few hundred times.
        assert min(len(set(batch.tolist())) for batch in batches) >= 8
    assert set(plan.shards_of(0, 0)) != set(plan.shards_of(1, 0))
    assert (orders[0] == orders[1]).sum() < 20


@given(num_samples=st.integers(4, 300), batch=st.integers(1, 4), epoch=st.integers(0, 5))
def test_dropped_last_batch_leaves_out_less_than_a_batch_and_repeats_nothing(
    num_samples: int, batch: int, epoch: int
) -> None:
    plan = EpochPlan(num_samples, 0, "data", drop_last_of=batch)
    samples = plan.samples_at(epoch, np.arange(num_samples + batch))
    real = samples[samples != PADDING]
    assert len(real) == plan.num_slots == num_samples // batch * batch
    assert len(set(real.tolist())) == len(real)
    assert (samples[len(real) :] == PADDING).all()


def test_what_is_dropped_differs_between_epochs() -> None:
    plan = EpochPlan(1003, 0, "data", drop_last_of=100)
    used = [set(plan.samples_at(epoch, np.arange(1000)).tolist()) for epoch in range(2)]
    assert len(used[0] ^ used[1]) > 0


@settings(max_examples=200, deadline=None)
@given(
    num_slots=st.integers(1, 60),
    batch=st.integers(1, 80),
    epoch=st.integers(0, 3),
    done=st.integers(0, 59),
    until=st.integers(1, 400),
)
def test_number_of_steps_is_that_of_walking_there(
    num_slots: int, batch: int, epoch: int, done: int, until: int
) -> None:
    start = position = Position(epoch, min(done, num_slots - 1))
    walked = 0
    while position.samples_seen(num_slots) < until:
        position = position.advanced(batch, num_slots)
        walked += 1
    assert num_steps(start, until, num_slots, batch) == walked
