"""The pipeline benchmark feeds a real network from real shards; its scaling is checked by hand."""

import pytest

from ecgfounder_train.benchmarks import run_benchmark
from ecgfounder_train.benchmarks.pipeline import Settings, scaling
from ecgfounder_train.core.errors import UserError

TINY = {"batch_sizes": [2, 4], "num_samples": 300, "num_ecgs": 12, "steps": 1, "warmup": 1}


def test_benchmark_tells_where_the_time_goes() -> None:
    outcome = run_benchmark("pipeline", "small", TINY)
    record = outcome.record
    assert set(record["ecg_per_s"]) == {"2", "4"} and record["batch_size"] == 4
    for name in ("ecg_per_s_recompute", "peak_mib", "peak_mib_recompute"):
        assert set(record[name]) == {"2", "4"} and min(record[name].values()) > 0
    assert record["first_step_s"] > 0 and "trainer.recompute" in outcome.table
    stages = record["stages_ms"]
    assert set(stages) == {
        "read and collate",
        "copy to the device",
        "normalise",
        "step on a resident batch",
        "step fed from shards",
    }
    share = stages["step on a resident batch"] / stages["step fed from shards"]
    assert record["ratio"] == pytest.approx(share, abs=0.01)
    assert "Calculated, not measured" in outcome.table


def test_scaling_is_the_ring_all_reduce_behind_two_thirds_of_a_step() -> None:
    settings = Settings(node_gb_s=100.0, network_gb_s=1.0)
    node, cluster = scaling(30_000_000, 0.3, settings)
    assert node[:3] == ("1 node of 8", 8, pytest.approx(2 * 7 / 8 * 120e6))
    assert node[3] == pytest.approx(0.3 / (0.3 + 0.0021)) and node[4] == 1.0
    sent_s = 2 * 63 / 64 * 120e6 / 1e9
    assert cluster[3] == pytest.approx(0.3 / (0.3 + sent_s))
    assert cluster[4] == pytest.approx(0.3 / (0.3 + sent_s - 0.2))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "net1d_9m"}, "not in the table"),
        ({"num_ecgs": 3}, "must fill a batch"),
        ({"network_gb_s": 0.0}, "above 0"),
        ({"warmup": 0}, "start at 1"),
        ({"device": "tpu"}, "none of auto, cpu, cuda"),
    ],
)
def test_wrong_settings_are_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_benchmark("pipeline", "small", TINY | overrides)
