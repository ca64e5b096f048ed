"""The losses equal their formulas, and an unobserved label has no influence at all."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.losses import LOSSES, create_loss

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "loss"


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator) * 3
    targets = torch.rand(6, 4, generator=generator).round()
    observed = torch.rand(6, 4, generator=generator) > 0.4
    assert 0 < observed.sum() < 24
    return logits, targets, observed


def test_bce_is_minus_the_log_likelihood_where_observed() -> None:
    logits, targets, observed = batch()
    loss = create_loss("bce")(logits, targets, observed)
    assert loss.shape == logits.shape
    for i in range(6):
        for k in range(4):
            p = 1 / (1 + math.exp(-logits[i, k].item()))
            expected = -math.log(p if targets[i, k] else 1 - p) if observed[i, k] else 0.0
            assert loss[i, k].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_pos_weight_and_label_smoothing_follow_their_definitions() -> None:
    logits, targets, observed = batch()
    weights = [1.0, 2.0, 3.0, 4.0]
    log_p = torch.nn.functional.logsigmoid(logits)
    log_q = torch.nn.functional.logsigmoid(-logits)
    weighted = create_loss("bce", pos_weight=weights)(logits, targets, observed)
    expected = -(torch.tensor(weights) * targets * log_p + (1 - targets) * log_q) * observed
    torch.testing.assert_close(weighted, expected)
    smoothed = create_loss("bce", label_smoothing=0.1)(logits, targets, observed)
    soft = 0.9 * targets + 0.05
    torch.testing.assert_close(smoothed, -(soft * log_p + (1 - soft) * log_q) * observed)


def test_pu_hill_equals_its_formula_and_lets_go_of_confident_negatives() -> None:
    loss = create_loss("pu_hill")
    p = torch.tensor([[0.1, 0.5, 0.9]])
    ones = torch.ones_like(p)
    logits = torch.logit(p)
    torch.testing.assert_close(loss(logits, 0 * p, ones), (1.5 - p) * p**2)
    torch.testing.assert_close(loss(logits, ones, ones), -torch.log(p))
    doubtful, confident = (torch.tensor([[v]], requires_grad=True) for v in (0.0, 12.0))
    for v in (doubtful, confident):
        loss(v, torch.zeros(1, 1), torch.ones(1, 1)).sum().backward()
    assert doubtful.grad is not None and confident.grad is not None
    assert 0 <= confident.grad.item() < 1e-3 * doubtful.grad.item()


def test_focal_margin_positives_equal_their_formula_and_leave_negatives_alone() -> None:
    logits, targets, observed = batch()
    shifted = torch.sigmoid(logits - 0.7)
    loss = create_loss("pu_hill", positive="focal_margin", positive_margin=0.7, gamma=3.0)
    positive = loss(logits, torch.ones_like(targets), observed)
    torch.testing.assert_close(positive, -((1 - shifted) ** 3) * shifted.log() * observed)
    plain = create_loss("pu_hill")
    negatives = torch.zeros_like(targets)
    assert torch.equal(loss(logits, negatives, observed), plain(logits, negatives, observed))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_label_smoothing_is_the_loss_of_smoothed_targets_where_observed(name: str) -> None:
    logits, targets, observed = batch()
    smoothed = create_loss(name, label_smoothing=0.2)(logits, targets, observed)
    by_hand = create_loss(name)(logits, 0.8 * targets + 0.1, observed)
    torch.testing.assert_close(smoothed, by_hand)
    assert not smoothed[~observed].any()
    off = create_loss(name, label_smoothing=0.0)(logits, targets, observed)
    assert torch.equal(off, create_loss(name)(logits, targets, observed))


def test_focal_equals_its_formula_and_without_gamma_it_is_cross_entropy() -> None:
    logits, targets, observed = batch()
    p = torch.sigmoid(logits)
    expected = torch.where(
        targets.bool(), -0.3 * (1 - p) ** 2 * p.log(), -0.7 * p**2 * (-p).log1p()
    )
    loss = create_loss("focal", gamma=2.0, alpha=0.3)(logits, targets, observed)
    torch.testing.assert_close(loss, expected * observed)
    plain = create_loss("focal", gamma=0.0)(logits, targets, observed)
    torch.testing.assert_close(plain, create_loss("bce")(logits, targets, observed))


def test_asymmetric_equals_its_formula_and_ignores_negatives_below_the_margin() -> None:
    loss = create_loss("asymmetric")
    p = torch.tensor([[0.02, 0.3, 0.9]])
    ones = torch.ones_like(p)
    logits = torch.logit(p)
    q = (p - 0.05).clamp(min=0)
    torch.testing.assert_close(loss(logits, 0 * p, ones), -(q**4) * torch.log(1 - q))
    torch.testing.assert_close(loss(logits, ones, ones), -torch.log(p))
    plain = create_loss("asymmetric", gamma_negative=0.0, margin=0.0)
    torch.testing.assert_close(plain(logits, 0 * p, ones), -torch.log(1 - p))


VARIANTS: list[dict[str, object]] = [
    {"name": "bce", "label_smoothing": 0.1, "pos_weight": 3.0},
    {"name": "pu_hill"},
    {"name": "pu_hill", "positive": "focal_margin"},
    {"name": "pu_hill", "positive": "focal_margin", "gamma": 0.5, "label_smoothing": 0.1},
    {"name": "focal", "alpha": 0.25},
    {"name": "focal", "gamma": 0.5},
    {"name": "asymmetric"},
    {"name": "asymmetric", "gamma_positive": 1.0, "gamma_negative": 0.5, "label_smoothing": 0.2},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_gradients_and_second_derivatives_are_right_in_double_precision_under_a_mask(
    settings: dict[str, object],
) -> None:
    loss = create_loss(**settings)  # type: ignore[arg-type]
    _, targets, observed = batch()
    targets = torch.where(torch.arange(4) == 1, 0.4 * targets, targets).double()
    # Away from the asymmetric loss's kink at p = 0.05.
    generator = torch.Generator().manual_seed(3)
    logits = 2.5 * torch.randn(6, 4, generator=generator, dtype=torch.float64) - 0.3
    logits = torch.where((torch.sigmoid(logits) - 0.05).abs() < 0.01, logits + 1, logits)
    logits.requires_grad_()
    weights = torch.rand(6, 4, generator=generator, dtype=torch.float64) + 0.5

    def total(x: torch.Tensor) -> torch.Tensor:
        return (weights * loss(x, targets, observed)).sum()

    assert loss(logits, targets, observed).dtype == torch.float64
    assert torch.autograd.gradcheck(total, (logits,), eps=1e-6, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(total, (logits,), eps=1e-6, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(total(logits), logits)
    assert not gradient[~observed].any()


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_gradients_equal_finite_differences_and_stay_finite_at_extreme_logits(
    settings: dict[str, object],
) -> None:
    loss = create_loss(**settings)  # type: ignore[arg-type]
    # One logit per value: the differences are taken in float32, whose noise asks for a wide step.
    logits = torch.linspace(-6, 6, 25).reshape(1, -1)
    observed = torch.ones_like(logits)
    for target in (0.0, 1.0, 0.4):
        targets = torch.full_like(logits, target)
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, targets, observed).sum(), leaf)
        step = 2.0**-6
        up, down = (loss(logits + sign * step, targets, observed) for sign in (1, -1))
        torch.testing.assert_close(gradient, (up - down) / (2 * step), atol=2e-3, rtol=2e-2)
        extreme = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
        total = loss(extreme, torch.full_like(extreme, target), torch.ones_like(extreme))
        total.sum().backward()
        assert torch.isfinite(total).all()
        assert extreme.grad is not None and torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_an_unobserved_label_changes_nothing(name: str) -> None:
    logits, targets, observed = batch()
    # The asymmetric loss leaves easy negatives out, which is not what is looked at here.
    loss = create_loss(name, **({"margin": 0.0} if name == "asymmetric" else {}))
    logits.requires_grad_()
    (reference,) = torch.autograd.grad(loss(logits, targets, observed).sum(), logits)
    assert torch.all(reference[~observed] == 0)
    assert torch.all(reference[observed] != 0)
    spoilt = torch.where(observed, logits, torch.inf)  # its target is unknown: anything
    flipped = torch.where(observed, targets, 1 - targets)
    assert torch.equal(
        loss(spoilt, flipped, observed.to(torch.uint8)), loss(logits, targets, observed)
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_soft_targets_interpolate_and_half_precision_logits_give_float32(name: str) -> None:
    logits, targets, observed = batch()
    loss = create_loss(name)
    positive = loss(logits, torch.ones_like(targets), observed)
    negative = loss(logits, torch.zeros_like(targets), observed)
    mixed = loss(logits, torch.full_like(targets, 0.25), observed)
    torch.testing.assert_close(mixed, 0.25 * positive + 0.75 * negative)
    assert loss(logits.bfloat16(), targets, observed).dtype == torch.float32


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_have_no_state_and_a_config_file_each(name: str) -> None:
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert settings["name"] == name
    assert create_loss(settings["name"]).state_dict() == {}
    assert create_loss("bce", pos_weight=2.0).state_dict() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bec"}, "Did you mean 'bce'"),
        ({"name": "bce", "pos_weigth": 2.0}, "pos_weight"),
        ({"name": "bce", "label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"name": "bce", "pos_weight": [1.0, 0.0]}, "must be above 0"),
        ({"name": "pu_hill", "margin": 1.0}, "at least 1.5"),
        ({"name": "pu_hill", "positive": "logs"}, "Did you mean 'log'"),
        ({"name": "pu_hill", "gamma": -1.0}, "loss.gamma=-1.0"),
        ({"name": "focal", "label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"name": "focal", "gamma": -1.0}, "loss.gamma=-1.0"),
        ({"name": "focal", "alpha": 1.0}, "loss.alpha=1.0"),
        ({"name": "asymmetric", "gamma_negative": -1.0}, "loss.gamma_negative=-1.0"),
        ({"name": "asymmetric", "margin": 1.0}, "loss.margin=1.0"),
    ],
)
def test_a_wrong_setting_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_loss(**arguments)
