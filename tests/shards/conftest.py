"""One archive and one undisturbed build of it for all tests of this folder."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import shard_archive
from shard_archive import Archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    base = tmp_path_factory.mktemp("archive")
    root = base / "archive"
    catalog = shard_archive.write_archive(root)
    catalog.write_parquet(root.with_suffix(".parquet"))
    shard_archive.build(catalog, root, base / "shards")
    return Archive(root, catalog, base / "shards")


@pytest.fixture
def shards(archive: Archive, tmp_path: Path) -> Path:
    """A copy of the undisturbed build, to be damaged."""
    folder = tmp_path / "shards"
    shutil.copytree(archive.shards, folder)
    shutil.copytree(f"{archive.shards}.private", f"{folder}.private")
    return folder
