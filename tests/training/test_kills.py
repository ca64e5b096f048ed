"""Runs killed with SIGKILL at random moments equal the undisturbed run, to the last bit.

Three kills of each by default, twenty with ECG_TEST_TIER=all, which also trains for longer. One
process, and two ranks: the whole group at once, as a batch system does it, and single ranks.
"""

import os
import random
import signal
import subprocess
import sys
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
EPOCHS = 30 if ALL else 12
TOTAL_STEPS = 4 * EPOCHS
ARMED = Path(__file__).with_name("armed_pretrain.py")

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
            time.sleep(3 * self.rng.random())

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
    whole = armed(tiny_overrides(tiny_shards, tmp_path, "whole", *settings))
    ended(whole, 0)
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", *settings)
    run = RunDirectory(tmp_path / "run")
    kills = Kills()
    for number, step in enumerate(kills.steps):
        aimed = AIMED.get(number, "")
        process = armed(arguments, aimed)
        if aimed:
            # Rank 0 is the command itself; another rank that is left over ends by itself.
            ended(process, -signal.SIGKILL)
        elif number % 7 == 3:
            kills.wait(run, step, lambda: process.poll() is None)
            for rank in second_ranks(process):
                os.kill(rank, signal.SIGKILL)
            process.wait(timeout=run_tools.TIMEOUT_S)
        else:
            kills.wait(run, step, lambda: process.poll() is None)
            run_tools.kill_group(process)
        kills.note(run)
    assert latest_step(run) < TOTAL_STEPS
    ended(armed(arguments), 0)
    assert_same_run(run, RunDirectory(tmp_path / "whole"))
    print(f"{KILLS} kills, {kills.written} of them while a checkpoint was written")


def armed(arguments: list[str], kill_at: str = "") -> "subprocess.Popen[str]":
    """Start a run that kills itself, or one that does not."""
    return subprocess.Popen(
        [sys.executable, str(ARMED), *arguments],
        env=os.environ | {"ECG_TEST_KILL_AT": kill_at},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]", status: int) -> None:
    output, _ = process.communicate(timeout=20 * run_tools.TIMEOUT_S)
    assert process.returncode == status, output


def second_ranks(process: "subprocess.Popen[str]") -> list[int]:
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    return [child.pid for child in children if child.environ().get("LOCAL_RANK") == "1"]
