"""Archives of the losses benchmark differ in what readers leave out; the truth is the judge."""

import csv
from pathlib import Path

import numpy as np
import pytest

from ecgfounder_train.benchmarks import Outcome, run_benchmark
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import SampleReader
from ecgfounder_train.shards import ShardSet

TINY = {
    "missed": [0.0, 0.6],
    "losses": ["bce", "focal"],
    "samples": 64,
    "num_resamples": 20,
    "min_patients": 2,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("losses")
    return run_benchmark(
        "losses", "small", {**TINY, "folder": str(folder), "save": str(folder / "out")}
    ), folder


def test_archives_hold_the_same_recordings_and_the_asked_share_of_positives_less(
    measured: tuple[Outcome, Path],
) -> None:
    _, folder = measured
    true, missed = (ShardSet.open(folder / f"shards_{share:g}") for share in (0.0, 0.6))
    rows = [{key: row for row, key in enumerate(s.index[:]["record_key"])} for s in (true, missed)]
    assert rows[0].keys() == rows[1].keys()
    pairs = np.array([(rows[0][key], rows[1][key]) for key in rows[0]])
    for part in ("train", "val", "test"):
        assert set(true.index[true.rows(part)]["record_key"]) == set(
            missed.index[missed.rows(part)]["record_key"]
        )
    signals = [SampleReader(s).read(pairs[:, i]).ecg for i, s in enumerate((true, missed))]
    assert np.array_equal(*signals) and signals[0].any()
    labels = [
        np.unpackbits(s.index[pairs[:, i]]["labels"], axis=1) for i, s in enumerate((true, missed))
    ]
    assert not (labels[1] & ~labels[0] & 1).any()  # nothing is said that is not so
    # The overall class is never left out.
    kept = labels[1].sum() / labels[0].sum()
    assert 0.4 < kept < 0.6


def test_scores_are_of_the_true_statements_with_intervals_and_differences(
    measured: tuple[Outcome, Path],
) -> None:
    outcome, folder = measured
    with (folder / "out" / "losses.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        value, lower, upper = (float(row[name]) for name in ("value", "lower", "upper"))
        assert 0 < lower <= value <= upper < 1 or row["metric"] == "average_precision"
        assert (float(row["difference"]) == 0) == (row["loss"] == "bce")
    true = ShardSet.open(folder / "shards_0")
    assert outcome.record["num_test_ecgs"] == len(true.rows("test"))
    assert outcome.record["bench"] == "losses" and outcome.record["num_labels"] > 3
    assert "focal" in outcome.table
    assert (folder / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_start_takes_what_is_there_and_finds_the_same(
    measured: tuple[Outcome, Path],
) -> None:
    outcome, folder = measured
    made = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/checkpoints/best.ckpt")}
    assert len(made) == 4
    again = run_benchmark("losses", "small", {**TINY, "folder": str(folder)})
    assert again.table == outcome.table
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_wrong_settings_of_the_losses_benchmark_are_named() -> None:
    with pytest.raises(UserError, match="'hill' is unknown"):
        run_benchmark("losses", "small", {"losses": ["bce", "hill"]})
    with pytest.raises(UserError, match="must hold bce"):
        run_benchmark("losses", "small", {"losses": ["focal"]})
