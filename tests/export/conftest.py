"""One tiny run with its evaluation, and official checkpoints, for the tests of the exports."""

import sys
from pathlib import Path

import pytest
import tiny_set as tiny
import torch

sys.path.insert(0, str(Path(__file__).parent))

from export_tools import composed

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.run import evaluate
from ecgfounder_train.models import create_model
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train


@pytest.fixture(scope="session")
def run(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A trained run, evaluated on its test part, with thresholds and calibration."""
    runs = tmp_path_factory.mktemp("runs")
    more = ("optimizer.lr=1e-2", "budget.max_epochs=4")
    assert train(tiny.tiny_config(tiny_shards, runs, "first", *more)) == 0
    evaluate(composed("evaluate", "run=first", f"paths.runs={runs}", "mistakes=0"))
    return RunDirectory(runs / "first")


@pytest.fixture(scope="session")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the members and types of the released one."""
    import numpy as np

    torch.manual_seed(7)
    model = create_model("net1d_1m")
    path = tmp_path_factory.mktemp("official") / "12_lead.pth"
    content = {"epoch": 1, "step": 10_000, "state_dict": model.state_dict(),
               "optimizer": {"state": {}}, "scheduler": {"best": np.float64(0.92)},
               "val_auroc": np.float64(0.92)}  # fmt: skip
    torch.save(content, path)
    return path
