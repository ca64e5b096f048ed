"""slurm/evaluate.sbatch on a real SLURM: preempted it comes back, cancelled it does not."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_set
from slurm_cluster import LocalSlurm

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only"),
]


@pytest.fixture(scope="module")
def run(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    runs = tmp_path_factory.mktemp("runs")
    assert train(tiny_set.tiny_config(tiny_shards, runs, "run")) == 0
    return RunDirectory(runs / "run")


def words(run: RunDirectory, out: Path) -> list[str]:
    return [f"run={run.name}", f"paths.runs={run.path.parent}", "split=val", f"out={out}"]


class Job:
    """An evaluation on one node."""

    def __init__(self, slurm: LocalSlurm, log: Path, arguments: list[str]) -> None:
        self.slurm, self.log = slurm, log
        options = ["--parsable", "--cpus-per-task=1", "--gpus-per-task=0", "--mem=0"]
        options += [f"--output={log}", f"--chdir={tiny_set.REPOSITORY}"]
        options += [f"--export=ALL,PYTHON={sys.executable}"]
        self.id = slurm.run("sbatch", *options, "slurm/evaluate.sbatch", *arguments).strip()
        self.wait(lambda: slurm.jobs("running"), "start")

    def restarts(self) -> int:
        match = re.search(r"Restarts=(\d+)", self.slurm.run("scontrol", "show", "job", self.id))
        assert match
        return int(match[1])

    def wait(self, reached: Callable[[], object], what: str) -> None:
        self.slurm.wait_for(reached, what, self.log)


def test_preempted_evaluation_comes_back_and_says_the_same(
    local_slurm: LocalSlurm, run: RunDirectory, tmp_path: Path
) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    job = Job(local_slurm, tmp_path / "job.log", words(run, out))
    urgent = ("sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null")
    local_slurm.run(*urgent, "--wrap", "sleep 1")
    job.wait(lambda: job.restarts() == 1, "requeue")
    job.wait(lambda: (out / "val" / "report.html").is_file(), "report")
    script = tiny_set.REPOSITORY / "scripts" / "evaluate.py"
    subprocess.run([sys.executable, str(script), *words(run, alone)], check=True)
    assert (out / "val" / "report.csv").read_bytes() == (alone / "val" / "report.csv").read_bytes()


def test_cancelled_evaluation_does_not_come_back(
    local_slurm: LocalSlurm, run: RunDirectory, tmp_path: Path
) -> None:
    job = Job(local_slurm, tmp_path / "job.log", words(run, tmp_path / "out"))
    local_slurm.run("scancel", job.id)
    while local_slurm.jobs():
        time.sleep(0.1)
    # A requeued job would be in the queue all the while, held at first.
    time.sleep(5)
    assert not local_slurm.jobs()
    assert "JobState=CANCELLED" in local_slurm.run("scontrol", "show", "job", job.id)
    assert not (tmp_path / "out" / "val" / "report.html").exists()
