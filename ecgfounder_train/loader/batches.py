"""Batches from a position on: what a rank trains on, and what it evaluates.

Both iterables know their length, own no worker processes and read ahead in threads (the reads and
their checksums release the interpreter lock). They hold no state: to start elsewhere, make another
one.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ecgfounder_train.labels import unpack
from ecgfounder_train.loader.buffers import BufferPool
from ecgfounder_train.loader.epoch_plan import (
    PADDING,
    EpochPlan,
    Position,
    num_steps,
    rank_slots,
)
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import Rows

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


@dataclass(frozen=True)
class ReadAhead:
    """How batches are prepared while others are used.

    Args:
        num_workers: Threads; 0 reads when asked.
        depth: Batches each thread holds ready.
        pin_memory: Read into page-locked memory.
    """

    num_workers: int = 1
    depth: int = 2
    pin_memory: bool = False


class TrainingBatches:
    """Micro-batches of one rank from a position on, until a number of samples has been seen.

    The last global batch of an epoch is filled up with masked rows, so every sample of an epoch
    comes exactly once and every rank takes the same number of steps; a plan with `drop_last_of`
    has no such batch. A quarantined sample keeps its slot, with nothing observed.

    Each batch carries `loss_denominator`: the observed labels of its whole *global* batch, divided
    by ranks and micro-batches. A sum over the rank's elements divided by it, averaged over ranks
    and micro-batches, is the mean over the global batch, however that is divided. It comes from the
    index, so it is the same on every rank even if one of them reads a damaged sample.

    A reader that reports bad samples makes batches with the key `error`, for a training loop in
    which the ranks agree to stop.

    Args:
        reader: Reads the samples.
        rows: Index rows of the training split.
        plan: The order.
        shape: How a global batch is divided over ranks and micro-batches.
        start: Where to begin.
        until_samples: Stop with the first global batch that reaches this many samples seen.
        read_ahead: How batches are prepared.
        on_slot: Told the epoch and slot of each global batch before it is read.
    """

    def __init__(
        self,
        reader: SampleReader,
        rows: Rows,
        plan: EpochPlan,
        shape: RankShape,
        start: Position,
        until_samples: int,
        read_ahead: ReadAhead | None = None,
        on_slot: Callable[[int, int], None] | None = None,
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.plan = plan
        self.shape = shape
        self.start = start
        self.read_ahead = read_ahead or ReadAhead()
        self.on_slot = on_slot
        self.num_steps = num_steps(start, until_samples, plan.num_slots, shape.global_batch_size)

    def __len__(self) -> int:
        return self.num_steps * self.shape.accumulate

    def __iter__(self) -> Iterator[Batch]:
        pool = _pool(self.reader, self.shape, self.read_ahead)
        self.reader.share_files(max(self.read_ahead.num_workers, 1))
        return read_ahead_of(
            lambda tasks, worker: self._batches(tasks, self._reader(worker), pool),
            self._tasks,
            self.read_ahead,
        )

    def _reader(self, worker: int) -> SampleReader:
        return self.reader.clone() if worker else self.reader

    def _tasks(self) -> Iterator[tuple[Position, int]]:
        position = self.start
        for _ in range(self.num_steps):
            for micro in range(self.shape.accumulate):
                yield position, micro
            position = position.advanced(self.shape.global_batch_size, self.plan.num_slots)

    def _batches(
        self, tasks: Iterator[tuple[Position, int]], reader: SampleReader, pool: BufferPool
    ) -> Iterator[Batch]:
        shape, known = self.shape, None
        for position, micro in tasks:
            first = position.slots
            if position != known:
                known = position
                if self.on_slot:
                    self.on_slot(position.epoch, first)
                rows = self._index_rows(position.epoch, first + np.arange(shape.global_batch_size))
                entries = reader.index.take(np.maximum(rows, 0))
                # Packed bits behind the last label are zero, so bits count labels.
                bits = np.bitwise_count(entries["observed"]).sum(axis=1, dtype=np.int64)
                observed = float(bits[rows != PADDING].sum())
                denominator = max(observed, 1.0) / (shape.world_size * shape.accumulate)
            slots = rank_slots(
                first, shape.rank, shape.world_size, shape.batch_size_per_rank, micro
            )
            batch = _batch(reader, pool, rows[slots - first], entries[slots - first])
            batch["slots"] = slots
            batch["epoch"] = position.epoch
            batch["loss_denominator"] = denominator
            yield batch

    def _index_rows(self, epoch: int, slots: IntArray) -> IntArray:
        samples = self.plan.samples_at(epoch, slots)
        real = samples != PADDING
        rows = np.full(len(slots), PADDING, np.int64)
        rows[real] = self.rows[samples[real]]
        return rows


class EvaluationBatches:
    """All samples of a split once, in index order, the same number of batches on every rank.

    Rows behind the last sample are padding: `present` is False there and no label is observed.

    Args:
        reader: Reads the samples.
        rows: Index rows of the split.
        shape: How many samples a rank holds, and how many ranks there are.
        read_ahead: How batches are prepared.
        on_slot: Told the first sample of each batch over all ranks before it is read.
    """

    def __init__(
        self,
        reader: SampleReader,
        rows: Rows,
        shape: RankShape,
        read_ahead: ReadAhead | None = None,
        on_slot: Callable[[int], None] | None = None,
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.shape = shape
        self.read_ahead = read_ahead or ReadAhead()
        self.on_slot = on_slot

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.shape.batch_size_per_rank * self.shape.world_size))

    def __iter__(self) -> Iterator[Batch]:
        pool = _pool(self.reader, self.shape, self.read_ahead)
        self.reader.share_files(max(self.read_ahead.num_workers, 1))
        return read_ahead_of(
            lambda tasks, worker: self._batches(
                tasks, self.reader.clone() if worker else self.reader, pool
            ),
            lambda: iter(range(len(self))),
            self.read_ahead,
        )

    def _batches(
        self, numbers: Iterator[int], reader: SampleReader, pool: BufferPool
    ) -> Iterator[Batch]:
        size = self.shape.batch_size_per_rank
        for number in numbers:
            first = number * self.shape.world_size * size
            if self.on_slot:
                self.on_slot(first)
            samples = first + self.shape.rank * size + np.arange(size)
            real = samples < len(self.rows)
            rows = np.full(size, PADDING, np.int64)
            rows[real] = self.rows[samples[real]]
            yield _batch(reader, pool, rows, reader.index.take(np.maximum(rows, 0)))


def _pool(reader: SampleReader, shape: RankShape, read_ahead: ReadAhead) -> BufferPool:
    layout = reader.shards.layout
    return BufferPool(
        (shape.batch_size_per_rank, layout.num_leads, layout.num_samples), read_ahead.pin_memory
    )


def _batch(
    reader: SampleReader, pool: BufferPool, rows: IntArray, entries: npt.NDArray[np.void]
) -> Batch:
    ecg = pool.take()
    samples = reader.read_into(ecg.numpy(), rows, entries)
    present = rows != PADDING
    present[samples.bad] = False
    targets, observed = labels_of(entries, present, reader.shards.layout.num_labels)
    batch = {
        "ecg": ecg,
        "stats": torch.from_numpy(samples.stats),
        "valid_start": torch.from_numpy(entries["valid_start"].astype(np.int64) * present),
        "valid_num_samples": torch.from_numpy(
            entries["valid_num_samples"].astype(np.int64) * present
        ),
        "targets": torch.from_numpy(targets),
        "observed": torch.from_numpy(observed),
        "present": torch.from_numpy(present),
        "rows": torch.from_numpy(rows),
        # For the counts of a run; stays with the CPU.
        "quarantined": np.array(samples.bad, np.int64),
    }
    if samples.error and reader.on_bad_sample == "report":
        batch["error"] = samples.error
    return batch


def to_device(batch: Batch, device: torch.device, non_blocking: bool = False) -> Batch:
    """Return the batch with its tensors on the device; arrays stay with the CPU."""
    return {
        key: value.to(device, non_blocking=non_blocking)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in batch.items()
    }


def labels_of(
    entries: npt.NDArray[np.void], present: npt.NDArray[np.bool_], num_labels: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return values and observed, (n, num_labels) uint8, all zero in rows that are not present."""
    there = present[:, None]
    values = unpack(entries["labels"], num_labels) * there
    return values.astype(np.uint8), (unpack(entries["observed"], num_labels) * there).astype(
        np.uint8
    )


_END = object()


def read_ahead_of(
    make: Callable[[Iterator[Any], int], Iterator[Batch]],
    tasks: Callable[[], Iterator[Any]],
    settings: ReadAhead,
) -> Iterator[Batch]:
    """Yield the batches of `tasks()` in order, prepared by threads that take turns.

    Args:
        make: Turns a worker's share of the tasks into batches.
        tasks: All tasks from the first on; worker w of n takes w, w + n, w + 2n ...
        settings: How many workers, and how far ahead.
    """
    if settings.num_workers == 0:
        yield from make(tasks(), 0)
        return
    stopped = threading.Event()
    queues: list[queue.Queue[Any]] = [
        queue.Queue(settings.depth) for _ in range(settings.num_workers)
    ]

    def put(ready: queue.Queue[Any], item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work(worker: int) -> None:
        ready = queues[worker]
        try:
            for batch in make(islice(tasks(), worker, None, settings.num_workers), worker):
                if not put(ready, batch):
                    return
            put(ready, _END)
        except BaseException as error:
            put(ready, error)

    # Daemons: a process that ends on an error must not wait for a read that hangs.
    threads = [
        threading.Thread(target=work, args=(worker,), name=f"read-ahead-{worker}", daemon=True)
        for worker in range(settings.num_workers)
    ]
    for thread in threads:
        thread.start()
    turn = 0
    try:
        while (item := queues[turn].get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            # Not held here while it is used: its memory is to come back as soon as possible.
            passed = [item]
            del item
            yield passed.pop()
            turn = (turn + 1) % settings.num_workers
    finally:
        stopped.set()
        for thread in threads:
            # A read that hangs (a dead file server) must not keep an error from being reported.
            thread.join(timeout=5.0)
