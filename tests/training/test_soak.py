"""A run that is disturbed over and over trains on each sample once per epoch, by its own ledgers.

The counting is tested first: it must find a sample that is lost or comes twice.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soak
from tiny_set import build

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import BuildOptions, ShardSet

BATCH = 8


def lines_of(shards: ShardSet, epochs: int, life: int = 0) -> list[soak._Line]:
    """What a faultless run of one rank would note: two micro-batches of four per step."""
    rows = shards.rows("train")
    contents = np.asarray(shards.index["xxh3"])[rows].tolist()
    lines, step = [], 0
    for epoch in range(epochs):
        for first in range(0, len(contents), BATCH):
            for half in (first, first + BATCH // 2):
                seen = contents[half : half + BATCH // 2]
                lines.append(soak._Line(life, 0, step, epoch, seen, [], 10**8, 20))
            step += 1
    return lines


@pytest.fixture
def a_soak(tiny_shards: ShardSet, tmp_path: Path) -> soak._Soak:
    settings = soak.Settings(ranks=1, global_batch_size=BATCH)
    run = RunDirectory(tmp_path / "run")
    return soak._Soak(settings, tmp_path, tiny_shards, run, random.Random(0), damaged={"": set()})


def test_faultless_ledger_counts_every_sample_once(
    a_soak: soak._Soak, tiny_shards: ShardSet
) -> None:
    counts = soak._counted(a_soak, lines_of(tiny_shards, 3))
    assert counts["ratio"] == 1.0
    # The last epoch may be under way.
    assert (counts["epochs"], counts["samples_per_epoch"]) == (2, 63)
    assert counts["visits"] == 126


def test_sample_that_is_lost_doubled_or_quarantined_for_nothing_is_found(
    a_soak: soak._Soak, tiny_shards: ShardSet
) -> None:
    rows = tiny_shards.rows("train").tolist()

    def spoilt(change: Any) -> None:
        lines = lines_of(tiny_shards, 2)
        change(lines)
        soak._counted(a_soak, lines)

    with pytest.raises(AssertionError, match="Epoch 0: 1 samples were not trained on, 0 more"):
        spoilt(lambda lines: lines[4].seen.pop())
    with pytest.raises(AssertionError, match="Epoch 0: 0 samples were not trained on, 1 more"):
        spoilt(lambda lines: lines[4].seen.append(lines[0].seen[0]))
    with pytest.raises(AssertionError, match="Epoch 0: 1 samples were not trained on, 1 more"):
        spoilt(lambda lines: lines[4].seen.__setitem__(0, lines[0].seen[0]))
    with pytest.raises(AssertionError, match="Step 3 has 1 micro-batches, not 2"):
        spoilt(lambda lines: lines.pop(7))
    with pytest.raises(AssertionError, match="quarantined a sample twice, or a sound one"):
        spoilt(lambda lines: (lines[0].seen.pop(0), lines[0].lost.append(rows[0])))
    a_soak.damaged = {"train": {rows[0]}}
    spoilt(lambda lines: (lines[0].seen.pop(0), lines[0].lost.append(rows[0])))
    # Once all damage is done, every epoch that begins afterwards must meet it.
    a_soak.all_damaged_by = 0
    lines = lines_of(tiny_shards, 3)
    with pytest.raises(AssertionError, match="Epoch 1 quarantined 0 of 1 rows"):
        soak._counted(a_soak, lines)


def test_steps_that_a_kill_undid_do_not_count(a_soak: soak._Soak, tiny_shards: ShardSet) -> None:
    whole = lines_of(tiny_shards, 2)
    first = [line for line in whole if line.step < 6]
    second = [line for line in lines_of(tiny_shards, 2, life=1) if 4 <= line.step < 5]
    third = [line for line in lines_of(tiny_shards, 2, life=2) if line.step >= 3]
    lines = soak.effective([*first, *second, *third], {0: 0, 1: 4, 2: 3})
    assert [(line.life, line.step) for line in lines] == [
        (0 if line.step < 3 else 2, line.step) for line in whole
    ]
    assert soak._counted(a_soak, lines)["visits"] == 63


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_that_is_killed_stopped_and_damaged_over_and_over_loses_nothing(
    tiny_set: Any, tmp_path: Path
) -> None:
    options = BuildOptions(records_per_shard=6, seed=3)  # small shards, so that a few can go
    shards = build(tiny_set.catalog, tiny_set.root, tmp_path / "shards", options=options)
    settings = soak.Settings(minutes=1.0, ranks=2, life_s=6.0)
    record = soak.run(settings, tmp_path / "soak", shards)
    assert record["ratio"] == 1.0 and record["epochs"] >= 1
    assert record["lives"] >= 2 and record["damaged_samples"] > 3
    assert record["quarantined_visits"] > 0 and record["open_files_growth"] < 20
