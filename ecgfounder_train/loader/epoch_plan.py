"""Which sample comes when: one global order per epoch, computed slot by slot.

The order of an epoch is a keyed pseudo-random permutation of the samples, evaluated directly at any
slot. Nothing is shuffled in memory and nothing is skipped on resume: a run that goes on at slot
7,000,000 asks for slot 7,000,000. The order depends on the data, the seed and the epoch; never on
the number of ranks, the batch size or the reader, so a run may continue on another machine.

What must not change: `EpochPlan.samples_at` for a given (data, seed, epoch). A checkpoint holds a
`Position` and relies on it.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecgfounder_train.loader.counter_rng import mix64

IntArray = npt.NDArray[np.int64]
PADDING = -1
"""Stands in a slot behind the last sample of an epoch: read nothing, mask the row."""

_ROUNDS = 6


@dataclass(frozen=True)
class Position:
    """Where a run stands: full epochs done, and slots of the current epoch already consumed."""

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
    """The order in which a split's samples are visited.

    Args:
        num_samples: Samples in the split.
        seed: The run's seed.
        data_fingerprint: The manifest's fingerprint; other data has another order.
    """

    num_samples: int
    seed: int
    data_fingerprint: str

    def samples_at(self, epoch: int, slots: IntArray) -> IntArray:
        """Return the sample (0 .. num_samples-1) in each slot, `PADDING` from num_samples on.

        Over the slots 0 .. num_samples-1 of an epoch every sample occurs exactly once.

        Source: alternating Feistel rounds over a rectangle (Black and Rogaway 2002, "Ciphers with
        arbitrary finite domains"); points outside are walked on until they fall inside.
        """
        result = np.full(slots.shape, PADDING, np.int64)
        inside = slots < self.num_samples
        result[inside] = self._permute(slots[inside], self._round_keys(epoch))
        return result

    def _round_keys(self, epoch: int) -> list[np.uint64]:
        digest = hashlib.sha512(f"{self.data_fingerprint}:{self.seed}:{epoch}".encode()).digest()
        return [np.uint64(int.from_bytes(digest[8 * i : 8 * i + 8])) for i in range(_ROUNDS)]

    def _permute(self, slots: IntArray, keys: list[np.uint64]) -> IntArray:
        # A rectangle a x b just above num_samples: hardly any point needs a second walk, where a
        # power of two would make three in four walk on.
        a = math.isqrt(max(self.num_samples - 1, 0)) + 1
        b = -(-self.num_samples // a)
        value = slots.astype(np.int64, copy=True)
        pending = np.arange(value.size)
        while pending.size:
            left, right = np.divmod(value[pending], b)
            for number, key in enumerate(keys):
                if number % 2 == 0:
                    left = (left + _round(right, key, a)) % a
                else:
                    right = (right + _round(left, key, b)) % b
            value[pending] = left * b + right
            pending = pending[value[pending] >= self.num_samples]
        return value


def _round(half: IntArray, key: np.uint64, modulus: int) -> IntArray:
    return (mix64(half.astype(np.uint64) ^ key) % np.uint64(modulus)).astype(np.int64)


def rank_slots(
    start: int, rank: int, world_size: int, batch_size_per_rank: int, micro_batch: int
) -> IntArray:
    """Return the slots one rank reads for one micro-batch of the global batch at slot `start`.

    The micro-batches of a global batch lie behind each other, the ranks' parts side by side in
    each, so that the union over ranks and micro-batches is start .. start + global_batch_size - 1.
    """
    first = start + (micro_batch * world_size + rank) * batch_size_per_rank
    return np.arange(first, first + batch_size_per_rank, dtype=np.int64)
