"""Curves: the same points scikit-learn gives, and honest calibration bins."""

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import auroc, calibration_curve, operating_points


def test_points_equal_scikit_learn_with_ties(rng):
    scores = rng.normal(size=500).round(1)
    targets = rng.integers(0, 2, 500)
    points = operating_points(scores, targets)
    false_rate, true_rate, thresholds = roc_curve(targets, scores, drop_intermediate=False)
    np.testing.assert_allclose(points.false_positive_rate, false_rate, atol=1e-15)
    np.testing.assert_allclose(points.sensitivity, true_rate, atol=1e-15)
    np.testing.assert_array_equal(points.threshold, thresholds)
    precision, _, _ = precision_recall_curve(targets, scores)
    np.testing.assert_allclose(points.precision, precision[:-1][::-1], atol=1e-15)


def test_area_under_the_drawn_curve_is_the_reported_auroc(rng):
    scores, targets = rng.normal(size=(400, 1)).round(1), rng.integers(0, 2, (400, 1))
    observed = rng.random((400, 1)) < 0.7
    points = operating_points(scores[:, 0], targets[:, 0], observed[:, 0])
    area = auc(points.false_positive_rate, points.sensitivity)
    assert area == pytest.approx(auroc(scores, targets, observed)[0], abs=1e-12)


def test_curve_without_positives_is_refused():
    with pytest.raises(UserError, match="at least one observed positive"):
        operating_points(np.arange(3.0), np.zeros(3))


def test_calibrated_probabilities_lie_within_their_intervals(rng):
    probabilities = rng.beta(0.5, 4, 50_000)
    targets = rng.random(50_000) < probabilities
    curve = calibration_curve(probabilities, targets, num_bins=20)
    assert curve.num_records.sum() == 50_000
    assert curve.num_records.max() - curve.num_records.min() <= 1
    inside = (curve.lower <= curve.predicted) & (curve.predicted <= curve.upper)
    assert inside.sum() >= 17
    shifted = calibration_curve(np.sqrt(probabilities), targets, num_bins=20)
    assert (shifted.predicted > shifted.upper).sum() >= 15, "over-confidence shows"


def test_equal_probabilities_share_a_bin_and_nonsense_is_refused():
    curve = calibration_curve(np.full(8, 0.25), [1, 0, 0, 0, 1, 0, 0, 0])
    assert curve.predicted.tolist() == curve.frequency.tolist() == [0.25]
    with pytest.raises(UserError, match="from 0 to 1"):
        calibration_curve([-2.0, 3.0], [0, 1])
