"""A table of answers for the tiny archive, and a network pretrained on its shards."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import tiny_set as tiny
from tuning_tools import Place, Tune, arguments_of, composed, rows_of, write_table

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.finetuning.session import finetune
from ecgfounder_train.training.pretrain import train


@pytest.fixture(scope="session")
def place(tiny_set: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Records, their table, a cache for all tests, and a network with BatchNorm."""
    base = tmp_path_factory.mktemp("finetuning")
    config = tiny.tiny_config(tiny_set.shards, base, "base", "model.norm=batch")
    assert train(config) == 0
    return Place(
        tiny_set.root,
        write_table(base / "answers.csv", rows_of(tiny_set.catalog)),
        base / "cache",
        RunDirectory(base / "base").checkpoints / "best.ckpt",
    )


@pytest.fixture
def tuned(place: Place, tmp_path: Path) -> Tune:
    """Fine-tune in this process and return the run's directory."""

    def start(*more: str, run: str = "run", exit_code: int = 0) -> RunDirectory:
        assert finetune(composed(arguments_of(place, tmp_path, run, *more))) == exit_code
        return RunDirectory(tmp_path / run)

    return start
