"""A rank that dies ends the job, and its reason is the last thing that is said."""

import json
import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest
import run_tools
import tiny_set
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.ranks import Launch
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.failures import FailureNote, is_broken_link, propagate_failures

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")


def start(shards: ShardSet, runs: Path, launcher: str, *more: str) -> subprocess.Popen[str]:
    endless = ("trainer=ddp_cpu", "budget.max_epochs=100000", "checkpoint.every_samples=160")
    arguments = tiny_set.tiny_overrides(shards, runs, "run", *endless, *more)
    return run_tools.command(arguments, TORCHRUN if launcher == "torchrun" else ())


def second_rank(parent: int) -> psutil.Process:
    """The process of rank 1 below a launcher."""
    for process in psutil.Process(parent).children(recursive=True):
        is_rank = "pretrain.py" in " ".join(process.cmdline())
        if is_rank and process.environ().get("LOCAL_RANK") == "1":
            return process
    raise AssertionError("there is no second rank")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_killed_rank_ends_the_job_and_is_named(
    tiny_shards: ShardSet, tmp_path: Path, launcher: str
) -> None:
    process = start(tiny_shards, tmp_path, launcher)
    run = RunDirectory(tmp_path / "run")
    run_tools.wait_for_step(run, 10, lambda: process.poll() is None)
    second_rank(process.pid).kill()
    # The promise itself: nobody waits longer for a rank that is gone.
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    told = [line for line in output.splitlines() if line.startswith("error")]
    if launcher == "lightning":
        assert "Rank 1 ended first, and the job with it: it was killed by SIGKILL" in told[-1]
        assert output.splitlines()[-1] == told[-1]
        assert "Traceback" not in output
    else:
        assert "Another rank ended without a reason" in told[-1]
        summary = output.split("Root Cause (first observed failure)")[-1]
        assert re.search(r"rank\s*: 1 .*\n\s*exitcode\s*: -9", summary)
    assert "rank" in json.loads(run.failure_file.read_text())
    assert '"failed"' in run.state_file.read_text()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_torchrun_trains_like_our_own_launcher(tiny_shards: ShardSet, tmp_path: Path) -> None:
    """Inside an allocation of SLURM, both without srun."""
    settings = (*run_tools.EVERYTHING_ON, "budget.max_epochs=4", "trainer=ddp_cpu")
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
    allocation |= {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2"}
    runs = {}
    for name, launcher in (("own", ()), ("torchrun", TORCHRUN)):
        arguments = tiny_set.tiny_overrides(tiny_shards, tmp_path, name, *settings)
        process = run_tools.command(arguments, launcher, env={**os.environ, **allocation})
        output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
        assert process.returncode == 0, output
        assert output.count("is complete") == 1
        runs[name] = RunDirectory(tmp_path / name)
    run_tools.assert_same_run(runs["own"], runs["torchrun"])


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:538] Read error: ..."), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (torch.distributed.DistNetworkError("failed to listen, name: EADDRINUSE"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("Cannot reach the gloo of things"), False),
    ],
)
def test_broken_connection_is_told_from_a_reason(error: Exception, broken: bool) -> None:
    assert is_broken_link(error) == broken


ALONE = Launch("own", world_size=1)
FIRST_OF_FOUR = Launch("torchrun", world_size=4)


def test_first_reason_stays_and_the_next_start_forgets_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    with pytest.raises(RuntimeError), propagate_failures(run, ALONE) as note:
        note.take_run()
        raise RuntimeError("first")
    note.leave(0, "second")
    kept = json.loads(run.failure_file.read_text())
    assert (kept["rank"], kept["reason"]) == (0, "RuntimeError: first")
    (run.failure_file).write_text(json.dumps(kept | {"attempt": "an earlier one"}))
    with propagate_failures(run, ALONE) as note:
        note.take_run()
        assert not run.failure_file.exists()


def test_start_that_is_refused_leaves_no_trace_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.failure_file.write_text("that of the job that trains here")
    with pytest.raises(UserError), propagate_failures(run, ALONE):
        raise UserError("is being trained by another process")
    with pytest.raises(UserError), propagate_failures(run, FIRST_OF_FOUR):
        raise UserError("is being trained by another process")
    assert [path.name for path in run.path.iterdir()] == [run.failure_file.name]
    assert run.failure_file.read_text() == "that of the job that trains here"
    # The other ranks of the refused start read it beside the folder; the next start deletes it.
    (beside,) = (path for path in tmp_path.iterdir() if path.name != "run")
    assert "another process" in beside.read_text()
    monkeypatch.setenv("MASTER_PORT", "another start")
    FailureNote(run).take_run()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_rank_that_lost_its_connection_repeats_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(UserError, match="Rank 3 ended first, and the job with it: its disk is full"),
        propagate_failures(run, FIRST_OF_FOUR),
    ):
        FailureNote(run, is_ours=True).leave(3, "its disk is full")
        raise RuntimeError("gloo: Connection closed by peer")


def test_note_of_another_attempt_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = FailureNote(RunDirectory(tmp_path), is_ours=True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    note.leave(1, "old")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert note.read() is None
    note.leave(2, "new")
    failure = note.read()
    assert failure is not None and failure.rank == 2
