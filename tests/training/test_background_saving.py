"""Checkpoints written on a thread: the same files, the same promises."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_tools
import tiny_set
import torch
from run_tools import Child

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.background import CheckpointWriter
from ecgfounder_train.weights import checkpoint as checkpoints
from ecgfounder_train.weights.checkpoint import find_checkpoint, step_name

Pretrain = Callable[..., RunDirectory]
ON_A_THREAD = "checkpoint.background=true"


def content(step: int, weight: torch.Tensor) -> dict[str, Any]:
    """A checkpoint of one tensor, which stands in it in every kind of container."""
    return {
        "position": {"global_step": step},
        "model": {"weight": weight, "half": weight.bfloat16()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(float(step)), "both": (weight, [weight])}}
        },
    }


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold every checkpoint back, written but not yet read back, until the event is set."""
    event, damage = threading.Event(), checkpoints.damage

    def waiting(path: Path) -> str | None:
        assert event.wait(60)
        return damage(path)

    monkeypatch.setattr(checkpoints, "damage", waiting)
    return event


def test_run_saved_on_a_thread_is_the_run(pretrain: Pretrain) -> None:
    settings = ("ema.half_life_samples=50", "checkpoint.every_samples=16")
    plain = pretrain(*settings, run="plain")
    threaded = pretrain(*settings, ON_A_THREAD, run="threaded")
    run_tools.assert_same_run(plain, threaded)
    names = [sorted(path.name for path in run.checkpoints.iterdir()) for run in (plain, threaded)]
    assert names[0] == names[1]
    assert json.loads(threaded.state_file.read_text())["state"] == "finished"


def test_state_is_taken_when_save_returns_and_one_checkpoint_is_under_way(
    tmp_path: Path, held: threading.Event
) -> None:
    run = RunDirectory(tmp_path / "run")
    writer = CheckpointWriter(run, keep=2, background=True)
    weight = torch.arange(12.0).reshape(3, 4).t()
    before = weight.clone()
    writer.save(content(1, weight), True, {"state": "one"})
    weight += 100
    assert not (run.checkpoints / step_name(1)).exists()
    assert not run.state_file.exists()
    second = threading.Thread(target=writer.save, args=(content(2, weight), False, {"state": "2"}))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second one overtook the first"
    held.set()
    second.join(60)
    writer.wait()
    saved = [torch.load(run.checkpoints / step_name(step)) for step in (1, 2)]
    for found, expected in zip(saved, (before, weight), strict=True):
        assert torch.equal(found["model"]["weight"], expected)
        assert torch.equal(found["model"]["half"], expected.bfloat16())
        for tensor in (
            found["optimizer"]["state"][0]["both"][0],
            found["optimizer"]["state"][0]["both"][1][0],
        ):
            assert torch.equal(tensor, expected)
    assert (run.checkpoints / "best.ckpt").samefile(run.checkpoints / step_name(1))
    assert json.loads(run.state_file.read_text()) == {"state": "2"}


def test_error_of_the_thread_is_raised_once_and_the_next_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    writer = CheckpointWriter(run, keep=2, background=True)
    weight = torch.ones(3)
    with monkeypatch.context() as damaged:
        damaged.setattr(checkpoints, "damage", lambda path: "a flipped bit")
        writer.save(content(1, weight), False, {})
        with pytest.raises(UserError, match=r"did not read back after writing \(a flipped bit"):
            writer.wait()
    writer.wait()
    assert not list(run.checkpoints.iterdir())
    writer.save(content(2, weight), False, {})
    writer.wait()
    assert [path.name for path in run.checkpoints.iterdir()] == [step_name(2)]


@pytest.mark.multiprocess
def test_stop_waits_for_the_checkpoint(tiny_shards: ShardSet, tmp_path: Path) -> None:
    arguments = tiny_set.tiny_overrides(
        tiny_shards, tmp_path, "run", "budget.max_epochs=1000", ON_A_THREAD
    )
    run = RunDirectory(tmp_path / "run")
    child = Child(arguments, tmp_path / "output.txt")
    run_tools.wait_for_step(run, 4, child.alive)
    child.signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM, child.text()
    state = json.loads(run.state_file.read_text())
    assert state["state"] == "stopped"
    assert run_tools.last_checkpoint(run)["position"]["samples_seen"] == state["samples_seen"]
    assert f"Stopped at {state['samples_seen']:,} of" in child.text()


@pytest.mark.multiprocess
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_full_disk_under_the_thread_ends_the_run_and_keeps_the_old_checkpoint(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain, ranks: int
) -> None:
    run = pretrain("budget.max_epochs=1")
    size = find_checkpoint(run, "last").stat().st_size
    before = {path.name: path.read_bytes() for path in run.checkpoints.iterdir()}
    arguments = tiny_set.tiny_overrides(
        tiny_shards,
        tmp_path,
        "run",
        "budget.max_epochs=1000",
        # With the weight average a checkpoint is larger than rank 0 may write.
        "ema.half_life_samples=100",
        "resume.allow=[ema]",
        "checkpoint.every_samples=16",
        ON_A_THREAD,
        *(["trainer=ddp_cpu"] if ranks > 1 else []),
    )
    children = [
        Child(arguments, tmp_path / f"{rank}.txt", max_file_bytes=size, environment=environment)
        for rank, environment in enumerate(run_tools.ranks(ranks))
    ]
    assert [child.wait() for child in children] == [1] * ranks
    for child in children:
        assert "Cannot write the checkpoint" in child.text() and "Free space" in child.text()
        assert "File too large" in child.text() and "MB are free in" in child.text()
        assert "Traceback" not in child.text()
    assert '"failed"' in run.state_file.read_text()
    assert {path.name: path.read_bytes() for path in run.checkpoints.iterdir()} == before
