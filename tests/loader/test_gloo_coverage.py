"""Real processes that talk through gloo: which records they consumed, and in which order."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ecgfounder_train.loader.batches import RankShape, ReadAhead, TrainingBatches
from ecgfounder_train.loader.epoch_plan import EpochPlan, Position
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import SplitRows
from ecgfounder_train.shards import ShardSet


def _consume(folder: str, store: str, rank: int, world_size: int, job: Any, results: Any) -> None:
    start, until, per_rank = job
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    shards = ShardSet.open(folder)
    rows = SplitRows.of(shards, "train")
    plan = EpochPlan(len(rows), 0, shards.manifest.fingerprint)
    shape = RankShape(per_rank, 1, rank, world_size)
    order: list[str] = []
    for batch in TrainingBatches(
        SampleReader(shards), rows, plan, shape, start, until, ReadAhead(rank)
    ):
        mine = batch["rows"][batch["present"]].numpy()
        parts: list[Any] = [None] * world_size
        dist.all_gather_object(parts, shards.index[mine]["record_key"].tolist())
        windows: list[Any] = [None] * world_size
        dist.all_gather_object(windows, shards.index[mine]["window"].tolist())
        order.extend(
            f"{key!r}{window}"
            for part in zip(parts, windows, strict=True)
            for key, window in zip(*part, strict=True)
        )
    if rank == 0:
        results.put(order)
    dist.destroy_process_group()


def consumed(
    shards: ShardSet, tmp_path: Path, world_size: int, job: tuple[Position, int, int]
) -> list[str]:
    """Return the samples in the order of the global batches."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    store = tmp_path / f"store-{world_size}-{job[0].slots}"
    ranks = [
        context.Process(
            target=_consume,
            args=(str(shards.folder), str(store), rank, world_size, job, results),
        )
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    order: list[str] = results.get(timeout=120)
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    return order


@pytest.mark.multiprocess
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_consume_every_record_once_per_epoch_and_resume_on_another_number(
    tiny_shards: ShardSet, tmp_path: Path, world_size: int
) -> None:
    rows = tiny_shards.rows("train")
    everything = [
        f"{key!r}{window}"
        for key, window in zip(
            tiny_shards.index[rows]["record_key"].tolist(),
            tiny_shards.index[rows]["window"].tolist(),
            strict=True,
        )
    ]
    size = len(rows)
    whole = consumed(tiny_shards, tmp_path, world_size, (Position(), 2 * size, 4))
    assert sorted(whole[:size]) == sorted(everything) == sorted(whole[size:])
    assert whole[:size] != whole[size:]
    # Stopped in the first epoch and gone on with on one process more.
    slots = 4 * world_size * 2
    rest = consumed(tiny_shards, tmp_path, world_size + 1, (Position(0, slots), 2 * size, 3))
    assert whole[slots:] == rest
