"""AUROC and average precision with 95 % intervals by patient, all labels from one sort each.

AUROC: Obuchowski's variance for clustered data (records of one patient are no new patients), the
interval on the logit scale. Average precision: the influence function summed per patient. Both give
a vector per patient and label, whose products are the covariance of any two labels, and with it the
interval of the macro mean.

Source:
    Obuchowski 1997, Biometrics 53(2), 567-578, doi:10.2307/2533958 (clustered ROC).
    DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595 (structural components).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.metrics.arrays import masked_columns
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.estimates import (
    FEW_NEGATIVE_PATIENTS,
    FEW_POSITIVE_PATIENTS,
    NO_VARIANCE,
    Estimates,
    logit_interval,
)
from ecgfounder_train.metrics.kernels import ascending, components, in_threads

Float = NDArray[np.float64]
Column = tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_] | None]

NEVER_OBSERVED, NO_POSITIVES, NO_NEGATIVES = "never observed", "no positives", "no negatives"


class RankingIntervals(NamedTuple):
    """Both ranking metrics of every label, from one pass over the scores."""

    auroc: Estimates
    average_precision: Estimates


@dataclass(frozen=True)
class LabelRanking:
    """One label's two metrics and what each patient contributes to them.

    Shape:
        from_positives, from_negatives, precision: (num_patients,); sums of the deviations, the
            first two of the AUROC by the class of the record, already divided by its size.
    """

    num_positives: int
    num_observed: int
    positive_patients: int
    negative_patients: int
    patients: int
    auroc: float
    average_precision: float
    from_positives: Float
    from_negatives: Float
    precision: Float
    constant: bool

    @property
    def undefined(self) -> str | None:
        """Why there is no value; None where there is one."""
        return undefined_reason(self.num_positives, self.num_observed)

    @property
    def few(self) -> str | None:
        """Why there is no interval, as far as counts decide."""
        if self.positive_patients < MIN_PATIENTS:
            return FEW_POSITIVE_PATIENTS
        return FEW_NEGATIVE_PATIENTS if self.negative_patients < MIN_PATIENTS else None


def undefined_reason(num_positives: int, num_observed: int) -> str | None:
    """Return why a label's ranking has no value, None where it has."""
    if num_observed == 0:
        return NEVER_OBSERVED
    if num_positives == 0:
        return NO_POSITIVES
    return NO_NEGATIVES if num_positives == num_observed else None


def ranking_intervals(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    patients: Clusters | ArrayLike,
    labels: Sequence[str] | None = None,
    level: float = 0.95,
    num_threads: int | None = None,
) -> RankingIntervals:
    """Return AUROC and average precision per label with intervals by patient.

    An interval is NaN below 10 positive or negative patients, and where the scores leave no
    variance (all equal, or a perfect separation); `reasons` says which.

    Args:
        patients: Which patient each record is of; see `clusters_from_keys`.
        num_threads: One label each; None for all cores of this process.

    Shape:
        logits, targets, observed: (B, K). patients: (B,).

    Raises:
        UserError: As `ranking_metrics`, or there is not one patient per record.
    """
    clusters = as_clusters(patients, len(np.asarray(logits)))
    columns = masked_columns(logits, targets, observed, labels)
    rows = in_threads(lambda column: rank_label(column, clusters), columns, num_threads)
    areas = _Collected("auroc", clusters.num_clusters, np.asarray(logits).shape[1], level)
    precisions = _Collected("average_precision", *areas.shape, level)
    for index, row in enumerate(rows):
        areas.add(index, row, row.auroc, *area_influence(row))
        precisions.add(index, row, row.average_precision, *precision_influence(row))
    return RankingIntervals(areas.estimates(), precisions.estimates())


def rank_label(column: Column, clusters: Clusters) -> LabelRanking:
    """Return the ranking metrics of one column of scores and its patients' shares in them."""
    scores, positive, chosen = column
    codes = clusters.codes if chosen is None else clusters.codes[chosen]
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)
    total, num_positives = len(scores), int(np.count_nonzero(positive))
    num_negatives = total - num_positives
    if num_positives == 0 or num_negatives == 0:
        none = np.zeros(0)
        patients = len(np.unique(codes))
        counts = (patients, 0) if num_positives else (0, patients)
        return LabelRanking(
            num_positives, total, *counts, patients, np.nan, np.nan, none, none, none, False
        )
    sums = np.zeros((clusters.num_clusters, 5))
    order = ascending(scores)
    twice_wins, precision = components(order, scores, positive, codes, num_positives, sums)
    area = twice_wins / (2 * num_positives * num_negatives)
    positives, negatives = sums[:, 0], sums[:, 1]
    return LabelRanking(
        num_positives,
        total,
        int(np.count_nonzero(positives)),
        int(np.count_nonzero(negatives)),
        int(np.count_nonzero(positives + negatives)),
        area,
        precision,
        (sums[:, 2] - area * positives) / num_positives,
        (sums[:, 3] - area * negatives) / num_negatives,
        (sums[:, 4] - precision * positives) / num_positives,
        bool(scores[order[0]] == scores[order[-1]]),
    )


def area_influence(row: LabelRanking) -> tuple[float, Float]:
    """Return the AUROC's variance and its influence per patient."""
    return obuchowski(row, row.from_positives, row.from_negatives)


def obuchowski(
    row: LabelRanking, from_positives: Float, from_negatives: Float
) -> tuple[float, Float]:
    """Return Obuchowski's clustered variance and each patient's total.

    Takes the deviations apart from the label's counts, so that the difference of two runs on the
    same records has its variance from the same formula.
    """
    within = _corrected(float(from_positives @ from_positives), row.positive_patients)
    within += _corrected(float(from_negatives @ from_negatives), row.negative_patients)
    between = 2 * _corrected(float(from_positives @ from_negatives), row.patients)
    return within + between, from_positives + from_negatives


def precision_influence(row: LabelRanking) -> tuple[float, Float]:
    """Return the average precision's variance and its influence per patient.

    The positives decide nearly all of it, hence the small-sample correction by their patients.
    """
    variance = _corrected(float(row.precision @ row.precision), row.positive_patients)
    return variance, row.precision


def _corrected(sum_of_squares: float, count: int) -> float:
    return sum_of_squares * count / (count - 1) if count > 1 else np.nan


class _Collected:
    """What becomes one metric's `Estimates`, label by label."""

    def __init__(self, metric: str, num_patients: int, num_labels: int, level: float) -> None:
        self.metric, self.level = metric, level
        self.shape = (num_patients, num_labels)
        self.influence = np.zeros((num_labels, num_patients))
        self.value, self.error = np.full(num_labels, np.nan), np.full(num_labels, np.nan)
        self.counts = np.zeros((2, num_labels), np.int64)
        self.reasons: list[str | None] = [None] * num_labels

    def add(
        self, index: int, row: LabelRanking, value: float, variance: float, influence: Float
    ) -> None:
        self.counts[:, index] = row.num_positives, row.positive_patients
        self.value[index] = value
        self.reasons[index] = row.undefined or row.few
        if self.reasons[index] is None:
            self.error[index] = np.sqrt(max(variance, 0.0))
            self.influence[index] = influence
            if row.constant or value in (0.0, 1.0):
                # Rounding leaves 1e-17 or so; it must not become an interval of that width.
                self.error[index], self.influence[index] = 0.0, 0.0
                said = "all scores are equal" if row.constant else "the classes are separated"
                self.reasons[index] = f"{NO_VARIANCE}: {said}"

    def estimates(self) -> Estimates:
        lower, upper = logit_interval(self.value, self.error, self.level)
        return Estimates(
            self.metric,
            self.value,
            lower,
            upper,
            self.error,
            self.counts[0],
            self.counts[1],
            tuple(self.reasons),
            covariance_of(self.influence, self.error),
            self.level,
        )


def covariance_of(influence: Float, error: Float) -> Float:
    """Return the covariance over labels: correlations of the influence, variances of `error`.

    Shape:
        influence: (K, num_patients). error: (K,); NaN rows stay NaN. result: (K, K).
    """
    norms = np.sqrt(np.einsum("kp,kp->k", influence, influence))
    scale = np.divide(error, norms, out=np.where(np.isnan(error), np.nan, 0.0), where=norms > 0)
    covariance: Float = (influence @ influence.T) * scale[:, None] * scale[None, :]
    return covariance
