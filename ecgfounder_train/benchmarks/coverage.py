"""Coverage: how often 95 % intervals contain the truth, in simulated studies with a known truth.

A cell of the table is one AUROC and one number of positive patients; its studies differ in the
shape of the scores and in how many records a patient has. Every interval is made by the functions
that reports use. The Hanley-McNeil normal interval is the reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import norm

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.metrics import RunScores, compare_runs, ranking_intervals, subgroup_intervals

Float = NDArray[np.float64]

SHAPES = (
    "binormal",
    "binormal, wide positives",
    "binormal, narrow positives",
    "right-skewed",
    "left-skewed",
)
_BLOCK = 250
_Z = 1.959963984540054


@dataclass(frozen=True)
class Settings:
    """Cells and how many studies each has."""

    num_studies: int = 2000
    num_negative: int = 600
    areas: tuple[float, ...] = (0.6, 0.75, 0.9, 0.95, 0.98, 0.995)
    positives: tuple[int, ...] = (10, 25, 60, 200, 500)
    records: tuple[int, ...] = (1, 5)
    prevalences: tuple[float, ...] = (0.02, 0.005, 0.001)
    seed: int = 0


SMALL: dict[str, Any] = {
    "num_studies": 250,
    "areas": (0.75, 0.98),
    "positives": (10, 60),
    "prevalences": (0.02,),
}


@dataclass(frozen=True)
class Cell:
    """The studies of one truth: covered, and lower limits above or upper limits below the truth."""

    kind: str
    truth: float
    positives: int
    shape: str
    records: int
    covered: float
    above: float
    below: float
    reference: float = np.nan


def run(settings: Settings) -> Outcome:
    """Return the lowest and highest coverage over shapes and records, cell by cell."""
    singles = list(_single_areas(settings))
    others = [
        *_average_precisions(settings),
        *_means_and_differences(settings),
    ]
    lines = [
        f"Coverage in % of 95 % intervals, {settings.num_studies:,} studies for each of "
        f"{len(SHAPES)} shapes and {len(settings.records)} numbers of records: lowest to highest",
        "true AUROC" + "".join(f"{f'{number} positive':>16}" for number in settings.positives),
    ]
    table: dict[str, dict[str, list[float]]] = {}
    for area in settings.areas:
        row = table.setdefault(f"{area:g}", {})
        for number in settings.positives:
            found = [c.covered for c in singles if (c.truth, c.positives) == (area, number)]
            row[str(number)] = [round(min(found), 4), round(max(found), 4)]
        cells = "".join(f"{f'{100 * a:.1f} to {100 * b:.1f}':>16}" for a, b in row.values())
        lines.append(f"{area:<10g}{cells}")
    lines.extend(
        f"{cell.kind} ({cell.shape}, {cell.positives} positive, {cell.records} records): "
        f"{100 * cell.covered:.1f} %"
        for cell in others
    )
    covered = np.array([cell.covered for cell in singles])
    lines.append(
        f"Single AUROCs: {100 * covered.min():.1f} to {100 * covered.max():.1f} %, mean "
        f"{100 * covered.mean():.1f} %. Hanley-McNeil's: "
        f"{100 * min(cell.reference for cell in singles):.1f} to "
        f"{100 * max(cell.reference for cell in singles):.1f} %."
    )
    worst = sorted(singles, key=lambda cell: cell.covered)[:5]
    return Outcome(
        "\n".join(lines),
        {
            "ratio": round(float(covered.min() / min(c.reference for c in singles)), 2),
            "lowest": round(float(covered.min()), 4),
            "highest": round(float(covered.max()), 4),
            "mean": round(float(covered.mean()), 4),
            "share_of_cells_below_0.94": round(float((covered < 0.94).mean()), 4),
            "share_of_cells_above_0.985": round(float((covered > 0.985).mean()), 4),
            "num_studies": settings.num_studies,
            "num_negative_patients": settings.num_negative,
            "shapes": list(SHAPES),
            "records_of_a_patient": list(settings.records),
            "auroc": table,
            "lowest_cells": [_plain(cell) for cell in worst],
            "others": [_plain(cell) for cell in others],
        },
    )


def _plain(cell: Cell) -> dict[str, Any]:
    fields = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in vars(cell).items()
    }
    return {name: value for name, value in fields.items() if value == value}


def _scores(shape: str, area: float, normal: Float, positive: NDArray[np.bool_]) -> Float:
    """Return scores whose AUROC is `area`, from normal deviates.

    Shape:
        normal, result: (num_records, num_studies). positive: (num_records, 1).
    """
    if shape.startswith("binormal"):
        spread = {"binormal": 1.0, "binormal, wide positives": 2.0}.get(shape, 0.5)
        shift = float(ndtri(area)) * np.sqrt(1 + spread**2)
        scores: Float = np.where(positive, spread * normal + shift, normal)
        return scores
    sign = 1 if shape == "right-skewed" else -1
    exponential = -norm.logsf(sign * normal)
    skewed: Float = sign * exponential - np.log(2 * (1 - area)) * positive
    return skewed


def _patients(
    rng: np.random.Generator, positives: int, negatives: int, records: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the patient of each record and whether it is positive; up to `records` each."""
    sizes = rng.integers(1, records + 1, positives + negatives)
    patients = np.repeat(np.arange(positives + negatives), sizes)
    return patients, (patients < positives)[:, None]


def _normal(
    rng: np.random.Generator, patients: NDArray[np.int64], num_studies: int, shared: float = 0.6
) -> Float:
    """Return normal deviates of which records of one patient share a part of the variance."""
    own = rng.normal(size=(patients[-1] + 1, num_studies))[patients]
    if len(patients) == patients[-1] + 1:
        return own
    deviates: Float = np.sqrt(shared) * own + np.sqrt(1 - shared) * rng.normal(size=own.shape)
    return deviates


def _blocks(settings: Settings) -> Iterator[int]:
    done = 0
    while done < settings.num_studies:
        yield min(_BLOCK, settings.num_studies - done)
        done += _BLOCK


def _single_areas(settings: Settings) -> Iterator[Cell]:
    for area in settings.areas:
        for positives in settings.positives:
            for shape in SHAPES:
                for records in settings.records:
                    yield _single_area(settings, area, positives, shape, records)


def _single_area(settings: Settings, area: float, positives: int, shape: str, records: int) -> Cell:
    rng = np.random.default_rng([settings.seed, int(area * 1000), positives, records])
    above, below, missed = 0, 0, 0
    for number in _blocks(settings):
        patients, positive = _patients(rng, positives, settings.num_negative, records)
        scores = _scores(shape, area, _normal(rng, patients, number), positive)
        targets = np.repeat(positive, number, 1)
        found = ranking_intervals(scores.astype(np.float32), targets, patients=patients).auroc
        above += int((found.lower > area).sum())
        below += int((found.upper < area).sum())
        error = _hanley_mcneil(found.value, positive.sum(), len(positive) - positive.sum())
        missed += int((np.abs(found.value - area) > _Z * error).sum())
    total = settings.num_studies
    covered = 1 - (above + below) / total
    return Cell(
        "AUROC", area, positives, shape, records, covered, above / total, below / total,
        1 - missed / total,
    )  # fmt: skip


def _hanley_mcneil(value: Float, positives: int, negatives: int) -> Float:
    """Return the standard error that most papers report: of unclustered exponential scores."""
    first, second = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (positives - 1) * (first - value**2)
    variance = variance + (negatives - 1) * (second - value**2)
    return np.sqrt(np.maximum(variance, 0) / (positives * negatives))


def _average_precisions(settings: Settings) -> Iterator[Cell]:
    """Yield average precision by prevalence, of a weak and of a strong label."""
    for prevalence in settings.prevalences:
        for separation in (1.5, 2.5):
            positives = 15
            negatives = round(positives / prevalence) - positives
            truth = _true_precision(separation, positives / (positives + negatives))
            rng = np.random.default_rng([settings.seed, negatives, int(10 * separation)])
            above = below = 0
            # Blocks of at most 20 million scores.
            width = max(1, min(_BLOCK, 20_000_000 // (positives + negatives)))
            total = min(settings.num_studies, 2000)
            for start in range(0, total, width):
                number = min(width, total - start)
                targets = np.zeros((positives + negatives, number), np.uint8)
                targets[:positives] = 1
                scores = rng.normal(size=targets.shape).astype(np.float32) + separation * targets
                found = ranking_intervals(
                    scores.astype(np.float32), targets, patients=np.arange(len(targets))
                ).average_precision
                above += int((found.lower > truth).sum())
                below += int((found.upper < truth).sum())
            yield Cell(
                f"average precision {truth:.3f}", truth, positives, f"prevalence {prevalence:g}", 1,
                1 - (above + below) / total, above / total, below / total,
            )  # fmt: skip


def _true_precision(separation: float, prevalence: float) -> float:
    cuts = np.linspace(-9, 14, 200_001)
    hits, alarms = norm.sf(cuts - separation), norm.sf(cuts)
    precision = prevalence * hits / (prevalence * hits + (1 - prevalence) * alarms + 1e-300)
    return float(np.trapezoid(precision * norm.pdf(cuts - separation), cuts))


def _means_and_differences(settings: Settings) -> Iterator[Cell]:
    """Yield the mean over labels, a paired difference, and a group against the rest."""
    total = max(settings.num_studies // 4, 50)
    for area in (0.85, 0.98):
        for records in settings.records:
            outside = np.zeros((3, 2))
            rng = np.random.default_rng([settings.seed, int(area * 1000), records, 9])
            for _ in range(total):
                outside += _one_study(rng, area, records)
            outside /= total
            names = ("mean of 5 AUROCs", "paired difference of 2 means", "group less the rest")
            for name, (above, below) in zip(names, outside, strict=True):
                yield Cell(
                    name, area, 20, "binormal", records, 1 - above - below, above, below
                )  # fmt: skip


def _one_study(rng: np.random.Generator, area: float, records: int) -> Float:
    """Return whether each of three intervals is above and below its truth, shape (3, 2)."""
    patients, positive = _patients(rng, 40, 400, records)
    targets = np.repeat(positive, 5, 1)
    keys = np.arange(len(patients))
    common = _normal(rng, patients, 5)
    runs = [
        _scores("binormal", area, 0.8 * common + 0.6 * _normal(rng, patients, 5), positive)
        for _ in range(2)
    ]
    labels = tuple("ABCDE")
    mean = ranking_intervals(runs[0], targets, patients=patients, num_threads=1).auroc.macro()
    pair = [RunScores(scores, targets, None, keys, patients, labels) for scores in runs]
    paired = compare_runs(pair[0], pair[1], num_threads=1).macro
    group = subgroup_intervals(
        runs[0],
        targets,
        patients=patients,
        groups={"half": np.array(["a", "b"])[patients % 2]},
        num_threads=1,
    )[0].auroc_difference
    return np.array(
        [
            [mean.lower > area, mean.upper < area],
            [paired.lower > 0, paired.upper < 0],
            [group[1] > 0, group[2] < 0],
        ],
        np.float64,
    )
