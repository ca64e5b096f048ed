"""AUROC and average precision per label: exact with ties, NaN where they are not defined.

One sort of all scores and one of the positives' scores serve both. The rank of each positive in the
sorted whole gives the AUROC (Mann-Whitney), its rank among the positives too gives the precision at
its threshold, so that rare labels, most of a diagnostic vocabulary, cost little beyond the sort.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.arrays import observed_columns


class RankingMetrics(NamedTuple):
    """Per label, all of shape (K,): NaN where a label has no positive or no negative."""

    auroc: NDArray[np.float64]
    average_precision: NDArray[np.float64]
    num_positives: NDArray[np.int64]
    num_observed: NDArray[np.int64]


class Macro(NamedTuple):
    """A mean over labels, and over how many of them: never quote the one without the other."""

    value: float
    num_labels: int


def ranking_metrics(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> RankingMetrics:
    """Return AUROC, average precision and counts per label from one pass over the scores.

    Only the order of the scores counts, so probabilities give the same values as logits unless they
    were rounded. Average precision is also NaN without negatives: 1.0 would say nothing about the
    model and would lift the macro above the AUROC's labels.

    Args:
        logits: Scores; higher means more likely.
        targets: 0 or 1; any value where not observed.
        observed: Which targets count; all when None.
        labels: Names for messages.

    Shape:
        logits, targets, observed: (B, K).
        every result: (K,).

    Raises:
        UserError: Shapes differ, a score is NaN, or a target is neither 0 nor 1.
    """
    rows = [
        _rank_one(scores, positive)
        for scores, positive in observed_columns(logits, targets, observed, labels)
    ]
    return RankingMetrics(
        np.array([row[0] for row in rows], np.float64),
        np.array([row[1] for row in rows], np.float64),
        np.array([row[2] for row in rows], np.int64),
        np.array([row[3] for row in rows], np.int64),
    )


def _rank_one(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[float, float, int, int]:
    total = len(scores)
    positives = np.sort(scores[positive])
    num_positives = len(positives)
    num_negatives = total - num_positives
    if num_positives == 0 or num_negatives == 0:
        return float("nan"), float("nan"), num_positives, total
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, positives, side="left")
    up_to = np.searchsorted(ordered, positives, side="right")
    # Sums of ranks stay integers (and exact) up to the one division at the end.
    twice_rank_sum = int(below.sum()) + int(up_to.sum()) + num_positives
    twice_wins = twice_rank_sum - num_positives * (num_positives + 1)
    area = twice_wins / (2 * num_positives * num_negatives)
    positives_from_here = num_positives - np.searchsorted(positives, positives, side="left")
    precision = float(np.mean(positives_from_here / (total - below)))
    return area, precision, num_positives, total


def auroc(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Return the area under the ROC curve per label, shape (K,); see `ranking_metrics`."""
    return ranking_metrics(logits, targets, observed, labels).auroc


def average_precision(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Return the average precision (AUPRC) per label, shape (K,); see `ranking_metrics`."""
    return ranking_metrics(logits, targets, observed, labels).average_precision


def macro(values: ArrayLike, num_positives: ArrayLike, min_positives: int = 1) -> Macro:
    """Return the mean over the labels that are defined and have enough positives, and their number.

    Shape:
        values, num_positives: (K,).

    Raises:
        UserError: The two have different lengths.
    """
    column, positives = np.asarray(values, np.float64), np.asarray(num_positives)
    if column.shape != positives.shape:
        raise UserError(f"{column.shape} values but {positives.shape} counts of positives.")
    chosen = ~np.isnan(column) & (positives >= min_positives)
    count = int(chosen.sum())
    return Macro(float(column[chosen].mean()) if count else float("nan"), count)
