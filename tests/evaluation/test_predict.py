"""Predictions of a split equal a forward pass by hand, row by row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_set as tiny
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.metrics.predictions import read_predictions, write_predictions
from ecgfounder_train.records import normalise
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.checkpoint import find_checkpoint, resolve_checkpoint
from ecgfounder_train.weights.trained_model import TrainedModel, choose_device

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    runs = tmp_path_factory.mktemp("runs")
    more = ("ema.half_life_samples=50", "budget.max_epochs=3", "optimizer.lr=1e-2")
    assert train(tiny.tiny_config(tiny_shards, runs, "run", *more)) == 0
    return RunDirectory(runs / "run")


@pytest.fixture(scope="module")
def trained(run: RunDirectory) -> TrainedModel:
    return TrainedModel.load(find_checkpoint(run, "last"))


def by_hand(
    trained: TrainedModel, ecg: np.ndarray, stats: np.ndarray, start: int, count: int
) -> np.ndarray:
    signal = normalise(ecg, stats, start, count, trained.profile.load_normalisation)
    with torch.inference_mode():
        logits: np.ndarray = trained.model(torch.from_numpy(signal)[None])[0].numpy()
    return logits


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_of_a_split_equal_a_direct_forward(
    trained: TrainedModel, tiny_shards: ShardSet, batch_size: int, tmp_path: Path
) -> None:
    predictions = predict_split(trained, tiny_shards, "test", CPU, batch_size, "run")
    rows = tiny_shards.rows("test")
    assert len(predictions.logits) == len(rows)
    for place, row in enumerate(rows.tolist()):
        sample = tiny_shards.read_sample(row)
        facts = sample.facts
        expected = by_hand(
            trained, sample.ecg, sample.stats, facts["valid_start"], facts["valid_num_samples"]
        )
        np.testing.assert_allclose(predictions.logits[place], expected, atol=1e-4)
        assert predictions.record_key[place] == sample.record_key
        assert predictions.patient_key[place] == facts["patient_key"]
        assert predictions.window[place] == sample.window
        assert (predictions.targets[place] == sample.labels[0]).all()
        assert (predictions.observed[place] == sample.labels[1]).all()
        assert predictions.site[place] == facts["site"]
        assert predictions.sex[place] == facts["sex"]
    assert predictions.labels == trained.labels and set(predictions.split) == {"test"}
    write_predictions(tmp_path / "predictions.parquet", predictions)
    again = read_predictions(tmp_path / "predictions.parquet")
    assert (again.logits == predictions.logits).all()


def test_averaged_weights_are_used_where_a_run_keeps_them(
    run: RunDirectory, trained: TrainedModel
) -> None:
    checkpoint = torch.load(find_checkpoint(run, "last"), weights_only=True)
    used = trained.model.state_dict()
    assert all(torch.equal(used[name], value) for name, value in checkpoint["ema"].items())
    assert any(not torch.equal(used[name], v) for name, v in checkpoint["model"].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": Vocabulary.load("ptbxl_all71_super5")}, "5 labels.*have 76"),
        ({"profile": tiny.profile("official")}, "another signal profile than the model"),
    ],
    ids=["vocabulary", "profile"],
)
def test_shards_of_another_kind_are_refused(
    trained: TrainedModel,
    tiny_set: Any,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    import polars as pl

    catalog = tiny_set.catalog
    if "vocabulary" in changes:
        packed = np.packbits(np.ones(76, np.uint8)).tobytes()
        catalog = catalog.with_columns(labels=pl.lit(packed), observed=pl.lit(packed))
    other = tiny.build(catalog, tiny_set.root, tmp_path / "other", **changes)
    with pytest.raises(UserError, match=message):
        predict_split(trained, other, "test", CPU, 8)


def test_wrong_requests_are_named(
    trained: TrainedModel, tiny_set: Any, tmp_path: Path, run: RunDirectory
) -> None:
    import polars as pl

    with pytest.raises(UserError, match="batch_size=0"):
        predict_split(trained, tiny_set.shards, "test", CPU, 0)
    with pytest.raises(UserError, match="no split 'tset'"):
        predict_split(trained, tiny_set.shards, "tset", CPU, 4)
    without_test = tiny.build(
        tiny_set.catalog.filter(pl.col("split") != "test"), tiny_set.root, tmp_path / "shards"
    )
    with pytest.raises(UserError, match="hold no test samples"):
        predict_split(trained, without_test, "test", CPU, 4)
    with pytest.raises(UserError, match="device='tpu' is unknown"):
        choose_device("tpu")
    with pytest.raises(UserError, match="neither best, last nor a file"):
        find_checkpoint(run, "lsat")


def test_single_lead_model_reads_lead_i_alone(tiny_set: Any, tmp_path: Path) -> None:
    more = ("data.lead_choice=published", "budget.max_epochs=1")
    assert train(tiny.tiny_config(tiny_set.shards, tmp_path, "run", *more)) == 0
    trained = TrainedModel.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    row = int(tiny_set.shards.rows("test")[0])
    sample = tiny_set.shards.read_sample(row)
    facts = sample.facts
    expected = by_hand(
        trained, sample.ecg[:1], sample.stats[:1], facts["valid_start"], facts["valid_num_samples"]
    )
    predictions = predict_split(trained, tiny_set.shards, "test", CPU, 16)
    np.testing.assert_allclose(predictions.logits[0], expected, atol=1e-4)


def test_best_and_last_are_those_of_a_named_run(run: RunDirectory) -> None:
    runs, best = run.path.parent, find_checkpoint(run, "best")
    assert resolve_checkpoint("best", runs, run.name) == best
    assert resolve_checkpoint(str(best), runs, None) == best
    with pytest.raises(UserError, match="add run=NAME"):
        resolve_checkpoint("last", runs, None)
    with pytest.raises(UserError, match="There is no run"):
        resolve_checkpoint("last", runs, "nobody")
