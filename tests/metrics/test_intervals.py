"""Intervals by patient: the published formula, the derivative of the metric, and coverage."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import (
    average_precision,
    bootstrap,
    clusters_from_keys,
    decision_intervals,
    probability_intervals,
    ranking_intervals,
    ranking_metrics,
)
from ecgfounder_train.metrics.arrays import masked_columns
from ecgfounder_train.metrics.clusters import as_clusters
from ecgfounder_train.metrics.intervals import rank_label


def obuchowski_by_pairs(scores, positive, patients):
    """Obuchowski's 1997 variance written out pair by pair."""
    x, y = scores[positive], scores[~positive]
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    area, (m, n) = wins.mean(), wins.shape
    of_positives, of_negatives = [], []
    for patient in np.unique(patients):
        ours, theirs = patients[positive] == patient, patients[~positive] == patient
        of_positives.append((wins.mean(1)[ours] - area).sum())
        of_negatives.append((wins.mean(0)[theirs] - area).sum())
    v10, v01 = np.array(of_positives), np.array(of_negatives)
    i10, i01 = len(np.unique(patients[positive])), len(np.unique(patients[~positive]))
    i = len(v10)
    s10 = i10 / ((i10 - 1) * m) * (v10**2).sum()
    s01 = i01 / ((i01 - 1) * n) * (v01**2).sum()
    s11 = i / (i - 1) * (v10 * v01).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auroc_variance_is_obuchowskis_with_ties_and_unobserved(rng, clustered, decimals, dtype):
    data = clustered(rng, 60, 4, observed=0.8)
    logits = data.logits.round(decimals).astype(dtype)
    areas = ranking_intervals(logits, data.targets, data.observed, patients=data.patients).auroc
    for label in range(4):
        seen = data.observed[:, label]
        variance = obuchowski_by_pairs(
            logits[seen, label], data.targets[seen, label] == 1, data.patients[seen]
        )
        assert areas.standard_error[label] ** 2 == pytest.approx(variance, rel=1e-10)
        assert areas.covariance[label, label] == pytest.approx(variance, rel=1e-10)


def test_without_clustering_the_variance_is_delongs(rng, clustered):
    data = clustered(rng, 150, 1)
    scores, positive = data.logits[:, 0], data.targets[:, 0] == 1
    wins = (scores[positive][:, None] > scores[~positive]).astype(float)
    delong = wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1]
    areas = ranking_intervals(data.logits, data.targets, patients=np.arange(len(scores))).auroc
    assert areas.standard_error[0] ** 2 == pytest.approx(delong, rel=1e-10)


@pytest.mark.parametrize("decimals", [0, 5])
def test_influence_is_the_derivative_by_the_patients_weight(rng, clustered, decimals):
    data = clustered(rng, 40, 1)
    logits = data.logits.round(decimals)
    column = next(masked_columns(logits, data.targets))
    row = rank_label(column, as_clusters(data.patients, len(logits)))
    step = 1e-5
    for patient in range(0, 40, 3):
        up = np.where(data.patients == patient, 1 + step, 1.0)
        down = np.where(data.patients == patient, 1 - step, 1.0)
        for metric, influence in (
            (roc_auc_score, row.from_positives + row.from_negatives),
            (average_precision_score, row.precision),
        ):
            values = [
                metric(column[1], logits[:, 0], sample_weight=weight) for weight in (up, down)
            ]
            slope = (values[0] - values[1]) / (2 * step)
            assert influence[patient] == pytest.approx(slope, abs=1e-8)


def test_values_are_those_of_the_exact_metrics(rng, clustered):
    data = clustered(rng, 300, 20, observed=0.9)
    exact = ranking_metrics(data.logits, data.targets, data.observed)
    areas, precisions = ranking_intervals(
        data.logits, data.targets, data.observed, patients=data.patients
    )
    np.testing.assert_array_equal(areas.value, exact.auroc)
    np.testing.assert_allclose(precisions.value, exact.average_precision, rtol=1e-12)
    np.testing.assert_array_equal(areas.num_positives, exact.num_positives)
    assert ((areas.lower < areas.value) & (areas.value < areas.upper)).all()
    assert ((precisions.lower < precisions.value) & (precisions.value < precisions.upper)).all()


def test_threads_change_nothing(rng, clustered):
    data = clustered(rng, 100, 12)
    one, many = (
        ranking_intervals(data.logits, data.targets, patients=data.patients, num_threads=threads)
        for threads in (1, 5)
    )
    np.testing.assert_array_equal(one.auroc.lower, many.auroc.lower)
    np.testing.assert_array_equal(one.average_precision.upper, many.average_precision.upper)


def coverage(intervals, truth):
    inside = (intervals.lower <= truth) & (truth <= intervals.upper)
    return inside[~np.isnan(intervals.lower)].mean()


@pytest.mark.parametrize(
    ("num_patients", "prevalence", "separation"),
    # 120 positive patients, 66, and 36.
    [(400, 0.2, 1.0), (1000, 0.04, 1.5), (120, 0.2, 2.0)],
)
def test_intervals_cover_the_truth_95_times_in_100(
    rng, clustered, thorough, num_patients, prevalence, separation
):
    options = {"prevalence": prevalence, "separation": separation}
    population = clustered(np.random.default_rng(1), 400_000, 1, **options)
    truth = ranking_metrics(population.logits, population.targets)
    # Columns are independent, so each stands for one study.
    data = clustered(rng, num_patients, 1200 * thorough, **options)
    areas, precisions = ranking_intervals(data.logits, data.targets, patients=data.patients)
    assert 0.93 <= coverage(areas, truth.auroc[0]) <= 0.985
    assert 0.93 <= coverage(precisions, truth.average_precision[0]) <= 0.985
    by_record = ranking_intervals(
        data.logits, data.targets, patients=np.arange(len(data.patients))
    ).auroc
    assert coverage(by_record, truth.auroc[0]) < 0.935, "taking records for patients must show"


def few_positive_patients(rng, num_positive, num_negative, num_labels, separation):
    """Return scores, targets and patients, of whom a given number is positive in some record."""
    number = num_positive + num_negative
    patients = np.repeat(np.arange(number), 1 + rng.binomial(5, 0.3, number))
    first = np.r_[True, patients[1:] != patients[:-1]]
    stays = rng.random((len(patients), num_labels)) < 0.7
    targets = (patients < num_positive)[:, None] & (first[:, None] | stays)
    shared = rng.normal(size=(number, num_labels))[patients]
    scores = 0.8 * shared + 0.6 * rng.normal(size=targets.shape) + separation * targets
    return scores.astype(np.float32), targets, patients


@pytest.mark.slow
@pytest.mark.parametrize("num_positive", [10, 15, 20, 50, 200])
@pytest.mark.parametrize(
    ("num_negative", "separation"),
    # AUROC 0.76, 0.86, 0.92 and 0.98: near 1 few patients decide, and none may be in the sample.
    [(400, 1.0), (40, 1.5), (400, 2.0), (400, 2.9)],
)
def test_intervals_of_few_patients_cover(num_positive, num_negative, separation):
    num_negative = max(num_negative, num_positive)
    together = 300_000 // (num_positive + num_negative)
    many = few_positive_patients(
        np.random.default_rng(7), num_positive * together, num_negative * together, 1, separation
    )
    truth = ranking_metrics(*many[:2])
    inside = []
    for block in range(20):  # sizes of the patients differ from block to block
        scores, targets, patients = few_positive_patients(
            np.random.default_rng((5, block)), num_positive, num_negative, 100, separation
        )
        found = ranking_intervals(scores, targets, patients=patients)
        inside.append([coverage(found.auroc, truth.auroc[0]),
                       coverage(found.average_precision, truth.average_precision[0])])  # fmt: skip
    areas, precisions = np.mean(inside, 0)
    noise = 2 * np.sqrt(0.95 * 0.05 / 2000)
    assert 0.94 - noise <= areas <= 0.985 + noise
    # The number of positive patients is fixed here, for the influence function it is drawn.
    assert 0.945 - noise <= precisions <= 0.985 + noise


def separated_studies(rng, num_positive, num_labels, separation, tail):
    """Return scores and targets of independent labels; `tail` turns the positives' skew."""
    number = num_positive + 500
    targets = np.arange(number) < num_positive
    noise = tail * rng.exponential(size=(number, num_labels))
    return (noise + separation * targets[:, None]).astype(np.float32), np.repeat(
        targets[:, None], num_labels, 1
    )


@pytest.mark.parametrize("tail", [1, -1], ids=["right-skewed", "left-skewed"])
@pytest.mark.parametrize("num_positive", [12, 100])
@pytest.mark.parametrize("area", [0.95, 0.98, 0.995])
def test_intervals_near_one_cover(area, num_positive, tail, rng, thorough):
    separation = -np.log(2 * (1 - area))  # of two exponentials shifted against each other
    logits, targets = separated_studies(rng, num_positive, 500 * thorough, separation, tail)
    areas = ranking_intervals(logits, targets, patients=np.arange(len(logits))).auroc
    assert not np.isnan(areas.lower).any(), "a perfect separation has an interval too"
    assert coverage(areas, area) >= 0.93
    assert (areas.lower > area).mean() < 0.05, "few lower limits may be above the truth"


def test_average_precision_of_one_in_a_thousand_covers(rng, thorough):
    number, num_positive = 12_000, 12
    truth = average_precision(
        np.concatenate([rng.normal(size=2_000_000), rng.normal(2, 1, 2000)])[:, None],
        np.concatenate([np.zeros(2_000_000), np.ones(2000)])[:, None],
    )[0]
    targets = np.zeros((number, 250 * thorough), np.uint8)
    targets[:num_positive] = 1
    logits = (rng.normal(size=targets.shape) + 2 * targets).astype(np.float32)
    found = ranking_intervals(logits, targets, patients=np.arange(number)).average_precision
    assert coverage(found, truth) >= 0.92


def test_labels_above_a_limit_are_counted_with_confidence_for_all_together(rng):
    counts = []
    for _ in range(40):
        # Twenty labels whose true AUROC is the limit, and five far above it.
        logits, targets = separated_studies(rng, 300, 25, -np.log(2 * 0.05), -1)
        logits[:, 20:] += 6 * targets[:, 20:]
        areas = ranking_intervals(logits, targets, patients=np.arange(len(logits))).auroc
        counts.append(areas.num_above(0.95))
        assert areas.num_above(0.9) >= areas.num_above(0.95) >= 5
        assert (areas.lower > 0.95).sum() >= counts[-1]
    assert np.mean(np.array(counts) > 5) <= 0.15, "at most 5 % but for the chance of 40 studies"


def test_macro_interval_covers_the_truth(rng, clustered, thorough):
    truth = ranking_metrics(*clustered(np.random.default_rng(1), 400_000, 1)[:2]).auroc[0]
    inside = []
    for _ in range(300 * thorough):
        data = clustered(rng, 150, 4)
        # Labels that contain each other: the third and fourth column repeat the first.
        data.logits[:, 2:], data.targets[:, 2:] = data.logits[:, :1], data.targets[:, :1]
        areas = ranking_intervals(
            data.logits, data.targets, patients=data.patients, num_threads=1
        ).auroc
        macro = areas.macro()
        inside.append(macro.lower <= truth <= macro.upper)
    assert 0.93 <= np.mean(inside) <= 0.99


def test_macro_of_a_repeated_label_is_no_more_certain_than_the_label(rng, clustered):
    data = clustered(rng, 100, 1)
    areas = ranking_intervals(
        np.repeat(data.logits, 5, 1), np.repeat(data.targets, 5, 1), patients=data.patients
    ).auroc
    macro = areas.macro()
    assert macro.num_labels == 5
    assert macro.standard_error == pytest.approx(areas.standard_error[0], rel=1e-5)
    assert macro.lower == pytest.approx(areas.lower[0], rel=1e-5)


def test_every_missing_interval_has_its_reason(rng):
    patients = np.repeat(np.arange(40), 3)
    targets = np.zeros((120, 8), np.uint8)
    logits = rng.normal(size=(120, 8)).astype(np.float32)
    observed = np.ones((120, 8))
    targets[:, 1] = 1
    targets[:27, 2] = 1  # 9 patients
    targets[27:, 3] = 1  # 9 patients are negative
    targets[::2, 4], logits[:, 4] = 1, 0.5
    targets[::2, 5] = 1
    logits[:, 5] = targets[:, 5]
    observed[:, 6] = 0
    targets[:60, 7] = 1
    areas, precisions = ranking_intervals(logits, targets, observed, patients=patients)
    assert areas.reasons == (
        "no positives",
        "no negatives",
        "fewer than 10 positive patients",
        "fewer than 10 negative patients",
        "no variance between patients: all scores are equal",
        None,
        "never observed",
        None,
    )
    separated = "no variance between patients: the classes are separated"
    assert precisions.reasons == (*areas.reasons[:5], separated, *areas.reasons[6:])
    for estimates in (areas, precisions):
        missing = [reason is not None for reason in estimates.reasons]
        np.testing.assert_array_equal(np.isnan(estimates.lower), missing)
        np.testing.assert_array_equal(np.isnan(estimates.upper), missing)
        np.testing.assert_array_equal(np.isnan(estimates.value), [1, 1, 0, 0, 0, 0, 1, 0])
    assert areas.value[4] == 0.5
    assert areas.value[5] == 1.0
    assert (areas.lower[5], areas.upper[5]) == (pytest.approx(0.889, abs=1e-3), 1.0)
    assert areas.macro().num_labels == 3, "a perfect label counts, one of too few patients does not"
    assert areas.macro().value == pytest.approx(areas.value[[4, 5, 7]].mean())


def test_one_patient_has_a_value_and_no_interval(rng):
    targets = np.arange(30)[:, None] % 2
    areas = ranking_intervals(rng.normal(size=(30, 1)), targets, patients=np.zeros(30, int)).auroc
    assert 0 < areas.value[0] < 1
    assert np.isnan(areas.lower[0])
    assert areas.reasons == ("fewer than 10 positive patients",)
    assert np.isnan(areas.macro().value)


def test_signed_zeros_and_infinities_rank_as_numbers_do():
    logits = np.array([-np.inf, -0.0, 0.0, np.inf] * 10, np.float32)[:, None]
    targets = np.array([0, 1, 0, 1] * 10)[:, None]
    areas = ranking_intervals(logits, targets, patients=np.arange(40)).auroc
    assert areas.value[0] == roc_auc_score(targets[:, 0], np.array([-9, 0, 0, 9] * 10))


def test_nan_logits_and_patients_of_another_length_are_refused(rng):
    logits, targets = rng.normal(size=(20, 2)), rng.integers(0, 2, (20, 2))
    with pytest.raises(UserError, match="one patient per record"):
        ranking_intervals(logits, targets, patients=np.arange(19))
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match="label 'AFIB' are NaN"):
        ranking_intervals(logits, targets, patients=np.arange(20), labels=["NSR", "AFIB"])


def test_records_without_a_patient_are_their_own_cluster_and_the_note_says_so():
    mixed = clusters_from_keys(["a", None, "a", "", None], ["r", "s", "t", "u", "s"])
    assert mixed.codes.tolist() == [0, 1, 0, 2, 1], "windows of one record stay together"
    assert (mixed.by, mixed.num_clusters, mixed.num_unknown) == ("mixed", 3, 3)
    assert "3 of 5 rows have no patient" in mixed.note
    assert "clustered by record" in clusters_from_keys([None, None]).note
    assert "(2 patients)" in clusters_from_keys(["a", "b", "a"]).note
    assert clusters_from_keys(["s", None], ["x", "s"]).num_clusters == 2, "keys of two kinds"
    with pytest.raises(UserError, match="2 patient keys but 1 record keys"):
        clusters_from_keys(["a", "b"], ["r"])


@pytest.mark.parametrize(
    "metric",
    [
        lambda *arrays: ranking_intervals(*arrays, patients=np.arange(len(arrays[0]))).auroc,
        lambda *arrays: bootstrap(*arrays, patients=np.arange(len(arrays[0])))["f1"],
        lambda *arrays: decision_intervals(
            *arrays, patients=np.arange(len(arrays[0])), thresholds=0.0
        )["f1"],
        lambda *arrays: probability_intervals(*arrays, patients=np.arange(len(arrays[0])))["brier"],
    ],
)
def test_no_records_are_nan_and_wrong_shapes_a_clear_error(metric):
    empty = metric(np.zeros((0, 2)), np.zeros((0, 2)))
    assert np.isnan(empty.value).all()
    assert empty.reasons == ("never observed", "never observed")
    with pytest.raises(UserError, match="add an axis"):
        metric(np.zeros(5), np.zeros(5))
    with pytest.raises(UserError, match="targets have shape"):
        metric(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(UserError, match="2 of 5 logits of label number 1 are NaN"):
        metric(np.array([[0, np.nan]] * 2 + [[0, 1.0]] * 3), np.zeros((5, 2)))
