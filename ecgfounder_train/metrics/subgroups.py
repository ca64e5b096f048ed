"""The ranking metrics by site, sex, age band or sampling rate, each against the rest.

The interval of a difference between a group and the rest is built from the two intervals of the
means and their correlation (patients can have records in both), so that it holds near 1 as they do.

Source:
    Zou and Donner 2008, Statistics in Medicine 27(10), 1693-1702 (differences from limits).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import Clusters, as_clusters
from ecgfounder_train.metrics.estimates import Collector, Estimates, MacroEstimate
from ecgfounder_train.metrics.intervals import (
    RankingIntervals,
    add_auroc,
    rank_label,
    ranking_intervals,
)
from ecgfounder_train.metrics.kernels import in_threads

UNKNOWN = "unknown"
AGE_BANDS = ((18, "under 18"), (40, "18 to 39"), (65, "40 to 64"), (80, "65 to 79"))
OLDEST = "80 and over"


@dataclass(frozen=True)
class Subgroup:
    """The records of one value of one attribute.

    Attributes:
        auroc_whole, average_precision_whole: The whole set's macro over the labels of this group's
            macro. A group's macro is over the labels it has patients enough for.
        auroc_group, auroc_rest, auroc_difference: Of this group, of all other records, and the
            first less the second, each over the labels that both have patients enough for. The
            difference has no p value: several groups are looked at.
        rows: Which records are the group's, (B,).
    """

    attribute: str
    value: str
    num_records: int
    num_patients: int
    auroc: Estimates
    average_precision: Estimates
    auroc_whole: MacroEstimate
    average_precision_whole: MacroEstimate
    auroc_group: MacroEstimate
    auroc_rest: MacroEstimate
    auroc_difference: tuple[float, float, float]
    rows: NDArray[np.bool_]


def subgroup_intervals(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    patients: Clusters | ArrayLike,
    groups: Mapping[str, Sequence[str | None] | NDArray[Any]],
    labels: Sequence[str] | None = None,
    whole: RankingIntervals | None = None,
    level: float = 0.95,
    num_threads: int | None = None,
) -> list[Subgroup]:
    """Return every value of every attribute, in the attributes' order, values sorted.

    Args:
        groups: Attribute -> its value per record; None or "" counts as "unknown".
        whole: Of the same arrays, where it was computed before.

    Shape:
        logits, targets, observed: (B, K). patients, every sequence of groups: (B,).

    Raises:
        UserError: An attribute has not one value per record, or as `ranking_intervals`.
    """
    scores, truth, mask = checked_arrays(logits, targets, observed)
    clusters = as_clusters(patients, len(scores))
    if whole is None:
        whole = ranking_intervals(
            scores,
            truth,
            mask,
            patients=clusters,
            labels=labels,
            level=level,
            num_threads=num_threads,
        )
    result = []
    for attribute, given in groups.items():
        if len(given) != len(scores):
            raise UserError(f"{len(given)} values of {attribute} for {len(scores)} records.")
        values = np.array([UNKNOWN if v is None or v == "" else str(v) for v in given])
        for value in sorted(set(values.tolist()), key=sort_key):
            chosen = values == value
            codes, inverse = np.unique(clusters.codes[chosen], return_inverse=True)
            part = Clusters(inverse.astype(np.int32), len(codes), clusters.by)
            areas, precisions = ranking_intervals(
                scores[chosen],
                truth[chosen],
                None if mask is None else mask[chosen],
                patients=part,
                labels=labels,
                level=level,
                num_threads=num_threads,
            )
            compared = _against_rest(scores, truth, mask, clusters, chosen, level, num_threads)
            result.append(
                Subgroup(
                    attribute,
                    value,
                    int(chosen.sum()),
                    len(codes),
                    areas,
                    precisions,
                    whole.auroc.macro(areas.in_macro),
                    whole.average_precision.macro(precisions.in_macro),
                    *compared,
                    chosen,
                )
            )
    return result


def _against_rest(
    scores: NDArray[np.floating],
    truth: NDArray[np.generic],
    mask: NDArray[np.generic] | None,
    clusters: Clusters,
    chosen: NDArray[np.bool_],
    level: float,
    num_threads: int | None,
) -> tuple[MacroEstimate, MacroEstimate, tuple[float, float, float]]:
    """Return the macro AUROC of the chosen records, of the rest, and the difference with limits."""
    seen = np.ones(truth.shape, np.bool_) if mask is None else mask != 0
    shape = (scores.shape[1], clusters.num_clusters)
    directions, estimates = [], []
    for rows in (chosen, ~chosen):
        columns = masked_columns(scores, truth, seen & rows[:, None])
        collector = Collector("auroc", *shape, level)
        ranked = in_threads(lambda column: rank_label(column, clusters), columns, num_threads)
        for index, row in enumerate(ranked):
            add_auroc(collector, index, row)
        estimates.append(collector.estimates("auroc"))
        directions.append(collector.influences())
    both = estimates[0].in_macro & estimates[1].in_macro
    group, rest = (item.macro(both) for item in estimates)
    if not group.num_labels:
        return group, rest, (np.nan, np.nan, np.nan)
    own, other = (item[both].sum(0, dtype=np.float64) for item in directions)
    product = float(np.sqrt(own @ own * (other @ other)))
    correlation = float(own @ other) / product if product > 0 else 0.0
    difference = group.value - rest.value

    def reach(one: float, two: float) -> float:
        return float(np.sqrt(max(one**2 + two**2 - 2 * correlation * one * two, 0.0)))

    return (
        group,
        rest,
        (
            difference,
            difference - reach(group.value - group.lower, rest.upper - rest.value),
            difference + reach(group.upper - group.value, rest.value - rest.lower),
        ),
    )


def age_bands(age_years: ArrayLike) -> list[str]:
    """Return the age band of each record, "unknown" where NaN.

    Shape:
        age_years: (B,), years.
    """
    ages = np.asarray(age_years, np.float64)
    names = [*(name for _, name in AGE_BANDS), OLDEST, UNKNOWN]
    places = np.searchsorted([limit for limit, _ in AGE_BANDS], ages, side="right")
    return [names[place] for place in np.where(np.isnan(ages), len(names) - 1, places)]


def rate_names(native_fs: ArrayLike) -> list[str]:
    """Return the sampling rate of each record as "500 Hz", "unknown" where NaN.

    Shape:
        native_fs: (B,), Hz.
    """
    return [UNKNOWN if np.isnan(fs) else f"{fs:g} Hz" for fs in np.asarray(native_fs, np.float64)]


def sort_key(value: str) -> tuple[bool, int, float, str]:
    """Order age bands by age, rates by number, the rest by name, and what is unknown last."""
    bands = [*(name for _, name in AGE_BANDS), OLDEST]
    place = bands.index(value) if value in bands else len(bands)
    number = value.removesuffix(" Hz")
    rate = float(number) if value.endswith(" Hz") and number.replace(".", "", 1).isdigit() else 0.0
    return value == UNKNOWN, place, rate, value
