"""Errors of measured quantities with 95 % intervals by patient, and limits of agreement.

Limits of agreement are the bias less and plus 1.96 standard deviations of the difference: 95 % of
single predictions are expected within them where the differences are normal.

Each metric is a smooth function of means over records; its influence function, summed per patient,
gives the variance, as for average precision. Pearson's interval is taken on Fisher's z scale, the
others' as it is.

Source:
    Huber 1981, Robust Statistics (influence functions); Fisher 1921, Metron 1, 3-32 (z scale).
    Bland and Altman 1999, doi:10.1177/096228029900800204 (limits of agreement).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.estimates import normal_quantile

Float = NDArray[np.float64]

METRICS = ("mae", "rmse", "r2", "pearson", "bias", "lower_limit", "upper_limit")
NEVER_MEASURED = "never measured"
CONSTANT = "the quantity or its prediction is constant"
FEW_PATIENTS = f"fewer than {MIN_PATIENTS} patients"


@dataclass(frozen=True)
class RegressionEstimates:
    """One metric of every quantity with its interval; NaN has its reason.

    Shape:
        value, lower, upper, standard_error, num_records, num_patients: (K,).
        reasons: K entries; None where value and interval are given.
    """

    metric: str
    value: Float
    lower: Float
    upper: Float
    standard_error: Float
    num_records: NDArray[np.int64]
    num_patients: NDArray[np.int64]
    reasons: tuple[str | None, ...]
    level: float = 0.95


def regression_intervals(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    patients: Clusters | ArrayLike,
    level: float = 0.95,
) -> dict[str, RegressionEstimates]:
    """Return MAE, RMSE, R2, Pearson's correlation, bias and limits of agreement, by name.

    R2 is against the mean of these records; a model worse than it has a negative one.

    Shape:
        predictions, targets: (B, K); a NaN target was not measured. patients: (B,).

    Raises:
        UserError: Shapes differ, or a prediction of a measured quantity is NaN.
    """
    guess, truth = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if guess.shape != truth.shape or guess.ndim != 2:
        raise UserError(f"predictions have shape {guess.shape}, targets {truth.shape}.")
    if bad := int((~np.isfinite(guess) & ~np.isnan(truth)).sum()):
        raise UserError(f"{bad:,} predictions are NaN or infinite: the model has diverged.")
    clusters = as_clusters(patients, len(truth))
    num = truth.shape[1]
    arrays = {name: np.full((4, num), np.nan) for name in METRICS}
    counts = np.zeros((2, num), np.int64)
    reasons: dict[str, list[str | None]] = {name: [None] * num for name in METRICS}
    for column in range(num):
        seen = ~np.isnan(truth[:, column])
        codes = clusters.codes[seen]
        counts[:, column] = seen.sum(), len(np.unique(codes))
        if not seen.any():
            for name in METRICS:
                reasons[name][column] = NEVER_MEASURED
            continue
        for name, (value, influence) in _influences(guess[seen, column], truth[seen, column]):
            arrays[name][0, column] = value
            if np.isnan(value):
                reasons[name][column] = CONSTANT
            elif counts[1, column] < MIN_PATIENTS:
                reasons[name][column] = FEW_PATIENTS
            else:
                error = _clustered_error(influence, codes)
                arrays[name][1:, column] = error, *_interval(name, value, error, level)
    return {
        name: RegressionEstimates(
            name, *_ordered(arrays[name]), counts[0], counts[1], tuple(reasons[name]), level
        )
        for name in METRICS
    }


def _ordered(rows: Float) -> tuple[Float, Float, Float, Float]:
    value, error, lower, upper = rows
    return value, lower, upper, error


def _influences(guess: Float, truth: Float) -> Sequence[tuple[str, tuple[float, Float]]]:
    error = guess - truth
    absolute = np.abs(error)
    found: list[tuple[str, tuple[float, Float]]] = [
        ("mae", (float(absolute.mean()), absolute - absolute.mean())),
        *_agreement(error),
    ]
    nothing = np.zeros_like(truth)
    centred, spread = truth - truth.mean(), float(truth.var())
    if spread <= 0:
        return [*found, ("r2", (np.nan, nothing)), ("pearson", (np.nan, nothing))]
    ratio = float((error**2).mean()) / spread
    found.append(("r2", (1 - ratio, -(error**2 - ratio * centred**2) / spread)))
    own, own_spread = guess - guess.mean(), float(guess.var())
    if own_spread <= 1e-24:
        return [*found, ("pearson", (np.nan, nothing))]
    x, y = own / np.sqrt(own_spread), centred / np.sqrt(spread)
    correlation = float((x * y).mean())
    return [*found, ("pearson", (correlation, x * y - correlation / 2 * (x**2 + y**2)))]


def _agreement(error: Float) -> list[tuple[str, tuple[float, Float]]]:
    """Return RMSE, bias and limits of agreement with their influences."""
    bias, square = float(error.mean()), float((error**2).mean())
    root, spread = float(np.sqrt(square)), float(error.std())
    of_bias = error - bias
    # A constant error has no spread, and its limits are the bias.
    of_root = (error**2 - square) / (2 * root) if root > 0 else np.zeros_like(error)
    of_spread = (of_bias**2 - spread**2) / (2 * spread) if spread > 0 else np.zeros_like(error)
    reach = normal_quantile(0.95)
    return [
        ("rmse", (root, of_root)),
        ("bias", (bias, of_bias)),
        ("lower_limit", (bias - reach * spread, of_bias - reach * of_spread)),
        ("upper_limit", (bias + reach * spread, of_bias + reach * of_spread)),
    ]


def _clustered_error(influence: Float, codes: NDArray[np.int32]) -> float:
    _, dense = np.unique(codes, return_inverse=True)
    sums = np.bincount(dense, weights=influence)
    number = len(sums)
    variance = float((sums**2).sum()) / len(influence) ** 2 * number / (number - 1)
    return float(np.sqrt(variance))


def _interval(name: str, value: float, error: float, level: float) -> tuple[float, float]:
    half = normal_quantile(level) * error
    if name == "pearson":
        if abs(value) >= 1 - 1e-12:
            return np.nan, np.nan
        centre, half = np.arctanh(value), half / (1 - value**2)
        return float(np.tanh(centre - half)), float(np.tanh(centre + half))
    return (max(value - half, 0.0) if name in ("mae", "rmse") else value - half), value + half
