"""Shards in, batches out: which sample comes when, how it is read, what the device does with it.

`epoch_plan` decides the order (a pure function), `reader` fetches samples through the index,
`batches` joins both into an iterable that can start anywhere, `transforms` is the load-time half of
the signal profile plus augmentation, `datamodule` is what Lightning sees.

This package imports no lightning except in `datamodule`.
"""

from ecgfounder_train.loader.batches import EvaluationBatches, TrainingBatches
from ecgfounder_train.loader.epoch_plan import EpochPlan, Position
from ecgfounder_train.loader.reader import SampleReader

__all__ = ["EpochPlan", "EvaluationBatches", "Position", "SampleReader", "TrainingBatches"]
