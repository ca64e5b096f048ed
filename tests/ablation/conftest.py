"""A tiny ablation, trained once: two sizes, two seeds, seconds each."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from ablation_tools import ablation_config

from ecgfounder_train.ablation.running import run_ablation
from ecgfounder_train.shards import ShardSet


@pytest.fixture(scope="session")
def trained_ablation(
    tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder and config of a finished ablation of two sizes and two seeds; read only."""
    base = tmp_path_factory.mktemp("ablation")
    config = ablation_config(tiny_shards, base)
    assert run_ablation(config) == 0
    return base, config
