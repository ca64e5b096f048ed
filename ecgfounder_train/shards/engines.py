"""Engines that build shards: inline, local Dask workers, or Dask workers in SLURM jobs.

Dask reruns the tasks of a worker that is lost. Its scheduler lives in the process that prepares:
if it dies, the workers exit, and the same command resumes from the finished shards. Two workers may
therefore build the same shard at once, which is why its temporary name is random and its bytes
depend on the plan alone.
"""

import atexit
import logging
import os
import queue
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.private_files import open_private_folder
from ecgfounder_train.records.profiles import SignalProfile
from ecgfounder_train.settings.preparing import ExecutorSettings
from ecgfounder_train.shards.plan import PlannedShard
from ecgfounder_train.shards.writer import BuiltShard, RecordPlace, build_shard

_LOST_WORKERS = 10  # a shard is not retried after losing this many workers
_POLL_S = 2.0
_LOST_JOB_S = 10.0  # a job without any worker for this long is replaced
_TELL_S = 60.0


@dataclass(frozen=True)
class ExecutorOptions(ExecutorSettings, name="executor"):
    """The keys of ``configs/executor``."""

    def workers(self) -> int:
        """Return how many worker processes there are to be."""
        return self.num_workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to make one shard."""

    planned: PlannedShard
    folder: Path
    place: RecordPlace
    profile: SignalProfile
    num_labels: int
    sites: tuple[str, ...]
    staging: Path | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """Result of a task: a shard, or the reason it failed."""

    task: ShardTask
    built: BuiltShard | None = None
    rows: NDArray[np.void] | None = None
    error: str = ""
    """Message for the terminal: no path, no traceback."""
    trace: str = ""
    """For the private folder."""
    fatal: bool = False
    """A user error that every other shard would hit as well."""
    peak_rss_bytes: int = 0


def make_shard(
    task: ShardTask,
    on_record: Callable[[bool], None] = lambda written: None,
    on_share: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Return the outcome of a task; errors are part of the outcome and are not raised."""
    try:
        built, rows = build_shard(
            task.planned,
            task.folder,
            task.place,
            task.profile,
            task.num_labels,
            task.sites,
            on_record,
            on_share,
            task.staging,
        )
    except UserError as error:
        return Outcome(task, error=str(error), fatal=True)
    except Exception as error:
        words = getattr(error, "strerror", None) or _without_paths(str(error), task.planned)
        notes = "; ".join(getattr(error, "__notes__", ()))
        words = f"{type(error).__name__}: {words}" + (f" ({notes})" if notes else "")
        return Outcome(task, error=words, trace=traceback.format_exc())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Outcome(task, built, rows, peak_rss_bytes=peak)


def _without_paths(words: str, planned: PlannedShard) -> str:
    """Return an error message with record keys in place of paths, which storage clients include."""
    named = planned.records.select("record_path", "record_key")
    listed = [(path, key) for path, key in named.iter_rows() if path in words]
    for path, key in sorted(listed, key=lambda row: -len(row[0])):
        words = words.replace(path, key)
    return words


class Engine(Protocol):
    """Accepts tasks and returns their outcomes in any order."""

    capacity: int
    """Number of tasks that keep it busy; more would only fill its memory."""

    def submit(self, task: ShardTask) -> None: ...

    def wait(self) -> Outcome: ...


def outcomes(engine: Engine, tasks: Iterable[ShardTask], tries: int) -> Iterator[Outcome]:
    """Yield one outcome per task; a shard that fails is tried again, `tries` times in all.

    Another try comes after the other shards, when a storage may have recovered.
    """
    first, again = iter(tasks), deque[ShardTask]()
    running = 0
    while True:
        while running < engine.capacity:
            task = next(first, None) or (again.popleft() if again else None)
            if task is None:
                break
            engine.submit(task)
            running += 1
        if not running:
            return
        outcome = engine.wait()
        running -= 1
        if outcome.built is None and not outcome.fatal and outcome.task.attempt < tries:
            again.append(replace(outcome.task, attempt=outcome.task.attempt + 1))
        else:
            yield outcome


@dataclass
class InlineEngine:
    """Makes the shards one after the other in this process."""

    on_records: Callable[[int, int], None] = lambda written, rejected: None
    on_share: Callable[[float], None] = lambda share: None
    capacity: int = 1
    _tasks: deque[ShardTask] = field(default_factory=deque)

    def submit(self, task: ShardTask) -> None:
        """Queue a task."""
        self._tasks.append(task)

    def wait(self) -> Outcome:
        """Build the next shard."""
        return make_shard(
            self._tasks.popleft(),
            lambda written: self.on_records(written, not written),
            self.on_share,
        )


def open_engine(
    options: ExecutorOptions,
    num_records: int,
    num_shards: int,
    scratch: Path,
    on_records: Callable[[int, int], None],
    on_share: Callable[[float], None] = lambda share: None,
) -> AbstractContextManager[Engine]:
    """Return a context that gives an engine for so many records in so many shards.

    Args:
        options: The keys of ``configs/executor``.
        num_records: Few are built in this process, except under SLURM.
        num_shards: No more workers than shards are started.
        scratch: Private folder, on a shared file system, for keys and logs of SLURM jobs.
        on_records: Shows so many more written and rejected; called here only where records are
            read in this process.
        on_share: Likewise, shows the share done of a long recording.
    """
    workers = min(options.workers(), num_shards)
    local_is_faster = options.kind == "local" and (workers < 2 or num_records < options.min_records)
    if options.kind == "inline" or local_is_faster or not num_shards:
        return nullcontext(InlineEngine(on_records, on_share))
    return DaskEngine(options, workers, scratch)


class DaskEngine:
    """Makes shards on Dask workers, on this machine or in SLURM jobs. A context manager."""

    def __init__(self, options: ExecutorOptions, num_workers: int, scratch: Path) -> None:
        self.options, self.num_workers, self.scratch = options, num_workers, scratch
        # One task queued per worker, so that none idles.
        self.capacity = 2 * num_workers
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks: dict[str, ShardTask] = {}
        self._stack = ExitStack()
        self._seen: dict[str, float] = {}
        self._refused: list[str] = []
        self._told = time.monotonic()

    def __enter__(self) -> "DaskEngine":
        with needs("cluster", f"executor={self.options.kind}"):
            import dask
            from distributed import Client

        # Workers of a killed parent must exit soon; the task of a lost worker is rerun.
        settings = {
            "distributed.scheduler.allowed-failures": _LOST_WORKERS,
            "distributed.comm.timeouts.connect": "30s",
            "distributed.admin.large-graph-warning-threshold": "1GB",
            # Tasks hold paths of records: they never go to a worker's disk.
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.nanny.pre-spawn-environ.POLARS_MAX_THREADS": 1,
            "distributed.worker.preload": [__name__],
            "distributed.deploy.lost-worker-timeout": f"{_LOST_JOB_S}s",
        }
        with ExitStack() as stack:
            stack.enter_context(dask.config.set(settings))
            make = self._slurm_cluster if self.options.kind == "slurm" else self._local_cluster
            self._cluster = stack.enter_context(make(self._security()))
            self._client = stack.enter_context(Client(self._cluster))  # type: ignore[no-untyped-call]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def submit(self, task: ShardTask) -> None:
        """Submit a task to the next free worker."""
        future = self._client.submit(make_shard, task, pure=False)
        self._tasks[future.key] = task
        future.add_done_callback(self._done.put)

    def wait(self) -> Outcome:
        """Return the outcome of any finished task."""
        while True:
            try:
                future = self._done.get(timeout=_POLL_S)
                break
            except queue.Empty:
                self._tend()
        self._tend()
        task = self._tasks.pop(future.key)
        if future.status == "finished":
            outcome: Outcome = future.result()
            return replace(outcome, task=task)
        if future.status == "error":
            error = future.exception()
            lost = type(error).__name__ == "KilledWorker"
            words = f"its worker was lost {_LOST_WORKERS} times" if lost else type(error).__name__
            # No further try: Dask has made them.
            done = replace(task, attempt=task.attempt + (1 << 20) * lost)
            return Outcome(done, error=words, trace=str(error))
        return Outcome(task, error=f"its task was {future.status}")

    def _security(self) -> Any:
        if self.options.encrypt is False:
            return None
        try:
            import cryptography  # noqa: F401
            from distributed.security import Security

            return Security.temporary()  # type: ignore[no-untyped-call]
        except ImportError:
            if self.options.encrypt:
                raise UserError(
                    "executor.encrypt=true needs the package cryptography: pip install "
                    "'ecgfounder_train[cluster]'. (With executor.encrypt=false anyone who can "
                    "reach this machine's ports can run code as you.)"
                ) from None
            print(
                "warning: the package cryptography is not installed; workers talk unencrypted and "
                "unauthenticated. On a machine shared with others: pip install cryptography",
                file=sys.stderr,
            )
            return None

    def _local_cluster(self, security: Any) -> Any:
        from distributed import LocalCluster
        from distributed.deploy.spec import close_clusters

        try:
            return LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=self.num_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=self.options.memory_per_worker,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                security=security,
                silence_logs=logging.CRITICAL,
            )
        except KeyboardInterrupt:
            # The terminal sent it to the workers too. Dask cannot close what is half started, and
            # says so with tracebacks when Python ends; workers end with this process anyway.
            atexit.unregister(close_clusters)
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise

    def _slurm_cluster(self, security: Any) -> Any:
        with needs("cluster", "executor=slurm"):
            from dask_jobqueue.slurm import SLURMCluster, SLURMJob
            from distributed.core import Status

        options = self.options
        if shutil.which("sbatch") is None:
            raise UserError(
                "executor=slurm, but sbatch was not found. Run on a login node of the cluster "
                "that can submit jobs, or use executor=local."
            )
        processes = min(options.workers_per_job, self.num_workers)
        logs = Path(options.log_dir) if options.log_dir else self.scratch / "workers"
        keys = self.scratch / "tls"
        for folder in (logs, keys):
            open_private_folder(folder)
        refused = self._refused

        class Job(SLURMJob):  # type: ignore[misc]
            """SLURM job that records a refused sbatch; Dask would wait for its workers forever."""

            async def _submit_job(self, script_filename: str) -> Any:
                try:
                    return await super()._submit_job(script_filename)  # type: ignore[no-untyped-call]
                except RuntimeError as error:
                    refused.append(" ".join(str(error).partition("stderr:\n")[2].split()))
                    # What Dask wants to see where it cleans up.
                    self.status = Status.failed
                    raise

        # asyncio would repeat the refusal with a traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        cluster = SLURMCluster(
            job_cls=Job,  # type: ignore[arg-type]
            queue=options.partition,
            account=options.account,
            walltime=options.walltime,
            cores=processes,
            processes=processes,
            memory=_times(options.memory_per_worker, processes),
            # A requeued job would join a build that has already replaced it.
            job_extra_directives=["--no-requeue", *options.directives],
            job_script_prologue=["export OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1"],
            interface=options.interface,
            log_directory=str(logs),
            shared_temp_directory=str(keys),
            python=options.python or sys.executable,
            death_timeout=60,
            security=security,
            protocol="tls://" if security else "tcp://",
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            job_name="ecg-shards",
            silence_logs=logging.CRITICAL,
        )
        self._num_jobs = -(-self.num_workers // processes)
        cluster.scale(jobs=self._num_jobs)  # type: ignore[no-untyped-call]
        return cluster

    def _tend(self) -> None:
        """Replace SLURM jobs whose workers are lost; report when no worker is running."""
        now = time.monotonic()
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        alive = {str(worker["name"]) for worker in workers}
        if self._refused and not self._seen and not alive:
            raise UserError(
                f"SLURM refuses the workers' jobs: {self._refused[0]}. What they ask for is in "
                "executor.partition, executor.account, executor.walltime, executor.workers_per_job "
                "times executor.memory_per_worker, and executor.directives."
            )
        if self.options.kind == "slurm":
            jobs = {
                job: any(name == job or name.startswith(f"{job}-") for name in alive)
                for job in map(str, list(self._cluster.workers))
            }
            self._seen |= {job: now for job, lives in jobs.items() if lives}
            dead = [
                job
                for job, lives in jobs.items()
                if not lives and job in self._seen and now - self._seen[job] > _LOST_JOB_S
            ]
            if len(jobs) - len(dead) < self._num_jobs:
                self._cluster.scale(jobs=self._num_jobs + len(dead))
        if alive or now - self._told < _TELL_S:
            self._told = now if alive else self._told
            return
        self._told = now
        where = "squeue shows the jobs" if self.options.kind == "slurm" else "they are starting"
        print(f"No worker yet ({where}); waiting.", file=sys.stderr, flush=True)


def dask_setup(worker: object) -> None:
    """Ignore SIGINT in workers: Ctrl-C is handled by the process that prepares.

    Dask calls this in each worker process it starts on this machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _times(memory: str, processes: int) -> str:
    from dask.utils import format_bytes, parse_bytes

    return str(format_bytes(processes * parse_bytes(memory)))
