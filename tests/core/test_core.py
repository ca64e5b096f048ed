"""Files that are whole or absent, keys, settings, run directories, progress."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfounder_train.core.config import parse_settings
from ecgfounder_train.core.errors import (
    RejectedRecordError,
    RejectReason,
    UserError,
    did_you_mean,
)
from ecgfounder_train.core.files import atomic_file, sha256_file, sweep_partial_files
from ecgfounder_train.core.fingerprints import canonical_json, fingerprint
from ecgfounder_train.core.logging import Cadence, get_logger
from ecgfounder_train.core.progress import ProgressMeter, format_duration, track
from ecgfounder_train.core.pseudonyms import Secret, load_or_create_secret
from ecgfounder_train.core.run_directory import RunDirectory


def test_atomic_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path, "w") as handle:
        handle.write("old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_file(path, "w") as handle:
        handle.write("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_full_disk_is_an_error_of_the_user(tmp_path: Path, number: int) -> None:
    with pytest.raises(UserError, match="Nothing half-written"), atomic_file(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


def test_bug_while_writing_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bad"), atomic_file(tmp_path / "file"):
        raise OSError(errno.EBADF, "bad")


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom ecgfounder_train.core.files import atomic_file\n"
        f"with atomic_file({str(tmp_path / 'file')!r}) as handle:\n"
        "    handle.write(b'half'); handle.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / "other").write_text("stays")
    assert not (tmp_path / "file").exists()
    assert sweep_partial_files(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), max_size=5))
def test_fingerprint_ignores_the_order_of_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(turned)
    assert fingerprint(value) == fingerprint(turned) and len(fingerprint(value)) == 16
    assert fingerprint({**value, "another key": 1}) != fingerprint(value) or "another key" in value


def test_fingerprint_refuses_what_has_no_equal() -> None:
    with pytest.raises(ValueError):
        fingerprint({"value": float("nan")})


def test_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "private" / "secret.key"
    secret = load_or_create_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_secret(path) == secret
    assert secret.value.hex() not in repr(secret) + secret.fingerprint
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_or_create_secret(path)
    path.chmod(0o600)
    path.write_text("too short")
    with pytest.raises(UserError, match="is not a secret"):
        load_or_create_secret(path)


def test_a_full_disk_leaves_no_empty_secret_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "secret.key"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            load_or_create_secret(path)
    assert load_or_create_secret(path) == load_or_create_secret(path)
    with pytest.raises(UserError, match="is not a file"):  # and not: chmod 600 of a folder
        load_or_create_secret(tmp_path)


def test_keys_tell_records_patients_and_secrets_apart() -> None:
    one, other = Secret(b"1" * 32), Secret(b"2" * 32)
    keys = {
        one.record_key("heedb", "5"),
        one.patient_key("heedb", "5"),
        one.record_key("ptbxl", "5"),
        other.record_key("heedb", "5"),
    }
    assert len(keys) == 4 and all(len(key) == 32 for key in keys)
    assert one.record_key("heedb", "5") == Secret(b"1" * 32).record_key("heedb", "5")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pretain", " Did you mean 'pretrain'?"),
        ("PRETRAIN", " Did you mean 'pretrain'?"),
        ("xyz", " Valid: prepare, pretrain."),
    ],
)
def test_nearest_valid_names_are_offered(name: str, hint: str) -> None:
    assert did_you_mean(name, ["pretrain", "prepare"]).startswith(hint.rstrip("?"))
    assert did_you_mean(name, []) == ""


def test_rejection_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RejectedRecordError(RejectReason.TOO_SHORT, "2 s")))
    assert error.reason is RejectReason.TOO_SHORT and str(error) == "too_short: 2 s"


@dataclass(frozen=True)
class Example:
    """Settings of a test."""

    size: int
    rate: float = 1.0
    name: str | None = None
    on: bool = False


def test_settings_take_their_types() -> None:
    parsed = parse_settings(Example, {"size": 3, "rate": 2}, "example")
    assert parsed == Example(3, 2.0) and type(parsed.rate) is float


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 1, "sice": 2}, r"Unknown key example\.sice\. Did you mean 'size'"),
        ({}, r"example\.size is missing"),
        ({"size": "3"}, r"example\.size='3' is not int"),
        ({"size": True}, r"example\.size=True is not int"),
        ({"size": 2.5}, r"example\.size=2\.5 is not int"),
        ({"size": 1, "rate": None}, r"example\.rate=None is not float"),
        ({"size": 1, "name": 5}, r"example\.name=5 is not str or null"),
        ({"size": 1, "on": 1}, r"example\.on=1 is not bool"),
    ],
)
def test_wrong_settings_name_their_key(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_settings(Example, config, "example")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "with space", "-flag"])
def test_name_of_a_run_is_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a folder"):
        RunDirectory.of(tmp_path, name)


def test_absent_run_offers_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Train one with scripts/pretrain\.py"):
        RunDirectory.existing(tmp_path, "first")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("seed: 0\n")
    assert RunDirectory.existing(tmp_path, "first").name == "first"
    with pytest.raises(UserError, match="Did you mean 'first'"):
        RunDirectory.existing(tmp_path, "frist")


def _hold(folder: str, ready: "multiprocessing.synchronize.Event") -> None:
    with RunDirectory(Path(folder)).locked():
        ready.set()
        time.sleep(60)


def test_lock_of_a_run_goes_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    holder.start()
    assert ready.wait(30)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match="being trained by another process"), run.locked():
        pass
    # A start that is allowed to wait takes over once the former one has ended.
    threading.Timer(1.5, holder.kill).start()
    with run.locked(wait_s=60):
        holder.join()


def test_run_without_locks_of_the_file_system_is_trained_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", absent)
    with pytest.warns(UserWarning, match="no locks"), RunDirectory(tmp_path / "run").locked():
        pass


def test_progress_tells_count_and_ends_with_the_last_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)

    assert list(track(numbers(), "counting", 5, "numbers")) == [0, 1, 2, 3, 4]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting: 5/5 numbers" in shown.err and "0:00 left" in shown.err


def test_rate_is_that_of_the_last_minute_and_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = ProgressMeter("resumed", 10_000, "ECG", done=500)
    now[0] = 10.0
    meter.update(600)
    assert meter.rate == pytest.approx(10.0)
    for second in range(20, 400, 10):
        now[0] = float(second)
        meter.update(600 + second // 10)
    assert meter.rate == pytest.approx(0.1)


def test_progress_lines_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cadence, lines = Cadence(), []
    for second in range(3 * 3600):
        now[0] = float(second)
        if cadence.is_due():
            lines.append(second)
    first = [line for line in lines if line < 120]
    assert first == list(range(10, 120, 10))
    assert len([line for line in lines if 120 <= line < 3600]) == 58
    assert len([line for line in lines if line >= 3600]) == 12


def test_log_line_has_a_time_and_goes_to_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = get_logger("ecgfounder_train.test")
    log.info("an event")
    log.warning("a fault")
    for name, value in (("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1")):
        monkeypatch.setenv(name, value)
    log.info("said by rank 0 alone")
    log.warning("a fault elsewhere")
    shown = capsys.readouterr()
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", x) for x in shown.err.splitlines()]
    assert lines == ["an event", "warning: a fault", "rank 1: warning: a fault elsewhere"]
    assert shown.out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36_001, "10:00:01"), (-3, "0:00")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
