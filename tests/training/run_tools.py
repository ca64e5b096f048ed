"""Starting, killing and comparing runs.

`Child` runs the script's code in a process of its own, forked from a server that has imported torch
already (a fresh interpreter takes six seconds). What must be the very command uses `command`.
"""

import csv
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.weights.checkpoint import newest_whole

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TIMEOUT_S = 180.0
TIME_COLUMNS = ("ecg_per_s", "data_wait_share", "flop_utilisation", "gpu_memory_gb")
START_COLUMN = "start"

EVERYTHING_ON = (
    "+model.group_width=8",
    "model.norm=batch",
    "model.dropout=0.1",
    "model.head_dropout=0.1",
    "model.drop_path=0.1",
    "augmentation=shift_gain_mixup",
    "augmentation.lead_dropout=0.1",
    "augmentation.white_noise=0.02",
    "augmentation.baseline_wander=0.1",
    "augmentation.muscle_noise=0.05",
    "augmentation.crop=0.8",
    "ema.half_life_samples=100",
    "gradient_clip_norm=1.0",
    "data.batch_size_per_rank=4",
    # Neither logging, nor checkpoints, nor validations fall on the ends of epochs (63 samples).
    "log_every_steps=3",
    "checkpoint.every_samples=32",
    "budget.validate_every_samples=100",
    "budget.max_epochs=12",
)

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["run_tools", "ecgfounder_train.training.pretrain"])


class Child:
    """scripts/pretrain.py in a process of its own; `kill_at` makes it kill itself there.

    With an `environment` of `ranks` it is one of several.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        output: Path,
        kill_at: str = "",
        max_file_bytes: int = resource.RLIM_INFINITY,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.output = output
        arguments = (list(overrides), str(output), kill_at, max_file_bytes, environment or {})
        self.process = _FORKS.Process(target=_main, args=arguments)
        self.process.start()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def alive(self) -> bool:
        return self.process.is_alive()

    def wait(self) -> int:
        """Return the exit status, negative for a signal."""
        self.process.join(TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"did not end: {self.text()}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""


def ranks(count: int) -> list[dict[str, str]]:
    """Return the environments of ranks that a batch system would start, torchrun's way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _main(
    overrides: list[str],
    output: str,
    kill_at: str,
    max_file_bytes: int,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if kill_at:
        _arm(kill_at)
    from ecgfounder_train import app
    from ecgfounder_train.training.pretrain import train

    sys.argv = ["pretrain.py", *overrides]
    app.run("pretrain", train)


def _arm(kill_at: str) -> None:
    """Replace a function by one that kills its process at a call, such as `validation_step:5`."""
    from ecgfounder_train.training.module import PretrainModule
    from ecgfounder_train.weights import checkpoint

    name, count = kill_at.split(":")
    owner: Any = {
        "validation_step": PretrainModule,
        "link_best": checkpoint.CheckpointFolder,
        "damage": checkpoint,
    }[name]
    original, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def armed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, armed)


def command(
    overrides: Sequence[str], launcher: Sequence[str] = (), **options: Any
) -> subprocess.Popen[str]:
    """Start the script as a user does, in a process group of its own.

    Args:
        overrides: Its arguments.
        launcher: Arguments of Python that start it, such as `-m torch.distributed.run`.
        options: Of Popen.
    """
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPTS / "pretrain.py"), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a command and all it started."""
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@contextmanager
def no_warning() -> Iterator[None]:
    """Fail where the block warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def wait_for_step(run: RunDirectory, step: int, alive: Callable[[], bool]) -> None:
    """Return once a checkpoint of that optimizer step or a later one is there."""
    deadline = time.monotonic() + TIMEOUT_S
    while latest_step(run) < step:
        assert alive(), "ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def latest_step(run: RunDirectory) -> int:
    names = [path.stem for path in run.checkpoints.glob("step-*.ckpt")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def last_checkpoint(run: RunDirectory) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = newest_whole(run)
    assert path is not None
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def rows(run: RunDirectory) -> list[dict[str, str]]:
    """Return metrics.csv without what depends on time and on the number of starts."""
    with run.metrics_file.open(newline="") as handle:
        return [
            {k: value for k, value in row.items() if k not in (*TIME_COLUMNS, START_COLUMN)}
            for row in csv.DictReader(handle)
        ]


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    """Weights, average, optimizer, position, best and every row are equal to the last bit."""
    assert rows(one) == rows(other)
    first, second = last_checkpoint(one), last_checkpoint(other)
    for key in ("model", "ema", "optimizer", "position", "best", "window", "rng"):
        assert_identical(first[key], second[key], key)
    best = [torch.load(run.checkpoints / "best.ckpt", weights_only=True) for run in (one, other)]
    assert_identical(best[0]["model"], best[1]["model"], "best")
    assert best[0]["position"] == best[1]["position"]


def assert_identical(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_identical(a, b, f"{where}[{number}]")
    else:
        assert one == other, where
