"""The benchmark of the tables: both sides run, and find the same labels."""

from pathlib import Path

from ecgfounder_train.benchmarks import run_benchmark


def test_both_sides_run_and_their_totals_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    sizes = {"rows_mgh": 4000, "rows_emory": 600, "pool_patients": 100, "folder": str(folder)}
    outcome = run_benchmark("tables", "small", sizes)
    record = outcome.record
    assert record["rows"] == record["reference_rows"] == 4600
    assert record["ratio"] > 0
    assert record["with_label"] == record["reference_with_label"] > 0
    assert record["positives"] == record["reference_positives"] > 0
    assert "I0001 rows" in outcome.table
    assert (folder / "ECG").is_dir()  # kept for the next run
