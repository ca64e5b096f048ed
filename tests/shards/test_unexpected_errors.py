"""A record that makes its reader or the filters fail is rejected; the shard holds all others."""

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import shard_archive
from shard_archive import Archive

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.records import EcgRecord, read_record
from ecgfounder_train.records.profiles import SignalProfile

FAILING = ("00010", "00030")
"""In the stems of two records that would be written."""


@dataclass(frozen=True)
class FailingReader:
    """Reads WFDB records, and raises for two of them what a library might."""

    root: str
    error: Exception

    def __call__(self, record_path: str) -> EcgRecord:
        if any(stem in record_path for stem in FAILING):
            raise self.error
        return read_record(Path(self.root) / record_path)


@pytest.mark.parametrize(
    "error",
    [zlib.error("4711"), RuntimeError("4711"), MemoryError(), RecursionError(), KeyError("4711")],
)
def test_record_whose_reader_fails_is_a_counted_rejection(
    archive: Archive, tmp_path: Path, error: Exception
) -> None:
    reader = FailingReader(str(archive.root), error)
    manifest = shard_archive.build(
        archive.catalog, archive.root, tmp_path / "shards", read_ecg=reader
    )
    assert manifest.totals.rejected["unexpected_error"] == len(FAILING)
    assert manifest.totals.problem() is None
    with open(private_folder(tmp_path / "shards") / "rejects.csv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["reason"] == "unexpected_error"]
    assert all(type(error).__name__ in row["detail"] for row in rows)
    assert not any("4711" in row["detail"] for row in rows)


def test_storage_that_fails_is_not_put_down_to_the_record(archive: Archive, tmp_path: Path) -> None:
    reader = FailingReader(str(archive.root), TimeoutError("no answer"))
    with pytest.raises(UserError, match="TimeoutError"):
        shard_archive.build(archive.catalog, archive.root, tmp_path / "shards", read_ecg=reader)


def test_record_that_breaks_the_filters_is_a_counted_rejection(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SignalProfile.apply

    def fails_once(profile: SignalProfile, record: EcgRecord, site: str | None = None) -> object:
        if fails_once.calls == 7:  # type: ignore[attr-defined]
            fails_once.calls += 1  # type: ignore[attr-defined]
            raise np.linalg.LinAlgError("singular")
        fails_once.calls += 1  # type: ignore[attr-defined]
        return plain(profile, record, site)

    fails_once.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(SignalProfile, "apply", fails_once)
    manifest = shard_archive.build(archive.catalog, archive.root, tmp_path / "shards")
    assert manifest.totals.rejected["unexpected_error"] == 1
