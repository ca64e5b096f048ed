"""Lightning DataModules: the one of our training runs, and one for any LightningModule."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import (
    EvaluationBatches,
    RankShape,
    ReadAhead,
    TrainingBatches,
)
from ecgfounder_train.loader.cache import CachedShardSet
from ecgfounder_train.loader.epoch_plan import EpochPlan, Position
from ecgfounder_train.loader.order import look_ahead, look_ahead_in_order
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import Rows, SplitRows
from ecgfounder_train.loader.shard_loader import ShardLoader
from ecgfounder_train.loader.stream import StreamBatches, StreamEvaluation, StreamSource
from ecgfounder_train.shards import ShardSet


class PretrainDataModule(L.LightningDataModule):
    """Batches of a pretraining run for one rank.

    Lightning asks for new training batches before each stretch between two validations; they start
    at the module's position, so that no data is read only to be skipped.

    Args:
        shards: The opened shard set.
        plan: The order of `train_rows`.
        train_rows: Index rows to train on, ascending.
        global_batch_size: Samples between optimizer steps over all ranks.
        batch_size_per_rank: Samples per micro-batch on a rank.
        validate_every_samples: Distance between validations.
        total_samples: The run's budget.
        checksum: Check every sample read.
        on_bad_sample: `stop` or `quarantine`.
        num_workers: Threads that read ahead.
        stream: Read a WebDataset stream instead of single samples; see `loader.stream`.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: EpochPlan,
        train_rows: Rows,
        *,
        global_batch_size: int,
        batch_size_per_rank: int,
        validate_every_samples: int,
        total_samples: int,
        checksum: bool = True,
        on_bad_sample: str = "stop",
        num_workers: int = 1,
        stream: StreamSource | None = None,
    ) -> None:
        super().__init__()
        self.shards = shards
        self.plan = plan
        self.train_rows = train_rows
        self.val_rows = SplitRows.of(shards, "val")
        self.global_batch_size = global_batch_size
        self.batch_size_per_rank = batch_size_per_rank
        self.validate_every_samples = validate_every_samples
        self.total_samples = total_samples
        self.checksum = checksum
        self.on_bad_sample = on_bad_sample
        self.num_workers = num_workers
        self.stream = stream
        require_parts(train_rows, self.val_rows, shards)

    def rank_shape(self) -> RankShape:
        """Return how a global batch is divided over the ranks of this job."""
        assert self.trainer is not None
        world_size = self.trainer.world_size
        accumulate = self.global_batch_size // (self.batch_size_per_rank * world_size)
        return RankShape(self.batch_size_per_rank, accumulate, self.trainer.global_rank, world_size)

    def next_validation(self, position: Position) -> int:
        """Return the number of samples seen at which the next validation is due."""
        seen = position.samples_seen(self.plan.num_slots)
        due = (seen // self.validate_every_samples + 1) * self.validate_every_samples
        return min(due, self.total_samples)

    def train_dataloader(self) -> TrainingBatches | StreamBatches:
        """Return the micro-batches up to the next validation."""
        assert self.trainer is not None
        position = self.trainer.lightning_module.position
        assert isinstance(position, Position)
        if self.stream is not None:
            return StreamBatches(
                self.stream,
                self.plan.num_slots,
                self.plan.seed,
                self.rank_shape(),
                position,
                self.next_validation(position),
                self._read_ahead(),
            )
        shards, on_slot = self.shards, None
        if isinstance(shards, CachedShardSet):
            on_slot = look_ahead(shards, self.plan, self.train_rows, self.global_batch_size)
        return TrainingBatches(
            self._reader(),
            self.train_rows,
            self.plan,
            self.rank_shape(),
            position,
            self.next_validation(position),
            self._read_ahead(),
            on_slot,
        )

    def val_dataloader(self) -> EvaluationBatches | StreamEvaluation:
        """Return the validation batches."""
        if self.stream is not None:
            size, ahead = len(self.val_rows), self._read_ahead()
            return StreamEvaluation(self.stream, "val", size, self.rank_shape(), ahead)
        shape, shards, on_slot = self.rank_shape(), self.shards, None
        if isinstance(shards, CachedShardSet):
            size = shape.batch_size_per_rank * shape.world_size
            on_slot = look_ahead_in_order(shards, "val", size)
        return EvaluationBatches(self._reader(), self.val_rows, shape, self._read_ahead(), on_slot)

    def _reader(self) -> SampleReader:
        assert self.trainer is not None
        # No rank may end alone: what one of them raises goes through the training
        # loop, where they agree.
        together = self.on_bad_sample == "stop" and self.trainer.world_size > 1
        return SampleReader(
            self.shards, self.checksum, "report" if together else self.on_bad_sample
        )

    def _read_ahead(self) -> ReadAhead:
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return ReadAhead(self.num_workers, pin_memory=on_gpu)


def require_parts(train: Rows, val: Rows, shards: ShardSet) -> None:
    """Raise if there is nothing to train on or nothing to validate with.

    Raises:
        UserError: Names the empty part.
    """
    for split, rows in (("train", train), ("val", val)):
        if not len(rows):
            raise UserError(
                f"The shards in {shards.folder} hold no {split} samples. Prepare them with a "
                "split that has train and val parts."
            )


class ShardDataModule(L.LightningDataModule):
    """Batches of a shard set for any LightningModule; resumes in the middle of an epoch.

    The training and validation batches are those of `loader.shard_loader.ShardLoader`, one loader
    per rank. Lightning saves the position in its checkpoints and restores it from them, also with
    another number of ranks.

    Args:
        shards: Folder that `prepare` wrote, or an opened shard set.
        batch_size: Samples per batch on each rank.
        **options: Further options of `ShardLoader`, such as workers, seed and normalise.

    Raises:
        UserError: There is no shard set, or it is damaged.
    """

    def __init__(self, shards: ShardSet | Path | str, batch_size: int = 64, **options: Any) -> None:
        super().__init__()
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        self.batch_size = batch_size
        self.options = options
        self._loader: ShardLoader | None = None
        self._restored: Mapping[str, Any] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of `targets`."""
        return tuple(self.shards.manifest.labels)

    def train_dataloader(self) -> ShardLoader:
        """Return the batches of the train split from the restored position on."""
        if self._loader is None:
            self._loader = self._of("train")
            if self._restored:
                self._loader.load_state_dict(self._restored)
        return self._loader

    def val_dataloader(self) -> ShardLoader:
        """Return the batches of the val split in index order."""
        return self._of("val")

    def test_dataloader(self) -> ShardLoader:
        """Return the batches of the test split in index order."""
        return self._of("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the train split."""
        return self._loader.state_dict() if self._loader else dict(self._restored or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the train split behind a saved position."""
        self._restored = state_dict
        if self._loader:
            self._loader.load_state_dict(state_dict)

    def _of(self, split: str) -> ShardLoader:
        rank, world_size = 0, 1
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return ShardLoader(
            self.shards,
            split,
            self.batch_size,
            rank=rank,
            world_size=world_size,
            **self.options,
        )
