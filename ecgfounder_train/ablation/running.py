"""Train the members of an ablation, here one after the other or as jobs of SLURM.

Every member is trained in a process of its own, so that one that dies, whatever of, takes nothing
along. What is finished is known from the runs themselves; nothing else has to be kept.
"""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgfounder_train import app
from ecgfounder_train.ablation.plan import Ablation, Sized, short_count
from ecgfounder_train.core.commands import script_of
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.progress import format_duration
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.signals import StopRequest, stop_on_signals

if TYPE_CHECKING:
    import submitit

IRRELEVANT = ("paths", "resume", "hydra", "trainer", "logger", "checkpoint", "log_every_steps")
"""Sections in which a member may differ from what it was begun with and still be the same run."""

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_LAUNCHER_KEYS = ("submitit_folder", "_target_", "name", "max_num_timeout")
_SHARED_KEYS = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb",
                "nodes", "stderr_to_stdout")  # fmt: skip
_SLURM_LAUNCHER = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
_LOCAL_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass(frozen=True)
class Progress:
    """How far a member's run is."""

    state: str  # missing | stopped | finished
    samples_seen: int = 0


def progress_of(sized: Sized) -> Progress:
    """Return how far a member is, from its run directory alone.

    Raises:
        UserError: A run of that name was begun with other settings.
    """
    run = run_of(sized)
    if not run.config_file.is_file() or not run.state_file.is_file():
        return Progress("missing")
    begun = run.read_config()
    state = run.read_state(required=("state", "samples_seen"))
    if differing := _differences(begun, sized.config, state):
        shown = "; ".join(differing[:3])
        raise UserError(
            f"The run {run.name} exists with other settings ({shown}). An ablation does not mix "
            f"them: choose another ablation.name, or delete {run.path}."
        )
    done = state["state"] == "finished" and state["samples_seen"] > 0
    return Progress("finished" if done else "stopped", int(state["samples_seen"]))


def run_of(sized: Sized) -> RunDirectory:
    """Return the directory of a member's run."""
    return RunDirectory.of(sized.config["paths"]["runs"], sized.member.name)


def _differences(
    begun: Mapping[str, Any], wanted: Mapping[str, Any], state: Mapping[str, Any]
) -> list[str]:
    found = []
    old, new = (dict(_leaves(config)) for config in (begun, wanted))
    for key in sorted(old.keys() | new.keys()):
        # Keys of a later version of the program had their default before.
        if key not in old or key.split(".")[0] in (*IRRELEVANT, "run"):
            continue
        if key == "shards":
            data = ShardSet.open(wanted["shards"], check_files=False).manifest.fingerprint
            if state["fingerprints"]["data"] != data:
                found.append("another set of shards")
        elif old[key] != new.get(key):
            found.append(f"{key}={old[key]} instead of {new.get(key)}")
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def plan_members(ablation: Ablation) -> list[Sized]:
    """Return all members, each checked, before any is trained.

    Raises:
        UserError: A member's settings are wrong, or members could never stand in one report.
    """
    sized = [ablation.size(member) for member in ablation.members]
    seen: dict[str, tuple[str, str]] = {}
    for item in sized:
        manifest = ShardSet.open(item.config["shards"]).manifest
        for what in ("vocabulary", "split"):
            value = manifest.fingerprints[what]
            first, member = seen.setdefault(what, (value, item.member.name))
            if value != first:
                raise UserError(
                    f"Members {member} and {item.member.name} have shards of another {what}; their "
                    f"numbers would not compare. Prepare both shard sets with the same {what}."
                )
    return sized


def run_ablation(config: Mapping[str, Any]) -> int:
    """Train what is missing of an ablation and return the exit code: 0 only if all is finished.

    Args:
        config: The composed `configs/ablate.yaml`.

    Raises:
        UserError: The configuration is invalid.
    """
    ablation = Ablation.from_config(config)
    if config["shards"] is None and not any(
        argument.startswith("shards=") for argument in ablation.members[0].arguments
    ):
        raise UserError("ablate.py run needs shards=DIR: the folder that scripts/prepare.py wrote.")
    members = plan_members(ablation)
    if (number := config["member"]) is not None:
        if not isinstance(number, int) or not 0 <= number < len(members):
            raise UserError(f"member={number} is none of 0 to {len(members) - 1}.")
        members = [members[number]]
    _write_plan(ablation, members, Path(config["paths"]["ablations"]))
    launcher = config["launcher"]
    if launcher is None or launcher.get("_target_") == _LOCAL_LAUNCHER:
        status = train_here(members)
    elif launcher.get("_target_") == _SLURM_LAUNCHER:
        folder = Path(config["paths"]["ablations"]) / ablation.name
        status = train_on_slurm(members, launcher, folder)
    else:
        raise UserError(
            "hydra/launcher= of an ablation is basic (one after the other, here) or submitit_slurm."
        )
    if status == 0 and number is None:
        # The grid as it was asked for, where it was asked for.
        same = [item for item in sys.argv[1:] if item.startswith(("ablation", "paths."))]
        print(f"Next: {shlex.join(['python', 'scripts/ablate.py', 'report', *same])}", flush=True)
    return status


def _write_plan(ablation: Ablation, members: Sequence[Sized], folder: Path) -> None:
    plan = {
        item.member.name: {
            "choices": item.member.choices,
            "parameters": item.parameters,
            "samples": item.samples,
            "flops": item.flops,
        }
        for item in members
    }
    with atomic_file(folder / ablation.name / "plan.json", "w") as handle:
        json.dump(plan, handle, indent=2)


def train_here(members: Sequence[Sized]) -> int:
    """Train the unfinished members one after the other; a failed one is named and passed over."""
    states = [progress_of(item) for item in members]
    pending = [item for item, at in zip(members, states, strict=True) if at.state != "finished"]
    print(f"{len(members)} members, {len(members) - len(pending)} of them finished.", flush=True)
    failed: dict[str, str] = {}
    begun, spent = time.monotonic(), 0.0
    total = sum(_remaining(item) for item in pending)
    with stop_on_signals() as stop:
        for number, item in enumerate(pending, start=1):
            left = ""
            if spent:
                rate = (time.monotonic() - begun) / spent
                left = f", about {format_duration(rate * (total - spent))} left for all"
            print(
                f"[{number}/{len(pending)}] {item.member.name}: {item.parameters:,} parameters, "
                f"{item.samples:,} ECGs{left}",
                flush=True,
            )
            due = _remaining(item)
            status = train_in_process(item.member.arguments, stop)
            spent += due
            if stop.signal is not None:
                print(
                    f"Stopped at {item.member.name}; everything up to here is saved. Run the same "
                    "command again to go on.",
                    flush=True,
                )
                return stop.exit_code
            if status:
                failed[item.member.name] = _status_summary(status)
                print(f"{item.member.name} failed ({failed[item.member.name]}).", flush=True)
    return _summary(members, failed)


def _remaining(item: Sized) -> float:
    return item.flops * max(0.0, 1 - progress_of(item).samples_seen / item.samples)


def _summary(members: Sequence[Sized], failed: Mapping[str, str]) -> int:
    if failed:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
        print(
            f"{len(members) - len(failed)} of {len(members)} members are finished; failed:{listed}"
            "\nThe same command tries them again.",
            file=sys.stderr,
            flush=True,
        )
        return 1
    print(f"All {len(members)} members are finished.", flush=True)
    return 0


def _status_summary(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def train_in_process(arguments: Sequence[str], stop: StopRequest) -> int:
    """Run scripts/pretrain.py in a process of its own and return its exit status.

    The processes are forked from a server that has imported torch, which saves six seconds each.
    A signal to this process alone is passed on: the run saves at the end of its step and stops.
    Ctrl-C on a terminal reaches the run by itself.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["ecgfounder_train.training.pretrain", __name__])
    _start_server()
    process = forks.Process(target=_be_pretrain, args=(list(arguments), str(script_of("pretrain"))))
    process.start()
    announced = False
    try:
        while process.is_alive():
            process.join(0.2)
            if stop.signal is not None and not announced:
                announced = True
                assert process.pid is not None
                # Never SIGINT: a run that has had one from the terminal takes a second as "at
                # once", and loses its last steps. USR1 as it is: after SLURM's TERM a run stays.
                passed_on = signal.SIGTERM if stop.signal is signal.SIGINT else stop.signal
                os.kill(process.pid, passed_on)
    except KeyboardInterrupt as error:
        process.terminate()
        process.join()
        raise KeyboardInterrupt(
            "Run the same command again to go on from the last checkpoints."
        ) from error
    assert process.exitcode is not None
    return process.exitcode


def _start_server() -> None:
    """Start the server of processes, deaf to the signals that SLURM sends to the whole group.

    The run saves and stops at them; a server that they ended could no longer say when it has.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        # Leaves SIGTERM unblocked.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _be_pretrain(arguments: Sequence[str], script: str) -> None:
    """Be scripts/pretrain.py with these arguments; ends the process."""
    from ecgfounder_train.training.pretrain import train

    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    # Lightning starts further ranks with this very command line.
    sys.argv = [script, *arguments]
    app.run("pretrain", train)


class MemberJob:
    """What a SLURM job does: train one member, save before the time is up, come back."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train, and return the exit status of scripts/pretrain.py."""
        arguments = self.arguments
        tasks = int(os.environ.get("SLURM_NTASKS_PER_NODE") or os.environ.get("SLURM_NTASKS", "1"))
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if tasks * nodes > 1:
            arguments = [*arguments, f"trainer.devices={tasks}", f"trainer.num_nodes={nodes}"]
        # A new session: the signals of the batch system reach the run through us, in order.
        self._process = subprocess.Popen(
            [sys.executable, str(script_of("pretrain")), *arguments], start_new_session=True
        )
        status = self._process.wait()
        if status == 128 + signal.SIGTERM:
            # Preempted: a job whose tasks end within the grace time is not requeued by SLURM; one
            # that has saved and stays until it is killed comes back.
            time.sleep(600)
        return status

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Let the run save, then ask submitit to put the job into the queue again."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            self._process.wait()
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(MemberJob(self.arguments))


def train_on_slurm(members: Sequence[Sized], launcher: Mapping[str, Any], folder: Path) -> int:
    """Submit the unfinished members as one array of jobs, wait, and name what failed.

    Interrupting only stops the waiting: the jobs go on, and the same command finds them in the
    queue. Whether a member is finished is read from its run, so no accounting (sacct) is needed.

    Args:
        members: All members.
        launcher: The keys of `hydra/launcher=submitit_slurm`.
        folder: Where job ids and logs are kept.
    """
    ledger = folder / "jobs.json"
    jobs: dict[str, str] = json.loads(ledger.read_text()) if ledger.is_file() else {}
    queued = _queued(list(jobs.values()))
    pending = [item for item in members if progress_of(item).state != "finished"]
    new = [item for item in pending if jobs.get(item.member.name) not in queued]
    if new:
        executor = _executor(launcher, folder)
        with executor.batch():
            submitted = [executor.submit(MemberJob(_absolute(item))) for item in new]
        for item, job in zip(new, submitted, strict=True):
            jobs[item.member.name] = str(job.job_id)
        with atomic_file(ledger, "w") as handle:
            json.dump(jobs, handle, indent=2)
    print(
        f"{len(members)} members, {len(members) - len(pending)} of them finished; submitted "
        f"{len(new)} jobs, {len(pending) - len(new)} were in the queue before.",
        flush=True,
    )
    waited = _wait(pending, jobs)
    if waited is not None:
        return waited
    failed = {
        item.member.name: f"see {folder / 'slurm'}/{jobs[item.member.name]}_*_log.out and .err"
        for item in pending
        if progress_of(item).state != "finished"
    }
    return _summary(members, failed)


def _wait(pending: Sequence[Sized], jobs: Mapping[str, str]) -> int | None:
    """Return None when no job is left in the queue, an exit code when a signal came before."""
    begun, first = time.monotonic(), sum(_remaining(item) for item in pending)
    shown = -1
    with stop_on_signals() as stop:
        while _queued([jobs[item.member.name] for item in pending]):
            finished = sum(progress_of(item).state == "finished" for item in pending)
            left = sum(_remaining(item) for item in pending)
            if finished != shown:
                shown = finished
                rate = (time.monotonic() - begun) / max(first - left, 1e-9)
                tail = f", about {format_duration(rate * left)} left" if left < first else ""
                print(f"{finished} of {len(pending)} jobs are done{tail}.", flush=True)
            for _ in range(20):
                time.sleep(0.1)
                if stop.signal is not None:
                    print(
                        "No longer waiting; the jobs go on. The same command finds them again, "
                        "scancel ends them.",
                        flush=True,
                    )
                    return stop.exit_code
    return None


def _queued(ids: Sequence[str]) -> set[str]:
    """Return which of the jobs are waiting or running."""
    if not ids:
        return set()
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", "--me"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except FileNotFoundError as error:
        raise UserError(
            "hydra/launcher=submitit_slurm needs SLURM's commands (squeue, sbatch) on this machine."
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        # A controller that does not answer for a moment says nothing about the jobs.
        return set(ids)
    return set(ids) & set(done.stdout.split())


def _executor(launcher: Mapping[str, Any], folder: Path) -> "submitit.AutoExecutor":
    with needs("cluster", "hydra/launcher=submitit_slurm"):
        import submitit
    retries = launcher.get("max_num_timeout") or 0
    try:
        executor = submitit.AutoExecutor(
            folder=folder / "slurm", cluster="slurm", slurm_max_num_timeout=retries
        )
    except RuntimeError as error:
        raise UserError(
            "hydra/launcher=submitit_slurm needs SLURM's commands (squeue, sbatch) on this machine."
        ) from error
    settings = {
        key if key in _SHARED_KEYS else f"slurm_{key}": value
        for key, value in launcher.items()
        if key not in _LAUNCHER_KEYS and value is not None
    }
    try:
        executor.update_parameters(name="ablation", **settings)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"hydra.launcher: {str(error).splitlines()[0]}") from error
    return executor


def _absolute(item: Sized) -> list[str]:
    """Return a member's arguments with folders that mean the same wherever the job starts."""
    folders = {
        "shards": item.config["shards"],
        **{f"paths.{key}": value for key, value in item.config["paths"].items()},
    }
    rest = [a for a in item.member.arguments if a.split("=")[0] not in folders]
    return [*rest, *(f"{key}={Path(value).resolve()}" for key, value in folders.items())]


def list_members(config: Mapping[str, Any]) -> int:
    """Print the members with number, size, budget and state."""
    ablation = Ablation.from_config(config)
    if config["shards"] is None:
        for number, member in enumerate(ablation.members):
            print(f"{number:3d}  {member.name}")
        print("With shards=DIR also size, budget and state.")
        return 0
    for number, item in enumerate(plan_members(ablation)):
        at = progress_of(item)
        print(
            f"{number:3d}  {item.member.name}  {short_count(item.parameters)} parameters, "
            f"{short_count(item.flops)}FLOP, {at.samples_seen:,} of {item.samples:,} ECGs, "
            f"{at.state}"
        )
    return 0
