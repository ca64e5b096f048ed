"""What is known of each variant and of its difference from the best: patients and seeds together.

Two things make a result uncertain: other patients, and other seeds. Every run's macro AUROC has an
influence per patient (Obuchowski's components, summed over labels), so that the mean over seeds and
the difference of two variants have their patient variance from the same vectors: the variants saw
the same patients, and what is hard for one is hard for the other. The seeds' variance is pooled
over the variants; it has few degrees of freedom, hence Student's t (Satterthwaite).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ecgfounder_train.metrics import Clusters
from ecgfounder_train.metrics.arrays import masked_columns
from ecgfounder_train.metrics.comparison import holm
from ecgfounder_train.metrics.estimates import degrees_of_freedom, pooled_degrees
from ecgfounder_train.metrics.intervals import area_influence, dot, rank_label
from ecgfounder_train.metrics.kernels import in_threads

Float = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Macro:
    """The mean AUROC over some labels of one run.

    Shape:
        influence: (num_clusters,); its squared length is the variance by patient.

    Attributes:
        degrees: Of freedom of that variance; few where positives are few.
    """

    value: float
    influence: Float
    num_labels: int
    degrees: float = math.inf


def macro_aurocs(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike,
    clusters: Clusters,
    selections: Mapping[str, NDArray[np.bool_]],
) -> dict[str, Macro]:
    """Return the macro AUROC of each selection of labels, with its influence per patient.

    Only labels with at least ten positive and ten negative patients count: below, it is not known
    how the value varies.

    Shape:
        logits, targets, observed: (B, K). Each selection: (K,).
    """
    labels = np.asarray(logits).shape[1]
    columns = masked_columns(logits, targets, observed, [str(k) for k in range(labels)])
    rows = in_threads(lambda column: rank_label(column, clusters), columns, None)
    values: dict[str, list[float]] = {name: [] for name in selections}
    influences = {name: np.zeros(clusters.num_clusters) for name in selections}
    variances: dict[str, list[tuple[float, float]]] = {name: [] for name in selections}
    for index, row in enumerate(rows):
        if row.undefined or row.few:
            continue
        variance, influence = area_influence(row)
        length = dot(influence, influence)
        # To the length of the clustered variance, its small-sample correction included.
        scale = math.sqrt(variance / length) if length > 0 and variance > 0 else 0.0
        for name, chosen in selections.items():
            if chosen[index]:
                values[name].append(row.auroc)
                influences[name] += scale * influence
                free = degrees_of_freedom(row.positive_patients, row.negative_patients)
                variances[name].append((variance, float(free)))
    return {
        name: Macro(
            float(np.mean(areas)) if areas else math.nan,
            influences[name] / max(len(areas), 1),
            len(areas),
            _pooled(variances[name]),
        )
        for name, areas in values.items()
    }


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where there is none."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Variant:
    """One choice on all axes but the seed.

    Attributes:
        values: Macro AUROC of each seed's run.
        influence: Mean influence per patient over the seeds.
        patient_error: Standard error by patient alone.
        estimate: Mean over the seeds, interval for other patients and, where known, other seeds.
        seed_spread: Standard deviation over the seeds; NaN for a single one.
        patient_degrees: Degrees of freedom of `patient_error`.
    """

    name: str
    values: tuple[float, ...]
    influence: Float
    patient_error: float
    estimate: Estimate
    seed_spread: float
    patient_degrees: float


@dataclass(frozen=True)
class Difference:
    """A variant minus the best one.

    Attributes:
        p_holm: Holds for all variants of the comparison together.
    """

    name: str
    estimate: Estimate
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Compared:
    """All variants, and each but the best tested against it.

    Attributes:
        best: Name of the variant with the highest mean.
        seed_error: Pooled standard deviation of a run over seeds; NaN where no variant has two.
        degrees: Of freedom of it.
    """

    variants: tuple[Variant, ...]
    best: str
    differences: tuple[Difference, ...]
    seed_error: float
    degrees: int

    @property
    def with_seeds(self) -> bool:
        """Whether intervals hold for other seeds too, not for other patients alone."""
        return self.degrees > 0

    def variant(self, name: str) -> Variant:
        """Return a variant by its name."""
        return next(item for item in self.variants if item.name == name)


def compare_variants(runs: Mapping[str, Sequence[Macro]]) -> Compared:
    """Return estimates of all variants and the tests against the best.

    Args:
        runs: By variant, the macro AUROC of the runs that differ in the seed alone; all on the
            same patients.
    """
    seed_error, degrees = pooled_spread([[run.value for run in group] for group in runs.values()])
    variants = []
    for name, group in runs.items():
        values = np.array([run.value for run in group])
        influence = np.mean([run.influence for run in group], axis=0)
        variance = dot(influence, influence)
        spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        free = min(run.degrees for run in group)
        half = _half_width(variance, _over(seed_error, 1 / len(group)), free, degrees)
        mean = float(values.mean())
        estimate = Estimate(mean, *_on_logit_scale(mean, half))
        variants.append(
            Variant(
                name,
                tuple(values.tolist()),
                influence,
                math.sqrt(variance),
                estimate,
                spread,
                free,
            )
        )
    best = max(variants, key=lambda item: item.estimate.value)
    others = [item for item in variants if item is not best]
    found = []
    for item in others:
        change = item.influence - best.influence
        share = 1 / len(item.values) + 1 / len(best.values)
        patients, seeds = dot(change, change), _over(seed_error, share)
        value = item.estimate.value - best.estimate.value
        by_patient = min(item.patient_degrees, best.patient_degrees)
        half = _half_width(patients, seeds, by_patient, degrees)
        error = math.sqrt(patients + seeds)
        free = _degrees(patients, seeds, by_patient, degrees)
        p_value = float(2 * stats.t.sf(abs(value) / error, free)) if error > 0 else math.nan
        found.append((item.name, Estimate(value, value - half, value + half), p_value))
    adjusted = holm([p_value for _, _, p_value in found]).tolist()
    differences = tuple(
        Difference(name, estimate, p_value, float(p_holm))
        for (name, estimate, p_value), p_holm in zip(found, adjusted, strict=True)
    )
    return Compared(tuple(variants), best.name, differences, seed_error, degrees)


def pooled_spread(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation over seeds, pooled over groups, and its degrees of freedom."""
    degrees = sum(len(group) - 1 for group in groups)
    if degrees == 0:
        return math.nan, 0
    squares = sum(float(((np.array(g) - np.mean(g)) ** 2).sum()) for g in groups)
    return math.sqrt(squares / degrees), degrees


def _over(seed_error: float, share: float) -> float:
    return 0.0 if math.isnan(seed_error) else seed_error**2 * share


def _pooled(pairs: Sequence[tuple[float, float]]) -> float:
    known = np.array([pair for pair in pairs if pair[0] > 0])
    return float(pooled_degrees(known[:, 0], known[:, 1])[0]) if len(known) else math.inf


def _degrees(patients: float, seeds: float, by_patient: float, by_seed: int) -> float:
    """Return Satterthwaite's degrees of freedom of the sum of both variances."""
    parts = patients**2 / by_patient + (seeds**2 / by_seed if seeds else 0.0)
    return (patients + seeds) ** 2 / parts if parts > 0 else math.inf


def _half_width(patients: float, seeds: float, by_patient: float, by_seed: int) -> float:
    free = _degrees(patients, seeds, by_patient, by_seed)
    quantile = stats.norm.ppf(0.5 + LEVEL / 2)
    if math.isfinite(free):
        quantile = stats.t.ppf(0.5 + LEVEL / 2, free)
    return float(quantile) * math.sqrt(patients + seeds)


def _on_logit_scale(value: float, half: float) -> tuple[float, float]:
    """Return the interval symmetric on the logit scale: it cannot leave (0, 1)."""
    if not 0 < value < 1 or half <= 0:
        return math.nan, math.nan
    centre, reach = math.log(value / (1 - value)), half / (value * (1 - value))
    return 1 / (1 + math.exp(reach - centre)), 1 / (1 + math.exp(-reach - centre))
