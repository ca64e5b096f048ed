"""Stateful loader of one split for any torch loop: exactly once per epoch, elastic on resume.

The training runs of this project use `loader.batches` directly; this is the same reading, order and
normalisation behind a plain iterable of named tensors with `state_dict` and `load_state_dict`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import Batch, RankShape, ReadAhead, TrainingBatches
from ecgfounder_train.loader.cache import CachedShardSet
from ecgfounder_train.loader.epoch_plan import EpochPlan, IntArray, Position
from ecgfounder_train.loader.order import create_plan, look_ahead, look_ahead_in_order
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import SplitRows
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.shards import ShardSet


@dataclass(frozen=True)
class _InOrder(EpochPlan):
    """Every sample in index order."""

    def _order(self, epoch: int, slots: IntArray) -> IntArray:
        return slots


class ShardLoader:
    """Batches of one split for one rank.

    `for batch in loader` yields the batches that are left of the current epoch; the next loop
    yields the next epoch. A loop that is left early continues in the next one, so no sample is
    repeated or skipped. `state_dict` after a batch is the position behind it, and loads at any
    batch size, number of workers and number of ranks.

    A batch is a dict of tensors: `ecg` float32 (B, num_leads, num_samples), normalised by the
    signal profile of the shards (0 outside the valid part) or in mV with `normalise=False`;
    `targets` and `observed` float32 (B, num_labels); `rows` int64 (B), the index rows; `present`
    bool (B). With one rank every row is present. With several ranks each has the same number of
    batches of the same size, and rows that fill up the last batch of an epoch are not present and
    observe no label.

    Args:
        shards: The opened shard set.
        split: train, val or test.
        batch_size: Samples per batch on this rank.
        rank: This rank.
        world_size: Number of ranks.
        workers: Threads that read ahead; 0 reads when a batch is asked for.
        shuffle: A new order in each epoch; None: for the train split only.
        seed: Of the order.
        normalise: Apply the second half of the signal profile.
        checksum: Compare the checksum of every sample read.

    Raises:
        UserError: An argument is out of range, or the split is empty.
    """

    def __init__(
        self,
        shards: ShardSet,
        split: str = "train",
        batch_size: int = 64,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
        shuffle: bool | None = None,
        seed: int = 0,
        normalise: bool = True,
        checksum: bool = True,
    ) -> None:
        if batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
            raise UserError(
                f"batch_size={batch_size} and world_size={world_size} must be at least 1, "
                f"workers={workers} at least 0, and rank={rank} below world_size."
            )
        self.shards = shards
        self.split = split
        self.shape = RankShape(batch_size, rank=rank, world_size=world_size)
        self.position = Position()
        self._rows = SplitRows.of(shards, split)
        if not len(self._rows):
            raise UserError(f"The shards in {shards.folder} hold no {split} samples.")
        self._read_ahead = ReadAhead(workers)
        self._reader = SampleReader(shards, checksum, "stop")
        self._normalise = normalise
        profile = SignalProfile.from_config(shards.manifest.signal)
        self._transform = BatchTransform(shards.manifest.leads, profile.load_normalisation)
        self.shuffle = split == "train" if shuffle is None else shuffle
        self._plan = self._create_plan(seed)

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return -(-self._plan.num_slots // self.shape.global_batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are left of the current epoch."""
        num_slots = self._plan.num_slots
        batches = TrainingBatches(
            self._reader,
            self._rows,
            self._plan,
            self.shape,
            self.position,
            (self.position.epoch + 1) * num_slots,
            self._read_ahead,
            self._on_slot(),
        )
        for batch in batches:
            self.position = self.position.advanced(self.shape.global_batch_size, num_slots)
            yield self._named(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch that was yielded, and what it refers to."""
        return {
            "epoch": self.position.epoch,
            "slots": self.position.slots,
            "split": self.split,
            "seed": self._plan.seed if self.shuffle else None,
            "data": self.shards.manifest.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the position of a `state_dict`.

        Raises:
            UserError: The state is of other shards, another split or another seed.
        """
        own = self.state_dict()
        differing = [key for key in ("data", "split", "seed") if state.get(key) != own[key]]
        if differing:
            raise UserError(
                "The state of the loader is of another "
                + ", ".join(f"{key} ({state.get(key)}, here {own[key]})" for key in differing)
                + ". Open the shards, split and seed it was saved with."
            )
        self.position = Position(int(state["epoch"]), int(state["slots"]))

    def __repr__(self) -> str:
        return (
            f"ShardLoader({self.split}, {len(self._rows):,} samples, {len(self):,} batches of "
            f"{self.shape.batch_size_per_rank}, rank {self.shape.rank} of {self.shape.world_size}, "
            f"epoch {self.position.epoch}, {self.position.slots:,} samples into it)"
        )

    def _create_plan(self, seed: int) -> EpochPlan:
        if not self.shuffle:
            return _InOrder(len(self._rows), 0, self.shards.manifest.fingerprint)
        if self.split != "train":
            return EpochPlan(len(self._rows), seed, self.shards.manifest.fingerprint)
        return create_plan(
            self.shards, self._rows, seed, global_batch_size=self.shape.global_batch_size
        )

    def _on_slot(self) -> Any:
        if not isinstance(self.shards, CachedShardSet):
            return None
        if self.split == "train" and self.shuffle:
            return look_ahead(self.shards, self._plan, self._rows, self.shape.global_batch_size)
        ahead = look_ahead_in_order(self.shards, self.split, self.shape.global_batch_size)
        return lambda epoch, slot: ahead(slot)

    def _named(self, batch: Batch) -> Batch:
        if self._normalise:
            signal, targets, observed = self._transform(batch, training=False)
        else:
            signal = batch["ecg"].float() / 1000
            targets, observed = batch["targets"].float(), batch["observed"].float()
        named = {
            "ecg": signal,
            "targets": targets,
            "observed": observed,
            "rows": batch["rows"],
            "present": batch["present"],
        }
        if self.shape.world_size == 1 and not bool(batch["present"].all()):
            kept = np.flatnonzero(batch["present"].numpy())
            named = {key: value[kept] for key, value in named.items()}
        return named
