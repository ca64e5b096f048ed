"""A metric per label with its 95 % interval, and the mean over labels with its own."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincinv, ndtri, stdtrit

from ecgfounder_train.metrics.clusters import MIN_PATIENTS

Float = NDArray[np.float64]

FEW_POSITIVE_PATIENTS = f"fewer than {MIN_PATIENTS} positive patients"
FEW_NEGATIVE_PATIENTS = f"fewer than {MIN_PATIENTS} negative patients"
NO_VARIANCE = "no variance between patients"


@dataclass(frozen=True)
class Intervals:
    """One quantity of every label with its interval; NaN has its reason.

    Shape:
        value, lower, upper: (K,).
        reasons: K entries; None where value and interval are given.
    """

    metric: str
    value: Float
    lower: Float
    upper: Float
    reasons: tuple[str | None, ...]
    level: float = 0.95


class MacroEstimate(NamedTuple):
    """A mean over labels with its interval, and over how many of them."""

    value: float
    lower: float
    upper: float
    standard_error: float
    num_labels: int


@dataclass(frozen=True)
class Estimates:
    """One metric of every label, its standard error and interval; NaN has its reason.

    Shape:
        value, lower, upper, standard_error, num_positives, num_positive_patients: (K,).
        covariance: (K, K), of the estimates of any two labels; NaN for labels of too few patients.
        reasons: K entries; None where value and interval are given.
        degrees: (K,), of freedom of each interval's quantile; infinite for the normal one's.
        num_negative_patients: (K,), of metrics whose interval depends on them.
    """

    metric: str
    value: Float
    lower: Float
    upper: Float
    standard_error: Float
    num_positives: NDArray[np.int64]
    num_positive_patients: NDArray[np.int64]
    reasons: tuple[str | None, ...]
    covariance: Float
    degrees: Float
    level: float = 0.95
    num_negative_patients: NDArray[np.int64] | None = None

    @property
    def in_macro(self) -> NDArray[np.bool_]:
        """Which labels have a value and patients enough to know how it varies."""
        chosen: NDArray[np.bool_] = ~np.isnan(self.value) & ~np.isnan(np.diagonal(self.covariance))
        return chosen

    def macro(self, chosen: NDArray[np.bool_] | None = None) -> MacroEstimate:
        """Return the mean over the labels of `in_macro` (of those also chosen) with its interval.

        One patient weighs on many labels, so their errors are correlated; the variance of the mean
        is the mean of the whole covariance matrix, not of its diagonal.
        """
        mask = self.in_macro if chosen is None else self.in_macro & np.asarray(chosen, np.bool_)
        count = int(mask.sum())
        if not count:
            return MacroEstimate(np.nan, np.nan, np.nan, np.nan, 0)
        value = self.value[mask].mean(keepdims=True)
        error = np.sqrt(self.covariance[np.ix_(mask, mask)].mean(keepdims=True)[0])
        variances = np.diagonal(self.covariance)[mask]
        degrees = pooled_degrees(variances, self.degrees[mask])
        if self.num_negative_patients is not None:
            # Labels that fail on the same patients count as one label.
            together = float(self.covariance[np.ix_(mask, mask)].sum())
            alone = float(np.sqrt(variances).sum()) ** 2
            labels_apart = alone / together if together > 0 else 1.0
            weight = float(self._weights[mask].mean()) / max(labels_apart, 1.0)
            lower, upper = auroc_interval(value, error, np.array([weight]), degrees, self.level)
        else:
            lower, upper = logit_interval(value, error, quantile(self.level, degrees))
        return MacroEstimate(
            float(value[0]), float(lower[0]), float(upper[0]), float(error[0]), count
        )

    @property
    def _weights(self) -> Float:
        """Return what one misranked patient of either class weighs in each label's AUROC."""
        assert self.num_negative_patients is not None
        return patient_weight(self.num_positive_patients, self.num_negative_patients)

    def num_above(self, limit: float) -> int:
        """Return how many labels have an AUROC above `limit`, all of them with `level` confidence.

        One-sided lower limits that hold for all labels together: Holm's step-down, so that a label
        found above does not count among those that remain.
        """
        assert self.metric == "auroc"
        known = np.flatnonzero(np.array([reason is None for reason in self.reasons], np.bool_))
        above = np.zeros(len(self.value), np.bool_)
        while not above[known].all():
            left = int((~above[known]).sum())
            lower, _ = auroc_interval(
                self.value[known],
                self.standard_error[known],
                self._weights[known],
                self.degrees[known],
                1 - 2 * (1 - self.level) / left,
            )
            found = lower > limit
            if int(found.sum()) == int(above[known].sum()):
                break
            above[known] = found
        return int(above.sum())


def normal_quantile(level: float) -> float:
    """Return how many standard errors an interval of this level reaches to each side."""
    return float(ndtri(0.5 + level / 2))


def degrees_of_freedom(first: ArrayLike, second: ArrayLike) -> Float:
    """Return the degrees of freedom of a variance between patients of two classes.

    One less than the smaller class has patients: the usual lower bound where two groups of unequal
    spread are compared, with patients for observations.

    Source:
        Cameron and Miller 2015, Journal of Human Resources 50(2), 317-372,
        doi:10.3368/jhr.50.2.317, section VI (quantiles of t with clusters - 1).
    """
    fewer: Float = np.minimum(np.asarray(first, np.float64), np.asarray(second, np.float64))
    return np.maximum(fewer - 1, 1.0)


def pooled_degrees(variance: Float, degrees: Float) -> Float:
    """Return those of a mean over labels, shape (1,): the harmonic mean weighted by variance.

    Cautious: right where the labels' errors are one, too few where they are independent.
    """
    total = float(variance.sum())
    share = float((variance / degrees).sum())
    return np.array([total / share if share > 0 else np.inf])


def quantile(level: float, degrees: ArrayLike) -> Float:
    """Return Student's quantile for an interval of this level, for infinitely many the normal one.

    Shape: as `degrees`.
    """
    given = np.asarray(degrees, np.float64)
    finite = np.isfinite(given)
    student = stdtrit(np.where(finite, given, 1.0), 0.5 + level / 2)
    reach: Float = np.where(finite, student, normal_quantile(level))
    return reach


def logit_interval(value: Float, standard_error: Float, reach: Float) -> tuple[Float, Float]:
    """Return the interval of values in (0, 1), symmetric on the logit scale; NaN where it has none.

    Near 1 the plain interval leaves the range and undercovers; on the logit scale it cannot.

    Args:
        reach: Standard errors to each side, from `quantile`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = np.log(value / (1 - value))
        half = reach * standard_error / (value * (1 - value))
        lower, upper = 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
    known = (value > 0) & (value < 1) & (standard_error > 0)
    return np.where(known, lower, np.nan), np.where(known, upper, np.nan)


MISRANKED = 0.6
"""What one more misranked patient would lose, as a share of the patients of the other class."""


def patient_weight(positive_patients: ArrayLike, negative_patients: ArrayLike) -> Float:
    """Return what one patient of either class weighs in an AUROC, for `auroc_interval`."""
    positive = np.maximum(np.asarray(positive_patients, np.float64), 1.0)
    negative = np.maximum(np.asarray(negative_patients, np.float64), 1.0)
    weight: Float = 1 / positive + 1 / negative
    return weight


def auroc_interval(
    value: Float, standard_error: Float, weight: Float, degrees: Float, level: float
) -> tuple[Float, Float]:
    """Return the interval of AUROCs, which keeps its level near 1 where the logit-t's does not.

    The end towards 0.5 is the farther of two. The logit-t limit fails near 1: in a small sample the
    few patients whom the model misses are easily not among them, and the variance misses them too.
    The second limit is of the lost area (1 - AUROC, a mean of non-negative losses, many of them
    zero) as a gamma variable with one more misranked patient; it exists for a perfect separation
    too. The end towards 1 is logit-t with three times the degrees of freedom, because the other end
    is cautious. Chosen by simulation (`bench.py coverage`); below 0.5 everything is mirrored.

    Args:
        weight: From `patient_weight`.
        degrees: From `degrees_of_freedom`.

    Source:
        Fay and Feuer 1997, Statistics in Medicine 16(7), 791-801 (gamma intervals of weighted
        counts, one more event of the largest weight).
    """
    mirrored = value < 0.5
    area = np.where(mirrored, 1 - value, value)
    error = np.where(standard_error > 0, standard_error, 0.0)
    # Both corrections fade out towards 0.5, where the two ends are alike.
    fade = np.clip(4 * (area - 0.5), 0.0, 1.0)
    reach, near_reach = quantile(level, degrees), quantile(level, (1 + 2 * fade) * degrees)
    far, _ = logit_interval(area, error, reach)
    _, near = logit_interval(area, error, near_reach)
    misranked = fade * MISRANKED * weight
    lost = 1 - area + misranked
    spread = (error * reach / normal_quantile(level)) ** 2 + misranked**2
    with np.errstate(invalid="ignore", divide="ignore"):
        gamma = 1 - spread / lost * gammaincinv(lost**2 / spread, 0.5 + level / 2)
    far = np.fmin(far, np.maximum(gamma, 0.0))
    near = np.where(area >= 1, 1.0, near)
    known = ~np.isnan(area) & ((error > 0) | (area >= 1))
    lower, upper = np.where(mirrored, 1 - near, far), np.where(mirrored, 1 - far, near)
    return np.where(known, lower, np.nan), np.where(known, upper, np.nan)


def precision_interval(
    value: Float, standard_error: Float, positive_patients: ArrayLike, degrees: Float, level: float
) -> tuple[Float, Float]:
    """Return the interval of average precisions: logit-t with a quarter of a binomial variance.

    Few positives rank at the top of a large set, so that the variance is often estimated from none
    or one of them; at a prevalence of 1 in 1000 the plain interval covers 89 %.
    """
    number = np.maximum(np.asarray(positive_patients, np.float64), 1.0)
    with np.errstate(invalid="ignore"):
        added = np.where(value < 1, value * (1 - value) ** 3 / number / 4, 0.0)
        error = np.where(standard_error > 0, np.sqrt(standard_error**2 + added), np.nan)
    return logit_interval(value, error, quantile(level, degrees))


def wilson_interval(
    value: Float, standard_error: Float, largest_size: Float, level: float
) -> tuple[Float, Float]:
    """Return Wilson's interval of a proportion for its effective number of observations.

    The effective number is what an unclustered sample would need for this standard error, at most
    `largest_size`. At 0 and 1 the standard error is 0 and `largest_size` alone decides, so that
    "all 12 found" is not reported as certainty.

    Source:
        Korn and Graubard 1998, Survey Methodology 24(2), 193-201; Wilson 1927.
    """
    z = normal_quantile(level)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.where(
            standard_error > 0, value * (1 - value) / standard_error**2, largest_size
        )
        size = np.minimum(effective, largest_size)
        centre = (value + z**2 / (2 * size)) / (1 + z**2 / size)
        half = z / (1 + z**2 / size) * np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2))
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


class Collector:
    """What becomes one metric's `Estimates`, label by label.

    Keeps per label the influence of each patient at unit length, so that products are correlations
    and single precision suffices.
    """

    def __init__(self, metric: str, num_labels: int, num_patients: int, level: float) -> None:
        self.metric, self.level = metric, level
        self._directions = np.zeros((num_labels, num_patients), np.float32)
        self._value, self._error, self._size = (np.full(num_labels, np.nan) for _ in range(3))
        self._degrees = np.full(num_labels, np.inf)
        self._positives = np.zeros((2, num_labels), np.int64)
        self._negatives = np.zeros(num_labels, np.int64)
        self._reasons: list[str | None] = [None] * num_labels

    def add(
        self,
        index: int,
        value: float,
        reason: str | None,
        positives: tuple[int, int],
        spread: tuple[float, Float],
        largest_size: float = np.nan,
        degrees: float = np.inf,
        negative_patients: int = 0,
    ) -> None:
        """Take one label in.

        Args:
            reason: Why there is no value or no interval, None if there are both.
            positives: Records, patients.
            spread: Variance, and the influence per patient; ignored where there is a reason.
            largest_size: Observations of a proportion, see `wilson_interval`.
            degrees: Of freedom of a logit interval; see `degrees_of_freedom`.
            negative_patients: For the interval of an AUROC.
        """
        self._value[index], self._reasons[index] = value, reason
        self._positives[:, index] = positives
        self._size[index], self._degrees[index] = largest_size, degrees
        self._negatives[index] = negative_patients
        if reason is None or reason.startswith(NO_VARIANCE):
            # Rounding leaves a variance of 1e-34 or so; it must not become an interval.
            variance, influence = spread
            length = np.sqrt(np.einsum("p,p->", influence, influence))
            known = reason is None and variance > 1e-24
            self._error[index] = np.sqrt(variance) if known else 0.0
            if known and length > 0:
                self._directions[index] = influence / length

    def influences(self) -> NDArray[np.float32]:
        """Return each patient's influence on each label's value, scaled to the standard error.

        Shape:
            result: (num_labels, num_patients).
        """
        error = np.nan_to_num(self._error).astype(np.float32)
        scaled: NDArray[np.float32] = self._directions * error[:, None]
        return scaled

    def estimates(
        self, interval: Literal["logit", "auroc", "precision", "wilson", "none"] = "logit"
    ) -> Estimates:
        """Return everything taken in, with intervals of the given kind."""
        lower = upper = np.full_like(self._value, np.nan)
        if interval == "logit":
            reach = quantile(self.level, self._degrees)
            lower, upper = logit_interval(self._value, self._error, reach)
        elif interval == "auroc":
            weight = patient_weight(self._positives[1], self._negatives)
            lower, upper = auroc_interval(
                self._value, self._error, weight, self._degrees, self.level
            )
        elif interval == "precision":
            lower, upper = precision_interval(
                self._value, self._error, self._positives[1], self._degrees, self.level
            )
        elif interval == "wilson":
            lower, upper = wilson_interval(self._value, self._error, self._size, self.level)
        without = np.array([reason is not None for reason in self._reasons], np.bool_)
        lower, upper = np.where(without, np.nan, lower), np.where(without, np.nan, upper)
        reasons = [
            reason or (NO_VARIANCE if interval != "none" and np.isnan(low) else None)
            for reason, low in zip(self._reasons, lower, strict=True)
        ]
        correlation = (self._directions @ self._directions.T).astype(np.float64)
        np.fill_diagonal(correlation, 1.0)
        return Estimates(
            self.metric,
            self._value,
            lower,
            upper,
            self._error,
            self._positives[0],
            self._positives[1],
            tuple(reasons),
            correlation * self._error[:, None] * self._error[None, :],
            self._degrees,
            self.level,
            self._negatives if interval == "auroc" else None,
        )
