"""Why a job of several ranks failed: the first rank's reason, known to all and printed last.

A rank that dies breaks the connections of the others, and what they print buries the reason. So the
first failing rank leaves a note in the run directory; the others read it, repeat it in one line and
end. Nobody waits longer than `GIVE_UP_S` for a rank that hangs in a collective or in its teardown.
A node that is not heard any more leaves no note; `lines` find out.
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
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.ranks import is_rank_zero, process_rank
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.training.launch import JobEnvironment, RankLauncher
from ecgfounder_train.training.lines import Lines, can_be_watched

GIVE_UP_S = 12.0
"""From the first failure to the end of a rank that does not end by itself."""
CUT_OFF_STATUS = 75
"""Exit status where another node is not heard any more; slurm/pretrain.sbatch goes on elsewhere."""
_POLL_S = 1.0
_FIRST_WORD_S = 6.0
"""How long a rank that lost its connection waits for another one's reason."""
_BROKEN_LINK = re.compile(
    r"gloo|NCCL|ProcessGroup|TCPStore|Connection (closed|reset|refused)|Broken pipe|Socket Timeout"
    # What gloo says on the first and on the other ranks when nobody answers in time.
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
    """What the first failing rank says."""

    rank: int
    reason: str
    cut_off: bool = False
    """Its node is not heard any more: nobody who waits for it will get an answer."""


class OtherRankError(UserError):
    """This rank ends because another one did."""


class FailureNote:
    """`failure.json` of a run directory: written once per attempt, by whoever fails first."""

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.failure_file
        self._run = run

    def clear(self, world_size: int) -> None:
        """Forget earlier attempts; another rank may have failed in this one already."""
        if world_size == 1 or self.read() is None:
            self.path.unlink(missing_ok=True)

    def leave(self, rank: int, reason: str, cut_off: bool = False) -> None:
        """Write the note unless this attempt has one."""
        if self.read() is not None:
            return
        content = {"rank": rank, "reason": reason, "cut_off": cut_off, "attempt": _attempt()}
        partial = self.path.with_name(f"{self.path.name}.partial-{secrets.token_hex(6)}")
        try:
            partial.write_text(json.dumps(content, indent=2))
            partial.replace(self.path)
        except OSError:
            # A full disk may be the very reason; it is printed in any case.
            partial.unlink(missing_ok=True)

    def read(self) -> Failure | None:
        """Return this attempt's note, None if there is none."""
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        if content.get("attempt") != _attempt():
            return None
        return Failure(int(content["rank"]), str(content["reason"]), bool(content.get("cut_off")))

    def end_process(self, reason: str, status: int = 1) -> None:
        """End this process at once, wherever its main thread hangs, and say why."""
        if is_rank_zero():
            self._mark_run()
        print(f"error on rank {process_rank()}: {reason}", file=sys.stderr, flush=True)
        os._exit(status)

    def _mark_run(self) -> None:
        """Say in run.json that the run has failed, as the main thread can no longer."""
        with suppress(OSError, ValueError, UserError):
            state = json.loads(self._run.state_file.read_text())
            if state.get("state") == "training":
                self._run.write_state(state | {"state": "failed"})


@contextmanager
def told_to_all(run: RunDirectory, world_size: int) -> Iterator[None]:
    """Run the block; an exception in it becomes known to all ranks, and ends them.

    Raises:
        OtherRankError: Another rank failed first; says which and why.
    """
    note = FailureNote(run)
    if is_rank_zero():
        note.clear(world_size)
    over = threading.Event()
    if world_size > 1:
        threading.Thread(target=_end_with_others, args=(note, over), daemon=True).start()
    try:
        yield
    except OtherRankError:
        over.set()
        raise
    except Exception as error:
        if world_size > 1 and is_broken_link(error):
            raise _blamed(note, error) from None
        note.leave(process_rank(), in_one_line(error))
        _tell_torchrun(error)
        if isinstance(error, UserError):
            over.set()
        raise
    except BaseException:
        over.set()
        raise
    over.set()


def is_broken_link(error: BaseException) -> bool:
    """Tell whether an error is only what the end of another rank looks like from here."""
    if "EADDRINUSE" in str(error):
        # Another job has the port that the ranks were to meet at.
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_BROKEN_LINK.search(str(error)))


def in_one_line(error: BaseException) -> str:
    """Return an error as a message; its kind stands before it where that says something."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}"[:2000]


def _attempt() -> str:
    """Return what all ranks of one start have in common, and no other start.

    Not asked for before it is needed: Lightning sets the port when it starts further ranks.
    """
    words = [os.environ.get(name, "") for name in _ATTEMPT_VARIABLES]
    if not any(words):
        # Under SLURM the port is set too late to be part of it, and says nothing new.
        words = [os.environ.get("MASTER_PORT", "")]
    return hashlib.sha256("/".join(words).encode()).hexdigest()[:16]


def _blamed(note: FailureNote, error: BaseException) -> OtherRankError:
    deadline = time.monotonic() + _FIRST_WORD_S
    while (failure := note.read()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if failure is not None:
        return OtherRankError(_repeated(failure))
    lost = (
        "another rank vanished without a word (killed, out of memory, or its node or network is "
        f"gone): {in_one_line(error)[:300]}. Run the same command again to go on from the last "
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


def _tell_torchrun(error: BaseException) -> None:
    """Hand the reason to torchrun, which names the first failure of all in its summary."""
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


class OwnRanksStrategy(DDPStrategy):
    """DDP whose further ranks on this machine are watched by `_watch`, other nodes by `Lines`.

    Lightning's own observer kills rank 0 together with the rest, before it can say why. And it
    takes the devices that a rank sees for the ranks of its node, which they are not where a batch
    system shows each rank its own device alone.
    """

    def __init__(
        self, run: RunDirectory, link_timeout_s: float, ranks_per_node: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self._run_directory = run
        self._link_timeout_s = link_timeout_s
        self._ranks_per_node = ranks_per_node
        self._lines: Lines | None = None

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
        if self.num_nodes > 1 and self._link_timeout_s > 0 and can_be_watched():
            self._open_lines()

    @override
    def teardown(self) -> None:
        if self._lines is not None:
            self._lines.close()
        super().teardown()

    def _open_lines(self) -> None:
        assert self.cluster_environment is not None
        lines = self._lines = Lines(self._link_timeout_s, self._end_without)
        where: Any = lines.listen() if self.global_rank == 0 else None
        port, token = self.broadcast(where)
        # Ranks on the node of rank 0 are not cut off from it by any cable.
        if self.node_rank > 0:
            lines.connect(self.global_rank, self.cluster_environment.main_address, port, token)

    def _end_without(self, rank: int) -> None:
        reason = (
            f"rank {rank} vanished without a word: its node has not answered for "
            f"{self._link_timeout_s:.0f} s (trainer.link_timeout_s), so it or the network is gone. "
            "Run the same command again to go on from the last checkpoint."
        )
        note = FailureNote(self._run_directory)
        note.leave(process_rank(), reason, cut_off=True)
        note.end_process(reason[0].upper() + reason[1:], CUT_OFF_STATUS)

    @override
    def _configure_launcher(self) -> None:
        environment = self.cluster_environment
        assert isinstance(environment, JobEnvironment)
        if not environment.creates_processes_externally:
            self._launcher = RankLauncher(
                environment, self.num_processes, self.num_nodes, self._watch_ranks
            )

    def _watch_ranks(self, ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
        note = FailureNote(self._run_directory)
        threading.Thread(target=_watch, args=(ranks, note), daemon=True).start()


def _watch(ranks: Sequence["subprocess.Popen[bytes]"], note: FailureNote) -> None:
    """Note which rank ended without a word; end all of them if they do not follow."""
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
        return f"it ended with status {code}; its own message stands above."
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return (
        f"it was killed by {name}{hint}. Run the same command again to go on from the last "
        "checkpoint."
    )
