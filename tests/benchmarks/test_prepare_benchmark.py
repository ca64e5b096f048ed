"""The benchmark of preparing: both sides make the same shard, and say how long it took."""

import pytest

from ecgfounder_train.benchmarks import run_benchmark
from ecgfounder_train.core.errors import UserError


def test_both_sides_make_the_same_samples_and_every_profile_is_in_the_record():
    sizes = {"num_records": 6, "reference_records": 6, "rounds": 1}
    outcome = run_benchmark("prepare", "small", sizes)
    record = outcome.record
    assert record["largest_difference_uv"] <= 1
    assert record["num_records"] == 6
    for profile in ("official", "paper", "author", "zscore"):
        assert record[f"{profile}_ms"] > 0
        assert profile in outcome.table
    assert record["official_ratio_cpu"] > 2


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"prepare\.root=.*no record"):
        run_benchmark("prepare", "small", {"root": str(tmp_path)})
