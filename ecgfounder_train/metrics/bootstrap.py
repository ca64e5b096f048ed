"""The patient bootstrap of every metric: patients drawn with replacement, with all their records.

A resample is a weight per patient, so nothing is copied or sorted again: a label is sorted once and
walked once per 64 resamples. This is the check of the analytic intervals.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.decisions import RATIOS, decisions, ratio, threshold_values
from ecgfounder_train.metrics.estimates import FEW_POSITIVE_PATIENTS, NO_VARIANCE, Estimates
from ecgfounder_train.metrics.intervals import NEVER_OBSERVED, Column
from ecgfounder_train.metrics.kernels import (
    LANES,
    bootstrap_marks,
    in_threads,
    sort_marks,
    weighted_ranking,
    weighted_sums,
)
from ecgfounder_train.metrics.probabilities import NUM_BINS, equal_count_bins, probability

if TYPE_CHECKING:
    from ecgfounder_train.metrics.calibration import Calibration
    from ecgfounder_train.metrics.thresholds import Thresholds

Float = NDArray[np.float64]

RANKING = ("auroc", "average_precision")
METRICS = (*RANKING, *RATIOS, "brier", "calibration_error")
_MOST_UNDEFINED = 0.05


def bootstrap(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    patients: Clusters | ArrayLike,
    num_resamples: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = METRICS,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    calibration: "Calibration | None" = None,
    labels: Sequence[str] | None = None,
    level: float = 0.95,
    num_threads: int | None = None,
) -> dict[str, Estimates]:
    """Return the metrics asked for with percentile intervals over patient resamples.

    Thresholds, calibration and the calibration error's bins stay as they are. The calibration
    error of a resample is larger than the set's by its own chance part, and its interval with it.
    An interval is NaN below 10 positive patients, or where more than one resample in twenty leaves
    the metric undefined.

    Args:
        seed: Resample i is the same for every metric, label, number of resamples and of threads.
        metrics: Some of `METRICS`.
        thresholds: Logits, for the metrics of `decision_table`.

    Shape:
        logits, targets, observed: (B, K). patients: (B,).

    Raises:
        UserError: A metric is unknown, fewer than 2 resamples are asked for, or as
            `ranking_metrics`.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"There is no metric {metric!r}." + did_you_mean(metric, METRICS))
    if num_resamples < 2:
        raise UserError(
            f"num_resamples={num_resamples}: a bootstrap takes at least 2, better 1000."
        )
    num_records, num_labels = checked_arrays(logits, targets, observed)[0].shape
    clusters = as_clusters(patients, num_records)
    if calibration is not None:
        calibration.check_labels(num_labels, labels)
    cuts = threshold_values(thresholds, num_labels, labels)
    weights = patient_weights(clusters.num_clusters, num_resamples, seed)
    columns = masked_columns(logits, targets, observed, labels)

    def one(job: tuple[int, Column]) -> tuple[int, int, int, dict[str, Float]]:
        index, column = job
        codes = clusters.codes if column[2] is None else clusters.codes[column[2]]
        replicates: dict[str, Float] = {}
        if set(metrics) & set(RANKING):
            replicates |= _ranking(column, codes, weights)
        if set(metrics) & set(RATIOS):
            replicates |= _decisions(column, codes, weights, cuts[index])
        if set(metrics) & {"brier", "calibration_error"}:
            guess = probability(column, calibration, index)
            replicates |= _probabilities(guess, column[1], codes, weights)
        positive = column[1]
        return (
            len(positive),
            int(positive.sum()),
            len(np.unique(codes[positive])),
            {metric: replicates[metric][: num_resamples + 1] for metric in metrics},
        )

    results = list(in_threads(one, enumerate(columns), num_threads))
    counts = np.array([result[:3] for result in results], np.int64).reshape(-1, 3)
    return {
        metric: _estimates(metric, np.array([r[3][metric] for r in results]), counts, level)
        for metric in metrics
    }


def patient_weights(num_patients: int, num_resamples: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each resample draws each patient; the first counts everyone once.

    Shape:
        result: (blocks, num_patients, LANES); column 0 of block 0 is the whole set, columns past
            1 + num_resamples are zero.
    """
    num_blocks = -(-(num_resamples + 1) // LANES)
    weights = np.zeros((num_blocks, num_patients, LANES), np.uint8)
    weights[0, :, 0] = 1
    for number in range(1, num_resamples + 1):
        drawn = np.random.default_rng([seed, number]).integers(0, num_patients, num_patients)
        times = np.bincount(drawn, minlength=num_patients)
        assert times.max(initial=0) < 256, "no patient of many is drawn so often"
        weights[number // LANES, :, number % LANES] = times
    return weights


def _ranking(
    column: Column, codes: NDArray[np.int32], weights: NDArray[np.uint8]
) -> dict[str, Float]:
    scores, positive, _ = column
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)
    marks = bootstrap_marks(*sort_marks(scores, 2 * codes + positive))
    area, precision = np.empty((2, len(weights), LANES))
    for block, block_weights in enumerate(weights):
        weighted_ranking(marks, block_weights, area[block], precision[block])
    return {"auroc": area.reshape(-1), "average_precision": precision.reshape(-1)}


def _decisions(
    column: Column, codes: NDArray[np.int32], weights: NDArray[np.uint8], threshold: float
) -> dict[str, Float]:
    kind = decisions(column, threshold)
    if kind is None:
        return {name: np.full(len(weights) * LANES, np.nan) for name in RATIOS}
    counts = _resampled(codes, kind, np.ones(len(codes)), 4, weights)
    return {name: ratio(counts, name) for name in RATIOS}


def _probabilities(
    guess: Float,
    positive: NDArray[np.bool_],
    codes: NDArray[np.int32],
    weights: NDArray[np.uint8],
) -> dict[str, Float]:
    error = guess - positive
    bins = equal_count_bins(guess, NUM_BINS)
    one = np.zeros(len(codes), np.int64)
    size = _resampled(codes, one, np.ones(len(codes)), 1, weights)[:, 0]
    squares = _resampled(codes, one, error**2, 1, weights)[:, 0]
    errors = np.abs(_resampled(codes, bins, error, NUM_BINS, weights)).sum(1)
    with np.errstate(invalid="ignore"):
        return {"brier": squares / size, "calibration_error": errors / size}


def _resampled(
    codes: NDArray[np.int32],
    bins: NDArray[np.int64],
    values: Float,
    num_bins: int,
    weights: NDArray[np.uint8],
) -> Float:
    """Return the weighted sum of values per bin, shape (resamples, num_bins)."""
    sums = np.zeros((len(weights), num_bins, LANES))
    for block, block_weights in enumerate(weights):
        weighted_sums(codes, bins, values, block_weights, sums[block])
    return sums.transpose(0, 2, 1).reshape(-1, num_bins)


def _estimates(
    metric: str, replicates: Float, counts: NDArray[np.int64], level: float
) -> Estimates:
    """Return the estimates from the whole set's value and its resamples, shape (K, 1 + R)."""
    value, resampled = replicates[:, 0].copy(), replicates[:, 1:]
    undefined = np.isnan(resampled).mean(1)
    reasons: list[str | None] = []
    for index, (num_observed, _, positive_patients) in enumerate(counts):
        reason = None
        if num_observed == 0:
            reason = NEVER_OBSERVED
        elif np.isnan(value[index]):
            reason = "undefined: no record in a class or in the denominator"
        elif positive_patients < MIN_PATIENTS:
            reason = FEW_POSITIVE_PATIENTS
        elif undefined[index] > _MOST_UNDEFINED:
            reason = "undefined in more than one resample in twenty"
        elif np.ptp(resampled[index][~np.isnan(resampled[index])]) < 1e-12:
            reason = NO_VARIANCE
        reasons.append(reason)
    given = np.array([reason is None for reason in reasons], np.bool_)
    in_macro = given | np.array([reason == NO_VARIANCE for reason in reasons], np.bool_)
    lower, upper, error = np.full((3, len(value)), np.nan)
    covariance = np.full((len(value), len(value)), np.nan)
    if in_macro.any():
        centred = resampled[in_macro] - np.nanmean(resampled[in_macro], 1, keepdims=True)
        # A resample that misses a label says nothing about it: no deviation.
        centred = np.nan_to_num(centred)
        covariance[np.ix_(in_macro, in_macro)] = centred @ centred.T / (centred.shape[1] - 1)
        error[in_macro] = np.sqrt(np.diagonal(covariance)[in_macro])
    if given.any():
        tails = (0.5 - level / 2, 0.5 + level / 2)
        lower[given], upper[given] = np.nanquantile(resampled[given], tails, axis=1)
    return Estimates(
        metric,
        value,
        lower,
        upper,
        error,
        counts[:, 1],
        counts[:, 2],
        tuple(reasons),
        covariance,
        np.full(len(value), np.inf),
        level,
    )
