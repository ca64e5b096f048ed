"""Ranking metrics: exact, masked, honest about what is undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import auroc, average_precision, macro
from ecgfounder_train.metrics.ranking import ranking_metrics


@st.composite
def scored_labels(draw):
    """Scores of one label, from all tied to all distinct, in single or double precision."""
    size = draw(st.integers(2, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, size) - levels / 3).astype(dtype) * draw(
        st.sampled_from([1.0, 1e-30, 1e30])
    )
    targets = rng.integers(0, 2, size)
    observed = rng.random(size) < draw(st.sampled_from([0.5, 1.0]))
    return scores.astype(dtype), targets, observed


@settings(max_examples=150, deadline=None)
@given(scored_labels())
def test_both_metrics_equal_scikit_learn_to_1e_12(case):
    scores, targets, observed = case
    area = auroc(scores[:, None], targets[:, None], observed[:, None])[0]
    precision = average_precision(scores[:, None], targets[:, None], observed[:, None])[0]
    seen_scores, seen = scores[observed], targets[observed]
    if len(set(seen.tolist())) < 2:
        assert np.isnan(area)
        assert np.isnan(precision)
    else:
        assert area == pytest.approx(roc_auc_score(seen, seen_scores), abs=1e-12)
        assert precision == pytest.approx(average_precision_score(seen, seen_scores), abs=1e-12)


def test_many_labels_at_once_equal_scikit_learn_one_by_one(rng):
    logits = rng.normal(size=(3000, 37)).astype(np.float32).round(1)
    targets = (rng.random((3000, 37)) < np.geomspace(0.4, 0.01, 37)).astype(np.uint8)
    observed = rng.random((3000, 37)) < 0.8
    result = ranking_metrics(logits, targets, observed)
    for index in range(37):
        mask = observed[:, index]
        truth, scores = targets[mask, index], logits[mask, index]
        assert result.auroc[index] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        expected = average_precision_score(truth, scores)
        assert result.average_precision[index] == pytest.approx(expected, abs=1e-12)
        assert result.num_positives[index] == truth.sum()
        assert result.num_observed[index] == mask.sum()


def test_undefined_label_is_nan():
    logits = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3]])
    targets = np.array([[0, 1, 0], [0, 1, 1], [0, 1, 1]])
    areas = auroc(logits, targets)
    assert np.isnan(areas[:2]).all(), "neither no positives nor no negatives has an AUROC"
    assert areas[2] == 1.0
    assert np.isnan(average_precision(logits, targets)[:2]).all()
    assert np.isnan(auroc(logits, targets, np.zeros((3, 3)))).all()


def test_constant_scores_tell_nothing():
    targets = np.array([[0], [1], [1], [0], [0]])
    assert auroc(np.zeros((5, 1)), targets)[0] == 0.5
    assert average_precision(np.zeros((5, 1)), targets)[0] == pytest.approx(0.4)


def test_infinite_logits_are_ordered_like_any_other():
    logits = np.array([[-np.inf], [0.0], [np.inf], [np.inf]])
    assert auroc(logits, np.array([[0], [0], [1], [1]]))[0] == 1.0


def test_nan_logits_are_refused_with_the_label_named():
    logits = np.zeros((4, 2), np.float32)
    logits[2, 1] = np.nan
    targets = np.array([[0, 1], [1, 0], [0, 1], [1, 0]])
    with pytest.raises(UserError, match=r"1 of 4 logits of label 'AFIB' are NaN"):
        auroc(logits, targets, labels=["NSR", "AFIB"])
    observed = ~np.isnan(logits)
    assert auroc(logits, targets, observed).tolist() == [0.5, 0.5], "an unobserved NaN is no matter"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), np.zeros(3)), "add an axis"),
        ((np.zeros((3, 2)), np.zeros((2, 3))), "targets have shape"),
        ((np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 1))), "observed have shape"),
        ((np.zeros((3, 1)), np.array([[0], [1], [2]])), "other than 0 and 1"),
    ],
)
def test_input_of_the_wrong_form_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(UserError, match=message):
        auroc(*arguments)


def test_macro_counts_only_defined_labels_with_enough_positives():
    values, positives = [0.9, np.nan, 0.7, 0.5], [100, 0, 10, 3]
    assert macro(values, positives) == (pytest.approx(0.7), 3)
    assert macro(values, positives, min_positives=10) == (pytest.approx(0.8), 2)
    nothing = macro([np.nan], [0])
    assert np.isnan(nothing.value)
    assert nothing.num_labels == 0
