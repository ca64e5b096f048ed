"""Learning rates against torch's own schedules."""

import math
from typing import Any

import pytest
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.training.schedules import Progress, create_schedule

STEPS = 200


def torch_factors(make: Any, steps: int = STEPS) -> list[float]:
    """Return the factor on the base rate before each step, as a torch scheduler sets it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def our_factors(config: dict[str, Any], total: int, steps: int = STEPS) -> list[float]:
    schedule = create_schedule(config)
    return [schedule.factor(Progress(step * 8, total * 8, 20 * 8)) for step in range(steps)]


def test_one_cycle_is_torchs() -> None:
    reference = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, STEPS, pct_start=0.3, div_factor=25.0, final_div_factor=1e4
        )
    )
    # torch reaches the end at its last step, ours behind it: its cycle is one step shorter, and
    # its peak one step earlier.
    warmup_share = (0.3 * STEPS - 1) / (STEPS - 1)
    ours = our_factors({"name": "one_cycle", "warmup_share": warmup_share}, STEPS - 1)
    assert ours == pytest.approx(reference, rel=1e-9)
    assert max(ours) == pytest.approx(1.0) and ours[0] == pytest.approx(1 / 25)


def test_cosine_after_warm_up_is_torchs() -> None:
    reference = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160, eta_min=0.01),
        160,
    )
    ours = our_factors({"name": "cosine", "warmup_share": 0.2, "final_factor": 0.01}, STEPS)
    assert ours[40:] == pytest.approx(reference, rel=1e-9)
    assert ours[1:41] == pytest.approx([step / 40 for step in range(1, 41)])
    assert 0 < ours[0] < ours[1]


def test_step_is_torchs() -> None:
    reference = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5 * 20, 0.1)
    )
    assert our_factors({"name": "step"}, STEPS) == pytest.approx(reference, rel=1e-12)


def test_plateau_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, generator=generator).mul(0.01).tolist()
    scores = [1 - 0.8**step + noise[step] for step in range(60)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", 0.1, 3, threshold=1e-4, threshold_mode="abs", min_lr=1e-3
    )
    ours = create_schedule({"name": "plateau", "patience": 3})
    factors = []
    for step, score in enumerate(scores):
        optimizer.step()
        scheduler.step(score)
        factors.append(ours.factor(Progress(step, 60, 1, tuple(scores[: step + 1]))))
        assert factors[-1] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert factors[0] == 1.0 and factors[-1] == pytest.approx(1e-3)
    assert ours.factor(Progress(0, 60, 1, (0.5, *[math.nan] * 4))) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert our_factors({"name": "constant"}, STEPS) == [1.0] * STEPS


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_factor_behind_the_budget_is_that_of_its_end(name: str) -> None:
    schedule = create_schedule({"name": name})
    end = schedule.factor(Progress(1000, 1000, 100))
    assert schedule.factor(Progress(1015, 1000, 100)) == end
    assert 0 < end < 0.011 and math.isfinite(end)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cosin"}, "schedule.name='cosin' is unknown. Did you mean 'cosine'"),
        ({"name": "cosine", "warmup": 0.1}, "Unknown key schedule.warmup. Did you mean"),
        (
            {"name": "cosine", "warmup_share": 1.0},
            "schedule.warmup_share=1.0 must be at least 0 and below 1",
        ),
        ({"name": "step", "divisor": 0.0}, "schedule.divisor=0.0 must be above 0"),
        ({"name": "plateau", "divisor": 1.0}, "schedule.divisor=1.0 must be above 1"),
        ({"name": "one_cycle", "start_divisor": 0.0}, "schedule.start_divisor"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_schedule(config)
