"""Calibration slope, intercept, observed:expected and net benefit, by patient."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ecgfounder_train.metrics import (
    agreement_intervals,
    calibration_curve,
    calibration_error,
    net_benefit,
    net_benefit_interval,
)


def rare_and_overconfident(rng, num_records, slope=1.6):
    """Logits of a rare label whose slope is `slope` times the true one, and the outcomes."""
    truth = rng.normal(-7, 2.2, num_records)
    return slope * truth + 3, rng.random(num_records) < expit(truth)


def test_slope_and_intercept_are_those_of_logistic_regression(rng):
    logits, outcome = rare_and_overconfident(rng, 30_000)
    found = agreement_intervals(logits[:, None], outcome[:, None], patients=np.arange(30_000))
    fitted = LogisticRegression(C=1e9, tol=1e-9, max_iter=5000).fit(logits[:, None], outcome)
    assert found["calibration_slope"].value[0] == pytest.approx(fitted.coef_[0, 0], rel=1e-3)
    in_large = found["calibration_intercept"].value[0]
    assert expit(logits + in_large).sum() == pytest.approx(outcome.sum(), rel=1e-6)
    expected = outcome.sum() / expit(logits).sum()
    assert found["observed_expected"].value[0] == pytest.approx(expected)


def test_miscalibration_of_a_rare_label_is_seen_where_the_calibration_error_is_near_zero(rng):
    logits, outcome = rare_and_overconfident(rng, 40_000)
    found = agreement_intervals(logits[:, None], outcome[:, None], patients=np.arange(40_000))
    assert calibration_error(logits[:, None], outcome[:, None])[0] < 0.02
    assert found["calibration_slope"].upper[0] < 0.85
    curve = calibration_curve(expit(logits), outcome, split_top=True)
    assert len(curve.predicted) > 15, "the top tenth is looked into"
    assert curve.num_records[-1] <= 40
    assert curve.predicted[-1] > curve.upper[-1]


def test_intervals_are_by_patient_and_cover(rng):
    inside = []
    for _ in range(150):
        patients = np.repeat(np.arange(150), 4)
        truth = np.repeat(rng.normal(-1, 1.5, 150), 4)
        outcome = np.repeat(rng.random(150), 4) < expit(truth)  # one answer per patient
        found = agreement_intervals(truth[:, None], outcome[:, None], patients=patients)
        inside.append(
            [
                found[name].lower[0] <= right <= found[name].upper[0]
                for name, right in zip(found, (1.0, 0.0, 1.0), strict=True)
            ]
        )
    assert (np.mean(inside, 0) > 0.9).all()
    by_record = agreement_intervals(truth[:, None], outcome[:, None], patients=np.arange(600))
    for name, item in found.items():
        assert by_record[name].upper[0] - by_record[name].lower[0] < 0.7 * (
            item.upper[0] - item.lower[0]
        )


def test_without_enough_patients_or_a_finite_slope_there_is_a_reason(rng):
    targets = np.zeros((100, 4))
    targets[:9, 0], targets[:, 1], targets[:50, 2:] = 1, 1, 1
    logits = rng.normal(size=(100, 4))
    logits[:, 2], logits[:, 3] = np.where(targets[:, 2], 5.0, -5.0), 1.0
    found = agreement_intervals(logits, targets, patients=np.arange(100))
    assert found["calibration_slope"].reasons[:2] == (
        "fewer than 10 positive patients",
        "no negatives",
    )
    assert "no finite slope" in found["calibration_slope"].reasons[2]
    assert "no finite slope" in found["calibration_slope"].reasons[3]
    assert np.isfinite(found["observed_expected"].value[2:]).all()


def test_net_benefit_counts_false_alarms_at_the_rate_of_the_threshold(rng):
    probabilities, outcome = rng.random(500), rng.random(500) < 0.3
    cuts = np.array([0.0, 0.1, 0.5, 0.9])
    model, everyone = net_benefit(probabilities, outcome, cuts)
    for place, cut in enumerate(cuts):
        called = probabilities >= cut
        plain = ((called & outcome).sum() - (called & ~outcome).sum() * cut / (1 - cut)) / 500
        assert model[place] == pytest.approx(plain)
        value, lower, upper = net_benefit_interval(called, outcome, cut, np.arange(500))
        assert value == pytest.approx(plain)
        assert lower < value < upper
    assert everyone[0] == pytest.approx(outcome.mean())
    assert model[0] == everyone[0]
