"""How good the probabilities are: Brier score and calibration error per label."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.decisions import ratio_spread
from ecgfounder_train.metrics.estimates import FEW_POSITIVE_PATIENTS, Collector, Estimates
from ecgfounder_train.metrics.intervals import NEVER_OBSERVED, Column
from ecgfounder_train.metrics.kernels import in_threads

if TYPE_CHECKING:
    from ecgfounder_train.metrics.calibration import Calibration

Float = NDArray[np.float64]
NUM_BINS = 10


def brier(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    calibration: "Calibration | None" = None,
    labels: Sequence[str] | None = None,
) -> Float:
    """Return the mean squared error of the probabilities per label; NaN where never observed.

    Args:
        logits: Their sigmoid is the probability, or what `calibration` makes of them.

    Shape:
        logits, targets, observed: (B, K). result: (K,).

    Raises:
        UserError: Shapes differ, a score is NaN, a target is neither 0 nor 1, or the calibration
            is of other labels.
    """
    columns = masked_columns(logits, targets, observed, labels)
    values = []
    for index, column in enumerate(_checked(columns, logits, calibration, labels)):
        error = probability(column, calibration, index) - column[1]
        values.append(np.mean(error**2) if len(error) else np.nan)
    return np.array(values, np.float64)


def calibration_error(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    calibration: "Calibration | None" = None,
    labels: Sequence[str] | None = None,
    num_bins: int = NUM_BINS,
) -> Float:
    """Return the expected calibration error per label; NaN where never observed.

    The mean over bins, weighted by their records, of |mean probability - frequency|. Bins hold
    equally many records (equal scores stay together): most labels are rare, and bins of equal width
    would put nearly every record into the first. It is not negative, hence above 0 by chance even
    for perfect probabilities.

    Shape:
        logits, targets, observed: (B, K). result: (K,).

    Raises:
        UserError: As `brier`.
    """
    columns = masked_columns(logits, targets, observed, labels)
    values = []
    for index, column in enumerate(_checked(columns, logits, calibration, labels)):
        guess = probability(column, calibration, index)
        values.append(binned_error(guess - column[1], equal_count_bins(guess, num_bins)))
    return np.array(values, np.float64)


def probability(column: Column, calibration: "Calibration | None", index: int) -> Float:
    """Return the probabilities of one label's observed records, float64."""
    scores = column[0].astype(np.float64)
    if calibration is None:
        chance: Float = expit(scores)
        return chance
    return calibration.curves[index].apply(scores)


def equal_count_bins(probabilities: Float, num_bins: int) -> NDArray[np.int64]:
    """Return the bin of each probability, from 0; equal ones share a bin."""
    if not len(probabilities):
        return np.zeros(0, np.int64)
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, num_bins + 1)))
    bins: NDArray[np.int64] = np.searchsorted(edges[1:-1], probabilities, side="left")
    return bins


def binned_error(error: Float, bins: NDArray[np.int64]) -> float:
    """Return the weighted mean over bins of the absolute mean error; NaN without records."""
    if not len(error):
        return float("nan")
    return float(np.abs(np.bincount(bins, weights=error)).sum() / len(error))


def probability_intervals(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    patients: Clusters | ArrayLike,
    calibration: "Calibration | None" = None,
    labels: Sequence[str] | None = None,
    level: float = 0.95,
    num_threads: int | None = None,
) -> dict[str, Estimates]:
    """Return `brier` with intervals by patient, and `calibration_error` without.

    The calibration error's absolute values have no normal approximation near 0, where one wants it;
    `bootstrap` gives its spread.

    Raises:
        UserError: As `brier`, or there is not one patient per record.
    """
    num_records, num_labels = checked_arrays(logits, targets, observed)[0].shape
    clusters = as_clusters(patients, num_records)
    shape = (num_labels, clusters.num_clusters, level)
    squares, errors = Collector("brier", *shape), Collector("calibration_error", *shape)
    columns = masked_columns(logits, targets, observed, labels)

    def one(job: tuple[int, Column]) -> tuple[Column, Float]:
        return job[1], probability(job[1], calibration, job[0])

    jobs = enumerate(_checked(columns, logits, calibration, labels))
    for index, (column, guess) in enumerate(in_threads(one, jobs, num_threads)):
        _, positive, chosen = column
        codes = clusters.codes if chosen is None else clusters.codes[chosen]
        error = guess - positive
        positives = (int(positive.sum()), len(np.unique(codes[positive])))
        if not len(error):
            for collector in (squares, errors):
                collector.add(index, np.nan, NEVER_OBSERVED, positives, (np.nan, np.zeros(0)))
            continue
        size = clusters.num_clusters
        counts = np.asarray(np.bincount(codes, minlength=size), np.float64)
        sums = np.asarray(np.bincount(codes, weights=error**2, minlength=size), np.float64)
        spread, _ = ratio_spread(sums, counts)
        few = FEW_POSITIVE_PATIENTS if positives[1] < MIN_PATIENTS else None
        squares.add(index, float(np.mean(error**2)), few, positives, spread)
        value = binned_error(error, equal_count_bins(guess, NUM_BINS))
        errors.add(index, value, "interval by bootstrap only", positives, spread)
    return {"brier": squares.estimates(), "calibration_error": errors.estimates("none")}


def _checked(
    columns: Iterator[Column],
    logits: ArrayLike,
    calibration: "Calibration | None",
    labels: Sequence[str] | None,
) -> Iterator[Column]:
    """Return the columns once the calibration is known to be of these labels."""
    if calibration is not None:
        calibration.check_labels(np.asarray(logits).shape[-1], labels)
    return columns
