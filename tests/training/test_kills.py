"""Runs killed with SIGKILL at random moments equal the undisturbed run, to the last bit.

Three kills of each by default, twenty with ECG_TEST_TIER=all, which also trains for longer. One
process, and two ranks: the whole group at once, as a batch system does it, and single ranks.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import run_tools
from run_tools import EVERYTHING_ON, Child, assert_same_run, latest_step, wait_for_step
from tiny_set import tiny_overrides

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet

ALL = os.environ.get("ECG_TEST_TIER") == "all"
KILLS = 20 if ALL else 3
EPOCHS = 60 if ALL else 12
TOTAL_STEPS = 4 * EPOCHS

PLATEAU_ON_A_THREAD = (
    "schedule=plateau",
    "schedule.patience=0",
    "schedule.threshold=0.02",
    "checkpoint.background=true",
)
"""Beside all that `EVERYTHING_ON` holds; its schedule is the cosine."""

AIMED = {0: "validation_step:2", 1: "damage:9"}
"""Moments that are over quickly are met on purpose: in a validation; a checkpoint is written, but
not yet renamed (the first calls are those that look for one to go on from)."""


class Kills:
    """When a run is killed, and what it was doing then."""

    def __init__(self) -> None:
        seed = random.randrange(2**32)
        print(f"seed of the kills: {seed}")  # shown where the test fails
        self.rng = random.Random(seed)
        # Early ones may hit a run before its first checkpoint.
        self.steps = sorted(self.rng.randrange(int(0.9 * TOTAL_STEPS)) for _ in range(KILLS))
        self.written = 0

    def wait(self, run: RunDirectory, step: int, alive: Callable[[], bool]) -> None:
        """Return at a random moment behind a step, or of the start where it is behind already."""
        if latest_step(run) < step:
            wait_for_step(run, step, alive)
            time.sleep(self.rng.choice((0.0, 0.03, 0.3)) * self.rng.random())
        else:
            # Most of it is the start. What few steps are left may take less than that.
            until = time.monotonic() + 3 * self.rng.random()
            while time.monotonic() < until and latest_step(run) < 0.9 * TOTAL_STEPS:
                time.sleep(0.005)

    def note(self, run: RunDirectory) -> None:
        """Count a kill in the middle of a checkpoint."""
        self.written += bool(list(run.checkpoints.glob("*.partial-*")))


@pytest.mark.multiprocess
@pytest.mark.parametrize("more", [(), PLATEAU_ON_A_THREAD], ids=["cosine", "plateau_on_a_thread"])
def test_run_killed_at_random_moments_is_bit_exact(
    tiny_shards: ShardSet, tmp_path: Path, more: tuple[str, ...]
) -> None:
    settings = (*EVERYTHING_ON, *more, f"budget.max_epochs={EPOCHS}")
    whole = tiny_overrides(tiny_shards, tmp_path, "whole", *settings)
    assert Child(whole, tmp_path / "whole.txt").wait() == 0
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", *settings)
    run = RunDirectory(tmp_path / "run")
    kills = Kills()
    for number, step in enumerate(kills.steps):
        aimed = AIMED.get(number, "")
        child = Child(arguments, tmp_path / "output.txt", aimed)
        if not aimed:
            kills.wait(run, step, child.alive)
            child.signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, child.text()
        kills.note(run)
    assert kills.written >= 1
    assert latest_step(run) < TOTAL_STEPS
    last = Child(arguments, tmp_path / "output.txt")
    assert last.wait() == 0, last.text()
    assert_same_run(run, RunDirectory(tmp_path / "whole"))
    print(f"{KILLS} kills, {kills.written} of them while a checkpoint was written")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("more", [(), PLATEAU_ON_A_THREAD], ids=["cosine", "plateau_on_a_thread"])
def test_two_ranks_killed_at_random_moments_are_bit_exact(
    tiny_shards: ShardSet, tmp_path: Path, more: tuple[str, ...]
) -> None:
    if more and not ALL:
        pytest.skip("ECG_TEST_TIER=all only")
    settings = (*EVERYTHING_ON, *more, f"budget.max_epochs={EPOCHS}", "trainer=ddp_cpu")
    whole = tiny_overrides(tiny_shards, tmp_path, "whole", *settings)
    for rank in started(whole, tmp_path):
        assert rank.wait() == 0, rank.text()
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", *settings)
    run = RunDirectory(tmp_path / "run")
    kills = Kills()
    for number, step in enumerate(kills.steps):
        aimed = AIMED.get(number, "")
        both = started(arguments, tmp_path, aimed)
        if not aimed:
            kills.wait(run, step, both[0].alive)
            # Every seventh time one rank alone, and not always the same; else the whole job. A
            # rank that dies before the ranks have met is what a launcher watches for: nobody here.
            alone = number % 7 == 3
            if alone:
                wait_for_step(run, latest_step(run) + 1, both[0].alive)
            for rank in both[number % 2 :][:1] if alone else both:
                rank.signal(signal.SIGKILL)
        statuses = [rank.wait() for rank in both]
        assert -signal.SIGKILL in statuses and 0 not in statuses, [rank.text() for rank in both]
        kills.note(run)
    assert kills.written >= 1
    assert latest_step(run) < TOTAL_STEPS
    for rank in started(arguments, tmp_path):
        assert rank.wait() == 0, rank.text()
    assert_same_run(run, RunDirectory(tmp_path / "whole"))
    print(f"{KILLS} kills, {kills.written} of them while a checkpoint was written")


def started(arguments: list[str], folder: Path, kill_at: str = "") -> list[Child]:
    """Start two ranks as a batch system does."""
    return [
        Child(arguments, folder / f"rank{place}.txt", kill_at, environment=environment)
        for place, environment in enumerate(run_tools.ranks(2))
    ]
