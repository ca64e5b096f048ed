"""The benchmark of the loader: both sides read the same, and the record says what it must."""

from ecgfounder_train.benchmarks import run_benchmark

TINY = {"num_samples": 150, "index_rows": 5000, "batch_size": 16, "rounds": 2}


def test_loader_benchmark_compares_every_shape_and_states_floor_restart_and_memory():
    outcome = run_benchmark("loader", "small", TINY)
    assert set(outcome.record["shapes"]) == {"12x5000", "12x1000", "1x5000"}
    for shape, figures in outcome.record["shapes"].items():
        assert set(figures["cpu_per_s"]) >= {"webdataset", "0 workers", "2 workers", "no checksum"}
        assert figures["cpu_per_s"]["1 workers"] > 0, shape
        assert figures["preadv_per_s"] > 0
    assert outcome.record["ratio"] == outcome.record["shapes"]["12x5000"]["ratio_cpu"]
    assert outcome.record["restart_ratio"] > 0
    assert outcome.record["resident_growth_bytes"] >= 0
    assert "12x5000" in outcome.table and "at 90 % of it" in outcome.table
    assert outcome.record["bench"] == "loader" and outcome.record["index_rows"] == 5000
