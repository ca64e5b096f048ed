"""Agreement of probabilities with outcomes: calibration slope, intercept, observed:expected ratio.

The calibration error of a rare label is near 0 whatever the model predicts for the few records that
matter. The slope (1; below it the model is overconfident), the intercept (calibration in the large:
0; above it, risks are underestimated) and the ratio of observed to expected positives (1) are not
diluted by the many records of low probability. Intervals are by patient.

Source:
    Van Calster et al. 2019, BMC Medicine 17, 230, doi:10.1186/s12916-019-1466-7 (the hierarchy of
    calibration). Liang and Zeger 1986, Biometrika 73(1), 13-22 (the clustered sandwich variance).
    Vickers and Elkin 2006, doi:10.1177/0272989X06295361 (net benefit).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import Clusters, as_clusters
from ecgfounder_train.metrics.decisions import ratio_spread
from ecgfounder_train.metrics.estimates import (
    Intervals,
    degrees_of_freedom,
    normal_quantile,
    quantile,
)
from ecgfounder_train.metrics.intervals import Column, undefined_reason
from ecgfounder_train.metrics.kernels import in_threads
from ecgfounder_train.metrics.probabilities import probability
from ecgfounder_train.metrics.thresholds import few_patients, patient_counts

if TYPE_CHECKING:
    from ecgfounder_train.metrics.calibration import Calibration

Float = NDArray[np.float64]
Agreement = tuple[float, float, float, str | None]
"""Value, lower and upper limit, and why there is none."""

AGREEMENT = ("calibration_slope", "calibration_intercept", "observed_expected")
NO_SLOPE = "no finite slope: the probabilities are constant or separate the classes"
_MAX_STEPS = 50
_LEAST_PROBABILITY = 1e-9


def agreement_intervals(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    patients: Clusters | ArrayLike,
    calibration: "Calibration | None" = None,
    labels: Sequence[str] | None = None,
    level: float = 0.95,
    num_threads: int | None = None,
) -> dict[str, Intervals]:
    """Return calibration slope, intercept and observed:expected of every label, by name.

    None is given below 10 positive or 10 negative patients.

    Args:
        calibration: What makes probabilities of logits; None: the sigmoid.

    Shape:
        logits, targets, observed: (B, K). patients: (B,).

    Raises:
        UserError: As `brier`, or there is not one patient per record.
    """
    num_records, num_labels = checked_arrays(logits, targets, observed)[0].shape
    clusters = as_clusters(patients, num_records)
    if calibration is not None:
        calibration.check_labels(num_labels, labels)
    columns = masked_columns(logits, targets, observed, labels)

    def one(job: tuple[int, Column]) -> tuple[Agreement, ...]:
        index, column = job
        codes = clusters.codes if column[2] is None else clusters.codes[column[2]]
        guess = probability(column, calibration, index)
        return label_agreement(guess, column[1], codes, level)

    rows = list(in_threads(one, enumerate(columns), num_threads))
    found = {}
    for place, name in enumerate(AGREEMENT):
        value, lower, upper = (np.array([row[place][part] for row in rows]) for part in range(3))
        reasons = tuple(row[place][3] for row in rows)
        found[name] = Intervals(name, value, lower, upper, reasons, level)
    return found


def label_agreement(
    probabilities: Float, positive: NDArray[np.bool_], codes: NDArray[np.int32], level: float
) -> tuple[Agreement, ...]:
    """Return (value, lower, upper, reason) of one label for each name of `AGREEMENT`.

    Shape:
        probabilities, positive, codes: (num_observed,).
    """
    reason = undefined_reason(int(positive.sum()), len(positive))
    counts = patient_counts(positive, codes)
    reason = reason or few_patients(counts)
    if reason is not None:
        return ((np.nan, np.nan, np.nan, reason),) * 3
    _, dense = np.unique(codes, return_inverse=True)
    reach = float(quantile(level, degrees_of_freedom(*counts)))
    inner = probabilities.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    score = np.log(inner) - np.log1p(-inner)
    slope = _logistic(np.stack([score, np.ones_like(score)]), np.zeros_like(score), positive, dense)
    offset = _logistic(np.ones((1, len(score))), score, positive, dense)
    found: list[Agreement] = []
    for fitted in (slope, offset):
        if fitted is None:
            found.append((np.nan, np.nan, np.nan, NO_SLOPE))
        else:
            value, error = fitted
            found.append((value, value - reach * error, value + reach * error, None))
    expected = float(probabilities.sum())
    if expected <= 0:
        return (*found, (np.nan, np.nan, np.nan, "no positive is expected"))
    ratio = float(positive.sum()) / expected
    sums = np.bincount(dense, weights=positive - ratio * probabilities)
    error = float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1))) / float(positive.sum())
    factor = float(np.exp(reach * error))
    return (*found, (ratio, ratio / factor, ratio * factor, None))


def _logistic(
    x: Float, offset: Float, positive: NDArray[np.bool_], codes: NDArray[np.intp]
) -> tuple[float, float] | None:
    """Return the first coefficient and its clustered standard error; None where it is infinite.

    Shape:
        x: (num_coefficients, n). offset, positive, codes: (n,).
    """
    centre, spread = x.mean(1), x.std(1)
    centre, spread = np.where(spread > 0, centre, 0.0), np.where(spread > 0, spread, 1.0)
    if len(x) > 1 and x[0].std() < 1e-12:
        return None
    scaled = (x - centre[:, None]) / spread[:, None]
    beta = np.zeros(len(x))
    for _ in range(_MAX_STEPS):
        chance = expit(beta @ scaled + offset)
        weight = chance * (1 - chance)
        hessian = (scaled * weight) @ scaled.T + 1e-12 * np.eye(len(x))
        step = np.linalg.solve(hessian, scaled @ (positive - chance))
        # Newton's step overshoots where all probabilities are near 0 or 1.
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    else:
        return None
    if np.abs(beta).max() > 30:
        return None
    residual = scaled * (positive - expit(beta @ scaled + offset))
    sums = np.stack([np.bincount(codes, weights=row) for row in residual])
    middle = sums @ sums.T * sums.shape[1] / (sums.shape[1] - 1)
    bread = np.linalg.inv(hessian)
    error = float(np.sqrt((bread @ middle @ bread)[0, 0]))
    return float(beta[0] / spread[0]), error / float(spread[0])


def net_benefit(
    probabilities: Float, positive: NDArray[np.bool_], thresholds: ArrayLike
) -> tuple[Float, Float]:
    """Return the net benefit of acting on the model, and of acting on everybody, per record.

    True positives less false positives at the exchange rate that each threshold probability states;
    acting on nobody has 0.

    Shape:
        probabilities, positive: (n,). thresholds, results: (num_thresholds,), from 0 up to below 1.
    """
    cuts = np.asarray(thresholds, np.float64)
    order = np.sort(probabilities[positive]), np.sort(probabilities[~positive])
    hits, alarms = (len(scores) - np.searchsorted(scores, cuts, side="left") for scores in order)
    rate = cuts / (1 - cuts)
    of_model: Float = (hits - rate * alarms) / len(positive)
    of_all: Float = (len(order[0]) - rate * len(order[1])) / len(positive)
    return of_model, of_all


def net_benefit_interval(
    called: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    threshold: float,
    codes: NDArray[np.int32],
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the net benefit of one decision rule at a threshold probability with its interval.

    Shape:
        called, positive, codes: (n,).
    """
    worth = called * np.where(positive, 1.0, -threshold / (1 - threshold))
    _, dense = np.unique(codes, return_inverse=True)
    sums = np.asarray(np.bincount(dense, weights=worth), np.float64)
    sizes = np.asarray(np.bincount(dense), np.float64)
    (variance, _), _ = ratio_spread(sums, sizes)
    value, half = float(worth.mean()), normal_quantile(level) * float(np.sqrt(variance))
    return value, value - half, value + half
