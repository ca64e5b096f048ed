"""Storage that fails, vanishes or was tampered with is named, and nothing wrong is used."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shard_set_of_one_record as small

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file, sha256_file
from ecgfounder_train.loader.files import BadSampleError
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.records import read_record
from ecgfounder_train.shards import ShardEntry, ShardSet, verify
from ecgfounder_train.shards.index import index_dtype, probe_index, write_index
from ecgfounder_train.shards.manifest import IndexEntry, Totals


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    small.build(tmp_path / "shards")
    return ShardSet.open(tmp_path / "shards")


def _failing(number: int) -> Callable[..., int]:
    def fail(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_sample_on_a_bad_sector_is_named(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", _failing(errno.EIO))
    with pytest.raises(UserError, match="index of the shards cannot be read: Input/output error"):
        SampleReader(shards).read(shards.rows("train"))
    rows = shards.rows("train")
    entries, ecg = np.array(shards.index[rows]), np.empty((1, 12, 1000), np.int16)
    with pytest.raises(BadSampleError, match="cannot be read: Input/output error"):
        SampleReader(shards).read_into(ecg, rows, entries)
    report = SampleReader(shards, on_bad_sample="report").read_into(ecg, rows, entries)
    assert report.bad == [0]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_write_that_fails_leaves_the_old_file_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with atomic_file(tmp_path / "file", "w") as handle:
        handle.write("old")
    monkeypatch.setattr(os, "fsync", _failing(number))
    with pytest.raises(UserError, match="Cannot write"), atomic_file(tmp_path / "file", "w") as new:
        new.write("new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_record_on_a_bad_sector_is_a_rejection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.hea").write_text("r 1 100 10\nr.dat 16 1000/mV 16 0 0 0 0 I\n")
    (tmp_path / "r.dat").write_bytes(bytes(20))
    monkeypatch.setattr(os, "read", _failing(errno.EIO))
    with pytest.raises(Exception, match=r"cannot be read: Input/output error$"):
        read_record(tmp_path / "r")


def test_shard_deleted_under_a_reader_is_read_on_and_named_to_the_next(shards: ShardSet) -> None:
    rows = shards.rows("train")
    reader = SampleReader(shards)
    before = reader.read(rows)
    for path in shards.folder.glob("*.tar"):
        path.unlink()
    np.testing.assert_array_equal(reader.read(rows).ecg, before.ecg)
    with pytest.raises(BadSampleError, match=r"Cannot open shard .*No such file"):
        SampleReader(shards).read(rows)
    with pytest.raises(UserError, match=r"is missing. Run prepare again"):
        ShardSet.open(shards.folder)


def _state_checksums(folder: Path) -> None:
    """Let the manifest state the checksums of the files as they are now."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    index = folder / "index.npy"
    content["index"] |= {
        "sha256": sha256_file(index),
        "probe_xxh3": f"{probe_index(index):016x}",
    }
    for entry in content["shards"]:
        entry["sha256"] = sha256_file(folder / entry["name"])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("field", ["labels", "observed", "patient_key", "age_years", "site", "sex"])
def test_index_tampered_with_under_right_checksums_is_found(shards: ShardSet, field: str) -> None:
    path, rows = shards.folder / "index.npy", np.array(shards.index)
    if field == "patient_key":
        rows[field] = rows[field][::-1]
    else:
        rows[field] = rows[field] + 1
    write_index(path, 1, [rows], len(rows))
    _state_checksums(shards.folder)
    ShardSet.open(shards.folder)
    report = verify(shards.folder)
    assert any(f"({field} differ)" in message for _, message in report.findings), report


def test_label_member_tampered_with_under_right_checksums_is_found(shards: ShardSet) -> None:
    name = shards.manifest.shards[0].name
    content = bytearray((shards.folder / name).read_bytes())
    content[shards.layout.labels.offset] ^= 1
    (shards.folder / name).write_bytes(content)
    _state_checksums(shards.folder)
    ShardSet.open(shards.folder)
    report = verify(shards.folder)
    assert [file for file, _ in report.findings] == [name]
    assert "labels differ" in str(report)


@pytest.mark.slow
def test_tens_of_thousands_of_tiny_shards_are_read_with_few_open_files(
    shards: ShardSet, tmp_path: Path
) -> None:
    """20,000 shards of one sample each: opened, verified in part, and read at random."""
    number = 20_000
    folder = tmp_path / "many"
    folder.mkdir()
    source = shards.manifest.shards[0]
    first = np.array(shards.index[:1])
    assert first["shard"] == 0
    rows = np.repeat(first, number)
    rows["shard"] = np.arange(number)
    entries = []
    for place in range(number):
        name = f"train-{place:06d}.tar"
        os.link(shards.shard_path(0), folder / name)
        entries.append(ShardEntry(name, "train", 1, source.bytes, source.sha256))
    rows["split"] = 0
    index = folder / "index.npy"
    sha256 = write_index(index, 1, [rows.astype(index_dtype(1))], number)
    stated = IndexEntry(
        "index.npy", number, index.stat().st_size, sha256, f"{probe_index(index):016x}"
    )
    manifest = small.build(tmp_path / "again")
    type(manifest)(
        **{
            **vars(manifest),
            "shards": tuple(entries),
            "index": stated,
            "totals": Totals(number, number, 0, {}, number),
            "increments": (),
        }
    ).write(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        many = ShardSet.open(folder)
        reader = SampleReader(many)
        chosen = np.random.default_rng(0).integers(0, number, 5000)
        samples = reader.read(chosen)
        assert not samples.bad
        assert (samples.ecg == samples.ecg[0]).all()
        reader.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
