"""Building on a real SLURM, with a worker, a node and the scheduler killed."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import shard_archive
from shard_archive import Archive
from slurm_cluster import LocalSlurm

DRIVER = [sys.executable, str(Path(shard_archive.__file__))]
SLURM = {"kind": "slurm", "num_workers": 2, "memory_per_worker": "1GB", "walltime": "00:30:00"}
REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Build:
    """A build in a process of its own, whose records are read slowly enough to be disturbed."""

    def __init__(self, archive: Archive, folder: Path, slurm: LocalSlurm) -> None:
        self.folder, self.slurm = folder, slurm
        settings = {"executor": SLURM, "read_delay_s": 0.25}
        arguments = [*DRIVER, str(archive.root), str(folder), json.dumps(settings)]
        self.process = subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env=dict(slurm.env)
        )

    def wait_until_working(self) -> None:
        """Wait until both workers have a shard under way."""
        deadline = time.monotonic() + 240
        while len(list(self.folder.glob("*.partial-*"))) < 2:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, self.slurm.logs()
            time.sleep(0.05)

    def workers(self) -> list[psutil.Process]:
        """The Dask processes of SLURM jobs."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                mine = process.environ().get("SLURM_CONF") == self.slurm.env["SLURM_CONF"]
                if mine and "spawn_main" in line:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def finish(self) -> str:
        _, errors = self.process.communicate(timeout=400)
        assert self.process.returncode == 0, errors
        return errors


def test_build_survives_a_killed_worker_and_a_killed_node(
    archive: Archive, tmp_path: Path, local_slurm: LocalSlurm
) -> None:
    folder = tmp_path / "shards"
    build = Build(archive, folder, local_slurm)
    build.wait_until_working()
    random.Random(3).choice(build.workers()).kill()
    build.wait_until_working()
    (_, _, node), *_ = local_slurm.jobs("running")
    local_slurm.kill_node(node)
    build.finish()
    assert content(folder) == content(archive.shards)
    assert not local_slurm.jobs("pending", "running"), "jobs outlived the build"


def test_killed_scheduler_leaves_no_worker_and_the_next_run_goes_on(
    archive: Archive, tmp_path: Path, local_slurm: LocalSlurm
) -> None:
    folder = tmp_path / "shards"
    build = Build(archive, folder, local_slurm)
    build.wait_until_working()
    build.process.kill()  # Dask's scheduler lives in it
    build.process.communicate()
    deadline = time.monotonic() + 180
    while build.workers():
        assert time.monotonic() < deadline, "workers outlived their scheduler"
        time.sleep(0.5)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    Build(archive, folder, local_slurm).finish()
    assert content(folder) == content(archive.shards)
    units = Path(f"{folder}.private/units")
    assert {path.stem for path in units.glob("*.json")} == {
        Path(n).stem for n in content(folder) if n.endswith(".tar")
    }
    assert kept.keys() <= content(folder).keys()


class BatchJob:
    """slurm/prepare.sbatch with one worker, on an archive of its own."""

    def __init__(self, slurm: LocalSlurm, folder: Path, num_patients: int) -> None:
        self.slurm, self.log = slurm, folder / "job.log"
        self.folder, self.inline = folder / "shards", folder / "inline"
        root = folder / "archive"
        self._script("simulate", f"out={root}", f"num_patients={num_patients}")
        self.arguments = [
            "source=heedb",
            f"source.root={root}",
            "signal.fs=100",
            "build.records_per_shard=20",
        ]
        options = [f"--chdir={REPOSITORY}", f"--output={self.log}", "--mem=1000"]
        printed = slurm.run(
            "sbatch",
            "--parsable",
            *options,
            f"--export=ALL,PYTHON={sys.executable}",
            "slurm/prepare.sbatch",
            *self.arguments,
            f"shards={self.folder}",
            "executor.num_workers=1",
            "executor.workers_per_job=1",
            "executor.memory_per_worker=1GB",
        )
        self.id = printed.strip()

    def shown(self) -> str:
        return self.slurm.run("scontrol", "show", "job", self.id)

    def wait(self, reached: Callable[[], object], what: str) -> None:
        self.slurm.wait_for(reached, what, self.log)

    def assert_equals_an_inline_build(self) -> None:
        self.wait(lambda: not self.slurm.jobs(), "end")
        assert "JobState=COMPLETED" in self.shown(), self.log.read_text()
        assert "records found" in self.log.read_text()
        words = [f"shards={self.inline}", f"secret={self.folder}.private/secret.key"]
        said = self._script("prepare", *self.arguments, *words, "executor=inline")
        assert "records found" in said
        assert content(self.folder) == content(self.inline)

    def _script(self, name: str, *arguments: str) -> str:
        command = [sys.executable, f"scripts/{name}.py", *arguments]
        return subprocess.check_output(command, cwd=REPOSITORY, text=True)


def test_batch_job_prepares_by_itself(tmp_path: Path, local_slurm: LocalSlurm) -> None:
    BatchJob(local_slurm, tmp_path, num_patients=12).assert_equals_an_inline_build()


@pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only")
@pytest.mark.parametrize("event", ["preemption", "time limit"])
def test_batch_job_that_is_interrupted_comes_back_and_makes_what_is_missing(
    tmp_path: Path, local_slurm: LocalSlurm, event: str
) -> None:
    job = BatchJob(local_slurm, tmp_path, num_patients=100)
    # It and its worker.
    job.wait(lambda: len(local_slurm.jobs("running")) == 2, "worker")
    if event == "preemption":
        urgent = ("sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null")
        local_slurm.run(*urgent, "--wrap", "sleep 1")
    else:
        # What --signal=TERM@120 does two minutes before the limit.
        local_slurm.run("scancel", "--signal=TERM", job.id)
    job.wait(lambda: "Restarts=1" in job.shown(), "requeue")
    job.assert_equals_an_inline_build()


def test_build_whose_jobs_slurm_refuses_says_so_and_ends(
    archive: Archive, tmp_path: Path, local_slurm: LocalSlurm
) -> None:
    settings = {"executor": {**SLURM, "memory_per_worker": "900GB"}}
    arguments = [*DRIVER, str(archive.root), str(tmp_path / "shards"), json.dumps(settings)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=dict(local_slurm.env), timeout=400
    )
    assert done.returncode == 1
    assert "SLURM refuses the workers' jobs: sbatch: error: Memory specification" in done.stderr
    assert done.stderr.rstrip().count("Traceback") <= 1, "only that of this test's own driver"
