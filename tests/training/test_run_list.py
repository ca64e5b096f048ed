"""scripts/runs.py lists every run with its state and the command that continues it."""

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import run_tools
from run_tools import Child
from tiny_set import tiny_overrides

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.device_use import DeviceUse
from ecgfounder_train.training.runs import list_runs, show

Pretrain = Callable[..., RunDirectory]


@pytest.mark.multiprocess
def test_every_state_is_told_and_the_command_goes_on(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain
) -> None:
    pretrain("budget.max_epochs=1", run="done")
    with pytest.raises(UserError):
        pretrain("faults.max_grad_norm=1e-9", run="broken")
    arguments = tiny_overrides(
        tiny_shards, tmp_path, "killed", "budget.max_epochs=1000", "checkpoint.every_samples=32"
    )
    child = Child(arguments, tmp_path / "output.txt")
    run_tools.wait_for_step(RunDirectory(tmp_path / "killed"), 4, child.alive)
    while_it_runs = {run.run: run for run in list_runs(tmp_path)}
    child.signal(signal.SIGKILL)
    child.wait()
    runs = {run.run: run for run in list_runs(tmp_path)}
    assert {name: run.state for name, run in runs.items()} == {
        "done": "complete",
        "broken": "failed",
        "killed": "stale",
    }
    assert while_it_runs["killed"].state == "training"
    assert runs["done"].progress == 1 and runs["done"].resume == ""
    assert runs["done"].best == pytest.approx(
        float(run_tools.rows(RunDirectory(tmp_path / "done"))[-1]["val/macro_auroc"])
    )
    assert "max_grad_norm" in runs["broken"].reason
    killed = runs["killed"]
    assert 0 < killed.samples_seen < killed.total_samples and killed.ecg_per_s
    assert shlex.split(killed.resume) == ["python", "scripts/pretrain.py", *arguments]
    assert killed.resume in show(runs.values(), "table")
    # It is the very command: it goes on.
    script, *words = shlex.split(killed.resume)[1:]
    words = [word.replace("max_epochs=1000", "max_samples=640") for word in words]
    command = [sys.executable, script, *words]
    root = run_tools.SCRIPTS.parent
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "Resuming run killed from step-" in again.stderr


def test_table_is_also_csv_and_json(pretrain: Pretrain, tmp_path: Path) -> None:
    pretrain("budget.max_samples=32", run="one")
    runs = list_runs(tmp_path)
    assert json.loads(show(runs, "json"))[0]["run"] == "one"
    assert next(csv.DictReader(io.StringIO(show(runs, "csv"))))["state"] == "complete"
    with pytest.raises(UserError, match="Did you mean 'json'"):
        show(runs, "jsn")


def test_unreadable_runs_are_listed_all_the_same(pretrain: Pretrain, tmp_path: Path) -> None:
    run = pretrain("budget.max_samples=32", run="one")
    run.state_file.write_text('{"state": "fin')
    run.metrics_file.write_bytes(b"samples_seen,global_step\r\n12")
    # Nothing says how far it is; that nobody works on it is plain by the lock and the time.
    for file in run.path.iterdir():
        if file.is_file():
            os.utime(file, (1, 1))
    (status,) = list_runs(tmp_path)
    assert status.state == "stale" and status.samples_seen == 0


def test_share_of_the_device_is_told_where_its_peak_is_stated() -> None:
    use = DeviceUse(step_flops=10**9, peak_tflops=2.0, world_size=4, on_gpu=False)
    assert use.of(800.0) == {"flop_utilisation": 0.1}
    assert DeviceUse(10**9, None, 4, False).of(800.0) == {}


def test_run_tells_its_share_of_a_stated_peak_and_its_commit(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_samples=32", "trainer.peak_tflops=0.01")
    with run.metrics_file.open(newline="") as handle:
        row = next(csv.DictReader(handle))
    assert 0 < float(row["flop_utilisation"]) < 100
    assert row["gpu_memory_gb"] == ""
    state = json.loads(run.state_file.read_text())
    assert state["git"] is None or len(state["git"]["commit"]) == 40
    assert state["hardware"]["precision"] == "32"


def test_run_tells_what_decides_about_its_bits_and_how_fast_it_was(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    state = json.loads(run.state_file.read_text())
    assert {"torch", "lightning", "numpy", "python", "ecgfounder_train"} <= set(state["versions"])
    assert all(isinstance(version, str) for version in state["versions"].values())
    hardware = state["hardware"]
    assert hardware["precision"] == "32" and hardware["float32_matmul_precision"] == "highest"
    assert hardware["deterministic"] is False and hardware["cudnn_benchmark"] is False
    assert hardware["device"] and hardware["threads"] == 1
    with run.metrics_file.open(newline="") as handle:
        logged = [row for row in csv.DictReader(handle) if row["train/loss"]]
    for row in logged:
        assert float(row["ecg_per_s"]) > 0 and 0 <= float(row["data_wait_share"]) <= 1
        assert float(row["train/grad_norm"]) > 0 and float(row["lr"]) > 0
        # There is no GPU whose memory could be told.
        assert row["gpu_memory_gb"] == ""
