"""The benchmark of predict: what it times is the real command, and its record says how much."""

import pytest

from ecgfounder_train.benchmarks import run_benchmark
from ecgfounder_train.core.errors import UserError

TINY = {"num_records": 5, "model": "net1d_1m", "batch_size": 2}


def test_the_record_says_what_the_whole_costs_above_the_network() -> None:
    record = run_benchmark("predict", "small", TINY).record
    assert record["bench"] == "predict" and record["num_records"] == 5
    assert record["ratio"] == pytest.approx(record["whole_s"] / record["network_s"], rel=0.2)
    assert record["records_per_s"] > 0
    with pytest.raises(UserError, match="num_records=1"):
        run_benchmark("predict", "small", {"num_records": 1})
