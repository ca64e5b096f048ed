"""ROC, precision-recall and calibration curves of one label, exact at the points they keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.arrays import observed_columns
from ecgfounder_train.metrics.estimates import wilson_interval

Float = NDArray[np.float64]

_FEWEST_AT_THE_TOP = 20


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
    patients: NDArray[np.int32] | None = None,
    split_top: bool = False,
) -> CalibrationCurve:
    """Return the calibration of one label with Wilson 95 % intervals of the frequencies.

    Equal counts, not equal widths: most labels are rare, and equal widths would put nearly every
    record into the first bin. Equal scores stay in one bin. With `patients`, Wilson's interval is
    of the effective number of records.

    Args:
        split_top: Halve the last bin until its upper part holds 20 records: there a rare label is
            decided.

    Shape:
        probabilities, targets, observed, patients: (B,).

    Raises:
        UserError: Nothing is observed, a probability lies outside 0 to 1, or an array is invalid.

    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    scores, positive = _one_label(probabilities, targets, observed)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        raise UserError("Calibration needs observed records and probabilities from 0 to 1.")
    shares = [*np.linspace(0, 1, num_bins + 1)]
    while split_top and (1 - shares[-2]) * len(scores) / 2 >= _FEWEST_AT_THE_TOP:
        shares.insert(-1, (shares[-2] + 1) / 2)
    edges = np.unique(np.quantile(scores, shares))
    bins = np.searchsorted(edges[1:-1], scores, side="left")
    _, bins = np.unique(bins, return_inverse=True)
    count = np.bincount(bins)
    frequency = np.bincount(bins, weights=positive) / count
    predicted = np.bincount(bins, weights=scores) / count
    error, size = np.zeros(len(count)), count.astype(np.float64)
    if patients is not None:
        codes = np.asarray(patients)
        if observed is not None:
            codes = codes[np.asarray(observed) != 0]
        for place in range(len(count)):
            chosen = bins == place
            _, dense = np.unique(codes[chosen], return_inverse=True)
            sums = np.bincount(dense, weights=positive[chosen] - frequency[place])
            size[place] = len(sums) if frequency[place] in (0.0, 1.0) else count[place]
            error[place] = np.sqrt((sums**2).sum()) / count[place]
    lower, upper = wilson_interval(frequency, error, size, 0.95)
    return CalibrationCurve(predicted, frequency, lower, upper, count)


def _one_label(
    scores: ArrayLike, targets: ArrayLike, observed: ArrayLike | None
) -> tuple[Float, NDArray[np.bool_]]:
    mask = None if observed is None else np.asarray(observed)[:, None]
    column = np.asarray(scores)[:, None]
    values, positive = next(observed_columns(column, np.asarray(targets)[:, None], mask))
    return values.astype(np.float64), positive
