"""Runs that several tests compare with, trained once."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run_tools
import tiny_set

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train


@pytest.fixture
def pretrain(tiny_shards: ShardSet, tmp_path: Path) -> Callable[..., RunDirectory]:
    """Train a tiny run in this process and return its directory."""

    def start(*overrides: str, run: str = "run", exit_code: int = 0) -> RunDirectory:
        config = tiny_set.tiny_config(tiny_shards, tmp_path, run, *overrides)
        assert train(config) == exit_code
        return RunDirectory(tmp_path / run)

    return start


@pytest.fixture(scope="session")
def undisturbed(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run of `run_tools.EVERYTHING_ON`, never interrupted."""
    runs = tmp_path_factory.mktemp("undisturbed")
    assert train(tiny_set.tiny_config(tiny_shards, runs, "run", *run_tools.EVERYTHING_ON)) == 0
    return RunDirectory(runs / "run")
