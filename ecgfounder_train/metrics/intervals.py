"""AUROC and average precision with 95 % intervals by patient, all labels from one sort each.

AUROC: Obuchowski's variance for clustered data (records of one patient are not new patients) and
an interval that holds near 1 (`estimates.auroc_interval`). Average precision: the influence
function summed per patient. Both give a vector per patient and label, whose products are the
covariance of any two labels, and with it the interval of the macro mean. Quantiles are Student's,
by the patients of the rarer class.

Coverage of the 95 % intervals: `bench.py coverage`, docs/benchmarks/coverage_full.json.

Source:
    Obuchowski 1997, Biometrics 53(2), 567-578, doi:10.2307/2533958 (clustered ROC).
    DeLong, DeLong and Clarke-Pearson 1988, doi:10.2307/2531595 (structural components).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.estimates import (
    FEW_NEGATIVE_PATIENTS,
    FEW_POSITIVE_PATIENTS,
    NO_VARIANCE,
    Collector,
    Estimates,
    degrees_of_freedom,
)
from ecgfounder_train.metrics.kernels import components, in_threads, sort_marks

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

    def without_variance(self, metric: str) -> str | None:
        """Why there is no interval although there are patients enough; else None.

        The AUROC of separated classes has one; the average precision does not.
        """
        if self.constant:
            return f"{NO_VARIANCE}: all scores are equal"
        if metric == "average_precision" and self.average_precision == 1.0:
            return f"{NO_VARIANCE}: the classes are separated"
        return None


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
    variance (all equal; for the average precision also a perfect separation); `reasons` says which.

    Args:
        patients: Which patient each record is of; see `clusters_from_keys`.
        num_threads: One label each; None for all cores of this process.

    Shape:
        logits, targets, observed: (B, K). patients: (B,).

    Raises:
        UserError: As `ranking_metrics`, or there is not one patient per record.
    """
    num_records, num_labels = checked_arrays(logits, targets, observed)[0].shape
    clusters = as_clusters(patients, num_records)
    columns = masked_columns(logits, targets, observed, labels)
    rows = in_threads(lambda column: rank_label(column, clusters), columns, num_threads)
    shape = (num_labels, clusters.num_clusters)
    areas = Collector("auroc", *shape, level)
    precisions = Collector("average_precision", *shape, level)
    for index, row in enumerate(rows):
        add_auroc(areas, index, row)
        _add(precisions, index, row, row.average_precision, precision_influence)
    return RankingIntervals(areas.estimates("auroc"), precisions.estimates("precision"))


def add_auroc(collector: Collector, index: int, row: LabelRanking) -> None:
    """Take the AUROC of one label in."""
    _add(collector, index, row, row.auroc, area_influence)


def _add(
    collector: Collector,
    index: int,
    row: LabelRanking,
    value: float,
    spread: Callable[[LabelRanking], tuple[float, Float]],
) -> None:
    collector.add(
        index,
        value,
        row.undefined or row.few or row.without_variance(collector.metric),
        (row.num_positives, row.positive_patients),
        (np.nan, row.precision) if row.undefined else spread(row),
        degrees=float(degrees_of_freedom(row.positive_patients, row.negative_patients)),
        negative_patients=row.negative_patients,
    )


def rank_label(column: Column, clusters: Clusters) -> LabelRanking:
    """Return the ranking metrics of one column of scores and its patients' shares in them."""
    scores, positive, chosen = column
    codes, records = clusters.codes, clusters.num_records
    if chosen is not None:
        codes = codes[chosen]
        records = np.bincount(codes, minlength=clusters.num_clusters)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)
    total, num_positives = len(scores), int(np.count_nonzero(positive))
    num_negatives = total - num_positives
    patients = int(np.count_nonzero(records))
    if num_positives == 0 or num_negatives == 0:
        none = np.zeros(0)
        counts = (patients, 0) if num_positives else (0, patients)
        return LabelRanking(
            num_positives, total, *counts, patients, np.nan, np.nan, none, none, none, False
        )
    keys, marks = sort_marks(scores, 2 * codes + positive)
    of_positives = np.zeros((clusters.num_clusters, 3))
    of_negatives = np.zeros((clusters.num_clusters, 2))
    twice_wins, precision = components(keys, marks, num_positives, of_positives, of_negatives)
    area = twice_wins / (2 * num_positives * num_negatives)
    positives = of_positives[:, 0]
    negatives = records - positives
    return LabelRanking(
        num_positives,
        total,
        int(np.count_nonzero(positives)),
        int(np.count_nonzero(negatives)),
        patients,
        area,
        precision,
        (of_positives[:, 1] - area * positives) / num_positives,
        (of_negatives[:, 0] - area * negatives) / num_negatives,
        (of_positives[:, 2] + of_negatives[:, 1] - precision * positives) / num_positives,
        bool(keys[0] == keys[-1]),
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
    within = corrected(dot(from_positives, from_positives), row.positive_patients)
    within += corrected(dot(from_negatives, from_negatives), row.negative_patients)
    between = 2 * corrected(dot(from_positives, from_negatives), row.patients)
    return within + between, from_positives + from_negatives


def precision_influence(row: LabelRanking) -> tuple[float, Float]:
    """Return the average precision's variance and its influence per patient.

    The positives decide nearly all of it, hence the small-sample correction by their patients.
    """
    variance = corrected(dot(row.precision, row.precision), row.positive_patients)
    return variance, row.precision


def dot(first: Float, second: Float) -> float:
    """Return the inner product in one thread: BLAS would start its own in each of ours."""
    return float(np.einsum("p,p->", first, second))


def corrected(sum_of_squares: float, count: int) -> float:
    return sum_of_squares * count / (count - 1) if count > 1 else np.nan
