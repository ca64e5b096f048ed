"""Whatever makes the shards and whatever is lost on the way, the bytes are the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import shard_archive
from shard_archive import Archive

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records import EcgRecord, read_record
from ecgfounder_train.shards import ExecutorOptions, verify
from ecgfounder_train.simulate import write_archive

DRIVER = [sys.executable, str(Path(shard_archive.__file__))]
PREPARE = Path(__file__).resolve().parents[2] / "scripts" / "prepare.py"
LOCAL = {"kind": "local", "num_workers": 2, "min_records": 0}
KILLS = 50 if os.environ.get("ECG_TEST_TIER") == "all" else 3


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(archive: Archive, folder: Path, **settings: Any) -> "subprocess.Popen[str]":
    arguments = [*DRIVER, str(archive.root), str(folder), json.dumps(settings)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def loads_libraries(worker: psutil.Process) -> bool:
    try:
        return "/numpy/" in Path(f"/proc/{worker.pid}/maps").read_text()
    except OSError:
        return False


def forget_some(folder: Path, moments: random.Random) -> None:
    """Take away half the shards and the manifest, so that there is something left to build."""
    tars = sorted(folder.glob("*.tar"))
    for path in moments.sample(tars, len(tars) // 2):
        path.unlink()
    (folder / "manifest.json").unlink()


def test_workers_make_the_same_bytes_as_one_process(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    process = start(archive, folder, executor=LOCAL, options={"staging_dir": str(tmp_path / "s")})
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Peak memory of a worker" in errors
    assert "rejected" in errors
    assert content(folder) == content(archive.shards)
    assert not any((tmp_path / "s").iterdir())
    assert Path(f"{folder}.private/rejects.csv").read_bytes() == (
        Path(f"{archive.shards}.private/rejects.csv").read_bytes()
    )


@pytest.mark.slow
def test_killed_workers_and_drivers_change_nothing(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    moments = random.Random(7)
    kills = {"worker": 0, "driver": 0}
    while sum(kills.values()) < KILLS:
        process = start(archive, folder, executor=LOCAL)
        while process.poll() is None and not any(folder.glob("*.partial-*")):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        victims = workers_of(process)
        if kills["worker"] <= kills["driver"] and victims:
            moments.choice(victims).kill()
            kills["worker"] += 1
            _, errors = process.communicate()
            assert process.returncode == 0, errors  # the task was rerun
            assert content(folder) == content(archive.shards)
        elif process.poll() is None:
            process.kill()
            process.communicate()
            kills["driver"] += process.returncode == -signal.SIGKILL
            gone = [victim for victim in victims if victim.is_running()]
            psutil.wait_procs(gone, timeout=60)
            assert not any(victim.is_running() for victim in gone), "a worker outlived its driver"
            continue
        else:
            process.communicate()
        forget_some(folder, moments)
    process = start(archive, folder, executor=LOCAL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert content(folder) == content(archive.shards)
    assert verify(folder).ok


def test_ctrl_c_ends_the_workers_too(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    process = start(archive, folder, executor=LOCAL)
    while process.poll() is None and not any(folder.glob("*.partial-*")):
        time.sleep(0.001)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 2])
def test_ctrl_c_while_workers_start_is_told_once_and_without_tracebacks(
    tmp_path: Path, num_threads: int
) -> None:
    write_archive({"out": tmp_path / "heedb", "num_patients": 12, "seed": 1})
    command = [sys.executable, str(PREPARE), "source=heedb", f"source.root={tmp_path / 'heedb'}"]
    command += [f"shards={tmp_path / 'shards'}", "signal=zscore", "build.records_per_shard=10"]
    command += ["executor.num_workers=2", "executor.min_records=0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # A worker has one thread while it loads its libraries, and more when it talks to the driver.
    # Before it loads any it is Python's own start, which nobody can keep from a traceback.
    while True:
        assert process.poll() is None
        workers = [worker for worker in workers_of(process) if loads_libraries(worker)]
        if len(workers) == 2 and max(worker.num_threads() for worker in workers) >= num_threads:
            break
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.count("interrupted.") == 1 and "Traceback" not in errors, errors


def failing_read(root: Path, victim: str, times: int) -> Any:
    count = 0

    def read(record_path: str) -> EcgRecord:
        nonlocal count
        if record_path == victim and count < times:
            count += 1
            raise OSError(5, "Input/output error", "/secret/path/of/a/patient")
        return read_record(root / record_path)

    return read


def victim_of(archive: Archive) -> str:
    return str(archive.catalog["record_path"][10])


def test_shard_that_fails_twice_is_made_at_the_third_try(archive: Archive, tmp_path: Path) -> None:
    read = failing_read(archive.root, victim_of(archive), times=2)
    shard_archive.build(archive.catalog, archive.root, tmp_path / "shards", read_ecg=read)
    assert content(tmp_path / "shards") == content(archive.shards)


def test_shard_that_keeps_failing_is_named_and_stops_no_other(
    archive: Archive, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    read = failing_read(archive.root, victim_of(archive), times=1000)
    with pytest.raises(UserError, match="1 of 9 shards failed; the others are made") as caught:
        shard_archive.build(archive.catalog, archive.root, folder, read_ecg=read)
    message = str(caught.value)
    assert "OSError: Input/output error (while reading record" in message
    assert "secret" not in message, "a path may hold a patient id"
    assert not (folder / "manifest.json").exists()
    assert len(list(folder.glob("*.tar"))) == len(list(archive.shards.glob("*.tar"))) - 1
    log = Path(f"{folder}.private/failed.log").read_text()
    assert "Traceback" in log
    shard_archive.build(archive.catalog, archive.root, folder)
    assert content(folder) == content(archive.shards)


def test_error_of_a_storage_client_names_no_path(archive: Archive, tmp_path: Path) -> None:
    victim = victim_of(archive)

    def read(record_path: str) -> EcgRecord:
        if record_path == victim:  # as botocore and aiohttp have it
            raise RuntimeError(f'Could not connect to the URL: "http://host/{record_path}.hea"')
        return read_record(archive.root / record_path)

    with pytest.raises(UserError, match="Could not connect to the URL") as caught:
        shard_archive.build(archive.catalog, "http://host", tmp_path / "shards", read_ecg=read)  # type: ignore[arg-type]
    assert victim not in str(caught.value), "a path may hold a patient id"
    assert str(archive.catalog["record_key"][10]) in str(caught.value)


def small_disk(folder: Path, size: str) -> None:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a small file system needs root")


@pytest.mark.parametrize("full", ["target", "staging"])
def test_full_disk_is_said_and_what_is_made_stays(
    archive: Archive, tmp_path: Path, full: str
) -> None:
    disk = tmp_path / "disk"
    small_disk(disk, "1m" if full == "target" else "64k")
    folder = disk / "shards" if full == "target" else tmp_path / "shards"
    private = tmp_path / "private"
    chosen = {} if full == "target" else {"staging_dir": str(disk / "staging")}
    try:
        with pytest.raises(UserError, match="No space left on device") as caught:
            shard_archive.build(
                archive.catalog,
                archive.root,
                folder,
                private=private,
                options=shard_archive.options(tries=1, **chosen),
            )
        assert ("Free space" if full == "target" else "build.staging_dir") in str(caught.value)
        assert not list(folder.glob("*.partial-*"))
        assert not (folder / "manifest.json").exists()
        made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
        assert bool(made) == (full == "target")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        shard_archive.build(
            archive.catalog,
            archive.root,
            folder,
            private=private,
            options=shard_archive.options(**chosen),
        )
        assert content(folder) == content(archive.shards)
        assert (
            made.items()
            <= {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}.items()
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "lokal"}, "Did you mean 'local'"),
        ({"num_worker": 2}, "num_workers"),
        ({"num_workers": 0}, "at least 1"),
        ({"kind": "slurm"}, "needs executor.num_workers"),
    ],
)
def test_wrong_executor_options_name_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExecutorOptions.from_config(config)


@pytest.mark.parametrize("name", ["inline", "local", "slurm"])
def test_executor_configs_are_valid(name: str) -> None:
    words = ["shards=x", "source.root=x", f"executor={name}"]
    options = ExecutorOptions.from_config(compose_config("prepare", words)["executor"])
    assert options.kind == name
