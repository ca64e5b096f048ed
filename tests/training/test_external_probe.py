"""The probe on another data set: what it measures, and that training never notices it."""

import csv
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import run_tools
import tiny_set
import torch
from run_tools import Child, rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.training.probe import COLUMNS, ProbeSettings
from ecgfounder_train.weights.checkpoint import find_checkpoint
from ecgfounder_train.weights.trained_model import TrainedModel

Pretrain = Callable[..., RunDirectory]
FEW = ("budget.max_epochs=3", "budget.validate_every_samples=50", "probe.every_validations=2")


@pytest.fixture(scope="module")
def other(tiny_set: Any, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Another data set: other labels (without their closure), fewer records."""
    import tiny_set as tiny

    return tiny.build(
        tiny_set.catalog[:60],
        tiny_set.root,
        tmp_path_factory.mktemp("other") / "shards",
        vocabulary=Vocabulary.load("ptbxl_super5", closure="none"),
    )


def probes(run: RunDirectory) -> list[dict[str, str]]:
    return [row for row in rows(run) if row["val/loss"]]


def without_probe(run: RunDirectory) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in COLUMNS} for row in rows(run)]


def test_a_run_with_a_probe_is_the_run_without_one_to_the_bit(
    pretrain: Pretrain, other: ShardSet, undisturbed: RunDirectory
) -> None:
    probed = pretrain(*run_tools.EVERYTHING_ON, f"probe.shards={other.folder}")
    assert all(float(row["probe/macro_auroc"]) > 0 for row in probes(probed))
    assert not set(COLUMNS) & set(rows(undisturbed)[0])
    assert without_probe(probed) == rows(undisturbed)
    one, two = run_tools.last_checkpoint(probed), run_tools.last_checkpoint(undisturbed)
    for key in ("model", "ema", "optimizer", "position", "best", "scores", "window"):
        run_tools.assert_identical(one[key], two[key], key)


def test_a_probe_is_the_auroc_of_a_logistic_regression_on_the_validated_features(
    pretrain: Pretrain, other: ShardSet
) -> None:
    run = pretrain(
        "budget.max_epochs=1", f"probe.shards={other.folder}", "ema.half_life_samples=30"
    )
    (last,) = probes(run)
    trained = TrainedModel.load(find_checkpoint(run, "last"))  # the average, as validation sees it
    features, truth = {}, {}
    for part in ("train", "val"):
        (batch,) = EvaluationBatches(SampleReader(other), other.rows(part), RankShape(64))
        present, batch_truth = batch["present"], batch["targets"].numpy().astype(float)
        batch_truth[batch["observed"].numpy() == 0] = np.nan
        with torch.inference_mode():
            signals = trained.transform(batch, training=False)[0]
            pooled = trained.model.forward_features(signals)[1]  # type: ignore[operator]
        features[part] = pooled[present].numpy().astype(np.float64)
        truth[part] = batch_truth[present.numpy()]
    mean, std = features["train"].mean(0), features["train"].std(0)
    areas = []
    for label in range(5):
        seen, held = (~np.isnan(truth[part][:, label]) for part in ("train", "val"))
        readout = LogisticRegression(C=1 / (0.01 * seen.sum()), tol=1e-10, max_iter=10_000)
        readout.fit((features["train"][seen] - mean) / std, truth["train"][seen, label])
        scores = readout.decision_function((features["val"][held] - mean) / std)
        areas.append(roc_auc_score(truth["val"][held, label], scores))
    assert int(last["probe/num_labels"]) == 5
    assert float(last["probe/macro_auroc"]) == pytest.approx(np.mean(areas), abs=0.01)


def test_probes_come_at_every_so_many_validations_also_after_a_kill(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain, other: ShardSet
) -> None:
    asked = (*FEW, f"probe.shards={other.folder}", "checkpoint.every_samples=16")
    whole = pretrain(*asked, run="whole")
    assert [bool(row["probe/macro_auroc"]) for row in probes(whole)] == [False, True, False, True]
    killed = RunDirectory(tmp_path / "killed")
    overrides = tiny_set.tiny_overrides(tiny_shards, tmp_path, "killed", *asked)
    child = Child(overrides, tmp_path / "output", kill_at="validation_step:6")
    assert child.wait() == -signal.SIGKILL
    assert 0 < len(probes(killed)) < 4
    pretrain(*asked, run="killed")
    run_tools.assert_same_run(killed, whole)


def test_no_more_records_than_asked_are_probed(pretrain: Pretrain, other: ShardSet) -> None:
    few = pretrain("budget.max_epochs=1", f"probe.shards={other.folder}", "probe.max_records=12")
    again = pretrain(
        "budget.max_epochs=1", f"probe.shards={other.folder}", "probe.max_records=12", run="again"
    )
    every = pretrain("budget.max_epochs=1", f"probe.shards={other.folder}", run="every")
    values = [probes(run)[-1]["probe/macro_auroc"] for run in (few, again, every)]
    assert values[0] == values[1] != values[2]


def test_a_single_lead_network_is_probed_on_lead_i(pretrain: Pretrain, other: ShardSet) -> None:
    run = pretrain("data.lead_choice=published", f"probe.shards={other.folder}", *FEW)
    assert 0 < float(probes(run)[1]["probe/macro_auroc"]) <= 1


def test_a_damaged_sample_of_the_probe_is_left_out_with_a_warning(
    pretrain: Pretrain, other: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(other.folder, folder)
    entry = other.index[other.rows("train")[3]]
    path = folder / other.shard_path(int(entry["shard"])).name
    with path.open("r+b") as handle:
        handle.seek(int(entry["offset"]) + other.layout.ecg.offset + 40)
        handle.write(b"\xaa\x55\xaa\x55")
    run = pretrain("budget.max_epochs=1", f"probe.shards={folder}")
    warned = capsys.readouterr().err
    assert "warning: quarantined a sample" in warned and path.name in warned
    assert 0 < float(probes(run)[-1]["probe/macro_auroc"]) <= 1


def test_checkpoints_hold_no_path_of_the_probe(pretrain: Pretrain, other: ShardSet) -> None:
    run = pretrain("budget.max_epochs=1", f"probe.shards={other.folder}")
    for path in [run.state_file, run.metrics_file, *run.checkpoints.iterdir()]:
        assert str(other.folder).encode() not in path.read_bytes(), path.name


def test_a_probe_that_cannot_be_is_refused_before_anything_is_written(
    tiny_set: Any, tmp_path: Path, pretrain: Pretrain, other: ShardSet
) -> None:
    import tiny_set as tiny

    foreign = tiny.build(
        tiny_set.catalog[:30], tiny_set.root, tmp_path / "foreign", profile=tiny.profile("official")
    )
    with pytest.raises(UserError, match=r"another signal profile .*same signal="):
        pretrain(f"probe.shards={foreign.folder}")
    with pytest.raises(UserError, match=r"probe\.every_validations=0"):
        pretrain(f"probe.shards={other.folder}", "probe.every_validations=0")
    with pytest.raises(UserError, match=r"probe\.penalty"):
        ProbeSettings(penalty=0.0)
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_probe_scored_on_records_or_patients_that_are_trained_on_is_refused(
    tiny_set: Any, tmp_path: Path, pretrain: Pretrain, tiny_shards: ShardSet
) -> None:
    import tiny_set as tiny

    turned = tiny_set.catalog[:60].with_columns(
        pl.col("split").replace({"train": "val", "val": "train"})
    )
    same = tiny.build(turned, tiny_set.root, tmp_path / "same")
    num_records = len(set(same.index["record_key"][same.rows("val")]))
    assert num_records > 10
    with pytest.raises(UserError) as refused:
        pretrain(f"probe.shards={same.folder}")
    # A patient of the archive has one record.
    assert f"holds {num_records} records and {num_records} patients of the val" in str(
        refused.value
    )
    assert "probe.shards=null trains without a probe" in str(refused.value)
    # Other recordings of the same patients, of which one part is enough.
    key = (pl.lit("feed") + pl.col("record_key").str.slice(4)).alias("record_key")
    again = tiny.build(turned.with_columns(key), tiny_set.root, tmp_path / "again")
    with pytest.raises(UserError, match=f"also holds {num_records} patients of the val part"):
        pretrain(f"probe.shards={again.folder}", "probe.max_records=1")
    assert not list(tmp_path.rglob("config.yaml"))


def test_what_is_known_of_a_probe_and_the_training_part_is_said_at_the_start(
    tiny_set: Any,
    tmp_path: Path,
    pretrain: Pretrain,
    other: ShardSet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tiny_set as tiny

    def said(shards: ShardSet, run: str) -> str:
        pretrain("budget.max_epochs=1", f"probe.shards={shards.folder}", run=run)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "Probe on" in line]
        return line

    counts = [len(other.rows(part)) for part in ("train", "val")]
    line = said(other, "compared")
    assert f"Probe on test: fitted on {counts[0]} windows, scored on {counts[1]}." in line
    assert line.endswith(
        "No evaluated record or patient is in the training part (compared by key)."
    )
    catalog, root = tiny_set.catalog[:60], tiny_set.root
    foreign = tiny.build(catalog, root, tmp_path / "foreign", source_name="elsewhere")
    assert "whether the two share recordings is not known" in said(foreign, "foreign")
    hidden = tiny.build(catalog, root, tmp_path / "hidden", secret=Secret(bytes(32)))
    assert "under another secret: overlap with training could not be" in said(hidden, "hidden")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_ranks_probe_what_one_does(
    tiny_shards: ShardSet, tmp_path: Path, other: ShardSet
) -> None:
    asked = (*FEW, f"probe.shards={other.folder}", "data.batch_size_per_rank=4")
    config = tiny_set.tiny_config(tiny_shards, tmp_path, "one", *asked)
    assert train(config) == 0
    two = tiny_set.tiny_overrides(tiny_shards, tmp_path, "two", *asked, "trainer=ddp_cpu")
    process = run_tools.command(two)
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode == 0, output
    values = []
    for run in ("one", "two"):
        with RunDirectory(tmp_path / run).metrics_file.open(newline="") as handle:
            found = [row["probe/macro_auroc"] for row in csv.DictReader(handle) if row["val/loss"]]
        values.append([float(value) for value in found if value])
    assert len(values[0]) == 2
    assert values[0] == pytest.approx(values[1], abs=0.02)
