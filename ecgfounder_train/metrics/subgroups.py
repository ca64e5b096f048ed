"""The ranking metrics by site, sex, age band or sampling rate, each with its intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.arrays import checked_arrays
from ecgfounder_train.metrics.clusters import Clusters, as_clusters
from ecgfounder_train.metrics.estimates import Estimates, MacroEstimate
from ecgfounder_train.metrics.intervals import RankingIntervals, ranking_intervals

UNKNOWN = "unknown"
AGE_BANDS = ((18, "under 18"), (40, "18 to 39"), (65, "40 to 64"), (80, "65 to 79"))
OLDEST = "80 and over"


@dataclass(frozen=True)
class Subgroup:
    """The records of one value of one attribute.

    Attributes:
        auroc_whole, average_precision_whole: The whole set's macro over the labels of this group's
            macro. A group's macro is over the labels it has patients enough for; compare it with
            these, never with another group's or with the macro over all labels.
    """

    attribute: str
    value: str
    num_records: int
    num_patients: int
    auroc: Estimates
    average_precision: Estimates
    auroc_whole: MacroEstimate
    average_precision_whole: MacroEstimate


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
        for value in sorted(set(values.tolist()), key=_sort_key):
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
                )
            )
    return result


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


def _sort_key(value: str) -> tuple[bool, int, float, str]:
    """Order age bands by age, rates by number, the rest by name, and what is unknown last."""
    bands = [*(name for _, name in AGE_BANDS), OLDEST]
    place = bands.index(value) if value in bands else len(bands)
    number = value.removesuffix(" Hz")
    rate = float(number) if value.endswith(" Hz") and number.replace(".", "", 1).isdigit() else 0.0
    return value == UNKNOWN, place, rate, value
