"""A model with thresholds and calibration, and the official form of one."""

from pathlib import Path

import numpy as np
import pytest
import tiny_set as tiny
import torch

from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.models import create_model
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.checkpoint import find_checkpoint
from ecgfounder_train.weights.decisions import Decisions, decisions_file, reading_of
from ecgfounder_train.weights.trained_model import TrainedModel


@pytest.fixture(scope="session")
def checkpoint(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint of five labels at 100 Hz, thresholds and calibration beside it."""
    runs = tmp_path_factory.mktemp("predict_runs")
    more = ("optimizer.lr=1e-2", "budget.max_epochs=3")
    assert train(tiny.tiny_config(tiny_shards, runs, "run", *more)) == 0
    path = find_checkpoint(RunDirectory(runs / "run"), "best")
    device = torch.device("cpu")
    predictions = predict_split(TrainedModel.load(path), tiny_shards, "val", device, 16)
    fitted = Decisions.fit(predictions, sha256_file(path), reading_of("mean", 1, "platt"), "platt")
    fitted.write(decisions_file(path))
    return path


@pytest.fixture(scope="session")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the official form: 150 outputs, 12 leads, a numpy scalar among its values."""
    torch.manual_seed(5)
    state = create_model("net1d_1m", num_leads=12).state_dict()
    path = tmp_path_factory.mktemp("official") / "12_lead_ECGFounder.pth"
    content = {"epoch": 1, "step": 10, "state_dict": state, "val_auroc": np.float64(0.92)}
    torch.save(content, path)
    return path
