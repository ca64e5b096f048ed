"""Soak: a run that is killed, stopped and robbed of shards over and over, and what it lost.

At random moments the run is killed (all ranks, or
one), asked to stop by SIGTERM or SIGUSR1, and started again by the same command; meanwhile a shard
is damaged, one truncated and one deleted, which `data.on_bad_sample=quarantine` has to bear. The
last part is left alone, to see what memory does.

Each rank keeps a ledger of the checksums of what it trained on (`_soak_life`). From the ledgers and
the step that each life went on from, and from nothing the loader says, this module counts how often
each sample of the index was trained on in each epoch.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
from soak_life import live
from tiny_set import TINY_MODEL

from ecgfounder_train.core.files import PARTIAL_MARK
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet

_PATIENCE_S = 600.0
"""A start or a stop that takes longer than this hangs, also on a machine that does much else."""
_MOST_DAMAGED = 3
# A fresh interpreter takes six seconds to import torch; ranks are forked from one that has.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["ecgfounder_train.training.pretrain"])


@dataclass(frozen=True)
class Settings:
    """How long, and how rough.

    Args:
        minutes: Length of the training.
        ranks: Processes that train together.
        life_s: Mean seconds between a life's first step and its end.
        quiet_share: Share of the time at the end in which nothing happens.
        global_batch_size: Samples per step.
        seed: Of moments and victims.
    """

    minutes: float = 60.0
    ranks: int = 2
    life_s: float = 60.0
    quiet_share: float = 0.25
    global_batch_size: int = 32
    seed: int = 0


@dataclass
class _Life:
    """One start of the command: from which step, and how it ended."""

    number: int
    first_step: int
    ending: str = "alone"


@dataclass
class _Soak:
    """A soak under way."""

    settings: Settings
    folder: Path
    shards: ShardSet
    run: RunDirectory
    rng: random.Random
    lives: list[_Life] = field(default_factory=list)
    rank_losses_s: list[float] = field(default_factory=list)
    """From the death of one rank to the end of the job."""
    damaged: dict[str, set[int]] = field(default_factory=dict)
    all_damaged_by: int | None = None
    """The first life that began when all damage had been done."""


def run(settings: Settings, folder: Path, shards: ShardSet) -> dict[str, Any]:
    """Return what was trained on, lost and leaked. The shards are damaged: give copies.

    `ratio` is the share of sample visits that were exact: each sample of an epoch once.

    Raises:
        AssertionError: The run failed, hung, or lost something; the message says what.
    """
    run_directory = RunDirectory(folder / "runs" / "soak")
    soak = _Soak(settings, folder, shards, run_directory, random.Random(settings.seed))
    (folder / "ledger").mkdir(parents=True)
    start = time.monotonic()
    _train(soak)
    return _outcome(soak, (time.monotonic() - start) / 60)


def _arguments(soak: _Soak) -> list[str]:
    settings = soak.settings
    per_rank = settings.global_batch_size // (2 * settings.ranks)
    return [
        f"shards={soak.shards.folder}",
        f"paths.runs={soak.run.path.parent}",
        f"run={soak.run.name}",
        *TINY_MODEL,
        "model.dropout=0.1",
        "schedule=constant",
        "augmentation=shift_gain_mixup",
        "ema.half_life_samples=2000",
        "gradient_clip_norm=1.0",
        f"data.global_batch_size={settings.global_batch_size}",
        # Two micro-batches per step.
        f"data.batch_size_per_rank={per_rank}",
        "data.on_bad_sample=quarantine",
        "budget.max_epochs=1000000",
        "checkpoint.every_s=2",
        "checkpoint.background=true",
        "log_every_steps=5",
        f"seed={settings.seed}",
        "trainer=ddp_cpu" if settings.ranks > 1 else "trainer=cpu",
        f"trainer.devices={settings.ranks}",
        "trainer.num_threads=1",
    ]


def _train(soak: _Soak) -> None:
    """Start, disturb and start again until the time is over."""
    settings = soak.settings
    start = time.monotonic()
    quiet_s = start + 60 * settings.minutes * (1 - settings.quiet_share)
    # Damage falls into the first half of the disturbed part.
    damage_s = [
        start + (quiet_s - start) * place / (2 * _MOST_DAMAGED) for place in range(_MOST_DAMAGED)
    ]
    while time.monotonic() < quiet_s:
        with _Job(soak) as job:
            # One life in eight ends at any moment of its start.
            is_short = soak.rng.random() < 0.125
            if not is_short:
                job.wait_for_steps()
            mean_s = settings.life_s / 8 if is_short else settings.life_s
            end_s = time.monotonic() + soak.rng.expovariate(1 / mean_s)
            while time.monotonic() < min(end_s, quiet_s):
                if damage_s and time.monotonic() > damage_s[0]:
                    damage_s.pop(0)
                    _damage(soak)
                job.require_alive()
                time.sleep(0.05)
            _end(soak, job)
    while damage_s:
        damage_s.pop()
        _damage(soak)
    soak.all_damaged_by = soak.all_damaged_by or len(soak.lives)
    with _Job(soak) as job:
        job.wait_for_steps()
        left_alone_s = 60 * settings.minutes * settings.quiet_share
        end_s = max(start + 60 * settings.minutes, time.monotonic() + left_alone_s)
        while time.monotonic() < end_s:
            job.require_alive()
            time.sleep(0.2)
        _stop(soak, job, signal.SIGTERM)


class _Job:
    """A life: ranks as a batch system starts them, which end with the block."""

    def __init__(self, soak: _Soak) -> None:
        self.soak = soak
        self.ranks: list[ForkServerProcess] = []

    def __enter__(self) -> "_Job":
        soak = self.soak
        number = len(soak.lives)
        if soak.all_damaged_by is None and len(soak.damaged) == _MOST_DAMAGED:
            soak.all_damaged_by = number
        soak.lives.append(_Life(number, _saved_step(soak.run)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        size = str(soak.settings.ranks)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
        for rank in range(soak.settings.ranks):
            environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = (_arguments(soak), self.ledger(rank), soak.folder / "output.txt", environment)
            self.ranks.append(_FORKS.Process(target=live, args=words, daemon=True))
            self.ranks[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            if rank.is_alive():
                rank.kill()
            rank.join()

    def ledger(self, rank: int) -> Path:
        """Return the file a rank of this life notes in."""
        return (
            self.soak.folder / "ledger" / f"life{self.soak.lives[-1].number:04d}_rank{rank}.jsonl"
        )

    def wait(self) -> list[int]:
        """Return the exit statuses of all ranks.

        Raises:
            AssertionError: One of them does not end.
        """
        deadline = time.monotonic() + _PATIENCE_S
        for rank in self.ranks:
            rank.join(deadline - time.monotonic())
        life = self.soak.lives[-1]
        if any(rank.is_alive() for rank in self.ranks):
            raise AssertionError(
                f"Life {life.number} did not end after {life.ending} in {_PATIENCE_S:.0f} s: "
                f"{self._said()}"
            )
        return [rank.exitcode or 0 for rank in self.ranks]

    def require_alive(self) -> None:
        """Raise if a rank ended that nobody had asked to.

        Raises:
            AssertionError: Says what it printed last.
        """
        for place, rank in enumerate(self.ranks):
            if not rank.is_alive():
                raise AssertionError(
                    f"Rank {place} of life {self.soak.lives[-1].number} ended with "
                    f"{rank.exitcode}, and nobody had asked it to: {self._said()}"
                )

    def _said(self) -> str:
        """Return the end of what the ranks have printed."""
        return (self.soak.folder / "output.txt").read_text(errors="replace")[-2000:]

    def has_begun(self) -> bool:
        """Tell whether this life has begun a step."""
        path = self.ledger(0)
        return path.is_file() and path.stat().st_size > 0

    def asked(self) -> "list[ForkServerProcess]":
        """Return one rank at random; all of them while the job starts.

        Ranks that have not met yet do not notice that one is gone. A launcher does, and ends all.
        """
        return [self.soak.rng.choice(self.ranks)] if self.has_begun() else self.ranks

    def wait_for_steps(self) -> None:
        """Return when the first step has begun.

        Raises:
            AssertionError: It does not begin.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not self.has_begun():
            self.require_alive()
            if time.monotonic() > deadline:
                raise AssertionError(f"The soak's run made no step in {_PATIENCE_S:.0f} s.")
            time.sleep(0.05)


def _saved_step(run_directory: RunDirectory) -> int:
    """Return the step that the next start will go on from."""
    import torch

    from ecgfounder_train.weights.checkpoint import newest_whole

    newest = newest_whole(run_directory)
    if newest is None:
        return 0
    checkpoint = torch.load(newest, weights_only=True, mmap=True)
    return int(checkpoint["position"]["global_step"])


def _end(soak: _Soak, job: _Job) -> None:
    """End a life in one of four ways."""
    ways = ["SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1"]
    way = soak.rng.choice([*ways, "SIGKILL of one rank"] if soak.settings.ranks > 1 else ways)
    if way in ("SIGTERM", "SIGUSR1"):
        _stop(soak, job, signal.Signals[way])
        return
    soak.lives[-1].ending = way
    victims = job.ranks if way == "SIGKILL" else job.asked()
    for victim in victims:
        victim.kill()
    start = time.monotonic()
    job.wait()
    if way != "SIGKILL":
        soak.rank_losses_s.append(time.monotonic() - start)


def _stop(soak: _Soak, job: _Job, number: signal.Signals) -> None:
    """Ask one rank of a life to stop: all must. One that is starting may end with nothing saved."""
    soak.lives[-1].ending = number.name
    begun, asked = job.has_begun(), job.asked()
    for rank in asked:
        assert rank.pid is not None
        os.kill(rank.pid, number)
    statuses = job.wait()
    if begun and set(statuses) != {128 + number}:
        raise AssertionError(f"After {number.name} the soak's ranks ended with {statuses}.")


def _damage(soak: _Soak) -> None:
    """Flip a bit in a shard, cut another in half, delete a third."""
    names = [entry.name for entry in soak.shards.manifest.shards if entry.split == "train"]
    left = [name for name in names if name not in soak.damaged]
    if len(left) < 2:
        raise AssertionError("There are too few shards to damage.")
    name = soak.rng.choice(left)
    number = [entry.name for entry in soak.shards.manifest.shards].index(name)
    path, index = soak.shards.shard_path(number), soak.shards.index
    rows = np.flatnonzero(np.asarray(index["shard"]) == number)
    layout = soak.shards.layout
    if len(soak.damaged) == 0:
        row = soak.rng.choice(rows.tolist())
        with path.open("r+b") as handle:
            place = int(index[row]["offset"]) + layout.ecg.offset + 100
            handle.seek(place)
            byte = handle.read(1)[0]
            handle.seek(place)
            handle.write(bytes([byte ^ 4]))
        soak.damaged[name] = {row}
    elif len(soak.damaged) == 1:
        half = path.stat().st_size // 2
        os.truncate(path, half)
        behind = layout.stats.offset + layout.stats.num_bytes
        ends = np.asarray(index["offset"], np.int64)[rows] + behind
        soak.damaged[name] = set(rows[ends > half].tolist())
    else:
        path.unlink()
        soak.damaged[name] = set(rows.tolist())


@dataclass
class _Line:
    life: int
    rank: int
    step: int
    epoch: int
    seen: list[int]
    lost: list[int]
    resident: int
    files: int


def _ledger(soak: _Soak) -> list[_Line]:
    """Return every line of every life and rank; the last of a killed one may be cut."""
    lines = []
    for path in sorted((soak.folder / "ledger").glob("life*_rank*.jsonl")):
        life, rank = path.stem.removeprefix("life").split("_rank")
        whole = [text for text in path.read_text().splitlines(True) if text.endswith("\n")]
        lines += [_Line(int(life), int(rank), **json.loads(text)) for text in whole]
    return lines


def effective(lines: list[_Line], first_steps: Mapping[int, int]) -> list[_Line]:
    """Return the lines that the weights of the last life rest on.

    A later life that went on from step s undid whatever earlier ones did from s on.
    """
    undone_from: dict[int, int] = {}
    lowest = sys.maxsize
    for life in sorted(first_steps, reverse=True):
        undone_from[life] = lowest
        lowest = min(lowest, first_steps[life])
    return [line for line in lines if line.step < undone_from[line.life]]


def _counted(soak: _Soak, lines: list[_Line]) -> dict[str, Any]:
    """Count the visits of each sample in each whole epoch.

    Raises:
        AssertionError: A step, a sample or a damaged row is missing, doubled or wrong.
    """
    per_step = 2 * soak.settings.ranks
    steps = Counter(line.step for line in lines)
    last = max(steps)
    # The last step may have been under way when the run was stopped.
    wrong = [step for step in range(last) if steps[step] != per_step]
    if wrong:
        raise AssertionError(
            f"Step {wrong[0]} has {steps[wrong[0]]} micro-batches, not {per_step}."
        )
    index, rows = soak.shards.index, soak.shards.rows("train")
    contents = np.asarray(index["xxh3"])[rows].tolist()
    due = Counter(contents)
    of_row = dict(zip(rows.tolist(), contents, strict=True))
    all_damaged = set().union(*soak.damaged.values())
    whole = range(max(line.epoch for line in lines))
    first_damaged = min(
        (line.epoch + 1 for line in lines if line.life >= (soak.all_damaged_by or 0)),
        default=sys.maxsize,
    )
    if not whole:
        raise AssertionError("The soak did not come to the end of an epoch: raise its minutes.")
    visits = lost_visits = 0
    for epoch in whole:
        here = [line for line in lines if line.epoch == epoch]
        seen = Counter(content for line in here for content in line.seen)
        lost = Counter(row for line in here for row in line.lost)
        if max(lost.values(), default=1) > 1 or not set(lost) <= all_damaged:
            raise AssertionError(f"Epoch {epoch} quarantined a sample twice, or a sound one.")
        if epoch >= first_damaged and set(lost) != all_damaged:
            raise AssertionError(
                f"Epoch {epoch} quarantined {len(lost)} of {len(all_damaged)} rows."
            )
        missing = due - seen - Counter(of_row[row] for row in lost)
        doubled = seen + Counter(of_row[row] for row in lost) - due
        if missing or doubled:
            raise AssertionError(
                f"Epoch {epoch}: {missing.total()} samples were not trained on, "
                f"{doubled.total()} more than once."
            )
        visits += seen.total()
        lost_visits += lost.total()
    return {
        "ratio": (visits + lost_visits) / (len(whole) * len(contents)),
        "epochs": len(whole),
        "samples_per_epoch": len(contents),
        "visits": visits,
        "quarantined_visits": lost_visits,
        "damaged_samples": len(all_damaged),
        "steps": last,
    }


def _memory(soak: _Soak, lines: list[_Line]) -> dict[str, Any]:
    """Return how much the ranks of the last, undisturbed life grew.

    The first third warms up: allocators, the first validation, the first copy for a checkpoint.
    """
    last = soak.lives[-1].number
    growths, slopes, files = [], [], []
    for rank in range(soak.settings.ranks):
        mine = [line for line in lines if (line.life, line.rank) == (last, rank)]
        mine = mine[len(mine) // 3 :]
        if len(mine) < 10:
            raise AssertionError("The undisturbed part was too short: raise its minutes.")
        resident = np.array([line.resident for line in mine], float)
        steps = np.array([line.step for line in mine], float)
        slopes.append(float(np.polyfit(steps, resident, 1)[0]))
        tenth = max(len(mine) // 10, 1)
        growths.append(float(np.median(resident[-tenth:]) - np.median(resident[:tenth])))
        files.append(mine[-1].files - mine[0].files)
    steps_left_alone = int(steps[-1] - steps[0])
    return {
        "undisturbed_steps": steps_left_alone,
        "resident_bytes": int(resident[-1]),
        "resident_growth_bytes": int(max(growths)),
        "resident_bytes_per_step": round(max(slopes), 1),
        "open_files_growth": max(files),
    }


def _metrics(soak: _Soak) -> dict[str, Any]:
    """Return what metrics.csv ends with.

    Raises:
        AssertionError: A row is missing, doubled or not finite.
    """
    import csv

    with soak.run.metrics_file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    trained = [row for row in rows if row["train/loss"]]
    validated = [row for row in rows if row["val/loss"]]
    steps = [int(row["global_step"]) for row in trained]
    if steps != list(range(5, 5 * len(steps) + 1, 5)):
        raise AssertionError("metrics.csv misses a row of training, or has one twice.")
    seen = [int(row["samples_seen"]) for row in validated]
    if len(set(seen)) != len(seen) or not validated:
        raise AssertionError("metrics.csv has a validation twice, or none.")
    values = [row[name] for row in trained for name in ("train/loss", "train/grad_norm", "lr")]
    values += [row[name] for row in validated for name in ("val/loss", "val/macro_auroc")]
    if not np.isfinite(np.array(values, float)).all():
        raise AssertionError("metrics.csv holds a value that is not finite.")
    return {
        "rows": len(rows),
        "validations": len(validated),
        "first_loss": float(trained[0]["train/loss"]),
        "last_loss": float(trained[-1]["train/loss"]),
        "best_macro_auroc": max(float(row["val/macro_auroc"]) for row in validated),
    }


def _outcome(soak: _Soak, minutes: float) -> dict[str, Any]:
    everything = _ledger(soak)
    first_steps = {life.number: life.first_step for life in soak.lives}
    for life in soak.lives:
        begun = [line.step for line in everything if line.life == life.number]
        if begun and min(begun) != life.first_step:
            raise AssertionError(
                f"Life {life.number} went on from step {min(begun)}, not its last one."
            )
    lines = effective(everything, first_steps)
    counts = _counted(soak, lines)
    state = json.loads(soak.run.state_file.read_text())
    done = [line for line in lines if line.step < state["global_step"]]
    consumed = sum(len(line.seen) + len(line.lost) for line in done)
    if consumed != state["samples_seen"]:
        raise AssertionError(
            f"run.json counts {state['samples_seen']} samples, the ledger {consumed}."
        )
    lost = sum(len(line.lost) for line in done)
    if lost != state["faults"]["quarantined"]:
        raise AssertionError(f"run.json counts {state['faults']} quarantined, the ledger {lost}.")
    leftovers = [path.name for path in soak.run.path.rglob(f"*{PARTIAL_MARK}*")]
    if leftovers:
        raise AssertionError(f"Something half-written was left behind: {leftovers[0]}.")
    endings = Counter(life.ending for life in soak.lives)
    return {
        "minutes": round(minutes, 1),
        "lives": len(soak.lives),
        "endings": dict(endings),
        "job_ended_after_lost_rank_s": round(max(soak.rank_losses_s, default=0.0), 1),
        "undone_micro_batches": len(everything) - len(lines),
        **counts,
        **_memory(soak, everything),
        **_metrics(soak),
    }
