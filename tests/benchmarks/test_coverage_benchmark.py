"""The coverage benchmark: its promise on a few cells, and what its record holds."""

import numpy as np
import pytest

from ecgfounder_train.benchmarks import run_benchmark

TINY = {
    "num_studies": 240,
    "areas": (0.7, 0.98),
    "positives": (12, 80),
    "records": (1, 4),
    "prevalences": (0.02,),
}


@pytest.fixture(scope="module")
def outcome():
    return run_benchmark("coverage", "small", TINY)


def test_intervals_cover_near_one_and_few_are_too_wide(outcome):
    record = outcome.record
    noise = 3 * np.sqrt(0.05 * 0.95 / 240)
    assert record["lowest"] >= 0.94 - noise
    assert record["mean"] <= 0.985
    assert set(record["auroc"]) == {"0.7", "0.98"}
    assert set(record["auroc"]["0.98"]) == {"12", "80"}


def test_means_and_differences_cover_too(outcome):
    kinds = {cell["kind"] for cell in outcome.record["others"]}
    assert {"paired difference of 2 means", "group less the rest", "mean of 5 AUROCs"} <= kinds
    for cell in outcome.record["others"]:
        assert cell["covered"] >= 0.87, cell


def test_the_reference_undercovers(outcome):
    assert outcome.record["ratio"] > 1
    assert "Hanley-McNeil" in outcome.table
