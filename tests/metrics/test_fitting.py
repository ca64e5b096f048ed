"""Thresholds and calibration: fitted on validation only, stored as plain containers."""

import io
import json

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import (
    Calibration,
    Thresholds,
    brier,
    calibration_error,
    decision_table,
    fit_calibration,
    fit_thresholds,
)
from ecgfounder_train.metrics.calibration import platt

LABELS = ("NSR", "AFIB", "LBBB")


@pytest.fixture
def validation(rng, clustered):
    return clustered(rng, 300, 3)


def fit(data, rule, target=None, split="val"):
    return fit_thresholds(
        data.logits, data.targets, split=split, labels=LABELS, rule=rule, target=target
    )


def test_nothing_is_fitted_on_the_test_split(validation):
    with pytest.raises(UserError, match="validation split, not on 'test'"):
        fit(validation, "youden", split="test")
    with pytest.raises(UserError, match="validation split, not on 'train'"):
        fit_calibration(validation.logits, validation.targets, split="train", labels=LABELS)


def rates(data, label, cut):
    """Sensitivity, specificity and F1 at a threshold, counted the plain way."""
    called, truth = data.logits[:, label] >= cut, data.targets[:, label] == 1
    hits = (called & truth).sum()
    f1 = 2 * hits / (called.sum() + truth.sum())
    return hits / truth.sum(), (~called & ~truth).sum() / (~truth).sum(), f1


def every_rate(data, label):
    return np.array([rates(data, label, cut) for cut in np.unique(data.logits[:, label])])


def test_youden_and_f1_are_the_best_of_all_thresholds(validation):
    youden, f1 = fit(validation, "youden"), fit(validation, "f1")
    for label in range(3):
        every = every_rate(validation, label)
        reached = rates(validation, label, youden.values[label])
        assert sum(reached[:2]) == pytest.approx(every[:, :2].sum(1).max(), abs=1e-12)
        reached = rates(validation, label, f1.values[label])
        assert reached[2] == pytest.approx(every[:, 2].max(), abs=1e-12)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
def test_fixed_rate_is_reached_at_the_least_cost_to_the_other(validation, rule, target):
    fitted = fit(validation, rule, target)
    table = decision_table(validation.logits, validation.targets, None, fitted)
    asked, other = (0, "specificity") if rule == "sensitivity" else (1, "sensitivity")
    assert (table[rule] >= target).all()
    for label in range(3):
        every = every_rate(validation, label)
        best = every[every[:, asked] >= target, 1 - asked].max()
        assert table[other][label] == pytest.approx(best, abs=1e-12)


def test_half_is_logit_zero_for_every_label(validation):
    assert fit(validation, "half").values == (0.0, 0.0, 0.0)


def test_label_without_a_threshold_says_why():
    logits, targets = np.zeros((50, 3)), np.zeros((50, 3))
    targets[:, 1], targets[::2, 2] = 1, 1
    for rule, target, reason in (
        ("youden", None, "the scores do not separate the classes"),
        ("specificity", 0.9, "no threshold that calls any positive is as specific"),
    ):
        fitted = fit_thresholds(
            logits, targets, split="val", labels=LABELS, rule=rule, target=target
        )
        assert np.isnan(fitted.values).all()
        assert fitted.reasons == ("no positives", "no negatives", reason)


def test_scores_that_rank_the_wrong_way_give_no_youden_threshold():
    logits, targets = np.arange(40.0)[:, None], (np.arange(40) < 20)[:, None]
    fitted = fit_thresholds(logits, targets, split="val", labels=["A"], rule="youden")
    assert np.isnan(fitted.values[0])
    assert fitted.reasons[0] is not None


def test_infinite_logits_give_no_threshold_and_no_curve():
    logits = np.array([[np.inf], [-np.inf]] * 200)
    targets = np.array([[1], [0]] * 200)
    fitted = fit_thresholds(logits, targets, split="val", labels=["A"])
    assert (np.isnan(fitted.values[0]), fitted.reasons) == (True, ("a logit is infinite",))
    assert fit_calibration(logits, targets, split="val", labels=["A"]).reasons == fitted.reasons


@pytest.mark.parametrize(
    ("rule", "target", "message"),
    [
        ("yuden", None, "youden"),
        ("sensitivity", None, "needs a target"),
        ("specificity", 1.2, "at most 1"),
        ("f1", 0.9, "takes no target"),
    ],
)
def test_wrong_rules_are_refused_with_the_remedy(validation, rule, target, message):
    with pytest.raises(UserError, match=message):
        fit(validation, rule, target)


def through_weights_file(plain):
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_thresholds_survive_json_and_a_weights_file(validation):
    fitted = fit(validation, "sensitivity", 0.9)
    missing = Thresholds(("A",), "f1", None, (float("nan"),), ("no positives",))
    for original in (fitted, missing):
        plain = original.to_dict()
        for copy in (json.loads(json.dumps(plain, allow_nan=False)), through_weights_file(plain)):
            again = Thresholds.from_dict(copy)
            assert again.labels == original.labels
            assert again.reasons == original.reasons
            np.testing.assert_array_equal(again.values, original.values)


def test_labels_are_aligned_by_name_or_refused(validation):
    fitted = fit(validation, "youden")
    turned = fitted.for_labels(["LBBB", "NSR"])
    assert turned.values == (fitted.values[2], fitted.values[0])
    with pytest.raises(UserError, match=r"label 'AFB'.*AFIB"):
        fitted.for_labels(["AFB"])
    curves = fit_calibration(validation.logits, validation.targets, split="val", labels=LABELS)
    assert curves.for_labels(["LBBB"]).curves == (curves.curves[2],)
    with pytest.raises(UserError, match="for_labels"):
        brier(validation.logits, validation.targets, None, curves, ["AFIB", "NSR", "LBBB"])
    with pytest.raises(UserError, match="for_labels"):
        curves.apply(validation.logits[:, :2])


def test_platt_is_the_maximum_of_the_smoothed_likelihood(rng):
    scores = rng.normal(size=2000) * 40 + 300
    positive = rng.random(2000) < expit((scores - 330) / 20)
    slope, intercept = platt(scores, positive)
    hits = positive.sum()
    goal = np.where(positive, (hits + 1) / (hits + 2), 1 / (2000 - hits + 2))
    x = np.concatenate([scores, scores])[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000, solver="newton-cholesky")
    model.fit((x - 300) / 40, np.repeat([1, 0], 2000), np.concatenate([goal, 1 - goal]))
    expected = model.predict_proba((scores[:, None] - 300) / 40)[:, 1]
    np.testing.assert_allclose(expit(slope * scores + intercept), expected, atol=1e-6)


def test_isotonic_equals_scikit_learn_inside_the_clipped_range(rng):
    scores = rng.normal(size=3000).round(2)
    targets = rng.random(3000) < expit(2 * scores - 1) ** 2
    fitted = fit_calibration(scores[:, None], targets[:, None], split="val", labels=["A"])
    assert fitted.curves[0].method == "isotonic"
    reference = IsotonicRegression(out_of_bounds="clip").fit(scores, targets)
    grid = np.linspace(-4, 4, 500)
    margin = 0.5 / 3001
    expected = np.clip(reference.predict(grid), margin, 1 - margin)
    np.testing.assert_allclose(fitted.apply(grid[:, None])[:, 0], expected, atol=5e-4)
    at_scores = np.clip(reference.predict(scores), margin, 1 - margin)
    np.testing.assert_allclose(fitted.apply(scores[:, None])[:, 0], at_scores, atol=1e-12)


def test_method_follows_the_number_of_positives_and_says_so(rng):
    counts = (0, 9, 99, 100)
    targets = np.zeros((1000, 4), int)
    for label, count in enumerate(counts):
        targets[:count, label] = 1
    logits = rng.normal(size=(1000, 4)) + 2 * targets
    fitted = fit_calibration(logits, targets, split="val", labels=list("ABCD"))
    assert [curve.method for curve in fitted.curves] == ["none", "none", "platt", "isotonic"]
    assert fitted.reasons == (
        "no positives",
        "fewer than 10 positive patients",
        "fewer than 100 positive patients",
        None,
    )
    asked = fit_calibration(logits, targets, split="val", labels=list("ABCD"), method="platt")
    assert [curve.method for curve in asked.curves] == ["none", "none", "platt", "platt"]
    assert asked.reasons[2:] == (None, None)
    backwards = fit_calibration(-logits, targets, split="val", labels=list("ABCD"), method="platt")
    assert backwards.reasons[2] == "the scores do not rise with the label"
    with pytest.raises(UserError, match="isotonic"):
        fit_calibration(logits, targets, split="val", labels=list("ABCD"), method="isotonik")


def test_thresholds_and_curves_need_ten_patients_of_each_class_however_many_records(rng):
    patients = np.repeat(np.arange(60), 20)
    targets = np.zeros((1200, 4), int)
    for label, count in enumerate((1, 9, 10, 51)):  # 51: nine patients are negative
        targets[patients < count, label] = 1
    logits = rng.normal(size=targets.shape) + 2 * targets
    labels = list("ABCD")
    options = {"split": "val", "labels": labels, "patients": patients}
    thresholds = fit_thresholds(logits, targets, **options)
    few = ["fewer than 10 positive patients"] * 2
    assert thresholds.reasons == (*few, None, "fewer than 10 negative patients")
    assert thresholds.num_patients == ((0, 59), (0, 51), (10, 50), (51, 0))
    calibration = fit_calibration(logits, targets, **options)
    assert [curve.method for curve in calibration.curves] == ["none", "none", "platt", "none"]
    assert [curve.num_patients for curve in calibration.curves] == list(thresholds.num_patients)
    assert calibration.summary == "1 of 4 (1 Platt)"
    assert np.isfinite(fit_thresholds(logits, targets, rule="half", **options).values).all()


def test_files_that_did_not_count_patients_keep_their_curves_and_lose_their_thresholds(validation):
    old = {**fit(validation, "youden").to_dict()}
    assert Thresholds.from_dict(old) == fit(validation, "youden")
    del old["num_patients"]
    loaded = Thresholds.from_dict(old)
    assert np.isnan(loaded.values).all()
    assert "did not count patients" in loaded.reasons[0]
    half = {**fit(validation, "half").to_dict(), "num_patients": []}
    assert Thresholds.from_dict(half).values == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="another number of labels"):
        Thresholds.from_dict({**fit(validation, "youden").to_dict(), "num_patients": [[1, 2]]})


def test_calibration_helps_other_patients_and_survives_storage(clustered):
    fitting, other = (clustered(np.random.default_rng(seed), 2000, 3) for seed in (1, 2))
    for method in ("platt", "isotonic"):
        fitted = fit_calibration(
            3 * fitting.logits + 1, fitting.targets, split="val", labels=LABELS, method=method
        )
        raw = (3 * other.logits + 1, other.targets)
        assert (calibration_error(*raw, None, fitted) < 0.03).all()
        assert (calibration_error(*raw) > 0.2).all()
        assert (brier(*raw, None, fitted) < brier(*raw)).all()
        plain = fitted.to_dict()
        for copy in (json.loads(json.dumps(plain, allow_nan=False)), through_weights_file(plain)):
            np.testing.assert_array_equal(
                Calibration.from_dict(copy).apply(raw[0]), fitted.apply(raw[0])
            )
