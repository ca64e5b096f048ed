"""Long recordings in shards: streamed windows, and nothing left of a record that fails midway."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import shard_archive
from shard_archive import Archive

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import EcgRecord, reader, streaming
from ecgfounder_train.records.reader import open_record
from ecgfounder_train.records.stored import StoredRecord
from ecgfounder_train.shards import ShardSet, verify


@pytest.fixture(autouse=True)
def everything_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LONG_VALUES", 0)
    monkeypatch.setattr(streaming, "_PIECE_VALUES", 1)


def test_streamed_records_give_the_shards_of_whole_ones(archive: Archive, tmp_path: Path) -> None:
    manifest = shard_archive.build(archive.catalog, archive.root, tmp_path / "shards")
    streamed, whole = ShardSet.open(tmp_path / "shards"), ShardSet.open(archive.shards)
    assert manifest.totals == whole.manifest.totals
    names = ["record_key", "window", "shard", "offset", "labels", "observed"]
    for name in names:
        np.testing.assert_array_equal(streamed.index[name], whole.index[name])
    assert not verify(tmp_path / "shards").findings


@dataclass
class FailsLate:
    """Opens a record whose last seconds cannot be read, or hold nothing but zeros."""

    root: Path
    zeros: bool = False

    def __call__(self, record_path: str) -> "FailsLate.Record | EcgRecord":
        stored = open_record(self.root / record_path)
        return self.Record(stored, self.zeros) if stored.num_samples > 2000 else stored.read()

    @dataclass
    class Record:
        stored: StoredRecord
        zeros: bool
        comments: tuple[str, ...] = ()

        @property
        def fs(self) -> float:
            return self.stored.fs

        @property
        def num_samples(self) -> int:
            return self.stored.num_samples

        def read(self, start: int = 0, stop: int | None = None) -> EcgRecord:
            if start > 0 and self.zeros:
                part = self.stored.read(start, stop)
                return EcgRecord(0 * part.signal, part.lead_names, part.fs)
            if start > 0:
                raise RejectedRecordError(RejectReason.UNREADABLE_SIGNAL, "the disk is bad there")
            return self.stored.read(start, stop)


@pytest.fixture
def no_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second window is a read of its own."""
    monkeypatch.setattr(streaming, "MARGIN_S", 0)
    monkeypatch.setattr(streaming, "MARGIN_PERIODS", 0)


@pytest.mark.usefixtures("no_overlap")
def test_windows_left_out_are_in_manifest_and_summary(archive: Archive, tmp_path: Path) -> None:
    reads = FailsLate(archive.root, zeros=True)
    manifest = shard_archive.build(
        archive.catalog, archive.root, tmp_path / "shards", read_ecg=reads
    )
    assert manifest.windows_left_out == {"all_zero": 6}
    assert "6 windows of long recordings were left out (6 all_zero)." in manifest.summary()
    assert manifest.totals.windows == manifest.totals.written
    assert ShardSet.open(tmp_path / "shards").manifest == manifest


@pytest.mark.usefixtures("no_overlap")
def test_a_record_that_fails_midway_leaves_no_window_behind(
    archive: Archive, tmp_path: Path
) -> None:
    manifest = shard_archive.build(
        archive.catalog, archive.root, tmp_path / "shards", read_ecg=FailsLate(archive.root)
    )
    assert manifest.totals.rejected["unreadable_signal"] == 6
    assert manifest.totals.windows == manifest.totals.written
    assert manifest.totals.problem() is None
    assert not verify(tmp_path / "shards").findings
    assert {int(row["window"]) for row in ShardSet.open(tmp_path / "shards").index} == {0}
