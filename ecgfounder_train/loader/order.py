"""Order of the training samples, and which shards it needs next."""

from collections.abc import Callable

import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.cache import CachedShardSet
from ecgfounder_train.loader.epoch_plan import BlockPlan, EpochPlan
from ecgfounder_train.loader.rows import IntArray, Rows, SplitRows
from ecgfounder_train.shards import ShardSet

ORDERS = ("auto", "global", "shard_blocks")

# The block that is read, the one that is fetched, and the one that some rank has not quite left.
_BLOCKS_IN_CACHE = 3


def shard_counts(shards: ShardSet, split: str, rows: Rows | None) -> tuple[list[int], list[int]]:
    """Return a split's shards and how many of its samples, or of `rows`, each has."""
    ranges = shards.row_ranges(split)
    starts = np.cumsum([0, *(entry.num_samples for entry in shards.manifest.shards)])
    numbers = [int(np.searchsorted(starts, part.start, side="right")) - 1 for part in ranges]
    sizes = [len(part) for part in ranges]
    if rows is not None and not isinstance(rows, SplitRows):
        listed: IntArray = np.asarray(rows)
        first, last = (
            np.searchsorted(listed, [getattr(part, end) for part in ranges])
            for end in ("start", "stop")
        )
        sizes = (last - first).tolist()
    used = [place for place, size in enumerate(sizes) if size]
    return [numbers[place] for place in used], [sizes[place] for place in used]


def create_plan(
    shards: ShardSet,
    rows: Rows,
    seed: int,
    *,
    order: str = "auto",
    block_shards: int | None = None,
    global_batch_size: int,
    drop_last: bool = False,
) -> EpochPlan:
    """Return the order of the training samples.

    Args:
        shards: The opened shard set.
        rows: Index rows that are trained on, ascending.
        seed: The run's seed.
        order: `global`, `shard_blocks`, or `auto`: global unless the shards come through a cache
            that does not hold them all.
        block_shards: Shards that are shuffled jointly; None: as many as a third of the cache holds.
        global_batch_size: Samples between two optimizer steps.
        drop_last: Leave out what does not fill a global batch at the end of an epoch.

    Raises:
        UserError: The cache is too small for the order, or the split for the batch.
    """
    assert order in ORDERS
    dropped = global_batch_size if drop_last else 0
    if drop_last and len(rows) < global_batch_size:
        raise UserError(
            f"data.last_batch=drop leaves nothing of {len(rows):,} training samples with "
            f"data.global_batch_size={global_batch_size:,}. Use data.last_batch=pad."
        )
    numbers, sizes = shard_counts(shards, "train", rows)
    fingerprint = shards.manifest.fingerprint
    validation = _validation_shards(shards, global_batch_size)
    if order == "auto":
        order = "global" if _fits(shards, numbers, validation) else "shard_blocks"
    if order == "global":
        if not _fits(shards, numbers, validation):
            assert isinstance(shards, CachedShardSet)
            raise UserError(
                f"data.order=global needs all shards in the cache, which take "
                f"{_needed_bytes(shards, numbers, validation):,} bytes of data.cache_bytes="
                f"{shards.cache.max_bytes:,}. Raise it, or use data.order=shard_blocks."
            )
        return EpochPlan(len(rows), seed, fingerprint, dropped)
    count = block_shards or _largest_block(shards, validation)
    plan = BlockPlan(len(rows), seed, fingerprint, dropped, tuple(sizes), min(count, len(numbers)))
    if isinstance(shards, CachedShardSet):
        _check_blocks(shards, plan, numbers, global_batch_size, validation)
    return plan


def look_ahead(
    shards: CachedShardSet, plan: EpochPlan, rows: Rows, global_batch_size: int
) -> Callable[[int, int], None]:
    """Return a callback that asks the cache, at an epoch and slot, for the next shards."""
    numbers, _ = shard_counts(shards, "train", rows)

    def ask(epoch: int, slot: int) -> None:
        if not isinstance(plan, BlockPlan):
            shards.cache.want("train", numbers)
            return
        places: list[int] = []
        behind = slot
        while behind < min(slot + global_batch_size, plan.num_samples):
            places += plan.shards_of(epoch, behind)
            behind = plan.slot_behind(epoch, behind)
        places += plan.shards_of(epoch, behind)
        shards.cache.want("train", [numbers[place] for place in dict.fromkeys(places)])

    return ask


def look_ahead_in_order(
    shards: CachedShardSet, split: str, batch_size: int
) -> Callable[[int], None]:
    """Return a callback that asks the cache, at a sample of a split, for the next shards."""
    numbers, sizes = shard_counts(shards, split, None)
    ends = np.cumsum(sizes)

    def ask(sample: int) -> None:
        first, last = np.searchsorted(ends, [sample, sample + batch_size - 1], side="right")
        shards.cache.want(split, numbers[int(first) : int(last) + 2])

    return ask


def _validation_shards(shards: ShardSet, batch_size: int) -> int:
    """Return how many shards a validation holds at once: those of a batch, and the next one."""
    _, sizes = shard_counts(shards, "val", None)
    ends = np.cumsum(sizes)
    if not len(ends):
        return 0
    starts = np.arange(0, ends[-1], batch_size)
    first = np.searchsorted(ends, starts, side="right")
    last = np.searchsorted(ends, np.minimum(starts + batch_size, ends[-1]) - 1, side="right")
    return min(int((last - first).max()) + 2, len(sizes))


def _needed_bytes(shards: ShardSet, numbers: list[int], validation: int) -> int:
    entries = shards.manifest.shards
    others = max(entry.bytes for entry in entries) * validation
    return sum(entries[number].bytes for number in numbers) + others


def _fits(shards: ShardSet, numbers: list[int], validation: int) -> bool:
    if not isinstance(shards, CachedShardSet):
        return True
    return _needed_bytes(shards, numbers, validation) <= shards.cache.max_bytes


def _largest_block(shards: ShardSet, validation: int) -> int:
    if not isinstance(shards, CachedShardSet):
        # Enough for a good mixture, few enough to stay in a file server's memory.
        return 64
    largest = max(entry.bytes for entry in shards.manifest.shards)
    room = shards.cache.max_bytes // largest - validation
    return max(room // _BLOCKS_IN_CACHE, 1)


def _check_blocks(
    shards: CachedShardSet,
    plan: BlockPlan,
    numbers: list[int],
    global_batch_size: int,
    validation: int,
) -> None:
    entries = shards.manifest.shards
    largest = max(entry.bytes for entry in entries)
    blocks = min(_BLOCKS_IN_CACHE * plan.block_shards, len(numbers))
    needed = (blocks + validation) * largest
    if needed > shards.cache.max_bytes:
        raise UserError(
            f"data.order=shard_blocks with {plan.block_shards} shards per block needs a cache of "
            f"{needed:,} bytes (three blocks and {validation} shards of the "
            f"validation, {largest:,} each); data.cache_bytes is "
            f"{shards.cache.max_bytes:,}. Raise it, or lower data.block_shards."
        )
    in_block = plan.block_shards * min(plan.shard_sizes[:-1] or plan.shard_sizes)
    if in_block < global_batch_size and plan.block_shards < len(numbers):
        raise UserError(
            f"A block of {plan.block_shards} shards has about {in_block:,} samples, fewer than "
            f"data.global_batch_size={global_batch_size:,}. Raise data.block_shards or "
            "data.cache_bytes."
        )
