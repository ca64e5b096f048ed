"""Metrics at a threshold and of probabilities: scikit-learn's values, intervals that hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import (
    Thresholds,
    brier,
    calibration_error,
    decision_intervals,
    decision_table,
    f1,
    npv,
    ppv,
    probability_intervals,
    sensitivity,
    specificity,
)
from ecgfounder_train.metrics.bootstrap import bootstrap

ONES = (sensitivity, specificity, ppv, npv, f1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 50), threshold=st.floats(-2, 2))
def test_all_five_equal_scikit_learn_and_are_nan_where_undefined(seed, size, threshold):
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=size).round(1), rng.integers(0, 2, size)
    seen = rng.random(size) < 0.8
    seen[0] = True
    arrays = (scores[:, None], truth[:, None], seen[:, None])
    values = [metric(*arrays, threshold)[0] for metric in ONES]
    truth, called = truth[seen], (scores >= threshold)[seen]
    undefined = {"zero_division": np.nan}
    expected = [
        recall_score(truth, called, **undefined),
        recall_score(1 - truth, ~called, **undefined),
        precision_score(truth, called, **undefined),
        precision_score(1 - truth, ~called, **undefined),
        f1_score(truth, called, **undefined) if truth.any() else np.nan,
    ]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_a_record_at_its_threshold_is_positive_in_single_precision_too():
    logits = np.array([[0.1], [0.3]], np.float32)
    assert sensitivity(logits, [[1], [1]], None, float(np.float32(0.3)))[0] == 0.5
    assert sensitivity(logits, [[1], [1]], None, 0.3)[0] == 0.5
    assert sensitivity(logits, [[1], [1]], None, 0.3 + 1e-7)[0] == 0.0


def test_each_label_has_its_own_threshold_and_none_means_nan(rng, clustered):
    data = clustered(rng, 50, 3)
    table = decision_table(data.logits, data.targets, None, [-9.0, np.nan, 9.0])
    np.testing.assert_array_equal(table["sensitivity"], [1, np.nan, 0])
    np.testing.assert_array_equal(np.isnan(table["ppv"]), [False, True, True])
    result = decision_intervals(
        data.logits, data.targets, patients=data.patients, thresholds=[-9.0, np.nan, 9.0]
    )
    assert result["ppv"].reasons == (None, "no threshold", "none called positive")
    assert result["npv"].reasons[0] == "none called negative"


def test_thresholds_of_other_labels_are_refused(rng):
    arrays = (rng.normal(size=(9, 2)), rng.integers(0, 2, (9, 2)))
    swapped = Thresholds(("B", "A"), "half", None, (0.0, 1.0), (None, None))
    with pytest.raises(UserError, match="for_labels"):
        decision_table(*arrays, None, swapped, labels=["A", "B"])
    with pytest.raises(UserError, match="thresholds for 2 labels"):
        decision_table(*arrays, None, [0.0, 0.0, 0.0])


def test_intervals_at_a_threshold_cover_the_truth(rng, clustered, thorough):
    truth = decision_table(*clustered(np.random.default_rng(1), 300_000, 1)[:2], None, 1.0)
    data = clustered(rng, 200, 1000 * thorough)
    result = decision_intervals(data.logits, data.targets, patients=data.patients, thresholds=1.0)
    for name, estimates in result.items():
        inside = (estimates.lower <= truth[name][0]) & (truth[name][0] <= estimates.upper)
        covered = inside[~np.isnan(estimates.lower)].mean()
        assert covered == pytest.approx(0.95, abs=0.025), name


def test_all_found_is_not_reported_as_certainty():
    patients = np.repeat(np.arange(24), 5)
    targets = (patients < 12)[:, None].astype(int)
    result = decision_intervals(targets - 0.5, targets, patients=patients, thresholds=0.0)
    found = result["sensitivity"]
    assert (found.value[0], found.upper[0]) == (1.0, 1.0)
    # Wilson's lower limit for 12 of 12: the patients, not their 60 records.
    assert found.lower[0] == pytest.approx(12 / (12 + 1.959964**2), abs=1e-6)
    assert result["sensitivity"].macro().num_labels == 1


def test_interval_needs_ten_patients_in_the_denominator(rng):
    patients = np.arange(100)
    targets = (patients < 50)[:, None].astype(int)
    logits = np.where(patients < 5, 1.0, -1.0)[:, None]
    result = decision_intervals(logits, targets, patients=patients, thresholds=0.0)
    assert result["ppv"].reasons == ("fewer than 10 patients in the denominator",)
    assert np.isnan(result["ppv"].lower[0])
    assert result["ppv"].value[0] == 1.0
    assert result["npv"].reasons == (None,)


def test_brier_equals_scikit_learn(rng, clustered):
    data = clustered(rng, 100, 4, observed=0.9)
    values = brier(data.logits, data.targets, data.observed)
    for label in range(4):
        seen = data.observed[:, label]
        chance = expit(data.logits[seen, label].astype(np.float64))
        expected = brier_score_loss(data.targets[seen, label], chance)
        assert values[label] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(brier(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros((3, 1)))).all()


def test_calibration_error_is_near_zero_when_calibrated_and_the_gap_when_not(rng):
    chance = rng.beta(0.5, 4, 200_000)
    targets = (rng.random(200_000) < chance)[:, None]
    logits = np.log(chance / (1 - chance))[:, None]
    assert calibration_error(logits, targets)[0] < 0.003
    always = calibration_error(np.zeros_like(logits), targets)
    assert always[0] == pytest.approx(0.5 - targets.mean(), abs=1e-12)


def test_calibration_error_equals_a_naive_count(rng):
    chance = rng.random(1000)
    targets = rng.random(1000) < chance**2
    logits = np.log(chance / (1 - chance))
    order = np.argsort(chance)
    gaps = [
        abs(chance[part].mean() - targets[part].mean()) * len(part)
        for part in np.array_split(order, 10)
    ]
    value = calibration_error(logits[:, None], targets[:, None])[0]
    assert value == pytest.approx(sum(gaps) / 1000, abs=2e-3)


def test_probability_intervals_have_values_and_reasons(rng, clustered):
    data = clustered(rng, 100, 2)
    data.observed[:, 1] = False
    result = probability_intervals(data.logits, data.targets, data.observed, patients=data.patients)
    np.testing.assert_array_equal(
        result["brier"].value, brier(data.logits, data.targets, data.observed)
    )
    assert result["brier"].lower[0] < result["brier"].value[0] < result["brier"].upper[0]
    assert result["brier"].reasons == (None, "never observed")
    error = result["calibration_error"]
    assert error.reasons == ("interval by bootstrap only", "never observed")
    assert np.isnan(error.lower).all()
    resampled = bootstrap(
        data.logits, data.targets, patients=data.patients, metrics=("calibration_error",)
    )["calibration_error"]
    assert resampled.lower[0] < resampled.upper[0]
    assert resampled.value[0] == pytest.approx(error.value[0], abs=1e-12)
