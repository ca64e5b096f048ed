"""Damage of every kind is found and named, by `verify` and where a run would open the shards."""

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shard_archive
from shard_archive import Archive

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet, verify


def test_undisturbed_shards_verify(archive: Archive) -> None:
    report = verify(archive.shards)
    assert report.ok, report
    assert report.num_samples == len(ShardSet.open(archive.shards))
    few = verify(archive.shards, sample=7)
    assert few.ok
    assert few.num_samples == 7
    assert "all as stated in the manifest" in str(report)


@pytest.mark.parametrize(("key", "value"), [("sample", -1), ("sample", 1.5), ("seed", "x")])
def test_a_number_that_is_none_names_the_key(archive: Archive, key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{key}={value} must be a whole number"):
        verify(archive.shards, **{key: value})  # type: ignore[arg-type]


def cut_tar(folder: Path) -> None:
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-20_000])


def flip_signal_byte(folder: Path) -> None:
    flip(folder / "train-000001.tar", ShardSet.open(folder).layout.ecg.offset + 77)


def flip_header_byte(folder: Path) -> None:
    flip(folder / "train-000001.tar", 3)


def flip_label(folder: Path) -> None:
    flip(folder / "train-000001.tar", ShardSet.open(folder).layout.labels.offset)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def remove_tar(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()


def link_tar(folder: Path) -> None:
    path = folder / "train-000001.tar"
    path.rename(folder.parent / "elsewhere.tar")
    path.symlink_to(folder.parent / "elsewhere.tar")


def swap_tars(folder: Path) -> None:
    first, second = folder / "train-000000.tar", folder / "train-000001.tar"
    other = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(other)


def put_link_into_tar(folder: Path) -> None:
    info = tarfile.TarInfo("x" * 32 + "_w0.ecg.npy")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = folder / "train-000001.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + path.read_bytes()[512:])


def append_member(folder: Path) -> None:
    with tarfile.open(folder / "train-000001.tar", "a") as tar:
        tar.add(__file__, "../../stranger.py")


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:700])


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def newer_manifest(folder: Path) -> None:
    change_manifest(folder, lambda content: content.update(format_version=3))


def lose_a_record(folder: Path) -> None:
    change_manifest(folder, lambda content: content["totals"].update(found=61))


def other_profile(folder: Path) -> None:
    change_manifest(folder, lambda content: content["signal"].update(derive_leads=True))


def foreign_shard_path(folder: Path) -> None:
    change_manifest(folder, lambda content: content["shards"][1].update(name="../x.tar"))


def remove_index(folder: Path) -> None:
    (folder / "index.npy").unlink()


def cut_index(folder: Path) -> None:
    path = folder / "index.npy"
    path.write_bytes(path.read_bytes()[:-100])


def foreign_index(folder: Path) -> None:
    rows = np.load(folder / "index.npy")
    rows["record_key"] = rows["record_key"][::-1]
    np.save(folder / "index.npy", rows)


def shorter_index(folder: Path) -> None:
    np.save(folder / "index.npy", np.load(folder / "index.npy")[:-1])


def pickled_index(folder: Path) -> None:
    np.save(folder / "index.npy", np.array([{"any": "object"}], dtype=object), allow_pickle=True)


def leave_partial_file(folder: Path) -> None:
    (folder / "train-000001.tar.partial-17").write_bytes(b"half")


DAMAGE = [
    # what was done, file named by verify, what verify says, what ShardSet.open says (None: opens)
    (cut_tar, "train-000001.tar", "truncated", "train-000001.tar has .* truncated"),
    (flip_signal_byte, "train-000001.tar", "sample 0: signal or statistics", None),
    (flip_header_byte, "train-000001.tar", "sample 0: .*checksum does not match", None),
    (flip_label, "train-000001.tar", "sample 0: .*labels differ", None),
    (remove_tar, "train-000001.tar", "missing", "train-000001.tar is missing"),
    (link_tar, "train-000001.tar", "not a plain file", None),
    (swap_tars, "train-000001.tar", "not what the index says", ""),
    (put_link_into_tar, "train-000001.tar", "symbolic link .* only regular files", None),
    (append_member, "train-000001.tar", "members after the last sample", "train-000001.tar has"),
    (remove_manifest, "manifest.json", "has no manifest", "has no manifest"),
    (cut_manifest, "manifest.json", "truncated or damaged", "truncated or damaged"),
    (newer_manifest, "manifest.json", "format version 3", "format version 3"),
    (lose_a_record, "manifest.json", "totals do not add up", None),
    (other_profile, "manifest.json", "fingerprint signal_build", None),
    (foreign_shard_path, "manifest.json", "not a plain file name", "not a plain file name"),
    (remove_index, "index.npy", "missing", "index.npy is missing"),
    (cut_index, "index.npy", "truncated or damaged", "truncated or damaged"),
    (foreign_index, "index.npy", "SHA-256", "does not belong to the manifest"),
    (shorter_index, "index.npy", "rows, the manifest says", "rows .* the manifest says"),
    (pickled_index, "index.npy", "truncated or damaged", "truncated or damaged"),
    (leave_partial_file, "train-000001.tar.partial-17", "killed", None),
]


@pytest.mark.parametrize(
    ("damage", "file", "finding", "error"), DAMAGE, ids=[item[0].__name__ for item in DAMAGE]
)
def test_damage_is_found_and_named(
    shards: Path, damage: Callable[[Path], None], file: str, finding: str, error: str | None
) -> None:
    damage(shards)
    report = verify(shards)
    assert not report.ok
    assert any(name == file and re.search(finding, message) for name, message in report.findings), (
        report
    )
    if error is None:
        ShardSet.open(shards)
    elif error:
        with pytest.raises(UserError, match=error):
            ShardSet.open(shards)


def test_patient_in_two_splits_is_found(archive: Archive, tmp_path: Path) -> None:
    one = archive.catalog["patient_key"][10]
    leaking = archive.catalog.with_columns(patient_key=pl.lit(one))
    shard_archive.build(leaking, archive.root, tmp_path / "shards")
    report = verify(tmp_path / "shards")
    assert [message for _, message in report.findings] == [
        "1 patients have samples in more than one split"
    ]


def test_reading_a_changed_sample_is_an_error(shards: Path) -> None:
    flip_signal_byte(shards)
    opened = ShardSet.open(shards)
    row = int(np.flatnonzero(opened.index["shard"] == 1)[0])
    with pytest.raises(UserError, match=r"train-000001\.tar is damaged .*checksum"):
        opened.read_sample(row)
    assert opened.read_sample(row + 1).xxh3 == opened.index["xxh3"][row + 1]


def test_any_flipped_byte_of_a_shard_is_found(archive: Archive, shards: Path) -> None:
    rng = np.random.default_rng(2)
    path = shards / "val-000000.tar"
    whole = path.read_bytes()
    for position in rng.integers(0, len(whole), 25):
        path.write_bytes(whole)
        flip(path, int(position))
        assert any(name == path.name for name, _ in verify(shards).findings)


def test_missing_folder_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Set shards="):
        ShardSet.open(tmp_path / "nothing")


def test_unknown_split_names_the_valid_ones(archive: Archive) -> None:
    with pytest.raises(UserError, match="'val'"):
        ShardSet.open(archive.shards).rows("vla")


def test_manifest_identity_outlives_a_move_but_not_a_change(archive: Archive, shards: Path) -> None:
    identity = ShardSet.open(archive.shards).manifest.fingerprint
    assert ShardSet.open(shards).manifest.fingerprint == identity
    change_manifest(shards, lambda content: content["shards"][0].update(sha256="0" * 64))
    assert ShardSet.open(shards).manifest.fingerprint != identity
