"""ROC, precision-recall and calibration curves of one label, exact at the points they keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.arrays import observed_columns

Float = NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoints:
    """What each threshold of one label gives, from the strictest on; the first calls none positive.

    Shape:
        threshold, true_positives, false_positives: (num_points,); the first threshold is inf.
    """

    threshold: Float
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]

    @property
    def sensitivity(self) -> Float:
        """True-positive rate (recall) at each threshold."""
        rate: Float = self.true_positives / self.true_positives[-1]
        return rate

    @property
    def false_positive_rate(self) -> Float:
        """One minus the specificity at each threshold."""
        rate: Float = self.false_positives / self.false_positives[-1]
        return rate

    @property
    def precision(self) -> Float:
        """Positive predictive value at each threshold but the first, where it is undefined."""
        found = self.true_positives[1:]
        value: Float = found / (found + self.false_positives[1:])
        return value


def operating_points(
    logits: ArrayLike, targets: ArrayLike, observed: ArrayLike | None = None
) -> OperatingPoints:
    """Return one point per distinct score of one label.

    Shape:
        logits, targets, observed: (B,).

    Raises:
        UserError: No positive or no negative is observed, or an array is invalid.
    """
    scores, positive = _one_label(logits, targets, observed)
    if positive.all() or not positive.any():
        raise UserError("A curve needs at least one observed positive and one negative.")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive[order], dtype=np.int64)[last_of_ties]
    return OperatingPoints(
        np.append(np.inf, ranked[last_of_ties]),
        np.append(0, hits),
        np.append(0, last_of_ties + 1 - hits),
    )


@dataclass(frozen=True)
class CalibrationCurve:
    """Mean predicted against observed frequency, in bins of equally many records of one label.

    Shape:
        every array: (num_bins,); fewer bins than asked for where scores tie.
    """

    predicted: Float
    frequency: Float
    lower: Float
    upper: Float
    num_records: NDArray[np.int64]


def calibration_curve(
    probabilities: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    num_bins: int = 10,
) -> CalibrationCurve:
    """Return the calibration of one label with Wilson 95 % intervals of the frequencies.

    Equal counts, not equal widths: most labels are rare, and equal widths would put nearly every
    record into the first bin. Equal scores stay in one bin.

    Shape:
        probabilities, targets, observed: (B,).

    Raises:
        UserError: Nothing is observed, a probability lies outside 0 to 1, or an array is invalid.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    scores, positive = _one_label(probabilities, targets, observed)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        raise UserError("Calibration needs observed records and probabilities from 0 to 1.")
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, num_bins + 1)))
    bins = np.searchsorted(edges[1:-1], scores, side="left")
    _, bins = np.unique(bins, return_inverse=True)
    count = np.bincount(bins)
    frequency = np.bincount(bins, weights=positive) / count
    z = 1.959963984540054
    centre = (frequency + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count)
    half = half * np.sqrt(frequency * (1 - frequency) / count + z**2 / (4 * count**2))
    predicted = np.bincount(bins, weights=scores) / count
    return CalibrationCurve(predicted, frequency, centre - half, centre + half, count)


def _one_label(
    scores: ArrayLike, targets: ArrayLike, observed: ArrayLike | None
) -> tuple[Float, NDArray[np.bool_]]:
    mask = None if observed is None else np.asarray(observed)[:, None]
    column = np.asarray(scores)[:, None]
    values, positive = next(observed_columns(column, np.asarray(targets)[:, None], mask))
    return values.astype(np.float64), positive
