"""The model benchmark compares equal networks and counts its floor by hand-checkable rules."""

import pytest
import torch

from ecgfounder_train.benchmarks import model as bench
from ecgfounder_train.benchmarks import run_benchmark
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models.net1d import Net1DConfig

TINY = {"models": ["net1d_1m"], "batch_sizes": [2], "num_samples": 300, "rounds": 1}


def test_benchmark_gives_ratios_memory_and_multiples_of_the_floor() -> None:
    outcome = run_benchmark("model", "small", TINY)
    figures = outcome.record["net1d_1m_b2"]
    rates = figures["ecg_per_s"]
    assert set(rates) == {"reference fp32", "reference bf16", "ours fp32", "ours bf16"}
    assert outcome.record["ratio"] == figures["ratio"] > 0
    best_ours = max(rates["ours fp32"], rates["ours bf16"])
    best_reference = max(rates["reference fp32"], rates["reference bf16"])
    assert figures["ratio"] == pytest.approx(best_ours / best_reference, rel=0.02)
    floor_us = outcome.record["floor_us_net1d_1m"]
    assert figures["times_floor"] == pytest.approx(1e6 / best_ours / floor_us, rel=0.02)
    assert all(value > 0 for value in figures["memory_mib"].values())
    assert "net1d_110m" in outcome.table


def test_floor_adds_up_the_slower_of_memory_and_arithmetic() -> None:
    config = Net1DConfig(widths=(16,), depths=(1,), base_filters=16, num_leads=2, num_labels=3)
    fast_memory = bench.Ceilings(1e30, {"bf16": 1e9, "fp32": 1e9})
    # Stem 50 x 16 x 2 x 16; block (stride 2): 50 x 16 x 16, 25 x 16 x 256, 25 x 16 x 16, gate.
    macs = 50 * 16 * 2 * 16 + 50 * 16 * 16 + 25 * 16 * 256 + 25 * 16 * 16 + 2 * 16 * 8
    forward, step = bench.floor_s(config, 100, fast_memory)
    assert forward == pytest.approx(2 * macs / 1e9) and step == pytest.approx(3 * forward)
    fast_arithmetic = bench.Ceilings(1e9, {"bf16": 1e30, "fp32": 1e30})
    x, wide, narrow = 50 * 16, 50 * 16, 25 * 16
    read_written = (2 * 100 + x) + (x + wide) + (wide + narrow) + 2 * narrow + (x + 2 * narrow)
    assert bench.floor_s(config, 100, fast_arithmetic)[0] == pytest.approx(2 * read_written / 1e9)


def test_a_network_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = bench._forward

    def wrong(variant: bench.Variant, signal: torch.Tensor) -> torch.Tensor:
        logits = original(variant, signal)
        return logits if variant.is_reference else logits * 1.01

    monkeypatch.setattr(bench, "_forward", wrong)
    with pytest.raises(UserError, match="ours fp32 computes something else"):
        run_benchmark("model", "small", TINY)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"models": ["net1d_9m"]}, "no model 'net1d_9m'"),
        ({"batch_sizes": [0]}, "start at 1"),
        ({"device": "tpu"}, "none of auto, cpu, cuda"),
    ],
)
def test_wrong_settings_are_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_benchmark("model", "small", overrides)
