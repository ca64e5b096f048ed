"""Two runs on the same records: differences with clustered intervals, Holm over the labels.

The two are paired: a patient who is hard for one run is hard for the other. The variance of the
difference comes from the difference of the patients' shares, never from two separate intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import Clusters, as_clusters
from ecgfounder_train.metrics.estimates import Float, degrees_of_freedom, pooled_degrees, quantile
from ecgfounder_train.metrics.intervals import (
    LabelRanking,
    corrected,
    dot,
    obuchowski,
    rank_label,
)
from ecgfounder_train.metrics.kernels import in_threads

METRICS = ("auroc", "average_precision")
NO_DIFFERENCE = "no difference in any patient"


@dataclass(frozen=True)
class RunScores:
    """What one run said of which records.

    Shape:
        logits, targets, observed: (B, K); observed None for all.
        record_keys: (B,), each once: of a record's windows, pool the logits first or give
            (record_key, window) pairs.
        patients: (B,) keys or numbers, or `Clusters`.
    """

    logits: ArrayLike
    targets: ArrayLike
    observed: ArrayLike | None
    record_keys: Sequence[Any] | NDArray[Any]
    patients: Clusters | ArrayLike
    labels: Sequence[str]
    name: str = ""


class MacroDifference(NamedTuple):
    """The mean difference over labels with its interval and two-sided p value."""

    difference: float
    lower: float
    upper: float
    p_value: float
    num_labels: int


@dataclass(frozen=True)
class Comparison:
    """First run minus second, per label.

    Shape:
        every array: (K,); NaN where `reasons` says why.

    Attributes:
        p_value: Two-sided, of this label alone; `p_holm` holds for all labels together.
    """

    metric: str
    labels: tuple[str, ...]
    first: Float
    second: Float
    difference: Float
    lower: Float
    upper: Float
    standard_error: Float
    p_value: Float
    p_holm: Float
    reasons: tuple[str | None, ...]
    macro: MacroDifference


def compare_runs(
    first: RunScores,
    second: RunScores,
    metric: str = "auroc",
    *,
    level: float = 0.95,
    num_threads: int | None = None,
) -> Comparison:
    """Return the paired comparison of two runs on the same records.

    The second run's records are put into the first's order by their keys.

    Raises:
        UserError: Labels, records, targets or observed differ, a key occurs twice, or an array is
            invalid.
    """
    if metric not in METRICS:
        raise UserError(f"There is no paired test of {metric!r}." + did_you_mean(metric, METRICS))
    if tuple(first.labels) != tuple(second.labels):
        raise UserError(
            f"The runs {first.name!r} and {second.name!r} predict other labels, or in another "
            "order. Take the labels they share, in one order, from both."
        )
    order = matching_order(first, second)
    truth, mask = _same_truth(first, second, order)
    clusters = as_clusters(first.patients, len(truth))
    labels = tuple(first.labels)
    pairs = zip(
        masked_columns(first.logits, truth, mask, labels),
        masked_columns(np.asarray(second.logits)[order], truth, mask, labels),
        strict=True,
    )
    rows = in_threads(
        lambda pair: (rank_label(pair[0], clusters), rank_label(pair[1], clusters)),
        pairs,
        num_threads,
    )
    values = np.full((2, len(labels)), np.nan)
    error = np.full(len(labels), np.nan)
    degrees = np.ones(len(labels))
    total = np.zeros(clusters.num_clusters)
    counted = np.zeros(len(labels), np.bool_)
    reasons: list[str | None] = []
    for index, (one, other) in enumerate(rows):
        reason = one.undefined
        if reason is None:
            values[:, index] = getattr(one, metric), getattr(other, metric)
            reason = one.few
            degrees[index] = degrees_of_freedom(one.positive_patients, one.negative_patients)
        if reason is None:
            variance, influence = _difference(one, other, metric)
            counted[index] = True
            if variance > 1e-24:
                error[index] = np.sqrt(variance)
                total += influence * np.sqrt(variance / dot(influence, influence))
            else:
                error[index] = 0.0
                reason = NO_DIFFERENCE
        reasons.append(reason)
    difference = values[0] - values[1]
    half = quantile(level, degrees) * error
    p_value = _two_sided(difference, error, degrees)
    tested = error > 0
    return Comparison(
        metric,
        labels,
        values[0],
        values[1],
        difference,
        np.where(tested, difference - half, np.nan),
        np.where(tested, difference + half, np.nan),
        error,
        p_value,
        holm(p_value),
        tuple(reasons),
        _macro(
            difference[counted],
            total,
            pooled_degrees(error[counted] ** 2, degrees[counted]),
            level,
        ),
    )


def holm(p_values: ArrayLike) -> Float:
    """Return Holm's adjusted p values; NaN ones stay NaN and do not count as tests.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6(2), 65-70.
    """
    values = np.asarray(p_values, np.float64)
    adjusted = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


def matching_order(first: RunScores, second: RunScores) -> NDArray[np.int64]:
    """Return which row of the second run is each record of the first.

    Raises:
        UserError: A key occurs twice, or the records are not the same.
    """
    places = []
    for run in (first, second):
        keys = [_plain_key(key) for key in run.record_keys]
        if len(keys) != len(np.asarray(run.logits)):
            raise UserError(f"Run {run.name!r} has {len(keys)} keys for another number of rows.")
        place = {key: row for row, key in enumerate(keys)}
        if len(place) != len(keys):
            raise UserError(
                f"{len(keys) - len(place):,} record keys of run {run.name!r} occur again. Pool the "
                "windows of a record first, or give (record_key, window) as keys."
            )
        places.append(place)
    missing, extra = len(places[0].keys() - places[1]), len(places[1].keys() - places[0])
    if missing or extra:
        raise UserError(
            f"The runs were not evaluated on the same records: {missing:,} are only in "
            f"{first.name!r}, {extra:,} only in {second.name!r}. Predict both on one split."
        )
    return np.array([places[1][key] for key in places[0]], np.int64)


def _plain_key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list | np.ndarray) else key


def _same_truth(
    first: RunScores, second: RunScores, order: NDArray[np.int64]
) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    _, truth, mask = checked_arrays(first.logits, first.targets, first.observed)
    _, other_truth, other_mask = checked_arrays(second.logits, second.targets, second.observed)
    seen = np.ones(truth.shape, np.bool_) if mask is None else mask != 0
    other_seen = np.ones(truth.shape, np.bool_) if other_mask is None else other_mask[order] != 0
    if not np.array_equal(seen, other_seen) or (truth != other_truth[order])[seen].any():
        raise UserError(
            f"The targets of {first.name!r} and {second.name!r} differ for the same records: they "
            "were predicted with other labels options or versions. Predict both on one data set."
        )
    return truth, mask


def _difference(one: LabelRanking, other: LabelRanking, metric: str) -> tuple[float, Float]:
    if metric == "auroc":
        return obuchowski(
            one,
            one.from_positives - other.from_positives,
            one.from_negatives - other.from_negatives,
        )
    influence = one.precision - other.precision
    return corrected(dot(influence, influence), one.positive_patients), influence


def _two_sided(difference: Float, error: Float, degrees: Float) -> Float:
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = stdtr(degrees, -np.abs(difference / error))
        p_value: Float = np.where(error > 0, 2 * tail, np.nan)
    return p_value


def _macro(difference: Float, total: Float, degrees: Float, level: float) -> MacroDifference:
    count = len(difference)
    if not count:
        return MacroDifference(np.nan, np.nan, np.nan, np.nan, 0)
    value = float(difference.mean())
    error = float(np.sqrt(dot(total, total))) / count
    if error == 0:
        return MacroDifference(value, np.nan, np.nan, np.nan, count)
    half = float(quantile(level, degrees)[0]) * error
    p_value = float(_two_sided(np.array([value]), np.array([error]), degrees)[0])
    return MacroDifference(value, value - half, value + half, p_value, count)
