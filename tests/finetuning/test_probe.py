"""The probe is the textbook's, the losses see what was measured, layers learn at their rate."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_absolute_error, r2_score

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.finetuning.layers import layer_groups
from ecgfounder_train.finetuning.probe import fit_head
from ecgfounder_train.losses import MaskedRegression
from ecgfounder_train.metrics import regression_intervals
from ecgfounder_train.models import create_model
from ecgfounder_train.models.linear_readout import fit_logistic, fit_ridge
from ecgfounder_train.training.module import OptimizerSettings


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    rng = np.random.default_rng(3)
    mixed = rng.normal(size=(600, 24)) @ rng.normal(size=(24, 24))
    return mixed / mixed.std(0)


def with_gaps(values: np.ndarray, share: float = 0.3) -> np.ndarray:
    return np.where(np.random.default_rng(8).random(values.shape) < share, np.nan, values)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_logistic_probe_is_scikit_learns_also_with_missing_labels(
    features: np.ndarray, penalty: float
) -> None:
    rng = np.random.default_rng(4)
    truth = rng.random((600, 3)) < 1 / (1 + np.exp(1 - features[:, :3]))
    labels = with_gaps(truth.astype(float))
    [(weight, bias)] = fit_logistic(
        torch.tensor(features), torch.tensor(labels), penalties=(penalty,)
    )
    for column in range(3):
        seen = ~np.isnan(labels[:, column])
        expected = LogisticRegression(C=1 / (penalty * seen.sum()), tol=1e-10, max_iter=10_000)
        expected.fit(features[seen], labels[seen, column])
        np.testing.assert_allclose(weight[column], expected.coef_[0], atol=2e-4)
        np.testing.assert_allclose(bias[column], expected.intercept_[0], atol=2e-4)


@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_ridge_probe_is_scikit_learns_also_with_missing_values(
    features: np.ndarray, penalty: float
) -> None:
    rng = np.random.default_rng(5)
    values = with_gaps(features[:, :2] * [2.0, -1.0] + rng.normal(size=(600, 2)) + 3)
    [(weight, bias)] = fit_ridge(torch.tensor(features), torch.tensor(values), (penalty,))
    for column in range(2):
        seen = ~np.isnan(values[:, column])
        expected = Ridge(alpha=penalty * seen.sum()).fit(features[seen], values[seen, column])
        np.testing.assert_allclose(weight[column], expected.coef_, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(bias[column], expected.intercept_, rtol=1e-8)


def test_label_of_one_value_gets_its_frequency_and_no_weights(features: np.ndarray) -> None:
    [(weight, bias)] = fit_logistic(torch.tensor(features), torch.zeros(600, 1).double(), (0.1,))
    assert not weight.any() and float(bias[0]) < -10


def test_penalty_is_the_one_validation_likes_best() -> None:
    # Few noisy records of many features: hardly any penalty means learning the noise by heart.
    rng = np.random.default_rng(6)
    x = rng.normal(size=(440, 1, 60)).astype(np.float32)
    y = (x[:, 0, :1] + 3 * rng.normal(size=(440, 1))).astype(np.float32)
    parts = {"train": np.arange(80), "val": np.arange(80, 440)}
    shards: Any = SimpleNamespace(rows=parts.__getitem__)
    head = fit_head(x, shards, y, regression=True)
    assert float(head.penalties[0]) >= 0.1
    guess = x[80:, 0] @ head.weight.numpy().T + head.bias.numpy()
    assert r2_score(y[80:], guess) > 0


def test_unmeasured_quantities_cost_nothing_and_pull_nowhere() -> None:
    outputs = torch.randn(5, 2, requires_grad=True)
    targets = torch.randn(5, 2)
    targets[1, 0] = torch.nan
    observed = torch.ones(5, 2)
    observed[1, 0] = 0
    for kind in ("mse", "huber"):
        loss = MaskedRegression(kind)(outputs, targets, observed)
        assert loss[1, 0] == 0
        (gradient,) = torch.autograd.grad(loss.sum(), outputs)
        assert gradient.isfinite().all() and gradient[1, 0] == 0
        assert (gradient[observed == 1] != 0).all()
    with pytest.raises(UserError, match="regression_loss='l1' is unknown"):
        MaskedRegression("l1")


def test_regression_metrics_are_the_textbooks_and_their_errors_the_bootstraps() -> None:
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(150), 3)
    own = np.repeat(rng.normal(size=150), 3)  # records of a patient resemble each other
    truth = (50 + 10 * own + rng.normal(size=450))[:, None]
    guess = truth + 4 * np.repeat(rng.normal(size=150), 3)[:, None] + rng.normal(size=(450, 1))
    found = regression_intervals(guess, truth, patients=patients)
    flat = guess[:, 0], truth[:, 0]
    expected = {
        "mae": lambda g, t: mean_absolute_error(t, g),
        "r2": lambda g, t: r2_score(t, g),
        "pearson": lambda g, t: pearsonr(g, t)[0],
    }
    draws = []
    for _ in range(400):
        chosen = rng.integers(0, 150, 150)
        rows = (chosen[:, None] * 3 + np.arange(3)).ravel()
        draws.append([f(flat[0][rows], flat[1][rows]) for f in expected.values()])
    for (name, function), spread in zip(expected.items(), np.std(draws, axis=0), strict=True):
        estimate = found[name]
        assert estimate.value[0] == pytest.approx(function(*flat), rel=1e-12)
        assert estimate.standard_error[0] == pytest.approx(spread, rel=0.2)
        assert estimate.lower[0] < estimate.value[0] < estimate.upper[0]
        assert estimate.num_patients[0] == 150


def test_undefined_regression_metrics_are_nan_with_their_reason() -> None:
    truth = np.full((30, 3), np.nan)
    truth[:, 1] = 4.0
    truth[:8, 2] = np.arange(8)
    guess = np.tile(np.arange(30.0)[:, None], 3)
    found = regression_intervals(guess, truth, patients=np.arange(30))["r2"]
    assert np.isnan(found.value[:2]).all() and found.value[2] == 1
    assert np.isnan(found.lower).all()
    assert found.reasons == (
        "never measured",
        "the quantity or its prediction is constant",
        "fewer than 10 patients",
    )
    guess[3] = np.nan
    with pytest.raises(UserError, match="predictions are NaN"):
        regression_intervals(guess, truth, patients=np.arange(30))


@pytest.mark.parametrize("decay_all", [True, False])
def test_each_layer_learns_at_its_own_rate_and_none_is_left_out(decay_all: bool) -> None:
    model = create_model("net1d_3m_100hz", num_labels=3, pooling="attention")
    settings = OptimizerSettings(decay_all=decay_all, weight_decay=0.1)
    groups = layer_groups(model, settings, 0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert set(scale) == {id(p) for p in model.parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in groups) == len(scale)
    assert groups[0]["lr_scale"] == 1.0
    named = dict(model.named_parameters())
    assert scale[id(named["dense.weight"])] == scale[id(named["attention.score.weight"])] == 1.0
    for stage in range(5):
        assert scale[id(named[f"stage_list.{stage}.block_list.1.se_fc1.weight"])] == 0.5 ** (
            5 - stage
        )
    assert scale[id(named["first_conv.conv.weight"])] == 0.5**6
    spared = [p for g in groups if g["weight_decay"] == 0 for p in g["params"]]
    assert bool(spared) != decay_all and all(p.ndim <= 1 for p in spared)
    with pytest.raises(UserError, match="layer_decay=0"):
        layer_groups(model, settings, 0.0)


def test_attention_begins_as_the_mean_over_time() -> None:
    torch.manual_seed(0)
    mean = create_model("net1d_1m", num_labels=4).eval()
    attention = create_model("net1d_1m", num_labels=4, pooling="attention").eval()
    attention.load_state_dict(mean.state_dict(), strict=False)
    signal = torch.randn(2, 12, 500)
    torch.testing.assert_close(attention(signal), mean(signal), rtol=1e-5, atol=1e-5)
    torch.nn.init.normal_(attention.attention.score.weight)
    assert not torch.allclose(attention(signal), mean(signal), atol=1e-3)


def test_rmse_bias_and_limits_of_agreement_are_those_of_the_differences():
    rng = np.random.default_rng(8)
    truth = rng.normal(50, 10, (400, 1))
    guess = truth + rng.normal(2, 3, truth.shape)
    found = regression_intervals(guess, truth, patients=np.arange(400))
    error = (guess - truth)[:, 0]
    right = {
        "rmse": np.sqrt((error**2).mean()),
        "bias": error.mean(),
        "lower_limit": error.mean() - 1.959964 * error.std(),
        "upper_limit": error.mean() + 1.959964 * error.std(),
    }
    for name, value in right.items():
        assert found[name].value[0] == pytest.approx(value, rel=1e-5)
    resampled = [error[rng.integers(0, 400, 400)] for _ in range(1000)]
    spread = np.std([item.mean() + 1.959964 * item.std() for item in resampled])
    assert found["upper_limit"].standard_error[0] == pytest.approx(spread, rel=0.15)
