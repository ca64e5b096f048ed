"""Two runs compared: paired by patient, corrected by Holm, refused where they do not match."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import RunScores, average_precision, compare_runs, holm
from ecgfounder_train.metrics.bootstrap import bootstrap, patient_weights


def naive_holm(values):
    """Holm's procedure as published: step down, stop at the first that fails."""
    tested = [value for value in values if not np.isnan(value)]
    result = []
    for value in values:
        if np.isnan(value):
            result.append(np.nan)
            continue
        smaller = [other for other in tested if other <= value]
        steps = [
            other * (len(tested) - sum(third < other for third in tested)) for other in smaller
        ]
        result.append(min(1.0, max(steps)))
    return result


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=12))
def test_holm_equals_the_published_procedure(values):
    np.testing.assert_allclose(holm(values), naive_holm(values), rtol=1e-12)


def test_holm_of_a_known_example():
    adjusted = holm([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, np.nan, 0.06, 0.02])


def two_runs(data, rng, noise=0.7, gain=0.0):
    """Both see the same signal through noise of their own."""
    labels = [f"L{number}" for number in range(data.logits.shape[1])]
    keys = np.array([f"r{row}" for row in range(len(data.logits))])
    runs = []
    for number in range(2):
        own = noise * rng.normal(size=data.logits.shape)
        logits = data.logits + own + gain * number * data.targets
        runs.append(
            RunScores(
                logits, data.targets, data.observed, keys, data.patients, labels, f"n{number}"
            )
        )
    return runs


@pytest.mark.parametrize("metric", ["auroc", "average_precision"])
def test_p_values_are_uniform_when_there_is_no_difference(rng, clustered, thorough, metric):
    data = clustered(rng, 200, 800 * thorough)
    result = compare_runs(*two_runs(data, rng), metric)
    assert kstest(result.p_value, "uniform").pvalue > 0.001
    assert np.mean(result.p_value < 0.05) == pytest.approx(0.05, abs=0.025)
    inside = (result.lower <= 0) & (result.upper >= 0)
    assert inside.mean() == pytest.approx(0.95, abs=0.025)
    assert (result.p_holm < 0.05).sum() <= 1


@pytest.mark.parametrize("metric", ["auroc", "average_precision"])
def test_standard_error_is_the_paired_bootstraps(rng, clustered, metric):
    data = clustered(rng, 400, 3)
    first, second = two_runs(data, rng)
    result = compare_runs(first, second, metric)
    together = np.concatenate([np.asarray(first.logits), np.asarray(second.logits)], 1)
    resampled = bootstrap(
        together,
        np.tile(data.targets, 2),
        patients=data.patients,
        metrics=(metric,),
        num_resamples=1000,
    )[metric]
    covariance = resampled.covariance
    for label in range(3):
        variance = (
            covariance[label, label]
            + covariance[label + 3, label + 3]
            - 2 * covariance[label, label + 3]
        )
        assert result.standard_error[label] == pytest.approx(np.sqrt(variance), rel=0.1)
    contrast = np.array([1, 1, 1, -1, -1, -1]) / 3
    error = (result.macro.upper - result.macro.lower) / 2 / 1.959964
    assert error == pytest.approx(np.sqrt(contrast @ covariance @ contrast), rel=0.1)


def test_a_real_difference_is_found_and_turns_its_sign_with_the_runs(rng, clustered):
    first, second = two_runs(clustered(rng, 400, 4), rng, gain=0.7)
    result = compare_runs(first, second)
    assert (result.p_holm < 0.01).all()
    assert (result.upper < 0).all()
    assert result.macro.p_value < 1e-6
    assert result.macro.upper < 0
    turned = compare_runs(second, first)
    np.testing.assert_allclose(turned.difference, -result.difference)
    np.testing.assert_allclose(turned.p_value, result.p_value)
    np.testing.assert_allclose(turned.standard_error, result.standard_error)


def test_records_in_another_order_are_matched_by_key(rng, clustered):
    first, second = two_runs(clustered(rng, 100, 2, observed=0.9), rng)
    order = rng.permutation(len(first.record_keys))
    shuffled = RunScores(
        np.asarray(second.logits)[order],
        np.asarray(second.targets)[order],
        np.asarray(second.observed)[order],
        np.asarray(second.record_keys)[order].tolist(),
        np.asarray(second.patients)[order],
        second.labels,
    )
    straight, matched = compare_runs(first, second), compare_runs(first, shuffled)
    np.testing.assert_array_equal(straight.difference, matched.difference)
    np.testing.assert_array_equal(straight.p_value, matched.p_value)


def test_runs_on_other_records_are_refused(rng, clustered):
    first, second = two_runs(clustered(rng, 30, 2), rng)
    keys = np.asarray(second.record_keys).astype(object)
    other, twice = keys.copy(), keys.copy()
    other[0], twice[0] = "elsewhere", keys[1]
    with pytest.raises(UserError, match="1 are only in 'n0', 1 only in 'n1'"):
        compare_runs(first, dataclasses.replace(second, record_keys=other))
    with pytest.raises(UserError, match=r"1 record keys of run 'n1' occur again"):
        compare_runs(first, dataclasses.replace(second, record_keys=twice))
    with pytest.raises(UserError, match="another number of rows"):
        compare_runs(first, dataclasses.replace(second, record_keys=keys[:-1]))


def test_runs_with_other_truth_or_labels_are_refused(rng, clustered):
    first, second = two_runs(clustered(rng, 30, 2), rng)
    flipped = 1 - np.asarray(second.targets)
    with pytest.raises(UserError, match="targets of 'n0' and 'n1' differ"):
        compare_runs(first, dataclasses.replace(second, targets=flipped))
    with pytest.raises(UserError, match="targets of 'n0' and 'n1' differ"):
        compare_runs(first, dataclasses.replace(second, observed=np.zeros(flipped.shape)))
    with pytest.raises(UserError, match="other labels"):
        compare_runs(first, dataclasses.replace(second, labels=["L1", "L0"]))
    with pytest.raises(UserError, match="no paired test of 'f1'"):
        compare_runs(first, second, "f1")


def test_a_run_against_itself_and_undefined_labels_have_reasons_not_p_values(rng, clustered):
    data = clustered(rng, 60, 3)
    data.targets[:, 1] = 0
    data.targets[:, 2] = data.patients < 3
    first, _ = two_runs(data, rng)
    result = compare_runs(first, first)
    assert np.isnan(result.p_value).all()
    assert np.isnan(result.p_holm).all()
    assert result.reasons == (
        "no difference in any patient",
        "no positives",
        "fewer than 10 positive patients",
    )
    assert result.difference[0] == 0
    assert (result.macro.difference, result.macro.num_labels) == (0, 1)
    assert np.isnan(result.macro.p_value)


def test_windows_may_be_keyed_by_record_and_number(rng, clustered):
    first, second = two_runs(clustered(rng, 30, 1), rng)
    keys = [("r", number) for number in range(len(first.record_keys))]
    runs = [dataclasses.replace(run, record_keys=keys) for run in (first, second)]
    expected = compare_runs(first, second, "average_precision")
    result = compare_runs(*runs, "average_precision")
    assert result.difference[0] == expected.difference[0]
    weights = patient_weights(30, 1, 0)
    assert weights.shape[1] == 30
    assert result.first[0] == average_precision(first.logits, first.targets)[0]
