"""Signals behind a URL: an S3 server on loopback gives the bytes the disk gives."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest
import s3fs
import wfdb
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.records import STANDARD_LEADS, read_record
from ecgfounder_train.records.remote import fetched, read_remote_record
from ecgfounder_train.records.sources import open_source
from ecgfounder_train.shards.writer import RecordPlace

REPOSITORY = Path(__file__).resolve().parents[2]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def requester_pays(server: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return the S3 server, which refuses who does not pay for the bucket `paid`, as AWS does."""

    def answer(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        pays = request.get("HTTP_X_AMZ_REQUEST_PAYER") == "requester"
        is_read = request["REQUEST_METHOD"] in ("GET", "HEAD")
        if is_read and not pays and request["PATH_INFO"].startswith("/paid"):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        return server(request, start)

    return answer


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of an S3 server with credentials set."""
    app = requester_pays(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
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
                f"build.staging_dir={tmp_path / 'staging'}",
            ],
        ),
    ):
        text = script("scripts/prepare.py", *common, *small, f"shards={tmp_path / name}", *place)
        assert "records found" in text
    assert content(tmp_path / "s3") == content(tmp_path / "disk")
    assert not any((tmp_path / "staging").iterdir())
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


def record(path: Path, *comments: str, num_leads: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = np.random.default_rng(len(path.name)).normal(0, 0.3, (1000, num_leads))
    wfdb.wrsamp(
        path.name,
        fs=100,
        units=["mV"] * num_leads,
        sig_name=list(STANDARD_LEADS[:num_leads]),
        p_signal=signal,
        fmt=["16"] * num_leads,
        comments=list(comments),
        write_dir=str(path.parent),
    )


def write_folder(root: Path) -> dict[str, Any]:
    record(root / "georgia" / "E1", "Age: 60", "Sex: Male", "Dx: 164889003,426783006")
    record(root / "ptb" / "p" / "S2", "Dx: Unknown")
    (root / "ptb" / "empty.hea").write_bytes(b"")
    return {"name": "wfdb_folder", "site_from_folder": True}


def write_folder_with_table(root: Path) -> dict[str, Any]:
    record(root / "A1", num_leads=1)
    record(root / "A2", num_leads=1)
    (root / "REFERENCE.csv").write_text("A1,N\nA2,~\n")
    return {
        "name": "wfdb_folder",
        "table": "REFERENCE.csv",
        "table_header": False,
        "statement_columns": ["column_2"],
    }


def write_ptbxl(root: Path) -> dict[str, Any]:
    record(root / "records100" / "00000" / "00001_lr")
    (root / "ptbxl_database.csv").write_text(
        "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
        "1,15709.0,56,1,\"{'NORM': 100.0}\",3,records100/00000/00001_lr,records500/00001_hr\n"
    )
    (root / "scp_statements.csv").write_text(",description\nNORM,normal ECG\n")
    return {"name": "ptbxl"}


def write_mimic(root: Path) -> dict[str, Any]:
    record(root / "files" / "p1" / "s40" / "40")
    (root / "record_list.csv").write_text("subject_id,study_id,path\n10,40,files/p1/s40/40\n")
    (root / "machine_measurements.csv").write_text("study_id,report_0\n40,Sinus rhythm\n")
    return {"name": "mimic"}


def code_tracings() -> Any:
    one, two = np.random.default_rng(0).normal(0, 0.2, (2, 3, 2800))
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    tracings = np.zeros((3, 4096, 12), np.float32)
    tracings[:, 648:3448] = np.stack([*limb, *(one + two for _ in range(6))], axis=-1)
    return tracings


def write_code15(root: Path) -> dict[str, Any]:
    with h5py.File(root / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = code_tracings(), np.array([11, 12, 13])
    header = "exam_id,age,is_male,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,trace_file\n"
    row = "{},38,True,False,True,False,False,False,True,7,exams_part{}.hdf5\n"
    rows = [row.format(exam, int(exam == 14)) for exam in (11, 12, 13, 14)]
    (root / "exams.csv").write_text(header + "".join(rows))
    return {"name": "code15"}


def write_code_test(root: Path) -> dict[str, Any]:
    with h5py.File(root / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = code_tracings()
    (root / "attributes.csv").write_text("age,sex\n" + "40,F\n" * 3)
    (root / "annotations").mkdir()
    (root / "annotations" / "gold_standard.csv").write_text(
        "1dAVb,RBBB,LBBB,SB,AF,ST\n" + "0,1,0,0,0,0\n" * 3
    )
    return {"name": "code_test"}


@pytest.mark.parametrize(
    "write",
    [
        *(write_folder, write_folder_with_table, write_ptbxl, write_mimic),
        *(write_code15, write_code_test),
    ],
)
def test_every_source_reads_from_a_bucket_whose_requester_pays(
    endpoint: str, tmp_path: Path, write: Callable[[Path], dict[str, Any]]
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    config = write(root)
    options: dict[str, Any] = {"endpoint_url": endpoint, "requester_pays": True}
    bucket = s3fs.S3FileSystem(**options)
    bucket.mkdirs("paid", exist_ok=True)
    url = f"s3://paid/{write.__name__}/archive"
    bucket.put(f"{root}/", f"{url}/", recursive=True)
    here = open_source({**config, "root": root}).read()
    there = open_source({**config, "root": url, "storage_options": options}).read()
    assert there.root == url
    assert there.records.collect().equals(here.records.collect())
    assert (there.counts, there.texts) == (here.counts, here.texts)
    places = [
        RecordPlace(table.root, dict(table.storage_options), table.read_ecg)
        for table in (here, there)
    ]
    num_read = 0
    for path in here.records.collect()["record_path"]:
        try:
            local = places[0].read(path)
        except RejectedRecordError as error:
            with pytest.raises((RejectedRecordError, UserError)) as rejected:
                pickle.loads(pickle.dumps(places[1])).read(path)
            if rejected.type is RejectedRecordError:
                assert rejected.value.reason is error.reason
            continue
        # As on a worker, which gets the place pickled.
        remote = pickle.loads(pickle.dumps(places[1])).read(path)
        assert (remote.signal == local.signal).all()
        assert (remote.lead_names, remote.fs) == (local.lead_names, local.fs)
        num_read += 1
    assert num_read
    with pytest.raises(UserError, match=r"cannot be read .*source\.storage_options"):
        open_source({**config, "root": url, "storage_options": {"endpoint_url": endpoint}}).read()


def test_formats_that_need_files_are_read_from_a_url_too(tmp_path: Path) -> None:
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


def test_a_record_of_variable_layout_is_read_from_a_url_too(tmp_path: Path) -> None:
    (tmp_path / "whole.hea").write_text("whole/3 1 500 150\nlayout 0\npart 100\nrest 50\n")
    (tmp_path / "layout.hea").write_text("layout 1 500 0\n~ 0 1000 16 0 0 0 0 I\n")
    for name, num_samples in (("part", 100), ("rest", 50)):
        header = f"{name} 1 500 {num_samples}\n{name}.dat 16 1000 16 0 0 0 0 I\n"
        (tmp_path / f"{name}.hea").write_text(header)
        (tmp_path / f"{name}.dat").write_bytes(np.arange(num_samples, dtype="<i2").tobytes())
    remote = read_remote_record(f"file://{tmp_path}", "whole")
    assert remote.signal.shape == (1, 150)
    assert (remote.signal == read_record(tmp_path / "whole").signal).all()


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
