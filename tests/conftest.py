"""Fixtures every test may use; each area keeps its own beside its tests."""

import os
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from ecgfounder_train.shards import ShardSet


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the open ECG excerpts; the test skips where they are absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ECG_REAL_DATA", default))
    if not (folder / "README.md").is_file():
        pytest.skip("no real ECG excerpts: set ECG_REAL_DATA to the folder that holds them")
    return folder


class TinySet(NamedTuple):
    """A small archive, its catalog, and its shards (read only; copy them to damage them)."""

    root: Path
    catalog: pl.DataFrame
    shards: ShardSet


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    """A hundred records of 100 Hz with five labels, and their shards."""
    import tiny_set as tiny

    base = tmp_path_factory.mktemp("tiny")
    catalog = tiny.write_archive(base / "archive")
    shards = tiny.build(catalog, base / "archive", base / "shards")
    return TinySet(base / "archive", catalog, shards)


@pytest.fixture(scope="session")
def tiny_shards(tiny_set: TinySet) -> ShardSet:
    """The shards of `tiny_set`."""
    return tiny_set.shards
