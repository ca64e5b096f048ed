"""Signals behind a URL: an S3 server on loopback gives the bytes the disk gives."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import wfdb
from moto.server import ThreadedMotoServer

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import read_record
from ecgfounder_train.records.remote import fetched, read_remote_record

REPOSITORY = Path(__file__).resolve().parents[2]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of an S3 server with credentials set."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def script(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prepare_from_s3_equals_prepare_from_disk(endpoint: str, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    script("scripts/simulate.py", f"out={root}", "num_patients=14", "bad_records.all_zero=0.05")
    headers = sorted(root.rglob("WFDB/**/*.hea"))
    headers[3].write_bytes(b"")  # an empty object cannot be asked for a range
    headers[4].with_suffix(".mat").unlink(missing_ok=True)
    headers[4].with_suffix(".dat").unlink(missing_ok=True)
    options = {"endpoint_url": endpoint, "requester_pays": True}
    bucket = s3fs.S3FileSystem(**options)
    bucket.mkdir("archive")
    bucket.put(f"{root}/", "archive/heedb/", recursive=True)
    common = ["source=heedb", "signal.fs=100", f"secret={tmp_path / 'secret.key'}"]
    small = ["build.records_per_shard=20", "build.max_reject_share=1"]
    for name, place in (
        ("disk", [f"source.root={root}", "executor=inline"]),
        (
            "s3",
            [
                "source.root=s3://archive/heedb",
                f"+source.storage_options={{endpoint_url: '{endpoint}', requester_pays: true}}",
                "executor=local",
                "executor.num_workers=2",
                "executor.min_records=0",
            ],
        ),
    ):
        text = script("scripts/prepare.py", *common, *small, f"shards={tmp_path / name}", *place)
        assert "records found" in text
    assert content(tmp_path / "s3") == content(tmp_path / "disk")
    ledgers = [
        (tmp_path / f"{name}.private" / "rejects.csv").read_text() for name in ("s3", "disk")
    ]
    reasons = [sorted(line.split(",")[2] for line in text.splitlines()) for text in ledgers]
    assert reasons[0] == reasons[1]
    assert {"unreadable_header", "missing_signal_file"} <= set(reasons[0])
    victim = next((tmp_path / "s3").glob("train-*.tar"))
    victim.unlink()
    storage = f"{{endpoint_url: '{endpoint}', requester_pays: true}}"
    said = script(
        "scripts/verify.py",
        f"shards={tmp_path / 's3'}",
        "rebuild=damaged",
        f"+storage_options={storage}",
    )
    assert victim.name in said
    assert content(tmp_path / "s3") == content(tmp_path / "disk")


def test_formats_that_need_files_are_read_from_a_url_too(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    wfdb.wrsamp(
        "wide",
        fs=100,
        units=["mV"] * 2,
        sig_name=["I", "II"],
        p_signal=rng.normal(0, 0.3, (1000, 2)),
        fmt=["24", "24"],
        write_dir=str(tmp_path),
    )
    remote = read_remote_record(f"file://{tmp_path}", "wide")
    assert (remote.signal == read_record(tmp_path / "wide").signal).all()
    (tmp_path / "wide.dat").unlink()
    with pytest.raises(RejectedRecordError) as caught:
        read_remote_record(f"file://{tmp_path}", "wide")
    assert caught.value.reason is RejectReason.MISSING_SIGNAL_FILE
    with pytest.raises(RejectedRecordError) as caught:
        read_remote_record(f"file://{tmp_path}", "nothing")
    assert caught.value.reason is RejectReason.MISSING_HEADER


def test_fetching_keeps_the_order_and_each_error_to_its_item() -> None:
    def fetch(number: int) -> int:
        if number % 7 == 3:
            raise ValueError(number)
        return number * number

    seen = []
    for number, result in enumerate(fetched(range(50), fetch, num_threads=4)):
        try:
            seen.append(result())
        except ValueError as error:
            assert error.args == (number,)
            seen.append(-1)
    assert seen == [-1 if number % 7 == 3 else number * number for number in range(50)]


def test_storage_that_does_not_answer_is_no_reject() -> None:
    """A record must not be put on the ledger because a connection failed."""
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "a", "secret": "b"}
    options["config_kwargs"] = {"retries": {"max_attempts": 1}}  # type: ignore[assignment]
    with pytest.raises(Exception, match="Could not connect") as caught:
        read_remote_record("s3://nowhere", "record", options)
    assert not isinstance(caught.value, RejectedRecordError)
