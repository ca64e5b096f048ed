"""The DataModule: the training stretch up to the next validation, and the validation split."""

import lightning as L
import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import EvaluationBatches, RankShape, TrainingBatches
from ecgfounder_train.loader.epoch_plan import EpochPlan, IntArray, Position
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.shards import ShardSet


class ShardDataModule(L.LightningDataModule):
    """Batches of a shard set for one rank.

    Lightning asks for the training batches anew before each stretch between two validations; they
    begin where the module's position stands, so nothing is ever skipped by reading it.

    Args:
        shards: The opened shard set.
        seed: Seed of the epoch plan.
        global_batch_size: Samples between optimizer steps over all ranks.
        batch_size_per_rank: Samples per micro-batch on a rank.
        validate_every_samples: Distance between validations.
        total_samples: The run's budget.
        checksum: Check every sample read.
        train_rows: Index rows to train on; None for the whole training split.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        seed: int,
        global_batch_size: int,
        batch_size_per_rank: int,
        validate_every_samples: int,
        total_samples: int,
        checksum: bool,
        train_rows: IntArray | None = None,
    ) -> None:
        super().__init__()
        self.shards = shards
        self.global_batch_size = global_batch_size
        self.batch_size_per_rank = batch_size_per_rank
        self.validate_every_samples = validate_every_samples
        self.total_samples = total_samples
        self.checksum = checksum
        self.train_rows = shards.rows("train") if train_rows is None else train_rows
        self.val_rows = shards.rows("val")
        for split, rows in (("train", self.train_rows), ("val", self.val_rows)):
            if not len(rows):
                raise UserError(
                    f"The shards in {shards.folder} hold no {split} samples. Prepare them with a "
                    "split that has train and val parts."
                )
        self.plan = EpochPlan(len(self.train_rows), seed, shards.manifest.fingerprint)

    def rank_shape(self) -> RankShape:
        """Return how a global batch is divided over the ranks of this job."""
        assert self.trainer is not None
        world_size = self.trainer.world_size
        accumulate = self.global_batch_size // (self.batch_size_per_rank * world_size)
        return RankShape(self.batch_size_per_rank, accumulate, self.trainer.global_rank, world_size)

    def next_validation(self, position: Position) -> int:
        """Return the number of samples seen at which the next validation is due."""
        seen = position.samples_seen(len(self.train_rows))
        due = (seen // self.validate_every_samples + 1) * self.validate_every_samples
        return min(due, self.total_samples)

    def train_dataloader(self) -> TrainingBatches:
        """Return the micro-batches up to the next validation."""
        assert self.trainer is not None
        position = self.trainer.lightning_module.position
        assert isinstance(position, Position)
        return TrainingBatches(
            SampleReader(self.shards, self.checksum),
            self.train_rows,
            self.plan,
            self.rank_shape(),
            position,
            self.next_validation(position),
        )

    def val_dataloader(self) -> EvaluationBatches:
        """Return the validation batches."""
        reader = SampleReader(self.shards, self.checksum)
        return EvaluationBatches(reader, np.asarray(self.val_rows), self.rank_shape())
