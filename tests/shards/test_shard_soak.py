"""A large synthetic archive of both sites, prepared with kills in between, equals the undisturbed.

Runs with ECG_TEST_TIER=all; ECG_SOAK_RECORDS sets the size (50,000 by default: 7 GB of signals, and
an hour on two cores).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ecgfounder_train.shards import read_manifest, verify

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = int(os.environ.get("ECG_SOAK_RECORDS", 50_000))
ECGS_PER_PATIENT = 4.9
KILLS = 12


def prepare(root: Path, folder: Path, secret: Path) -> "subprocess.Popen[bytes]":
    """Start scripts/prepare.py with two workers."""
    arguments = [
        "source=heedb",
        f"source.root={root}",
        f"shards={folder}",
        f"secret={secret}",
        "signal.fs=100",
        "executor=local",
        "executor.num_workers=2",
        "executor.min_records=0",
        "build.records_per_shard=500",
    ]
    return subprocess.Popen([sys.executable, "scripts/prepare.py", *arguments], cwd=REPOSITORY)


def workers_of(driver: int) -> list[psutil.Process]:
    """Return the Dask workers of a build; one that was killed before may still be a zombie."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:  # which a ZombieProcess is
            continue
    return found


def disturb(root: Path, folder: Path, secret: Path, kills: int) -> int:
    """Build with so many SIGKILLs of workers and drivers in turn; return how many fell."""
    moments = random.Random(1)
    fallen = 0
    process = prepare(root, folder, secret)
    num_made = -1
    while fallen < kills and process.poll() is None:
        made = len(list(folder.glob("*.tar")))
        if made == num_made or not any(folder.glob("*.partial-*")):
            time.sleep(0.1)
            continue
        num_made = made  # at most one kill per shard, so that the build gets on
        time.sleep(moments.uniform(0, 3))
        workers = workers_of(process.pid)
        if fallen % 2 == 0 and workers:
            moments.choice(workers).kill()
        elif process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = prepare(root, folder, secret)
        fallen += 1
    assert process.wait() == 0
    return fallen


def equal(first: Path, second: Path) -> bool:
    """Tell whether two folders hold the same files."""
    names = {path.name for path in first.iterdir()}
    return names == {path.name for path in second.iterdir()} and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only")
def test_large_archive_prepared_with_kills_equals_the_undisturbed_build(tmp_path: Path) -> None:
    root, secret = tmp_path / "archive", tmp_path / "secret.key"
    patients = round(RECORDS / ECGS_PER_PATIENT * 1.03)
    simulate = ["scripts/simulate.py", f"out={root}", f"num_patients={patients}", "num_workers=2"]
    subprocess.run([sys.executable, *simulate], cwd=REPOSITORY, check=True)
    assert prepare(root, tmp_path / "whole", secret).wait() == 0
    fallen = disturb(root, tmp_path / "disturbed", secret, KILLS)
    assert fallen == KILLS
    assert equal(tmp_path / "disturbed", tmp_path / "whole")
    manifest = read_manifest(tmp_path / "whole")
    assert manifest.totals.found >= RECORDS
    assert len(manifest.sites) == 2
    assert verify(tmp_path / "disturbed").ok
