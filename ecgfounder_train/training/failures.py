"""Failure of a job of several ranks: the first rank's reason, reported by all and printed last.

A rank that dies breaks the connections of the others, and what they print buries the reason. So the
first failing rank leaves a note in the run directory; the others read it, repeat it in one line and
end. No rank waits longer than `GIVE_UP_S` for one that hangs in a collective or in its teardown.
A node that no longer answers leaves no note; `heartbeat` detects that.
"""

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.ranks import CHILD_VARIABLE, Launch, is_rank_zero, process_rank
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.training.heartbeat import Heartbeat, can_be_watched
from ecgfounder_train.training.launch import JobEnvironment, RankLauncher
from ecgfounder_train.training.signals import stop_on_signals

GIVE_UP_S = 12.0
"""From the first failure to the end of a rank that does not end by itself."""
CUT_OFF_STATUS = 75
"""Exit status where another node no longer answers; slurm/pretrain.sbatch continues elsewhere."""
_POLL_S = 1.0
_PEER_NOTE_S = 6.0
"""How long a rank that lost its connection waits for another one's reason."""
_BROKEN_LINK = re.compile(
    r"gloo|NCCL|ProcessGroup|TCPStore|Connection (closed|reset|refused)|Broken pipe|Socket Timeout"
    # gloo on the first and on the other ranks when no answer arrives in time.
    r"|timeout caused pair closure|Timed out waiting",
    re.IGNORECASE,
)
_ATTEMPT_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
)
_ASKED_TO_STOP = {128 + int(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}


@dataclass(frozen=True)
class Failure:
    """Reason of the first failing rank."""

    rank: int
    reason: str
    cut_off: bool = False
    """Its node no longer answers: a rank that waits for it will wait for ever."""


class OtherRankError(UserError):
    """This rank ends because another one did."""


class FailureNote:
    """`failure.json` of a run directory: written once per attempt, by the first failing rank.

    Until this job holds the run, the folder may belong to another one that is training in it. A
    note of such a start is written beside the folder, and only where other ranks wait for it.

    Args:
        run: The run.
        has_peers: Other ranks were started by a launcher and wait for this one.
        is_ours: This job holds the run already.
    """

    def __init__(self, run: RunDirectory, has_peers: bool = False, is_ours: bool = False) -> None:
        self.path = run.failure_file
        self._run = run
        self._has_peers = has_peers
        self._is_ours = is_ours

    @property
    def _before(self) -> Path:
        """The note of a start that does not hold the run yet."""
        return self._run.path.parent / f".{self._run.name}.start-{_attempt()}.json"

    def take_run(self) -> None:
        """From now on the run is this job's: delete notes of earlier attempts."""
        self._is_ours = True
        if self.read() is None:
            self.path.unlink(missing_ok=True)
        for path in self._run.path.parent.glob(f".{self._run.name}.start-*.json"):
            if path != self._before:
                path.unlink(missing_ok=True)
        self.keep()

    def join_run(self) -> None:
        """As another rank than 0: rank 0 has answered, so the run is this job's."""
        self._is_ours = True

    def keep(self) -> None:
        """Move a note that was left before the run was this job's into the run's folder."""
        if self._is_ours and self._before.is_file():
            with suppress(OSError):
                self._before.replace(self.path)

    def leave(self, rank: int, reason: str, cut_off: bool = False) -> None:
        """Write the note unless this attempt has one."""
        path = self.path if self._is_ours else self._before
        if self.read() is not None or not (self._is_ours or self._has_peers):
            return
        content = {"rank": rank, "reason": reason, "cut_off": cut_off, "attempt": _attempt()}
        partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(6)}")
        try:
            partial.write_text(json.dumps(content, indent=2))
            partial.replace(path)
        except OSError:
            # A full disk may be the very reason; it is printed in any case.
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def read(self) -> Failure | None:
        """Return this attempt's note, None if there is none."""
        for path in (self.path, self._before):
            try:
                content = json.loads(path.read_text())
                if content["attempt"] == _attempt():
                    reason, cut_off = str(content["reason"]), bool(content.get("cut_off"))
                    return Failure(int(content["rank"]), reason, cut_off)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def end_process(self, reason: str, status: int = 1) -> None:
        """End this process at once, wherever its main thread hangs, and print why."""
        self.keep()
        if is_rank_zero() and self._is_ours:
            self._mark_run()
        print(f"error on rank {process_rank()}: {reason}", file=sys.stderr, flush=True)
        os._exit(status)

    def _mark_run(self) -> None:
        """Set the state in run.json to failed, as the main thread can no longer."""
        with suppress(OSError, ValueError, UserError):
            state = json.loads(self._run.state_file.read_text())
            if state.get("state") == "training":
                self._run.write_state(state | {"state": "failed"})


@contextmanager
def propagate_failures(run: RunDirectory, launch: Launch) -> Iterator[FailureNote]:
    """Run the block; an exception in it ends all ranks with its reason.

    Args:
        run: The run, whose note is yielded.
        launch: Who this process is in the job.

    Raises:
        OtherRankError: Another rank failed first; says which and why.
    """
    note = FailureNote(run, not launch.starts_ranks, is_ours=launch.launcher == "child")
    several = (launch.world_size or 1) > 1
    over = threading.Event()
    if several:
        threading.Thread(target=_end_with_others, args=(note, over), daemon=True).start()
    try:
        yield note
    except OtherRankError:
        over.set()
        raise
    except Exception as error:
        if several and is_broken_link(error):
            # A launcher ends the other ranks by SIGTERM while this one waits for the reason.
            with stop_on_signals():
                failure = as_peer_failure(note, error)
            raise failure from None
        note.leave(process_rank(), in_one_line(error))
        note.keep()
        _report_to_torchrun(error)
        if isinstance(error, UserError):
            over.set()
        raise
    except BaseException:
        over.set()
        raise
    over.set()


def is_broken_link(error: BaseException) -> bool:
    """Return whether an error only shows that another rank has ended."""
    if "EADDRINUSE" in str(error):
        # Another job has the port that the ranks were to meet at.
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_BROKEN_LINK.search(str(error)))


def in_one_line(error: BaseException) -> str:
    """Return an error as one line, with the name of its class unless it is a `UserError`."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}"[:2000]


def _attempt() -> str:
    """Return an id that all ranks of one start have in common, and no other start.

    Computed when it is needed: the port is set when further ranks are started.
    """
    words = [os.environ.get(name, "") for name in _ATTEMPT_VARIABLES]
    if not any(words):
        # Under SLURM the port is set too late to be part of it.
        starter = os.environ.get(CHILD_VARIABLE, "").partition(":")[0]
        words = [starter or os.environ.get("MASTER_PORT") or str(os.getpid())]
    return hashlib.sha256("/".join(words).encode()).hexdigest()[:16]


def as_peer_failure(note: FailureNote, error: BaseException) -> OtherRankError:
    """Return a lost connection as the failure of the rank that caused it, if that left a note."""
    deadline = time.monotonic() + _PEER_NOTE_S
    while (failure := note.read()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if failure is not None:
        return OtherRankError(_repeated(failure))
    lost = (
        "another rank ended without a reason (killed, out of memory, or its node or network is "
        f"lost): {in_one_line(error)[:300]}. Run the same command again to continue from the last "
        "checkpoint"
    )
    note.leave(process_rank(), lost)
    return OtherRankError(lost[0].upper() + lost[1:] + ".")


def _repeated(failure: Failure) -> str:
    return f"Rank {failure.rank} ended first, and the job with it: {failure.reason}"


def _end_with_others(note: FailureNote, over: threading.Event) -> None:
    """End this process some time after the first failure, wherever it hangs."""
    noticed_s: float | None = None
    while not over.wait(_POLL_S):
        failure = note.read()
        if failure is None:
            continue
        noticed_s = noticed_s or time.monotonic()
        if failure.cut_off or time.monotonic() - noticed_s > GIVE_UP_S:
            note.end_process(_repeated(failure), CUT_OFF_STATUS if failure.cut_off else 1)


def _report_to_torchrun(error: BaseException) -> None:
    """Pass the reason to torchrun, which names the first failure of all in its summary."""
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


class OwnRanksStrategy(DDPStrategy):
    """DDP that watches its ranks: those of this machine by `_watch`, other nodes by a heartbeat.

    Lightning's own observer kills rank 0 together with the rest, before it can say why. And it
    takes the devices that a rank sees for the ranks of its node, which they are not where a batch
    system shows each rank its own device alone.
    """

    def __init__(
        self, note: FailureNote, link_timeout_s: float, ranks_per_node: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self._note = note
        self._link_timeout_s = link_timeout_s
        self._ranks_per_node = ranks_per_node
        self._heartbeat: Heartbeat | None = None

    @property
    @override
    def num_processes(self) -> int:
        return self._ranks_per_node

    @property
    @override
    def root_device(self) -> torch.device:
        devices = self.parallel_devices
        assert devices
        return devices[0] if len(devices) == 1 else devices[self.local_rank]

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        self._note.join_run()
        if self.num_nodes > 1 and self._link_timeout_s > 0 and can_be_watched():
            self._start_heartbeat()

    @override
    def teardown(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()
        super().teardown()

    def _start_heartbeat(self) -> None:
        assert self.cluster_environment is not None
        heartbeat = self._heartbeat = Heartbeat(self._link_timeout_s, self._end_without)
        where: Any = heartbeat.listen() if self.global_rank == 0 else None
        port, token = self.broadcast(where)
        # Ranks on the node of rank 0 are not cut off from it by any cable.
        if self.node_rank > 0:
            heartbeat.connect(self.global_rank, self.cluster_environment.main_address, port, token)

    def _end_without(self, rank: int) -> None:
        reason = (
            f"rank {rank} is lost: its node has not answered for {self._link_timeout_s:.0f} s "
            "(trainer.link_timeout_s), so it or the network has failed. Run the same command again "
            "to continue from the last checkpoint."
        )
        self._note.leave(process_rank(), reason, cut_off=True)
        self._note.end_process(reason[0].upper() + reason[1:], CUT_OFF_STATUS)

    @override
    def _configure_launcher(self) -> None:
        environment = self.cluster_environment
        assert isinstance(environment, JobEnvironment)
        if not environment.creates_processes_externally:
            self._launcher = RankLauncher(
                environment, self.num_processes, self.num_nodes, self._watch_ranks
            )

    def _watch_ranks(self, ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
        threading.Thread(target=_watch, args=(ranks, self._note), daemon=True).start()


def _watch(ranks: Sequence["subprocess.Popen[bytes]"], note: FailureNote) -> None:
    """Note which rank ended without a reason; end all of them if they do not follow."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [
            (number, code)
            for number, code in enumerate(codes, 1)
            if code and code not in _ASKED_TO_STOP
        ]
        if failed:
            break
        if None not in codes:
            return
        time.sleep(0.2)
    number, code = failed[0]
    note.leave(number, _ended(code))
    # Rank 0, this process, ends itself: see `_end_with_others`.
    deadline = time.monotonic() + GIVE_UP_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.2)
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()


def _ended(code: int) -> str:
    if code > 0:
        return f"it ended with status {code}; its own message is above."
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return (
        f"it was killed by {name}{hint}. Run the same command again to continue from the last "
        "checkpoint."
    )
