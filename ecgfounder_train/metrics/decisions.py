"""What a threshold per label decides: sensitivity, specificity, PPV, NPV, F1, with intervals.

Each is a ratio of two counts summed over patients, so one formula gives all intervals: the
influence of a patient on a ratio, and Wilson's interval for the effective number of records.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.estimates import FEW_POSITIVE_PATIENTS, Collector, Estimates
from ecgfounder_train.metrics.intervals import NEVER_OBSERVED, Column, corrected, dot
from ecgfounder_train.metrics.kernels import in_threads

if TYPE_CHECKING:
    from ecgfounder_train.metrics.thresholds import Thresholds

Float = NDArray[np.float64]

# Weights of (true negatives, false positives, false negatives, true positives) above and below the
# line, and what the lower sum being zero means.
RATIOS: dict[str, tuple[tuple[float, ...], tuple[float, ...], str]] = {
    "sensitivity": ((0, 0, 0, 1), (0, 0, 1, 1), "no positives"),
    "specificity": ((1, 0, 0, 0), (1, 1, 0, 0), "no negatives"),
    "ppv": ((0, 0, 0, 1), (0, 1, 0, 1), "none called positive"),
    "npv": ((1, 0, 0, 0), (1, 0, 1, 0), "none called negative"),
    "f1": ((0, 0, 0, 1), (0, 0.5, 0.5, 1), "no positives"),
}
NO_THRESHOLD = "no threshold"


def threshold_values(
    thresholds: "Thresholds | ArrayLike", num_labels: int, labels: Sequence[str] | None
) -> Float:
    """Return one threshold per label (a logit; NaN where there is none).

    Raises:
        UserError: Their number or their labels differ from those given.
    """
    values = getattr(thresholds, "values", thresholds)
    own_labels = getattr(thresholds, "labels", None)
    if labels is not None and own_labels is not None and tuple(labels) != tuple(own_labels):
        raise UserError(
            "The thresholds are of other labels, or in another order. "
            "Align them: thresholds.for_labels(labels)."
        )
    column = np.asarray(values, np.float64)
    if column.ndim == 0:
        column = np.full(num_labels, column)
    if column.shape != (num_labels,):
        raise UserError(f"{column.shape} thresholds for {num_labels} labels; give one each.")
    return column


def decision_table(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    labels: Sequence[str] | None = None,
) -> dict[str, Float]:
    """Return `sensitivity, specificity, ppv, npv, f1` per label; NaN where undefined.

    A record is called positive where its logit is at or above the threshold. F1 is NaN without
    positives, where it could only be 0.

    Args:
        thresholds: Logits; 0.0 stands for the probability 0.5.

    Shape:
        logits, targets, observed: (B, K). thresholds: (K,) or one for all. every result: (K,).

    Raises:
        UserError: Shapes differ, a score is NaN, or a target is neither 0 nor 1.
    """
    rows = []
    num_labels = checked_arrays(logits, targets, observed)[0].shape[1]
    cuts = threshold_values(thresholds, num_labels, labels)
    for index, column in enumerate(masked_columns(logits, targets, observed, labels)):
        kind = decisions(column, cuts[index])
        rows.append(np.full(4, np.nan) if kind is None else np.bincount(kind, minlength=4))
    counts = np.array(rows, np.float64).reshape(-1, 4)
    return {name: ratio(counts, name) for name in RATIOS}


def ratio(counts: Float, name: str) -> Float:
    """Return one of `RATIOS` from the four counts along the last axis; NaN where undefined."""
    above, below, _ = RATIOS[name]
    found, size = counts @ np.array(above, np.float64), counts @ np.array(below, np.float64)
    defined = size > 0
    if name == "f1":
        defined = defined & (counts[..., 2] + counts[..., 3] > 0)
    share: Float = np.divide(found, size, out=np.full(found.shape, np.nan), where=defined)
    return share


def decisions(column: Column, threshold: float) -> NDArray[np.int64] | None:
    """Return 0 to 3 per record, the place in the four counts; None where there is no threshold."""
    if np.isnan(threshold):
        return None
    scores, positive, _ = column
    return 2 * positive.astype(np.int64) + (scores >= np.float64(threshold))


def sensitivity(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    labels: Sequence[str] | None = None,
) -> Float:
    """Return the share of positives called positive per label; see `decision_table`."""
    return decision_table(logits, targets, observed, thresholds, labels)["sensitivity"]


def specificity(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    labels: Sequence[str] | None = None,
) -> Float:
    """Return the share of negatives called negative per label; see `decision_table`."""
    return decision_table(logits, targets, observed, thresholds, labels)["specificity"]


def ppv(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    labels: Sequence[str] | None = None,
) -> Float:
    """Return the positive predictive value per label; see `decision_table`."""
    return decision_table(logits, targets, observed, thresholds, labels)["ppv"]


def npv(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    labels: Sequence[str] | None = None,
) -> Float:
    """Return the negative predictive value per label; see `decision_table`."""
    return decision_table(logits, targets, observed, thresholds, labels)["npv"]


def f1(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    thresholds: "Thresholds | ArrayLike" = 0.0,
    labels: Sequence[str] | None = None,
) -> Float:
    """Return the harmonic mean of sensitivity and PPV per label; see `decision_table`."""
    return decision_table(logits, targets, observed, thresholds, labels)["f1"]


def decision_intervals(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    patients: Clusters | ArrayLike,
    thresholds: "Thresholds | ArrayLike",
    labels: Sequence[str] | None = None,
    level: float = 0.95,
    num_threads: int | None = None,
) -> dict[str, Estimates]:
    """Return the five metrics of `decision_table` with intervals by patient.

    The thresholds are taken as fixed, as they are when they come from other patients. An interval
    is NaN below 10 positive patients, or 10 patients in the metric's denominator.

    Raises:
        UserError: As `decision_table`, or there is not one patient per record.
    """
    num_records, num_labels = checked_arrays(logits, targets, observed)[0].shape
    clusters = as_clusters(patients, num_records)
    cuts = threshold_values(thresholds, num_labels, labels)
    columns = masked_columns(logits, targets, observed, labels)

    def count(job: tuple[float, Column]) -> NDArray[np.int64] | None:
        kind = decisions(job[1], job[0])
        if kind is None:
            return None
        codes = clusters.codes if job[1][2] is None else clusters.codes[job[1][2]]
        num = clusters.num_clusters
        return np.bincount(kind * num + codes, minlength=4 * num).reshape(4, num)

    collectors = {
        name: Collector(name, num_labels, clusters.num_clusters, level) for name in RATIOS
    }
    jobs = zip(cuts, columns, strict=True)
    for index, counts in enumerate(in_threads(count, jobs, num_threads)):
        for name, collector in collectors.items():
            _add_ratio(collector, index, name, counts)
    return {name: collector.estimates("wilson") for name, collector in collectors.items()}


def _add_ratio(
    collector: Collector, index: int, name: str, counts: NDArray[np.int64] | None
) -> None:
    nothing = (np.nan, np.zeros(0))
    if counts is None:
        collector.add(index, np.nan, NO_THRESHOLD, (0, 0), nothing)
        return
    above, below, none = RATIOS[name]
    totals = counts.sum(1).astype(np.float64)
    value = float(ratio(totals, name))
    has_positives = counts[2] + counts[3] > 0
    positives = (int(totals[2] + totals[3]), int(np.count_nonzero(has_positives)))
    if np.isnan(value):
        reason = none if totals.any() else NEVER_OBSERVED
        collector.add(index, np.nan, reason, positives, nothing)
        return
    sizes = np.array(below, np.float64) @ counts
    spread, patients = ratio_spread(np.array(above, np.float64) @ counts, sizes)
    few: str | None = None
    if positives[1] < MIN_PATIENTS:
        few = FEW_POSITIVE_PATIENTS
    elif patients < MIN_PATIENTS:
        few = f"fewer than {MIN_PATIENTS} patients in the denominator"
    # Where all or none are right, records of one patient must not pass for independent ones.
    largest = patients if value in (0.0, 1.0) else sizes.sum()
    collector.add(index, value, few, positives, spread, float(largest))


def ratio_spread(above: Float, below: Float) -> tuple[tuple[float, Float], int]:
    """Return the variance of sum(above)/sum(below), each patient's influence, and how many count.

    Shape:
        above, below: (num_patients,).
    """
    size = below.sum()
    influence = (above - above.sum() / size * below) / size
    patients = int(np.count_nonzero(below))
    return (corrected(dot(influence, influence), patients), influence), patients
