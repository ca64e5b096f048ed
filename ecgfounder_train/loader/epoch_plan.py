"""Which sample comes when: one global order per epoch, computed slot by slot.

The order of an epoch is a keyed pseudo-random permutation of the samples, evaluated directly at any
slot. Nothing is shuffled in memory and nothing is skipped on resume: a run that resumes at slot
7,000,000 asks for slot 7,000,000. The order depends on the data, the seed and the epoch; never on
the number of ranks, the batch size or the reader, so a run may continue on another machine.

Two orders: `EpochPlan` permutes the whole split; `BlockPlan` permutes shards, and samples within
blocks of shards, so that shards which are fetched whole are fetched once per epoch.

What must not change: `samples_at` for a given (data, seed, epoch). A checkpoint holds a `Position`
and relies on it.
"""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ecgfounder_train.loader.counter_rng import mix64

IntArray = npt.NDArray[np.int64]
PADDING = -1
"""Value of a slot after the last sample of an epoch: read nothing, mask the row."""

_ROUNDS = 6


@dataclass(frozen=True)
class Position:
    """Position of a run: completed epochs, and slots consumed in the current epoch."""

    epoch: int = 0
    slots: int = 0

    def samples_seen(self, num_samples: int) -> int:
        """Return how many samples were trained on, padding not counted."""
        return self.epoch * num_samples + min(self.slots, num_samples)

    def advanced(self, slots: int, num_samples: int) -> "Position":
        """Return the position after `slots` more; an epoch ends with the batch that empties it."""
        consumed = self.slots + slots
        return (
            Position(self.epoch + 1, 0)
            if consumed >= num_samples
            else Position(self.epoch, consumed)
        )


@dataclass(frozen=True)
class EpochPlan:
    """The order in which a split's samples are visited: a permutation of the whole split.

    Args:
        num_samples: Samples in the split.
        seed: The run's seed.
        data_fingerprint: The manifest's fingerprint; other data has another order.
        drop_last_of: Size of a global batch of which an epoch holds only whole ones: what the
            permutation puts behind them is left out, in every epoch something else. 0: nothing is.
    """

    num_samples: int
    seed: int
    data_fingerprint: str
    drop_last_of: int = 0

    @property
    def num_slots(self) -> int:
        """Slots of an epoch that hold a sample."""
        return self.num_samples - self.num_samples % (self.drop_last_of or 1)

    @property
    def name(self) -> str:
        """What the order depends on beside data and seed; a checkpoint holds it."""
        return "global" + (f", whole batches of {self.drop_last_of}" if self.drop_last_of else "")

    def samples_at(self, epoch: int, slots: IntArray) -> IntArray:
        """Return the sample (0 .. num_samples-1) in each slot, `PADDING` from num_slots on.

        Over the slots 0 .. num_samples-1 of an epoch every sample occurs exactly once.
        """
        result = np.full(slots.shape, PADDING, np.int64)
        inside = slots < self.num_slots
        result[inside] = self._order(epoch, slots[inside])
        return result

    def _order(self, epoch: int, slots: IntArray) -> IntArray:
        return permuted(slots, self.num_samples, self._keys(str(epoch)))

    def _keys(self, what: str) -> list[np.uint64]:
        digest = hashlib.sha512(f"{self.data_fingerprint}:{self.seed}:{what}".encode()).digest()
        return [np.uint64(int.from_bytes(digest[8 * i : 8 * i + 8])) for i in range(_ROUNDS)]


class _Blocks(NamedTuple):
    """Blocks of one epoch: the shards in their order, and where each block and shard begins."""

    shards: IntArray
    first_slot: IntArray
    """Of each block, and behind the last one the number of samples."""


@dataclass(frozen=True)
class BlockPlan(EpochPlan):
    """An order that needs a few shards at a time, for shards that are fetched whole.

    The shards are permuted, cut into blocks of `block_shards`, and the samples of a block permuted
    jointly. Every sample comes exactly once, any slot is computed directly, and a slot depends
    neither on ranks nor on batches, all as in the global order; but a batch mixes samples of
    `block_shards` shards only. As the writer draws records to shards at random, that costs little
    where a block holds many batches.

    Args:
        shard_sizes: Samples in each shard of the split, in row order.
        block_shards: Shards that are shuffled jointly.
    """

    shard_sizes: tuple[int, ...] = ()
    block_shards: int = 1
    _known: dict[int, _Blocks] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert sum(self.shard_sizes) == self.num_samples
        assert self.block_shards > 0

    @property
    def name(self) -> str:
        """What the order depends on beside data and seed; a checkpoint holds it."""
        return super().name.replace("global", f"blocks of {self.block_shards} shards")

    def shards_of(self, epoch: int, slot: int) -> list[int]:
        """Return the shards of the block that holds a slot; past the end, the next epoch's first.

        Returns:
            Positions in `shard_sizes`, ascending.
        """
        if slot >= self.num_slots:
            epoch, slot = epoch + 1, 0
        blocks = self._blocks(epoch)
        block = int(np.searchsorted(blocks.first_slot, slot, side="right")) - 1
        return sorted(self._members(blocks, block).tolist())

    def slot_behind(self, epoch: int, slot: int) -> int:
        """Return the first slot behind the block that holds `slot`."""
        first = self._blocks(epoch).first_slot
        return int(first[np.searchsorted(first, slot, side="right")])

    def _order(self, epoch: int, slots: IntArray) -> IntArray:
        blocks = self._blocks(epoch)
        result = np.empty_like(slots)
        of_slot = np.searchsorted(blocks.first_slot, slots, side="right") - 1
        for block in np.unique(of_slot).tolist():
            here = of_slot == block
            first, behind = blocks.first_slot[block : block + 2].tolist()
            keys = self._keys(f"{epoch}:block:{block}")
            places = permuted(slots[here] - first, behind - first, keys)
            members = self._members(blocks, block)
            sizes = np.asarray(self.shard_sizes, np.int64)[members]
            ends = np.cumsum(sizes)
            which = np.searchsorted(ends, places, side="right")
            result[here] = self._starts[members[which]] + places - (ends - sizes)[which]
        return result

    @cached_property
    def _starts(self) -> IntArray:
        sizes = np.asarray(self.shard_sizes, np.int64)
        return np.cumsum(sizes) - sizes

    def _members(self, blocks: _Blocks, block: int) -> IntArray:
        return blocks.shards[block * self.block_shards : (block + 1) * self.block_shards]

    def _blocks(self, epoch: int) -> _Blocks:
        # Shards are listed once per epoch (HEEDB: 5,300); samples never.
        if epoch not in self._known:
            count = len(self.shard_sizes)
            shards = permuted(np.arange(count), count, self._keys(f"{epoch}:shards"))
            sizes = np.asarray(self.shard_sizes, np.int64)[shards]
            behind = np.cumsum(sizes)[self.block_shards - 1 :: self.block_shards]
            if count % self.block_shards:
                behind = np.append(behind, self.num_samples)
            self._known[epoch] = _Blocks(shards, np.concatenate([[0], behind]))
        return self._known[epoch]


def permuted(values: IntArray, size: int, keys: list[np.uint64]) -> IntArray:
    """Return the images of `values` under a keyed permutation of 0 .. size-1.

    Source: alternating Feistel rounds over a rectangle (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains"); points outside are walked on until they fall inside.
    """
    # A rectangle a x b just above `size`: hardly any point needs a second walk, where a power of
    # two would make three in four walk on.
    a = math.isqrt(max(size - 1, 0)) + 1
    b = -(-size // a)
    value = values.astype(np.int64, copy=True)
    pending = np.arange(value.size)
    while pending.size:
        left, right = np.divmod(value[pending], b)
        for number, key in enumerate(keys):
            if number % 2 == 0:
                left = (left + _round(right, key, a)) % a
            else:
                right = (right + _round(left, key, b)) % b
        value[pending] = left * b + right
        pending = pending[value[pending] >= size]
    return value


def _round(half: IntArray, key: np.uint64, modulus: int) -> IntArray:
    return (mix64(half.astype(np.uint64) ^ key) % np.uint64(modulus)).astype(np.int64)


def rank_slots(
    start: int, rank: int, world_size: int, batch_size_per_rank: int, micro_batch: int
) -> IntArray:
    """Return the slots one rank reads for one micro-batch of the global batch at slot `start`.

    The micro-batches of a global batch are consecutive, the ranks' parts side by side in
    each, so that the union over ranks and micro-batches is start .. start + global_batch_size - 1.
    """
    first = start + (micro_batch * world_size + rank) * batch_size_per_rank
    return np.arange(first, first + batch_size_per_rank, dtype=np.int64)


def num_steps(start: Position, until_samples: int, num_slots: int, global_batch_size: int) -> int:
    """Return how many global batches lead from `start` to at least `until_samples` seen."""
    last_epoch, rest = divmod(until_samples - 1, num_slots)
    if start.epoch > last_epoch or start.samples_seen(num_slots) >= until_samples:
        return 0

    def batches(slots: int) -> int:
        return -(-slots // global_batch_size)

    if start.epoch == last_epoch:
        return batches(rest + 1 - start.slots)
    between = (last_epoch - start.epoch - 1) * batches(num_slots)
    return batches(num_slots - start.slots) + between + batches(rest + 1)
