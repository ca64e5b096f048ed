"""Fixtures every test may use; each area keeps its own beside its tests."""

import os

# Triton decides when it is first imported whether its interpreter runs kernels on the CPU. What
# compiles or runs them for real does so in a process of its own.
os.environ.setdefault("TRITON_INTERPRET", "1")
# One thread here and in children (torch reads it once, when it is imported): sums must be taken in
# one order wherever a run is continued.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from slurm_cluster import LocalSlurm, start_slurm, why_not

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


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[LocalSlurm]:
    """A SLURM of three nodes with two cores each, started once; see `local_slurm`."""
    if reason := why_not():
        pytest.skip(reason)
    with start_slurm(num_nodes=3, cpus=2, preemption=True) as cluster:
        yield cluster


@pytest.fixture
def local_slurm(slurm_session: LocalSlurm) -> Iterator[LocalSlurm]:
    """The SLURM of this session, idle and whole: no jobs, all nodes up.

    Partition `urgent` preempts `main`. A test that needs another shape starts one of its own with
    `slurm_cluster.start_slurm`.
    """
    slurm_session.reset()
    yield slurm_session
    slurm_session.reset()
