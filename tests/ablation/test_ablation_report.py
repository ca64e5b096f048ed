"""The report of a real tiny ablation, what it refuses, the size table and the search."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from ablation_tools import FAST, SIZES, ablation_config, quoted

from ecgfounder_train.ablation.report import report_ablation
from ecgfounder_train.ablation.search import parse_parameters, search_settings
from ecgfounder_train.ablation.sizes import measure, print_sizes
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import clusters_from_keys, ranking_intervals
from ecgfounder_train.metrics.predictions import read_predictions
from ecgfounder_train.models import MODEL_TABLE, Net1DConfig
from ecgfounder_train.models.accounting import activation_bytes
from ecgfounder_train.shards import ShardSet

Trained = tuple[Path, dict[str, Any]]


@pytest.fixture
def copied(trained_ablation: Trained, tmp_path: Path) -> Path:
    """A finished ablation that a test may damage."""
    shutil.copytree(trained_ablation[0] / "runs", tmp_path / "runs")
    return tmp_path


def change_state(base: Path, name: str, **changes: Any) -> None:
    path = base / "runs" / name / "run.json"
    state = json.loads(path.read_text())
    for key, value in changes.items():
        state[key] = {**state[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(state))


def test_report_says_what_the_predictions_give(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ablation_config(None, copied)
    assert report_ablation(config) == 0
    folder = copied / "ablations" / "tiny"
    table = pl.read_csv(folder / "report_val.csv")
    page = (folder / "report_val.html").read_text()
    assert table["variant"].to_list() == ["25k", "60k"] and table["num_seeds"].to_list() == [2, 2]
    for row in table.iter_rows(named=True):
        values = []
        for seed in (0, 1):
            run = copied / "runs" / f"tiny__{row['variant']}__seed{seed}"
            item = read_predictions(run / "evaluation" / "ablation-val" / "predictions.parquet")
            clusters = clusters_from_keys(item.patient_key, item.record_key)
            found = ranking_intervals(
                item.logits, item.targets, item.observed, patients=clusters
            ).auroc.macro()
            values.append(found.value)
        assert row["macro_auroc"] == pytest.approx(np.mean(values), abs=1e-9)
        assert row["seed_spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
        assert row["lower"] < row["macro_auroc"] < row["upper"]
        assert row["training_flops"] == 3 * row["forward_flops_per_ecg"] * row["samples_seen"]
        assert abs(row["parameters"] / {"25k": 2.5e4, "60k": 6e4}[row["variant"]] - 1) < 0.005
    said = capsys.readouterr().out
    assert "The best was chosen on the very records" in said and "power law is fitted from" in said
    for words in ("Tests against the best", "it selects, it does not confirm", "<svg"):
        assert words in page
    patients = {key for key in item.patient_key.tolist() if key}
    assert not any(key in page for key in patients)


def test_second_report_uses_the_kept_predictions(copied: Path) -> None:
    config = ablation_config(None, copied)
    report_ablation(config)
    kept = sorted((copied / "runs").rglob("predictions.parquet"))
    before = [path.stat().st_mtime_ns for path in kept]
    report_ablation(config)
    assert [path.stat().st_mtime_ns for path in kept] == before and len(kept) == 4


def test_unfinished_member_is_left_out_and_named(copied: Path) -> None:
    change_state(copied, "tiny__60k__seed1", state="stopped")
    report_ablation(ablation_config(None, copied))
    page = (copied / "ablations" / "tiny" / "report_val.html").read_text()
    assert "1 of 4 members are not finished and left out: tiny__60k__seed1" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprints": {"vocabulary": "other"}}, "another vocabulary"),
        ({"fingerprints": {"split": "other"}}, "another split"),
        ({"total_samples": 128}, "budget of 64 ECGs and .* of 128"),
    ],
)
def test_runs_that_differ_in_more_than_the_axes_are_refused(
    changes: dict[str, Any], message: str, copied: Path
) -> None:
    change_state(copied, "tiny__60k__seed1", **changes)
    with pytest.raises(UserError, match=message):
        report_ablation(ablation_config(None, copied))


def test_test_part_is_for_a_finished_grid_and_for_one_set_of_members(copied: Path) -> None:
    config = ablation_config(None, copied, "split=test")
    change_state(copied, "tiny__60k__seed1", state="stopped")
    with pytest.raises(UserError, match="split=test is for the end"):
        report_ablation(config)
    change_state(copied, "tiny__60k__seed1", state="finished")
    try:
        report_ablation(config)
    except UserError as error:  # the tiny test part has hardly ten patients of each kind
        assert "nothing to compare" in str(error)
    with pytest.raises(UserError, match="test part was used for this ablation already"):
        report_ablation({**config, "checkpoint": "best"})
    with pytest.raises(UserError, match="Did you mean 'val'"):
        report_ablation({**config, "split": "vall"})


def test_group_that_the_vocabulary_lacks_is_refused(copied: Path) -> None:
    with pytest.raises(UserError, match="has no such group of labels"):
        report_ablation(ablation_config(None, copied, "group=rhythm"))


def test_table_measures_each_network(
    tmp_path: Path, tiny_shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_sizes(ablation_config(tiny_shards, tmp_path, "device=cpu")) == 0
    table = pl.read_csv(tmp_path / "ablations" / "tiny" / "sizes.csv")
    assert table["name"].to_list() == ["25k", "60k"]
    for column in ("parameters", "forward_flops_per_ecg", "activation_bytes_per_ecg"):
        small, large = table[column].to_list()
        assert 0 < small < large
    assert (table["ecg_per_s"] > 0).all()
    assert "MB / ECG" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such axis"):
        print_sizes(ablation_config(tiny_shards, tmp_path, "~ablation.axes.model"))


def test_activation_memory_grows_with_the_signal_and_not_with_the_batch() -> None:
    torch.manual_seed(0)
    config = Net1DConfig(widths=(16, 32), depths=(1, 1), base_filters=16, num_labels=3)
    size = measure("small", config, 400, torch.device("cpu"))
    longer = measure("small", config, 800, torch.device("cpu"))
    assert 1.8 < longer.activation_bytes / size.activation_bytes < 2.2
    from ecgfounder_train.models import Net1D

    model = Net1D(config)
    pair, eight = (activation_bytes(model, torch.randn(n, 12, 400)) for n in (2, 8))
    assert pair == pytest.approx(eight, rel=0.05)
    assert MODEL_TABLE["net1d_31m"].widths[-1] == 1024


def test_search_counts_the_trials_of_earlier_calls(
    tiny_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        SIZES,
        "search.trials=1",
        "ablation.budget.samples=16",
        quoted("overrides", ["budget.validate_every_samples=16"]),
        quoted("search.parameters", ["optimizer.lr=log(1e-4,1e-2)", "loss=one_of(bce,pu_hill)"]),
    ]
    config = ablation_config(tiny_shards, tmp_path, *words)
    assert search_settings(config) == 0
    config["search"]["trials"] = 2
    assert search_settings(config) == 0
    runs = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert runs == ["tiny__trial0000", "tiny__trial0001"]
    assert "2 trials with a value. Best: trial" in capsys.readouterr().out
    assert FAST


@pytest.mark.parametrize(
    "item", ["optimizer.lr", "optimizer.lr=uniform(1,2)", "optimizer.lr=log(1)", "a=log(2,1)"]
)
def test_search_space_that_cannot_be_read_is_refused(item: str) -> None:
    with pytest.raises(UserError, match=r"search\.parameters"):
        parse_parameters([item])
    with pytest.raises(UserError, match="nothing to search"):
        parse_parameters([])
