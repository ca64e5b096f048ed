"""Blocks run again in the backward pass: the same training in less memory."""

from collections.abc import Callable

import pytest
import torch
from run_tools import EVERYTHING_ON, assert_identical, last_checkpoint, rows
from torch.profiler import ProfilerActivity, profile

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.models import create_model

TINY = {"widths": (16, 48, 80), "depths": (2, 1, 2), "base_filters": 16, "num_labels": 7}


def test_recompute_trains_to_the_same_run(pretrain: Callable[..., RunDirectory]) -> None:
    short = (*EVERYTHING_ON, "budget.max_epochs=2")
    run, plain = pretrain(*short, "trainer.recompute=true", run="again"), pretrain(*short)
    assert rows(run) == rows(plain)
    first, second = last_checkpoint(run), last_checkpoint(plain)
    for key in ("model", "ema", "optimizer"):
        assert_identical(first[key], second[key], key)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recompute_gives_the_same_gradients_and_running_moments(precision: str) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = create_model("net1d_1m", norm="batch", dropout=0.2, drop_path=0.3, **TINY)
        model.recompute = recompute
        signal = torch.randn(4, 12, 333)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(signal)
        logits.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), gradients, model.state_dict()))
    for one, other in zip(*results, strict=True):
        assert_identical(one, other, precision)
    moments = results[0][2]
    assert moments["stage_list.1.block_list.0.bn3.num_batches_tracked"] == 1
    assert moments["stage_list.1.block_list.0.bn3.running_mean"].abs().max() > 0


def test_recompute_keeps_a_fraction_of_the_memory() -> None:
    torch.manual_seed(0)
    model = create_model("net1d_1m", **TINY)
    kept = []
    for recompute in (False, True):
        model.recompute = recompute
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            output = model(torch.zeros(8, 12, 2000))
        # What is allocated and not freed lives on for the backward pass.
        kept.append(sum(event.self_cpu_memory_usage for event in profiler.key_averages()))
        del output
    assert 0 < kept[1] < 0.5 * kept[0]
