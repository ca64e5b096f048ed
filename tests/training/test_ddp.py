"""Two ranks on one machine (gloo) do what one does."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import run_tools
import tiny_set

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.loader import EpochPlan
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

# Dropout and BatchNorm see a rank's part of a batch; the rest agrees, mixup's pairs included.
SETTINGS = (
    "data.batch_size_per_rank=4",
    "augmentation.circular_shift=1.0",
    "augmentation.lead_gain=0.2",
    "augmentation.lead_dropout=0.1",
    "augmentation.mixup=0.4",
    "augmentation.white_noise=0.05",
    "augmentation.baseline_wander=0.1",
    "augmentation.muscle_noise=0.1",
    "ema.half_life_samples=100",
    "gradient_clip_norm=1.0",
    "log_every_steps=3",
    "checkpoint.every_samples=32",
    "budget.validate_every_samples=100",
    "budget.max_epochs=6",
)
LAST_STEP = 24
# Whatever comes later is no better than the first validation.
NOTHING_LEARNT = ("optimizer.lr=1e-12", "budget.patience=3")


@pytest.fixture(scope="module")
def two_ranks(
    tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDirectory, str]:
    """A run on two ranks that nobody disturbed, and what it printed."""
    runs = tmp_path_factory.mktemp("two_ranks")
    process = run_tools.command(arguments(tiny_shards, runs))
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode == 0, output
    return RunDirectory(runs / "run"), output


def arguments(shards: ShardSet, runs: Path, *more: str) -> list[str]:
    return tiny_set.tiny_overrides(shards, runs, "run", *SETTINGS, "trainer=ddp_cpu", *more)


def test_loss_curve_of_two_ranks_is_that_of_one(
    tiny_shards: ShardSet, tmp_path: Path, two_ranks: tuple[RunDirectory, str]
) -> None:
    assert train(tiny_set.tiny_config(tiny_shards, tmp_path, "run", *SETTINGS)) == 0
    one, two = run_tools.rows(RunDirectory(tmp_path / "run")), run_tools.rows(two_ranks[0])
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert bool(a[name]) == bool(b[name]), name
            if a[name]:
                # The histogram AUROC moves by whole bins where a logit crosses an edge.
                tolerance = 2e-3 if name == "val/macro_auroc" else 1e-4
                assert float(a[name]) == pytest.approx(float(b[name]), rel=tolerance), name


def test_only_one_rank_talks(two_ranks: tuple[RunDirectory, str]) -> None:
    _, output = two_ranks
    assert output.count("2 rank(s) on CPU") == 1
    assert output.count("Run run is complete") == 1


def test_two_ranks_resume_bit_exactly_after_a_kill(
    tiny_shards: ShardSet, tmp_path: Path, two_ranks: tuple[RunDirectory, str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    killed = run_tools.command(arguments(tiny_shards, tmp_path))
    run_tools.wait_for_step(run, 5, lambda: killed.poll() is None)
    # All ranks at once, as a batch system does it.
    run_tools.kill_group(killed)
    assert run_tools.latest_step(run) < LAST_STEP
    resumed = run_tools.command(arguments(tiny_shards, tmp_path))
    output, _ = resumed.communicate(timeout=run_tools.TIMEOUT_S)
    assert resumed.returncode == 0, output
    assert "Resuming run run from step-" in output
    run_tools.assert_same_run(run, two_ranks[0])


def test_signal_to_one_rank_stops_both_and_one_rank_goes_on(
    tiny_shards: ShardSet, tmp_path: Path, two_ranks: tuple[RunDirectory, str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    process = run_tools.command(arguments(tiny_shards, tmp_path))
    run_tools.wait_for_step(run, 5, lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.count("Run the same command again to continue") == 1
    assert run_tools.last_checkpoint(run)["position"]["global_step"] < LAST_STEP

    assert train(tiny_set.tiny_config(tiny_shards, tmp_path, "run", *SETTINGS)) == 0
    mine, theirs = run_tools.rows(run), run_tools.rows(two_ranks[0])
    assert [row["samples_seen"] for row in mine] == [row["samples_seen"] for row in theirs]
    for a, b in zip(mine, theirs, strict=True):
        if a["train/loss"]:
            assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), rel=1e-4)


def test_damage_that_one_rank_meets_ends_both_with_its_name(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(tiny_shards.folder, folder)
    # The row that rank 1 reads last in the first micro-batch of the second step.
    plan = EpochPlan(len(tiny_shards.rows("train")), 0, tiny_shards.manifest.fingerprint)
    sample = plan.samples_at(0, np.array([16 + 7]))[0]
    entry = tiny_shards.index[tiny_shards.rows("train")[sample]]
    path = folder / tiny_shards.shard_path(int(entry["shard"])).name
    with path.open("r+b") as handle:
        handle.seek(int(entry["offset"]) + tiny_shards.layout.ecg.offset + 40)
        handle.write(b"\xaa\x55\xaa\x55")
    process = run_tools.command(arguments(ShardSet.open(folder), tmp_path))
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode != 0
    assert f"error on rank 1: The sample at byte {int(entry['offset']):,} of shard" in output
    assert path.name in output


def test_ranks_that_begin_with_another_runs_checkpoint_stop_early_together(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    """Its best checkpoint is not in the new run's folder, so all of them count from scratch."""
    first = ("budget.max_epochs=2", "checkpoint.keep=9")
    config = tiny_set.tiny_config(tiny_shards, tmp_path, "first", *NOTHING_LEARNT, *first)
    assert train(config) == 0
    start = RunDirectory(tmp_path / "first").checkpoints / "step-000000008.ckpt"
    more = ("trainer=ddp_cpu", "budget.max_epochs=9", f"resume={start}")
    overrides = tiny_set.tiny_overrides(tiny_shards, tmp_path, "run", *NOTHING_LEARNT, *more)
    children = [
        run_tools.Child(overrides, tmp_path / f"{rank}.txt", environment=environment)
        for rank, environment in enumerate(run_tools.ranks(2))
    ]
    assert [child.wait() for child in children] == [0, 0], children[0].text()
    # The validation after the third epoch is the first one here; three more bring nothing.
    assert run_tools.last_checkpoint(RunDirectory(tmp_path / "run"))["position"]["epoch"] == 6
