"""The patient bootstrap: what scikit-learn gives on the drawn rows, and the analytic intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import (
    bootstrap,
    decision_intervals,
    probability_intervals,
    ranking_intervals,
)
from ecgfounder_train.metrics.bootstrap import METRICS, patient_weights
from ecgfounder_train.metrics.kernels import (
    LANES,
    bootstrap_marks,
    compiled,
    sort_marks,
    weighted_ranking,
)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 80),
    levels=st.sampled_from([1, 2, 6, 10_000]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_weighted_ranking_equals_scikit_learn_with_the_same_weights(seed, size, levels, dtype):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, size) - levels / 2).astype(dtype)
    positive = rng.random(size) < 0.4
    patients = rng.integers(0, 12, size).astype(np.int32)
    weights = rng.integers(0, 5, (12, LANES)).astype(np.uint8)
    area, precision = np.empty((2, LANES))
    marks = bootstrap_marks(*sort_marks(scores, 2 * patients + positive))
    weighted_ranking(marks, weights, area, precision)
    for lane in range(LANES):
        of_records = weights[patients, lane]
        kept = of_records > 0
        if len(set(positive[kept].tolist())) < 2:
            assert np.isnan(area[lane])
            assert np.isnan(precision[lane])
            continue
        arguments = (positive[kept], scores[kept])
        expected = roc_auc_score(*arguments, sample_weight=of_records[kept])
        assert area[lane] == pytest.approx(expected, abs=1e-12)
        expected = average_precision_score(*arguments, sample_weight=of_records[kept])
        assert precision[lane] == pytest.approx(expected, abs=1e-12)


def test_resamples_equal_a_naive_bootstrap_of_rows(rng, clustered):
    data = clustered(rng, 60, 3, observed=0.9)
    ours = bootstrap(
        data.logits,
        data.targets,
        data.observed,
        patients=data.patients,
        num_resamples=40,
        seed=3,
        thresholds=0.4,
    )
    for label in range(3):
        naive = {metric: [] for metric in METRICS[:-1]}
        for number in range(1, 41):
            drawn = np.random.default_rng([3, number]).integers(0, 60, 60)
            rows = np.concatenate([np.flatnonzero(data.patients == patient) for patient in drawn])
            rows = rows[data.observed[rows, label]]
            truth, scores = data.targets[rows, label], data.logits[rows, label]
            called = scores >= 0.4
            naive["auroc"].append(roc_auc_score(truth, scores))
            naive["average_precision"].append(average_precision_score(truth, scores))
            naive["sensitivity"].append(recall_score(truth, called))
            naive["specificity"].append(recall_score(1 - truth, ~called))
            naive["ppv"].append(precision_score(truth, called))
            naive["npv"].append(precision_score(1 - truth, ~called))
            naive["f1"].append(f1_score(truth, called))
            naive["brier"].append(brier_score_loss(truth, expit(scores.astype(np.float64))))
        for metric, values in naive.items():
            low, high = np.quantile(values, [0.025, 0.975])
            assert ours[metric].lower[label] == pytest.approx(low, abs=1e-12), metric
            assert ours[metric].upper[label] == pytest.approx(high, abs=1e-12), metric
            assert ours[metric].standard_error[label] == pytest.approx(np.std(values, ddof=1))


def test_analytic_intervals_agree_with_the_bootstrap_within_its_noise(rng, clustered):
    data = clustered(rng, 600, 5)
    options = {"patients": data.patients}
    resampled = bootstrap(data.logits, data.targets, num_resamples=1000, thresholds=0.5, **options)
    areas, precisions = ranking_intervals(data.logits, data.targets, **options)
    analytic = {
        "auroc": areas,
        "average_precision": precisions,
        **decision_intervals(data.logits, data.targets, thresholds=0.5, **options),
        "brier": probability_intervals(data.logits, data.targets, **options)["brier"],
    }
    for metric, estimates in analytic.items():
        check = resampled[metric]
        np.testing.assert_allclose(check.value, estimates.value, rtol=1e-12)
        # 1,000 resamples know a standard error to 2.2 %, a percentile to about 0.08 of one.
        np.testing.assert_allclose(check.standard_error, estimates.standard_error, rtol=0.1)
        error = estimates.standard_error
        # An AUROC's lower limit is cautious; by how much, the coverage tests say.
        slack = 1.0 if metric == "auroc" else 0.4
        assert (np.abs(check.lower - estimates.lower) < slack * error).all(), metric
        assert (np.abs(check.upper - estimates.upper) < 0.4 * error).all(), metric
        ours, theirs = estimates.macro(), check.macro()
        assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.1)


def test_weights_are_whole_patients_drawn_with_replacement():
    weights = patient_weights(500, 40, seed=5)
    flat = weights.transpose(0, 2, 1).reshape(-1, 500)
    assert (flat[0] == 1).all()
    assert (flat[1:41].sum(1) == 500).all(), "as many patients as there are"
    assert (flat[41:] == 0).all()
    again = patient_weights(500, 70, seed=5).transpose(0, 2, 1).reshape(-1, 500)
    np.testing.assert_array_equal(flat[:41], again[:41], "more resamples leave the first alone")
    assert flat[1:41].var() == pytest.approx(1, abs=0.1)


def test_threads_change_nothing_and_only_what_is_asked_for_comes_back(rng, clustered):
    data = clustered(rng, 50, 6)
    options = {"patients": data.patients, "num_resamples": 50, "metrics": ("auroc", "brier")}
    one, many = (
        bootstrap(data.logits, data.targets, num_threads=threads, **options) for threads in (1, 4)
    )
    assert list(one) == ["auroc", "brier"]
    for metric in one:
        np.testing.assert_array_equal(one[metric].lower, many[metric].lower)


def test_missing_intervals_have_their_reason(rng):
    patients = np.repeat(np.arange(40), 2)
    logits = rng.normal(size=(80, 5))
    targets, observed = np.zeros((80, 5), int), np.ones((80, 5))
    targets[:10, 1] = 1
    targets[::2, 2], logits[:, 2] = 1, 0
    observed[:, 3] = 0
    targets[::2, 4] = 1
    areas = bootstrap(logits, targets, observed, patients=patients, num_resamples=100)["auroc"]
    assert areas.reasons == (
        "undefined: no record in a class or in the denominator",
        "fewer than 10 positive patients",
        "no variance between patients",
        "never observed",
        None,
    )
    np.testing.assert_array_equal(np.isnan(areas.lower), [1, 1, 1, 1, 0])
    assert areas.macro().num_labels == 2


def test_one_patient_varies_in_no_resample(rng):
    targets = np.arange(30)[:, None] % 2
    result = bootstrap(rng.normal(size=(30, 1)), targets, patients=np.zeros(30), num_resamples=20)
    for estimates in result.values():
        assert np.isnan(estimates.lower[0])
        assert estimates.reasons == ("fewer than 10 positive patients",)


def test_unknown_metric_and_too_few_resamples_are_refused(rng):
    arguments = (rng.normal(size=(4, 1)), np.zeros((4, 1)))
    with pytest.raises(UserError, match=r"no metric 'aurok'.*auroc"):
        bootstrap(*arguments, patients=np.arange(4), metrics=("aurok",))
    with pytest.raises(UserError, match="num_resamples=1"):
        bootstrap(*arguments, patients=np.arange(4), num_resamples=1)


def test_kernels_compile_where_nothing_can_be_cached():
    namespace = {}
    exec("def double(x): return 2 * x", namespace)  # a function without a file has no cache
    assert compiled(namespace["double"])(4) == 8
