"""Killed commands, a clock set back and small shared memory lose nothing and change nothing."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_set as tiny
import torch

from ecgfounder_train.core.files import PARTIAL_MARK
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.checkpoint import find_checkpoint, load_checkpoint
from ecgfounder_train.weights.trained_model import TrainedModel

SCRIPTS = tiny.REPOSITORY / "scripts"


@pytest.fixture(scope="module")
def run(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    runs = tmp_path_factory.mktemp("runs")
    assert train(tiny.tiny_config(tiny_shards, runs, "whole", "budget.max_epochs=1")) == 0
    return RunDirectory(runs / "whole")


def script(name: str, *words: str) -> list[str]:
    verb, *leading = name.split()
    return [sys.executable, str(SCRIPTS / f"{verb}.py"), *leading, *words]


def kill_after(command: list[str], seconds: float) -> bool:
    """Run a command, SIGKILL it and its children after a time; return whether it was killed."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


@pytest.mark.slow
def test_killed_export_leaves_no_half_model_and_is_finished_by_the_same_command(
    run: RunDirectory, tmp_path: Path
) -> None:
    words = (
        *(f"run={run.name}", f"paths.runs={run.path.parent}", "format=safetensors"),
        *("licence=MIT", "overwrite=true", "device=cpu"),
    )
    start = time.monotonic()
    subprocess.run(script("export", *words, f"out={tmp_path / 'whole'}"), check=True)
    duration = time.monotonic() - start
    due = TrainedModel.load(tmp_path / "whole").model.state_dict()
    rng = random.Random(0)
    for number in range(3):
        out = tmp_path / f"killed{number}"
        kill_after(script("export", *words, f"out={out}"), rng.uniform(0.5, 1.0) * duration)
        if (out / "ecg_model.json").is_file():
            TrainedModel.load(out)
        subprocess.run(script("export", *words, f"out={out}"), check=True)
        found = TrainedModel.load(out).model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in due.items())
        assert not list(out.glob(f"*{PARTIAL_MARK}*"))


@pytest.mark.slow
def test_killed_ablation_is_finished_by_the_same_command(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    fast = ("model.base=net1d_3m_100hz", "+model.group_width=8", "trainer=cpu")
    fast += ("trainer.num_threads=1", "data.global_batch_size=16")
    words = [
        *("ablation.name=tiny", "ablation.axes.model=[25000,60000]", "ablation.axes.seed=[0]"),
        *("ablation.budget.samples=64", f"shards={tiny_shards.folder}"),
        "ablation.overrides=[" + ",".join(f'"{word}"' for word in fast) + "]",
        *(f"paths.runs={tmp_path / 'runs'}", f"paths.ablations={tmp_path / 'ablations'}"),
    ]
    command = script("ablate run", *words)
    killed = kill_after(command, 15)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    states = [RunDirectory(path).read_state() for path in (tmp_path / "runs").iterdir()]
    assert states
    assert {state["state"] for state in states} == {"finished"}
    if killed:
        assert not list((tmp_path / "runs").rglob(f"*{PARTIAL_MARK}*"))


def test_clock_set_back_changes_no_weight(
    run: RunDirectory, tiny_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = time.time(), [0]

    def set_back() -> float:
        calls[0] += 1
        return now - 3600.0 * calls[0]

    monkeypatch.setattr(time, "time", set_back)
    config: Any = tiny.tiny_config(tiny_shards, tmp_path, "whole", "budget.max_epochs=1")
    assert train(config) == 0
    due = load_checkpoint(find_checkpoint(run, "last"))["model"]
    found = load_checkpoint(find_checkpoint(RunDirectory(tmp_path / "whole"), "last"))["model"]
    assert all(torch.equal(found[key], value) for key, value in due.items())


@pytest.mark.slow
def test_shared_memory_of_one_megabyte_is_enough(tiny_shards: ShardSet, tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount a small /dev/shm")
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    probe = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True)
    if probe.returncode:
        pytest.skip("this system lets nobody mount in a namespace of its own")
    words = tiny.tiny_overrides(tiny_shards, tmp_path, "small", "budget.max_epochs=1")
    command = " ".join([f"{mount} &&", *(f"'{word}'" for word in script("pretrain", *words))])
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert RunDirectory(tmp_path / "small").read_state()["state"] == "finished"
