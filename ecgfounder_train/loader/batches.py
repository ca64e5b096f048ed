"""Batches from a position on: what a rank trains on, and what it evaluates.

Both iterables know their length, own no worker processes and read one batch ahead in a thread (the
reads release the interpreter lock). They hold no state: to start elsewhere, make another one.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ecgfounder_train.labels import unpack
from ecgfounder_train.loader.epoch_plan import PADDING, EpochPlan, Position, rank_slots
from ecgfounder_train.loader.reader import SampleReader

IntArray = npt.NDArray[np.int64]
Batch = dict[str, Any]


@dataclass(frozen=True)
class RankShape:
    """How a global batch is divided.

    `global_batch_size` = batch_size_per_rank x world_size x accumulate.
    """

    batch_size_per_rank: int
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch_size(self) -> int:
        """Samples between two optimizer steps over all ranks."""
        return self.batch_size_per_rank * self.world_size * self.accumulate


class TrainingBatches:
    """Micro-batches of one rank from a position on, until a number of samples has been seen.

    The last global batch of an epoch is filled up with masked rows, so every sample of an epoch
    comes exactly once and every rank takes the same number of steps.

    Each batch carries `loss_denominator`: the observed labels of its whole *global* batch, divided
    by ranks and micro-batches. A sum over the rank's elements divided by it, averaged over ranks
    and micro-batches, is the mean over the global batch, however that is divided.

    Args:
        reader: Where samples come from.
        rows: Index rows of the training split.
        plan: The order.
        shape: How a global batch is divided over ranks and micro-batches.
        start: Where to begin.
        until_samples: Stop with the first global batch that reaches this many samples seen.
    """

    def __init__(
        self,
        reader: SampleReader,
        rows: IntArray,
        plan: EpochPlan,
        shape: RankShape,
        start: Position,
        until_samples: int,
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.plan = plan
        self.shape = shape
        self.positions = list(_positions(start, until_samples, plan.num_samples, shape))

    def __len__(self) -> int:
        return len(self.positions) * self.shape.accumulate

    def __iter__(self) -> Iterator[Batch]:
        return _read_ahead(self._batches)

    def _batches(self) -> Iterator[Batch]:
        shape = self.shape
        for position in self.positions:
            everyone = np.arange(
                position.slots, position.slots + shape.global_batch_size, dtype=np.int64
            )
            observed = self._index_rows(position.epoch, everyone)
            _, mask = _labels(self.reader, observed)
            denominator = max(float(mask.sum()), 1.0) / (shape.world_size * shape.accumulate)
            for micro in range(shape.accumulate):
                slots = rank_slots(
                    position.slots, shape.rank, shape.world_size, shape.batch_size_per_rank, micro
                )
                batch = _batch(self.reader, self._index_rows(position.epoch, slots))
                batch["slots"] = slots
                batch["epoch"] = position.epoch
                batch["loss_denominator"] = denominator
                yield batch

    def _index_rows(self, epoch: int, slots: IntArray) -> IntArray:
        samples = self.plan.samples_at(epoch, slots)
        return np.where(samples == PADDING, PADDING, self.rows[samples])


def _positions(
    start: Position, until_samples: int, num_samples: int, shape: RankShape
) -> Iterator[Position]:
    position = start
    while position.samples_seen(num_samples) < until_samples:
        yield position
        position = position.advanced(shape.global_batch_size, num_samples)


class EvaluationBatches:
    """All samples of a split once, in index order, the same number of batches on every rank.

    Rows behind the last sample are padding: `present` is False there and no label is observed.
    """

    def __init__(self, reader: SampleReader, rows: IntArray, shape: RankShape) -> None:
        self.reader = reader
        self.rows = rows
        self.shape = shape

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.shape.batch_size_per_rank * self.shape.world_size))

    def __iter__(self) -> Iterator[Batch]:
        return _read_ahead(self._batches)

    def _batches(self) -> Iterator[Batch]:
        shape = self.shape
        padded = np.full(len(self) * shape.batch_size_per_rank * shape.world_size, PADDING)
        padded[: len(self.rows)] = self.rows
        for part in padded.reshape(len(self), shape.world_size, shape.batch_size_per_rank):
            yield _batch(self.reader, part[shape.rank])


def _batch(reader: SampleReader, rows: IntArray) -> Batch:
    samples = reader.read(rows)
    present = rows != PADDING
    entries = reader.shards.index[np.where(present, rows, 0)]
    targets, observed = _labels(reader, rows)
    return {
        "ecg": torch.from_numpy(samples.ecg),
        "stats": torch.from_numpy(samples.stats),
        "valid_start": torch.from_numpy(entries["valid_start"].astype(np.int64) * present),
        "valid_num_samples": torch.from_numpy(
            entries["valid_num_samples"].astype(np.int64) * present
        ),
        "targets": torch.from_numpy(targets),
        "observed": torch.from_numpy(observed),
        "present": torch.from_numpy(present),
        "rows": torch.from_numpy(rows),
    }


def _labels(
    reader: SampleReader, rows: IntArray
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return values and observed, (n, num_labels) uint8, all zero in padding rows."""
    present = (rows != PADDING)[:, None]
    entries = reader.shards.index[np.maximum(rows, 0)]
    num_labels = reader.shards.layout.num_labels
    values = unpack(entries["labels"], num_labels) * present
    return values.astype(np.uint8), (unpack(entries["observed"], num_labels) * present).astype(
        np.uint8
    )


_END = object()


def _read_ahead(make: Callable[[], Iterator[Batch]], depth: int = 2) -> Iterator[Batch]:
    """Yield from `make()` while a thread prepares up to `depth` batches ahead."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in make():
                if not put(batch):
                    return
            put(_END)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
