"""Training on a real SLURM: preempted, cancelled, a node killed, a cable cut; nothing is lost.

One preemption of two ranks by default; with ECG_TEST_TIER=all five of four ranks, and all the rest.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import psutil
import pytest
import run_tools
import tiny_set
from slurm_cluster import LocalSlurm, start_slurm, why_no_cables

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet

ALL = os.environ.get("ECG_TEST_TIER") == "all"
TASKS_PER_NODE = 2 if ALL else 1
PREEMPTIONS = 5 if ALL else 1
SETTINGS = (
    *(item for item in run_tools.EVERYTHING_ON if not item.startswith("budget.")),
    "data.batch_size_per_rank=2",
    "checkpoint.every_samples=160",
    "budget.validate_every_samples=1500",
    "trainer=ddp_cpu",
)
# Steps of sixteen of its 63 samples. Long enough to be disturbed so many times: a preemption takes
# effect a second or two after it was asked for.
LONG, SHORT = "budget.max_epochs=" + ("100" if ALL else "40"), "budget.max_epochs=30"
LONGER = "budget.max_epochs=200"
TIMEOUT_S = 1500.0 if ALL else 400.0

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.multiprocess]
all_tests_only = pytest.mark.skipif(not ALL, reason="ECG_TEST_TIER=all only")


class Job:
    """slurm/pretrain.sbatch on two nodes."""

    def __init__(
        self, slurm: LocalSlurm, runs: Path, arguments: Sequence[str], **exported: str
    ) -> None:
        self.slurm, self.run = slurm, RunDirectory(runs / "run")
        runs.mkdir(exist_ok=True)
        self.log = runs / "job.log"
        # Lightning's own port follows from the job's number, which another cluster on this host may
        # give to a job at the same time. Below those that the system hands out, as to gloo.
        port = str(random.SystemRandom().randrange(25_000, 32_000))
        variables = {"PYTHON": sys.executable, "MASTER_PORT": port, **exported}
        printed = slurm.run(
            "sbatch",
            "--parsable",
            "--nodes=2",
            f"--ntasks-per-node={TASKS_PER_NODE}",
            "--cpus-per-task=1",
            "--gpus-per-task=0",
            "--time=60",
            f"--output={self.log}",
            f"--chdir={tiny_set.REPOSITORY}",
            "--export=ALL," + ",".join(f"{name}={value}" for name, value in variables.items()),
            "slurm/pretrain.sbatch",
            *arguments,
        )
        self.id = printed.strip()

    def wait_for_step(self, step: int) -> None:
        self._wait_while_it_runs(lambda: run_tools.latest_step(self.run) >= step, f"step {step}")

    def wait_for_requeue(self, number: int) -> None:
        self._wait_while_it_runs(lambda: self.restarts() == number, f"requeue {number}")

    def wait_until_over(self) -> str:
        """Return the log once no job is left in the queue."""
        self._wait(lambda: not self.slurm.jobs(), "the end")
        return self.log.read_text()

    def nodes(self) -> list[str]:
        """Names of its nodes, that of rank 0 first."""
        [(_, _, names)] = self.slurm.jobs("running")
        return self.slurm.run("scontrol", "show", "hostnames", names).split()

    def restarts(self) -> int:
        text = self.slurm.run("scontrol", "show", "job", self.id)
        match = re.search(r"Restarts=(\d+)", text)
        assert match
        return int(match[1])

    def seconds(self) -> int:
        """How long its present start has been running."""
        text = self.slurm.run("scontrol", "show", "job", self.id)
        match = re.search(r"RunTime=(\d+):(\d+):(\d+)", text)
        assert match
        hours, minutes, seconds = map(int, match.groups())
        return 3600 * hours + 60 * minutes + seconds

    def ranks(self) -> list[psutil.Process]:
        """The training processes of the cluster, in the order of their ranks."""
        found = {}
        for process in psutil.process_iter():
            try:
                env = process.environ()
                if env.get("SLURM_CONF") == self.slurm.env["SLURM_CONF"] and (
                    "SLURM_STEP_ID" in env and "scripts/pretrain.py" in process.cmdline()
                ):
                    found[int(env["SLURM_PROCID"])] = process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [found[rank] for rank in sorted(found)]

    def _wait_while_it_runs(self, condition: Callable[[], object], what: str) -> None:
        def reached() -> object:
            assert self.slurm.jobs(), f"over before {what}: {self.log.read_text()}"
            return condition()

        self._wait(reached, what)

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            text = self.log.read_text() if self.log.exists() else ""
            assert time.monotonic() < deadline, f"no {what}: {text}{self.slurm.logs()}"
            time.sleep(0.1)


def submit(slurm: LocalSlurm, shards: ShardSet, runs: Path, *more: str, **exported: str) -> Job:
    """Start a tiny run."""
    arguments = tiny_set.tiny_overrides(shards, runs, "run", *SETTINGS, *more)
    return Job(slurm, runs, arguments, **exported)


@pytest.fixture(scope="module")
def whole(
    tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], RunDirectory]:
    """The same run of some length on as many ranks, without SLURM and undisturbed."""
    runs = tmp_path_factory.mktemp("whole")

    def trained(length: str) -> RunDirectory:
        name = length.split("=")[1]
        if not (runs / name).exists():
            devices = f"trainer.devices={2 * TASKS_PER_NODE}"
            more = (*SETTINGS, length, devices)
            process = run_tools.command(tiny_set.tiny_overrides(tiny_shards, runs, name, *more))
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output
        return RunDirectory(runs / name)

    return trained


@pytest.fixture
def cabled_slurm() -> Iterator[LocalSlurm]:
    """Three nodes with networks of their own."""
    if reason := why_no_cables():
        pytest.skip(reason)
    with start_slurm(num_nodes=3, cpus=2, cables=True) as cluster:
        yield cluster


def test_preempted_run_equals_the_undisturbed_one(
    local_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
) -> None:
    job = submit(local_slurm, tiny_shards, tmp_path, LONG)
    with ThreadPoolExecutor() as beside:
        for number in range(1, PREEMPTIONS + 1):
            job.wait_for_step(run_tools.latest_step(job.run) + 11)
            urgent = ("sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null")
            local_slurm.run(*urgent, "--wrap", "sleep 1")
            if number == 1:
                # Now the machine has nothing else to do until the grace time is over.
                undisturbed = beside.submit(whole, LONG)
            job.wait_for_requeue(number)
    log = job.wait_until_over()
    assert log.count("everything up to here is saved") == PREEMPTIONS
    assert log.count("Resuming run run from step-") == PREEMPTIONS
    assert "is complete" in log
    run_tools.assert_same_run(job.run, undisturbed.result())


@all_tests_only
def test_run_on_a_node_that_dies_goes_on_elsewhere(
    local_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
) -> None:
    job = submit(local_slurm, tiny_shards, tmp_path, SHORT)
    job.wait_for_step(20)
    local_slurm.kill_node("n2")
    log = job.wait_until_over()
    if "is complete" not in log:
        # Its ranks may have found out before SLURM did, and have ended the job.
        assert "ended without a reason" in log or "is lost: its node" in log
        job = submit(local_slurm, tiny_shards, tmp_path, SHORT)
        log = job.wait_until_over()
    assert "Resuming run run from step-" in log
    run_tools.assert_same_run(job.run, whole(SHORT))


@all_tests_only
def test_cancelled_run_is_saved_and_goes_on_when_it_is_submitted_again(
    local_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
) -> None:
    job = submit(local_slurm, tiny_shards, tmp_path, SHORT)
    job.wait_for_step(20)
    local_slurm.run("scancel", job.id)
    log = job.wait_until_over()
    assert log.count("everything up to here is saved") == 1
    assert "is complete" not in log and job.restarts() == 0
    again = submit(local_slurm, tiny_shards, tmp_path, SHORT)
    assert "is complete" in again.wait_until_over()
    run_tools.assert_same_run(again.run, whole(SHORT))


@all_tests_only
def test_run_cancelled_while_it_starts_does_not_come_back(
    local_slurm: LocalSlurm, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    """Its tasks do not listen to signals yet, and SIGTERM alone ends them."""
    job = submit(local_slurm, tiny_shards, tmp_path, SHORT)
    job._wait(lambda: len(job.ranks()) == 2 * TASKS_PER_NODE, "ranks")
    local_slurm.run("scancel", job.id)
    log = job.wait_until_over()
    assert "samples seen" not in log and "is complete" not in log and job.restarts() == 0


@all_tests_only
@pytest.mark.parametrize("requeue", ["requeue", "resubmit"])
def test_run_near_its_time_limit_goes_on_by_itself(
    local_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
    requeue: str,
) -> None:
    job = submit(local_slurm, tiny_shards, tmp_path, SHORT, ECG_REQUEUE=requeue)
    job.wait_for_step(20)
    # What --signal=USR1@180 does three minutes before the limit.
    local_slurm.run("scancel", "--signal=USR1", job.id)
    log = job.wait_until_over()
    assert log.count("everything up to here is saved") == 1
    assert ("Submitted batch job" in log) == (requeue == "resubmit")
    run_tools.assert_same_run(job.run, whole(SHORT))


@all_tests_only
def test_run_longer_than_its_time_limit_goes_on_by_itself(
    local_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
) -> None:
    """SLURM itself sends the signal, as slurm/pretrain.sbatch asks for: at the latest when it next
    looks, twice a minute, as the limit is less than three minutes away.
    """
    job = submit(local_slurm, tiny_shards, tmp_path, LONGER)
    job.wait_for_step(20)
    minutes = -(-(job.seconds() + 95) // 60)
    local_slurm.run("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}")
    job.wait_for_requeue(1)
    # However slow this machine is, the second start shall not come to its limit too.
    local_slurm.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")
    log = job.wait_until_over()
    assert log.count("everything up to here is saved") == 1
    assert log.count("Resuming run run from step-") == 1
    assert "DUE TO TIME LIMIT" not in log and "is complete" in log
    run_tools.assert_same_run(job.run, whole(LONGER))


@all_tests_only
def test_killed_task_ends_the_job_and_the_reason_is_told(
    local_slurm: LocalSlurm, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    job = submit(local_slurm, tiny_shards, tmp_path, SHORT)
    job.wait_for_step(20)
    job.ranks()[-1].send_signal(signal.SIGKILL)
    job._wait(lambda: not job.ranks(), "end of the ranks")
    log = job.wait_until_over()
    assert "Another rank ended without a reason" in log
    assert "is complete" not in log


@all_tests_only
def test_run_whose_first_node_loses_its_cable_goes_on_elsewhere(
    cabled_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
) -> None:
    """SLURM requeues on the nodes it still hears, while the former rank 0 hangs in a collective."""
    job = submit(cabled_slurm, tiny_shards, tmp_path, SHORT, GLOO_SOCKET_IFNAME="eth0")
    job.wait_for_step(20)
    cut_off, _ = job.nodes()
    cabled_slurm.cut_cable(cut_off)
    job.wait_for_requeue(1)
    log = job.wait_until_over()
    assert log.count("Resuming run run from step-") == 1
    assert "is complete" in log
    run_tools.assert_same_run(job.run, whole(SHORT))


@all_tests_only
def test_ranks_that_cannot_hear_each_other_say_so_and_go_on_by_themselves(
    cabled_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    whole: Callable[[str], RunDirectory],
) -> None:
    """The network between the ranks fails, and that of SLURM does not."""
    job = submit(cabled_slurm, tiny_shards, tmp_path, SHORT, GLOO_SOCKET_IFNAME="eth0")
    job.wait_for_step(20)
    nodes = job.nodes()
    cabled_slurm.cut_between(*nodes)
    job.wait_for_requeue(1)
    log = job.log.read_text()
    assert "is lost: its node has not answered for 25 s" in log
    cabled_slurm.mend_between(*nodes)
    log = job.wait_until_over()
    assert log.count("Resuming run run from step-") == 1
    assert "is complete" in log
    run_tools.assert_same_run(job.run, whole(SHORT))


@all_tests_only
@pytest.mark.real_data
def test_preempted_run_on_ptbxl_ends_with_the_metric_of_the_undisturbed_one(
    local_slurm: LocalSlurm, real_data: Path, tmp_path: Path
) -> None:
    root, shards = tmp_path / "ptbxl", tmp_path / "shards"
    unpack = [str(real_data / "unpack_ptbxl.py"), str(root), "--folds", "8,9", "--limit", "600"]
    prepare = [
        "scripts/prepare.py",
        *("source=ptbxl", f"source.root={root}", f"shards={shards}", "executor=inline"),
        *("signal=millivolt", "signal.fs=100", "labels=ptbxl_all71_super5", "split=official"),
    ]
    subprocess.run([sys.executable, *unpack], check=True)
    table = root / "ptbxl_database.csv"
    restored = {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.hea")}
    rows = pl.read_csv(table, infer_schema=False)
    rows.filter(pl.col("filename_lr").is_in(restored)).write_csv(table)
    subprocess.run([sys.executable, *prepare], cwd=tiny_set.REPOSITORY, check=True)
    arguments = [
        *("experiment=ptbxl_whole", f"shards={shards}", "model=net1d_500k", "trainer=ddp_cpu"),
        *("trainer.num_threads=1", "budget.max_epochs=4", "checkpoint.every_samples=128"),
    ]
    runs = tmp_path / "preempted"
    job = Job(local_slurm, runs, [*arguments, "run=run", f"paths.runs={runs}"])
    job.wait_for_step(9)
    local_slurm.run(
        "sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "true"
    )
    job.wait_for_requeue(1)
    assert "is complete" in job.wait_until_over()
    devices = f"trainer.devices={2 * TASKS_PER_NODE}"
    whole = [*arguments, devices, "run=run", f"paths.runs={tmp_path / 'whole'}"]
    output, _ = run_tools.command(whole).communicate(timeout=TIMEOUT_S)
    undisturbed = RunDirectory(tmp_path / "whole" / "run")
    assert run_tools.rows(job.run)[-1]["val/macro_auroc"], output
    run_tools.assert_same_run(job.run, undisturbed)
