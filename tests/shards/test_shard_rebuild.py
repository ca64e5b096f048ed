"""Single shards are rebuilt from the archive, or left alone if it has changed."""

import shutil
from pathlib import Path

import pytest
from shard_archive import Archive

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import rebuild, verify


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def test_damaged_shards_are_rebuilt_byte_for_byte(shards: Path) -> None:
    before = content(shards)
    damage(shards / "train-000001.tar")
    (shards / "val-000000.tar").unlink()
    assert rebuild(shards, "damaged") == ("train-000001.tar", "val-000000.tar")
    assert content(shards) == before
    assert verify(shards).ok
    assert rebuild(shards, "damaged") == ()


def test_shards_are_rebuilt_by_number_and_name(shards: Path) -> None:
    before = content(shards)
    (shards / "train-000000.tar").unlink()
    (shards / "test-000000.tar").unlink()
    assert rebuild(shards, [0, "test-000000.tar"]) == ("train-000000.tar", "test-000000.tar")
    assert content(shards) == before


def test_archive_that_changed_since_gives_no_other_shard(
    archive: Archive, shards: Path, tmp_path: Path
) -> None:
    before = content(shards)
    root = tmp_path / "archive"
    shutil.copytree(archive.root, root)
    for path in root.rglob("*.dat"):
        data = bytearray(path.read_bytes())
        data[100] ^= 8
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"The rebuilt train-000000\.tar has SHA-256 .* not the"):
        rebuild(shards, [0], root=root)
    assert content(shards) == before


@pytest.mark.parametrize("which", [[99], ["nothing.tar"], "broken", [-1], [True], 1.5])
def test_unknown_shard_names_what_there_is(shards: Path, which: list[int]) -> None:
    with pytest.raises(UserError, match=r"is not a shard of .* rebuild=damaged"):
        rebuild(shards, which)


def test_lost_plan_says_what_to_do(shards: Path) -> None:
    Path(f"{shards}.private/plan.parquet").unlink()
    with pytest.raises(UserError, match="run prepare again"):
        rebuild(shards, [0])
