"""Metrics: our intervals and patient bootstrap against scikit-learn's bootstrap.

Both draw the same kind of resample (patients with replacement) and compute AUROC and average
precision of every label. scikit-learn is measured on some labels of some resamples and
extrapolated, without the time it takes to gather the drawn rows.
"""

import resource
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import bootstrap, ranking_intervals
from ecgfounder_train.metrics.kernels import num_cores


@dataclass(frozen=True)
class Settings:
    """Size of the held-out set of the published model, and how much of the reference is timed."""

    num_records: int = 834_926
    num_patients: int = 146_570
    num_labels: int = 150
    num_resamples: int = 1000
    reference_labels: int = 8
    reference_resamples: int = 1
    seed: int = 0


SMALL: dict[str, Any] = {
    "num_records": 60_000,
    "num_patients": 10_500,
    "num_labels": 20,
    "num_resamples": 200,
    "reference_labels": 4,
}


def run(settings: Settings) -> Outcome:
    """Return the seconds of both sides, and how far apart their values are.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError as error:
        raise UserError("The reference needs scikit-learn: pip install scikit-learn.") from error
    compile_kernels()
    logits, targets, patients = held_out_set(settings)
    start, cpu_start = time.perf_counter(), time.process_time()
    areas, precisions = ranking_intervals(logits, targets, patients=patients)
    intervals_s, intervals_cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    start, cpu_start = time.perf_counter(), time.process_time()
    resampled = bootstrap(
        logits,
        targets,
        patients=patients,
        num_resamples=settings.num_resamples,
        seed=settings.seed,
        metrics=("auroc", "average_precision"),
    )
    bootstrap_s, bootstrap_cpu_s = time.perf_counter() - start, time.process_time() - cpu_start

    # Evenly over the prevalences, for scikit-learn's time depends on them.
    columns = np.linspace(0, settings.num_labels - 1, settings.reference_labels).astype(int)
    scikit_s, scikit_cpu_s = 0.0, 0.0
    worst = 0.0
    for resample in range(settings.reference_resamples + 1):
        # The whole set first, untimed: do both sides compute the same?
        times = np.ones(settings.num_patients, np.int64)
        if resample:
            drawn = np.random.default_rng([settings.seed, resample])
            picked = drawn.integers(0, settings.num_patients, settings.num_patients)
            times = np.bincount(picked, minlength=settings.num_patients)
        rows = np.repeat(np.arange(len(patients)), times[patients])
        for column in columns:
            truth, scores = targets[rows, column], logits[rows, column]
            start, cpu_start = time.perf_counter(), time.process_time()
            values = roc_auc_score(truth, scores), average_precision_score(truth, scores)
            if resample:
                scikit_s += time.perf_counter() - start
                scikit_cpu_s += time.process_time() - cpu_start
            else:
                ours = areas.value[column], precisions.value[column]
                worst = max(worst, *(abs(a - b) for a, b in zip(values, ours, strict=True)))
    # One process of scikit-learn uses one core; a fair reference runs one on each of ours.
    share = settings.num_labels * settings.num_resamples / len(columns)
    share /= settings.reference_resamples * num_cores()
    scikit_s, scikit_cpu_s = scikit_s * share, scikit_cpu_s * share
    per_core_cpu_s = bootstrap_cpu_s / num_cores()
    spread = resampled["auroc"].standard_error / areas.standard_error
    record = {
        "ratio": round(scikit_s / bootstrap_s, 1),
        "ratio_cpu": round(scikit_cpu_s / per_core_cpu_s, 1),
        "intervals_s": round(intervals_s, 2),
        "intervals_cpu_s": round(intervals_cpu_s, 2),
        "peak_bytes": peak_bytes,
        "bootstrap_s": round(bootstrap_s, 1),
        "bootstrap_cpu_s": round(bootstrap_cpu_s, 1),
        "scikit_learn_s_extrapolated": round(scikit_s),
        "largest_difference": worst,
        "median_ratio_of_standard_errors": round(float(np.nanmedian(spread)), 4),
        "num_records": settings.num_records,
        "num_patients": settings.num_patients,
        "num_labels": settings.num_labels,
        "num_resamples": settings.num_resamples,
    }
    timed = settings.reference_resamples * len(columns)
    of_all = settings.num_labels * settings.num_resamples
    rows_of_table: list[tuple[str, float | str, float | str]] = [
        ("", "wall s", "CPU s"),
        ("AUROC + average precision + intervals", intervals_s, intervals_cpu_s),
        (f"ours, {settings.num_resamples:,} patient resamples", bootstrap_s, bootstrap_cpu_s),
        (
            f"scikit-learn, extrapolated from {timed} of {of_all:,} label resamples",
            scikit_s,
            scikit_cpu_s * num_cores(),
        ),
    ]
    lines = [
        f"{settings.num_records:,} ECGs of {settings.num_patients:,} patients x "
        f"{settings.num_labels} labels, {num_cores()} cores",
        *(f"{name:<66}{_cell(wall)}{_cell(cpu)}" for name, wall, cpu in rows_of_table),
        f"Bootstrap against bootstrap: {record['ratio']:,} times by the clock, "
        f"{record['ratio_cpu']:,} by CPU time.",
        f"Peak memory with data and intervals {peak_bytes / 1e9:.2f} GB; largest difference to "
        f"scikit-learn {worst:.1e}.",
    ]
    return Outcome("\n".join(lines), record)


def held_out_set(
    settings: Settings,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32]]:
    """Return logits, targets and patients like a trained model's on a held-out set.

    Prevalences from 0.4 to 0.0005; a patient's records share part of their score and their label.
    """
    rng = np.random.default_rng(settings.seed)
    num_records, num_patients = settings.num_records, settings.num_patients
    # Every patient once, the rest at random with a heavy tail, as in a hospital's archive.
    appetite = rng.pareto(1.5, num_patients) + 0.1
    more = rng.choice(num_patients, num_records - num_patients, p=appetite / appetite.sum())
    patients = np.sort(np.concatenate([np.arange(num_patients), more])).astype(np.int32)
    logits = np.empty((num_records, settings.num_labels), np.float32)
    targets = np.empty((num_records, settings.num_labels), np.uint8)
    for label, prevalence in enumerate(np.geomspace(0.4, 0.0005, settings.num_labels)):
        prone = rng.beta(prevalence * 2, (1 - prevalence) * 2, num_patients)[patients]
        positive = rng.random(num_records) < prone
        own = rng.standard_normal(num_records, dtype=np.float32)
        shared = rng.standard_normal(num_patients, dtype=np.float32)[patients]
        separation = rng.uniform(0.3, 3)
        targets[:, label] = positive
        logits[:, label] = 0.8 * own + 0.6 * shared + separation * positive + np.log(prevalence)
    return logits, targets, patients


def compile_kernels() -> None:
    """Run both once on a few records, so that compiling is not timed."""
    tiny = Settings(num_records=200, num_patients=50, num_labels=2)
    logits, targets, patients = held_out_set(tiny)
    ranking_intervals(logits, targets, patients=patients)
    bootstrap(logits, targets, patients=patients, num_resamples=2, metrics=("auroc",))


def _cell(value: float | str) -> str:
    return f"{value:>12}" if isinstance(value, str) else f"{value:>12,.1f}"
