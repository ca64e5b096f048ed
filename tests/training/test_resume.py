"""A run that was killed or stopped goes on as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_tools
import torch
from run_tools import EVERYTHING_ON, Child, assert_same_run, latest_step, rows
from tiny_set import tiny_overrides

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.checkpoint import damage, save_checkpoint, step_name

Pretrain = Callable[..., RunDirectory]
TOTAL_STEPS = 48


@pytest.mark.slow
@pytest.mark.multiprocess
def test_resume_mid_epoch_is_bit_exact(
    tiny_shards: ShardSet, tmp_path: Path, undisturbed: RunDirectory
) -> None:
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", *EVERYTHING_ON)
    run = RunDirectory(tmp_path / "run")
    killed = run_tools.command(arguments)
    run_tools.wait_for_step(run, random.randint(2, 30), lambda: killed.poll() is None)
    time.sleep(random.uniform(0, 0.05))
    run_tools.kill_group(killed)
    assert 2 <= latest_step(run) < TOTAL_STEPS
    assert run_tools.last_checkpoint(run)["position"]["slots"] % 16 == 0

    resumed = run_tools.command(arguments)
    output, _ = resumed.communicate(timeout=run_tools.TIMEOUT_S)
    assert resumed.returncode == 0, output
    assert "Resuming run run from step-" in output
    assert_same_run(run, undisturbed)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "kill_at",
    [
        "validation_step:12",  # in the second validation
        "damage:7",  # a checkpoint is written, but not yet renamed
        "link_best:2",  # it is renamed, but best.ckpt does not yet point to it
    ],
)
def test_run_killed_at_a_delicate_moment_is_bit_exact(
    tiny_shards: ShardSet, tmp_path: Path, undisturbed: RunDirectory, kill_at: str
) -> None:
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", *EVERYTHING_ON)
    run = RunDirectory(tmp_path / "run")
    assert Child(arguments, tmp_path / "output.txt", kill_at).wait() == -signal.SIGKILL
    assert 0 < latest_step(run) < TOTAL_STEPS
    assert bool(list(run.checkpoints.glob("*.partial-*"))) == kill_at.startswith("damage")
    assert Child(arguments, tmp_path / "output.txt").wait() == 0
    assert not list(run.checkpoints.glob("*.partial-*"))
    assert_same_run(run, undisturbed)


def test_best_checkpoint_is_restored_after_a_kill_before_it_was_linked(
    pretrain: Pretrain,
) -> None:
    run = pretrain("budget.max_epochs=1")
    best = run.checkpoints / "best.ckpt"
    best.unlink()
    pretrain("budget.max_epochs=2", "optimizer.lr=1e-12", "resume.allow=[optimizer.lr]")
    assert best.is_file()


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_stops_and_says_how_to_go_on(
    tiny_shards: ShardSet, tmp_path: Path, undisturbed: RunDirectory, number: signal.Signals
) -> None:
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", *EVERYTHING_ON)
    # Nothing but the signal makes a checkpoint, and no validation is due at this point.
    arguments = [a for a in arguments if not a.startswith("checkpoint.every_samples")]
    run = RunDirectory(tmp_path / "run")
    child = Child(arguments, tmp_path / "output.txt")
    run_tools.wait_for_step(run, 14, child.alive)
    child.signal(number)
    assert child.wait() == 128 + number
    assert "everything up to here is saved. Run the same command again to continue" in child.text()
    assert "Traceback" not in child.text()
    assert '"stopped"' in run.state_file.read_text()
    expected = [row for row in rows(undisturbed) if int(row["global_step"]) <= latest_step(run)]
    assert rows(run) == expected

    assert Child(arguments, tmp_path / "output.txt").wait() == 0
    assert_same_run(run, undisturbed)


@pytest.mark.multiprocess
def test_second_start_of_a_training_run_is_refused(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain
) -> None:
    arguments = tiny_overrides(tiny_shards, tmp_path, "run", "budget.max_epochs=1000")
    run = RunDirectory(tmp_path / "run")
    child = Child(arguments, tmp_path / "output.txt")
    run_tools.wait_for_step(run, 4, child.alive)
    try:
        with pytest.raises(UserError, match="'run' is being trained by another process"):
            pretrain("budget.max_epochs=3")
        assert "max_epochs: 1000" in run.config_file.read_text()
    finally:
        child.signal(signal.SIGKILL)
    child.wait()
    # The lock goes with its process.
    pretrain("budget.max_samples=63", "resume=auto")


def test_signal_before_the_last_validation_leaves_it_to_the_next_start(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ecgfounder_train.training.module import PretrainModule

    finish_step = PretrainModule.finish_step

    def signalled(module: PretrainModule) -> None:
        finish_step(module)
        if module.samples_seen == 63:
            os.kill(os.getpid(), signal.SIGTERM)

    pretrain("budget.max_epochs=1", run="whole")
    monkeypatch.setattr(PretrainModule, "finish_step", signalled)
    run = pretrain("budget.max_epochs=1", exit_code=128 + signal.SIGTERM)
    assert '"stopped"' in run.state_file.read_text()
    # All is trained; only the validation, which a signal stops, is still to be taken.
    assert not any(row["val/loss"] for row in rows(run))
    monkeypatch.undo()
    capsys.readouterr()
    pretrain("budget.max_epochs=1")
    assert "is complete" in capsys.readouterr().out
    assert '"finished"' in run.state_file.read_text()
    assert_same_run(run, RunDirectory(run.path.with_name("whole")))


def test_second_ctrl_c_stops_at_once(pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecgfounder_train.training.module import PretrainModule

    training_step = PretrainModule.training_step

    def impatient(module: PretrainModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if module.samples_seen == 32:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(module, batch, batch_idx)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(PretrainModule, "training_step", impatient)
    with pytest.raises(KeyboardInterrupt, match="continue from the last checkpoint"):
        pretrain()
    assert signal.getsignal(signal.SIGINT) is before


def test_complete_run_says_so_and_a_larger_budget_goes_on(
    pretrain: Pretrain, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain("budget.max_epochs=1")
    before = run.metrics_file.read_bytes()
    capsys.readouterr()
    pretrain("budget.max_epochs=1")
    said = capsys.readouterr().out
    assert "Run run is complete." in said and "raise budget.max_epochs" in said
    assert run.metrics_file.read_bytes() == before
    pretrain("budget.max_epochs=2")
    assert rows(run)[-1]["samples_seen"] == "126"


def test_plateau_schedule_remembers_the_validations_before_a_stop(pretrain: Pretrain) -> None:
    # No score is better by a whole unit: the rate falls after each validation but the first.
    plateau = (
        "schedule=plateau",
        "schedule.patience=0",
        "schedule.threshold=1",
        "log_every_steps=1",
    )
    whole = pretrain("budget.max_epochs=4", *plateau, run="whole")
    pretrain("budget.max_epochs=2", *plateau)
    run = pretrain("budget.max_epochs=4", *plateau)
    assert_same_run(run, whole)
    rates = sorted({float(row["lr"]) for row in rows(whole) if row["lr"]}, reverse=True)
    assert len(rates) == 3
    assert rates[1] == pytest.approx(rates[0] / 10) and rates[2] == pytest.approx(rates[0] / 100)


def test_resume_none_never_overwrites(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1", "resume=none")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="resume=none begins new runs only"):
        pretrain("budget.max_epochs=2", "resume=none")
    before.pop(run.path / ".lock")
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())


def test_damaged_newest_checkpoint_is_skipped_with_a_warning(pretrain: Pretrain) -> None:
    pretrain("budget.max_epochs=3", run="whole")
    run = pretrain("budget.max_epochs=3")
    newest = run.checkpoints / step_name(12)
    older = run.checkpoints / step_name(8)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert older.is_file()
    with pytest.warns(UserWarning, match=f"Skipping the damaged checkpoint {newest.name}"):
        pretrain("budget.max_epochs=3")
    assert_same_run(run, RunDirectory(run.path.with_name("whole")))


def test_flipped_bit_of_a_checkpoint_is_damage_or_changes_nothing(tmp_path: Path) -> None:
    path, content = tmp_path / "checkpoint", {"model": {"weight": torch.arange(4.0)}, "step": 7}
    save_checkpoint(content, path)
    whole, num_damaged = path.read_bytes(), 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 2 * 3  # bits 0 and 3: those of encryption, compression
        path.write_bytes(flipped)
        if damage(path):
            num_damaged += 1
        else:
            run_tools.assert_identical(torch.load(path, weights_only=True), content, str(place))
    assert num_damaged > len(whole) / 4


def test_run_started_from_a_checkpoint_by_path_goes_on_from_there(pretrain: Pretrain) -> None:
    whole = pretrain("budget.max_epochs=2", "ema.half_life_samples=50", run="whole")
    start = whole.checkpoints / step_name(4)
    more = ("budget.max_epochs=2", "ema.half_life_samples=50")
    run = pretrain(*more, f"resume={start}")
    assert [row for row in rows(whole) if int(row["global_step"]) > 4] == rows(run)
    torch.testing.assert_close(
        run_tools.last_checkpoint(run)["ema"],
        run_tools.last_checkpoint(whole)["ema"],
        atol=0,
        rtol=0,
    )


def test_logged_loss_is_the_mean_over_steps_also_where_accumulation_changed(
    pretrain: Pretrain,
) -> None:
    # Of a logged row's three steps the first was made of four micro-batches, the others of one.
    settings = ("optimizer.lr=1e-12", "log_every_steps=3")
    whole = rows(pretrain("budget.max_samples=48", *settings, run="whole"))
    pretrain("budget.max_samples=16", "data.batch_size_per_rank=4", *settings)
    resumed = rows(pretrain("budget.max_samples=48", *settings))
    found, expected = (
        [float(row["train/loss"]) for row in run if row["train/loss"]] for run in (resumed, whole)
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_average_switched_on_later_starts_from_the_trained_weights(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    trained = run_tools.last_checkpoint(run)["model"]
    allowed = "resume.allow=[ema,optimizer.lr]"
    pretrain("budget.max_samples=64", "ema.half_life_samples=1e9", "optimizer.lr=1e-12", allowed)
    for name, value in run_tools.last_checkpoint(run)["ema"].items():
        torch.testing.assert_close(value, trained[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("+model.widths=[16,48]", "another network"),
        ("data.lead_choice=lead_I", "another network"),
        ("seed=1", "another seed"),
    ],
)
def test_resume_with_other_settings_names_them_and_touches_nothing(
    pretrain: Pretrain, override: str, what: str
) -> None:
    run = pretrain("budget.max_epochs=1")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=what):
        pretrain("budget.max_epochs=2", override)
    assert {path: path.read_bytes() for path in before} == before


def test_metrics_rows_cut_by_a_kill_are_repaired(pretrain: Pretrain) -> None:
    whole = pretrain("budget.max_epochs=2", run="whole")
    run = pretrain("budget.max_epochs=1")
    with run.metrics_file.open("a") as handle:
        # A row of a step that was done but not saved, and one the kill cut.
        handle.write("79,5,1.254,0.5,0.5,0.001,100.0,0.1,,,\r\n95,6,1.5079,0.4")
    pretrain("budget.max_epochs=2")
    keys = [(row["samples_seen"], bool(row["val/loss"])) for row in rows(run)]
    assert keys == [(row["samples_seen"], bool(row["val/loss"])) for row in rows(whole)]
