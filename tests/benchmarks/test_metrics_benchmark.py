"""The benchmark of the metrics: its command, its last line, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ecgfounder_train.benchmarks import benchmark_names, run_benchmark
from ecgfounder_train.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "metrics.num_records=3000",
    "metrics.num_patients=500",
    "metrics.num_labels=4",
    "metrics.num_resamples=40",
]


def bench(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_last_line_is_the_record_and_the_folder_gets_it_too(tmp_path):
    result = bench("metrics", "size=small", f"record={tmp_path}", *TINY)
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout.splitlines()[-1])
    assert record["bench"] == "metrics"
    assert record["num_records"] == 3000
    assert record["ratio"] > 0
    assert record["largest_difference"] < 1e-12, "both sides compute the same"
    assert 0.7 < record["median_ratio_of_standard_errors"] < 1.4
    assert json.loads((tmp_path / "metrics_small.json").read_text()) == record


def test_bootstrap_is_150_times_faster_on_one_core_of_time():
    outcome = run_benchmark("metrics", "small", {"num_labels": 8, "num_resamples": 150})
    assert outcome.record["ratio_cpu"] > 150
    assert outcome.table


def test_unknown_names_sizes_and_keys_are_refused():
    assert "metrics" in benchmark_names()
    with pytest.raises(UserError, match=r"no benchmark 'metric'.*metrics"):
        run_benchmark("metric", "small", {})
    with pytest.raises(UserError, match="size=medium"):
        run_benchmark("metrics", "medium", {})
    with pytest.raises(UserError, match=r"metrics\.num_record.*num_records"):
        run_benchmark("metrics", "small", {"num_record": 5})
    without_name = bench("size=small")
    assert without_name.returncode == 1
    assert "Which benchmark?" in without_name.stderr
