"""A power cut at any moment leaves old files or whole new ones, and the next build the same bytes.

The calls that make data durable are recorded while a set is built. Every moment between two of them
is a power cut: what was not synced by then is lost (content is cut) or there (renames may or may
not have reached the disk). The next build has to come out as if nothing had happened.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import shard_set_of_one_record as small

from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.private_files import private_folder


@dataclass
class Disk:
    """What a power cut leaves at each moment, as copies of the folder."""

    folder: Path
    copies: Path
    synced: set[int] = field(default_factory=set)
    """Inodes whose content is durable."""
    cuts: list[Path] = field(default_factory=list)

    def cut(self) -> None:
        """Keep what the disk holds if the power goes now: content that was not synced is lost."""
        copy = self.copies / f"{len(self.cuts):04d}"
        shutil.copytree(self.folder, copy)
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced:
                twin = copy / path.relative_to(self.folder)
                os.truncate(twin, twin.stat().st_size // 2)
        self.cuts.append(copy)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Disk]:
    """Return what records the moments at which a power cut makes a difference in a folder."""

    def start(folder: Path) -> Disk:
        disk = Disk(folder, tmp_path / "cuts")
        fsync, replace = os.fsync, os.replace

        def recorded_fsync(descriptor: int) -> None:
            disk.cut()
            fsync(descriptor)
            disk.synced.add(os.fstat(descriptor).st_ino)
            disk.cut()

        def recorded_replace(source: Path, target: Path) -> None:
            disk.cut()
            replace(source, target)
            disk.cut()

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "replace", recorded_replace)
        return disk

    return start


def test_file_is_old_or_new_after_a_power_cut(
    tmp_path: Path, record: Callable[[Path], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    with atomic_file(folder / "file") as handle:
        handle.write(b"old" * 1000)
    disk = record(folder)
    disk.synced.add((folder / "file").stat().st_ino)
    with atomic_file(folder / "file") as handle:
        handle.write(b"new" * 1000)
    found = [(cut / "file").read_bytes()[:3] for cut in disk.cuts]
    assert all(len((cut / "file").read_bytes()) == 3000 for cut in disk.cuts)
    assert found == sorted(found, reverse=True), "old, and from some moment on new"
    assert set(found) == {b"old", b"new"}


def test_file_written_without_a_sync_would_be_found(
    tmp_path: Path, record: Callable[[Path], Disk]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    disk = record(folder)
    (folder / "partial").write_bytes(b"new" * 1000)
    os.replace(folder / "partial", folder / "file")  # noqa: PTH105
    assert len((disk.cuts[-1] / "file").read_bytes()) < 3000


@pytest.mark.slow
def test_build_after_any_power_cut_gives_the_same_bytes(
    tmp_path: Path, record: Callable[[Path], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "disk"
    with monkeypatch.context() as patch:
        disk = record(folder)
        small.build(folder / "shards")
        patch.undo()
    monkeypatch.undo()
    due = small.content(folder / "shards")
    assert len(disk.cuts) > 30
    for cut in disk.cuts:
        small.build(cut / "shards")
        assert small.content(cut / "shards") == due, cut.name
        assert not list(private_folder(cut / "shards").rglob("*partial*"))
