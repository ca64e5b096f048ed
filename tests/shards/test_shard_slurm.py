"""Building on a real SLURM, with a worker, a node and the scheduler killed."""

import json
import random
import subprocess
import sys
import time
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


def test_batch_job_prepares_by_itself(tmp_path: Path, local_slurm: LocalSlurm) -> None:
    root, folder = tmp_path / "archive", tmp_path / "shards"
    python = {**local_slurm.env, "PYTHON": sys.executable}
    simulate = [sys.executable, "scripts/simulate.py", f"out={root}", "num_patients=12"]
    subprocess.run(simulate, cwd=REPOSITORY, check=True, capture_output=True)
    arguments = [
        "source=heedb",
        f"source.root={root}",
        f"shards={folder}",
        "signal.fs=100",
        "executor.num_workers=1",
        "executor.workers_per_job=1",
        "executor.memory_per_worker=1GB",
        "build.records_per_shard=20",
    ]
    log = tmp_path / "job.log"
    command = [
        "sbatch",
        "--wait",
        "--mem=1000",
        f"--output={log}",
        "slurm/prepare.sbatch",
        *arguments,
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=python,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    text = log.read_text() if log.exists() else done.stderr
    assert done.returncode == 0, text
    assert "records found" in text
    other = subprocess.run(
        [
            sys.executable,
            "scripts/prepare.py",
            *arguments[:2],
            f"shards={tmp_path / 'inline'}",
            f"secret={folder}.private/secret.key",
            "signal.fs=100",
            "executor=inline",
            "build.records_per_shard=20",
        ],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "records found" in other.stdout
    assert content(folder) == content(tmp_path / "inline")


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
