"""Prediction files: nothing lost, nothing doubled, refused when they do not fit."""

from dataclasses import fields

import numpy as np
import polars as pl
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.predictions import Predictions, read_predictions, write_predictions


def make(num_records=5, num_labels=11, **changes):
    rng = np.random.default_rng(3)
    arguments = {
        "labels": [f"label {index}" for index in range(num_labels)],
        "record_key": [f"{index:032x}" for index in range(num_records)],
        "logits": rng.normal(size=(num_records, num_labels)),
        "targets": rng.integers(0, 2, (num_records, num_labels)),
        "observed": rng.integers(0, 2, (num_records, num_labels)),
        "patient_key": [f"p{index // 2}" for index in range(num_records)],
        "split": "val",
        "sex": ["F", None, "M", "F", "M"][:num_records],
        "age_years": [70, np.nan, 90, 40, 33][:num_records],
        "native_fs": 500.0,
        "fingerprints": {"vocabulary": "abc"},
        "run_name": "demo",
        "provenance": {"checkpoint": "best"},
    }
    return Predictions.create(**(arguments | changes))


def test_written_predictions_are_read_back_equal(tmp_path):
    written = make()
    read = read_predictions(write_predictions(tmp_path / "new" / "predictions.parquet", written))
    for entry in fields(Predictions):
        one, other = getattr(written, entry.name), getattr(read, entry.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


def test_file_is_plain_parquet_that_polars_reads(tmp_path):
    predictions = make()
    frame = pl.read_parquet(write_predictions(tmp_path / "p.parquet", predictions))
    assert frame["logits"].dtype == pl.Array(pl.Float32, 11)
    packed = np.frombuffer(b"".join(frame["targets"]), np.uint8).reshape(5, 2)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1, count=11), predictions.targets)
    assert frame["age_years"].null_count() == 1, "unknown is null to other readers, not NaN"


def test_predictions_without_truth_observe_nothing_and_know_no_patients(tmp_path):
    bare = Predictions.create(["a", "b"], ["r1", "r2"], np.zeros((2, 2)))
    read = read_predictions(write_predictions(tmp_path / "p.parquet", bare))
    assert read.observed.sum() == 0
    assert read.num_patients is None
    assert read.age_years.dtype == np.float32
    assert np.isnan(read.age_years).all()


def test_no_rows_at_all_can_be_written_and_read(tmp_path):
    empty = make(num_records=0)
    assert len(read_predictions(write_predictions(tmp_path / "p.parquet", empty))) == 0


def test_windows_of_one_record_are_rows_of_their_own():
    keys = ["r1", "r1", "r2", "r3", "r4"]
    predictions = make(record_key=keys, window=[0, 1, 0, 0, 0])
    assert predictions.num_records == 4
    with pytest.raises(UserError, match="1 of 5 rows repeat"):
        make(record_key=keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b"]}, r"\(num_records, 2\) is expected"),
        ({"labels": ["a"] * 11}, "Labels repeat: a"),
        ({"targets": np.zeros((5, 3))}, "targets have shape"),
        ({"targets": np.full((5, 11), 2)}, "targets must be 0 or 1"),
        ({"observed": np.full((5, 11), np.nan)}, "observed must be 0 or 1"),
        ({"age_years": [1, 2]}, "age_years has shape"),
        ({"record_key": [None, "a", "b", "c", "d"]}, "needs a record_key"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_missing_cut_and_foreign_files_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="No prediction file"):
        read_predictions(tmp_path / "absent.parquet")
    whole = write_predictions(tmp_path / "p.parquet", make()).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="may have been cut"):
        read_predictions(tmp_path / "cut.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="not a prediction file of this project"):
        read_predictions(tmp_path / "foreign.parquet")
