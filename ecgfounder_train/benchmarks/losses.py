"""Losses when positives go missing: synthetic archives whose readers leave out true statements.

The same patients and recordings are written once per share of missed positives
(`missed_positives` of simulate.py), so the archives differ in what the physicians say alone. Each
loss trains the same small network on each of them; all are scored against the true statements of
held-out patients. Statements are left out completely at random, each with the same probability.
"""

import csv
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.benchmarks._archive import prepared
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.splits import PatientSplit

LOSSES: dict[str, tuple[str, ...]] = {
    "bce": ("loss=bce",),
    "bce, pos_weight=split": ("loss=bce", "loss.pos_weight=split"),
    "pu_hill": ("loss=pu_hill",),
    "focal": ("loss=focal",),
    "asymmetric": ("loss=asymmetric",),
}
"""Name in the table -> arguments of scripts/pretrain.py."""

METRICS = ("auroc", "average_precision")
_NETWORK = (
    "model=net1d_3m_100hz",
    "+model.widths=[16,32,64,128]",
    "+model.depths=[1,1,1,1]",
    "+model.base_filters=16",
    "+model.stem_stride=4",
)
_ROWS_LOST = ("exact_duplicates", "missing_files", "missing_metadata", "blank_patient_ids")
"""Quirks that would hit other records in each archive."""


@dataclass(frozen=True)
class Settings:
    """How much is simulated and trained.

    Args:
        num_patients: Of the archive; 4.9 recordings each.
        missed: Shares of the true statements that readers leave out.
        losses: Some of `LOSSES`.
        num_seeds: Runs of each loss, which differ in weights and order.
        samples: ECGs a run sees.
        lr: Learning rate of every loss.
        num_resamples: Of the held-out patients, for intervals.
        min_patients: Labels with fewer positive patients in the held-out part do not count.
        folder: Where archives and runs are made and kept: the same command goes on there. None: in
            the system's temporary folder, deleted.
        save: Folder for losses.csv and losses.png; None: neither.
        seed: Of the archive.
    """

    num_patients: int = 1300
    missed: tuple[float, ...] = (0.0, 0.3, 0.6)
    losses: tuple[str, ...] = tuple(LOSSES)
    num_seeds: int = 2
    samples: int = 20_000
    lr: float = 3e-3
    num_resamples: int = 200
    min_patients: int = 15
    folder: str | None = None
    save: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "missed", tuple(float(share) for share in self.missed))
        object.__setattr__(self, "losses", tuple(self.losses))
        for name in self.losses:
            if name not in LOSSES:
                raise UserError(f"losses.losses: {name!r} is unknown." + did_you_mean(name, LOSSES))
        if "bce" not in self.losses or not self.missed:
            raise UserError("losses.losses must hold bce, the reference, and missed a share.")
        if min(self.num_seeds, self.samples, self.num_patients, self.min_patients) < 1:
            raise UserError("losses.num_seeds, samples, num_patients, min_patients start at 1.")
        if self.num_resamples < 2:
            raise UserError(f"losses.num_resamples={self.num_resamples} must be at least 2.")


SMALL: dict[str, Any] = {
    "num_patients": 60,
    "missed": (0.0, 0.6),
    "losses": ("bce", "pu_hill"),
    "num_seeds": 1,
    "samples": 640,
    "min_patients": 3,
}


@dataclass(frozen=True)
class _Truth:
    """The held-out recordings: true statements, patients as numbers, and which labels count."""

    targets: NDArray[np.uint8]
    patients: NDArray[np.int64]
    counted: NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """A loss at a share of missed positives: mean over seeds, and its difference to bce.

    Attributes:
        interval, difference_interval: 95 %, over resampled patients.
    """

    missed: float
    loss: str
    metric: str
    value: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    runs: tuple[float, ...]


def run(settings: Settings) -> Outcome:
    """Return each loss's macro AUROC and average precision of the true statements.

    `ratio` is what bce lacks to an AUROC of 1 over what pu_hill lacks, at the largest share missed
    (NaN where pu_hill was not trained).

    Raises:
        UserError: A setting is wrong, or the held-out part is too small.
    """
    with ExitStack() as stack:
        base = settings.folder or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bench-losses-")
        )
        folder = Path(base)
        shards = {share: _shards(folder, share, settings) for share in {0.0, *settings.missed}}
        truth: _Truth | None = None
        logits: dict[tuple[float, str], list[NDArray[np.float32]]] = {}
        for seed in range(settings.num_seeds):
            for share in settings.missed:
                for loss in settings.losses:
                    found = _train(folder, shards, share, loss, seed, settings)
                    truth = truth or _truth(found, shards[0.0], settings)
                    logits.setdefault((share, loss), []).append(found.logits)
        assert truth is not None
    scores = _scores(logits, truth, settings)
    if settings.save:
        _save(Path(settings.save), scores, settings)
    return _outcome(scores, truth, shards[0.0], settings)


def _shards(folder: Path, share: float, settings: Settings) -> ShardSet:
    """Return the shards of the archive whose readers leave out that share, made if need be."""
    from ecgfounder_train.simulate.settings import DEFAULTS

    sites = {
        name: {"missing_over_read": 0.0, "missing_acquisition": 0.0} for name in DEFAULTS["sites"]
    }
    archive = {
        "num_patients": settings.num_patients,
        "seed": settings.seed,
        "missed_positives": share,
        "bad_records": dict.fromkeys(DEFAULTS["bad_records"], 0.0),
        "sites": sites,
        **dict.fromkeys(_ROWS_LOST, 0),
    }
    return prepared(folder, archive, PatientSplit(test_fraction=0.3), mark=f"_{share:g}")


def _train(
    folder: Path,
    shards: Mapping[float, ShardSet],
    share: float,
    loss: str,
    seed: int,
    settings: Settings,
) -> Any:
    """Return what a run says of the held-out recordings, with their true statements."""
    import torch

    from ecgfounder_train.core.run_directory import RunDirectory
    from ecgfounder_train.evaluation.predict import predict_split
    from ecgfounder_train.training.pretrain import train
    from ecgfounder_train.weights.checkpoint import find_checkpoint
    from ecgfounder_train.weights.trained_model import TrainedModel

    name = f"missed{100 * share:g}_{list(LOSSES).index(loss)}_{seed}"
    arguments = [
        f"shards={shards[share].folder}",
        f"paths.runs={folder / 'runs'}",
        f"run={name}",
        *_NETWORK,
        *LOSSES[loss],
        "schedule=one_cycle",
        f"optimizer.lr={settings.lr}",
        "optimizer.weight_decay=0.05",
        "gradient_clip_norm=1.0",
        "data.global_batch_size=32",
        f"ema.half_life_samples={settings.samples / 8}",
        f"budget.max_samples={settings.samples}",
        # Once, at the end: nothing is chosen by validation, whose labels are as incomplete.
        f"budget.validate_every_samples={settings.samples}",
        "trainer=cpu",
        "trainer.num_threads=1",
        f"seed={seed}",
    ]
    config = OmegaConf.to_container(compose_config("pretrain", arguments), resolve=True)
    assert isinstance(config, dict)
    if code := train({str(key): value for key, value in config.items()}):
        # Stopped by a signal: what half a run says is not to be compared.
        raise SystemExit(code)
    last = find_checkpoint(RunDirectory(folder / "runs" / name), "last")
    # The vocabulary and the profile are the same, and so are the keys: only labels differ.
    return predict_split(TrainedModel.load(last), shards[0.0], "test", torch.device("cpu"), 256)


def _truth(found: Any, shards: ShardSet, settings: Settings) -> _Truth:
    from ecgfounder_train.labels import Vocabulary

    vocabulary = Vocabulary.load(str(shards.manifest.vocabulary["name"]))
    patients = np.unique(found.patient_key.astype(str), return_inverse=True)[1]
    # What compares with an earlier ECG cannot be seen in this one.
    visible = [entry.notes.get("needs_previous_ecg") != "yes" for entry in vocabulary.entries]
    positive = np.array(
        [len(np.unique(patients[column != 0])) for column in found.targets.T], np.int64
    )
    negative = np.array(
        [len(np.unique(patients[column == 0])) for column in found.targets.T], np.int64
    )
    counted = np.array(visible) & (np.minimum(positive, negative) >= settings.min_patients)
    if not counted.any():
        raise UserError(
            f"No label has {settings.min_patients} positive patients in the held-out part: raise "
            "losses.num_patients or lower losses.min_patients."
        )
    return _Truth(found.targets, patients, counted)


def _macros(logits: NDArray[np.float32], truth: _Truth, rows: NDArray[np.int64]) -> list[float]:
    """Return the macro of each metric over the counted labels of these rows."""
    from ecgfounder_train.metrics import ranking_metrics

    columns = truth.counted
    found = ranking_metrics(logits[rows][:, columns], truth.targets[rows][:, columns])
    # A rare label may be missing from a resample.
    return [float(np.nanmean(getattr(found, metric))) for metric in METRICS]


def _scores(
    logits: Mapping[tuple[float, str], list[NDArray[np.float32]]],
    truth: _Truth,
    settings: Settings,
) -> list[Score]:
    order = np.argsort(truth.patients, kind="stable")
    counts = np.bincount(truth.patients)
    ends = np.cumsum(counts)
    num_patients = len(counts)
    draws = [np.arange(len(truth.patients))]
    for number in range(settings.num_resamples):
        rng = np.random.default_rng([settings.seed, number])
        drawn = rng.integers(0, num_patients, num_patients)
        draws.append(
            np.concatenate(
                [order[ends[patient] - counts[patient] : ends[patient]] for patient in drawn]
            )
        )
    # (draws, seeds, metrics) of each run; the first draw is everybody once.
    found = {
        key: np.array([[_macros(one, truth, rows) for one in runs] for rows in draws])
        for key, runs in logits.items()
    }
    scores = []
    for (share, loss), values in found.items():
        for index, metric in enumerate(METRICS):
            mean = values[:, :, index].mean(1)
            difference = mean - found[share, "bce"][:, :, index].mean(1)
            scores.append(
                Score(
                    share,
                    loss,
                    metric,
                    float(mean[0]),
                    _interval(mean[1:]),
                    float(difference[0]),
                    _interval(difference[1:]),
                    tuple(values[0, :, index].tolist()),
                )
            )
    return scores


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _save(folder: Path, scores: list[Score], settings: Settings) -> None:
    from ecgfounder_train.figures import figure_png
    from ecgfounder_train.figures.losses import LossCurve, loss_figure

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "losses.csv", "w") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        names = ["value", "lower", "upper", "difference", "difference_lower", "difference_upper"]
        runs = [f"run_{number}" for number in range(settings.num_seeds)]
        writer.writerow(["missed", "loss", "metric", *names, *runs])
        for one in scores:
            numbers = [one.value, *one.interval, one.difference, *one.difference_interval]
            shown = [f"{number:.5f}" for number in [*numbers, *one.runs]]
            writer.writerow([one.missed, one.loss, one.metric, *shown])
    titles = {
        "auroc": "macro AUROC of the true statements",
        "average_precision": "macro average precision",
    }

    def curve(loss: str, metric: str) -> LossCurve:
        chosen = [one for one in scores if (one.loss, one.metric) == (loss, metric)]
        column: Callable[[int], list[float]] = lambda side: [one.interval[side] for one in chosen]  # noqa: E731
        shares, values = [one.missed for one in chosen], [one.value for one in chosen]
        return LossCurve(loss, shares, values, column(0), column(1))

    panels = [
        (titles[metric], [curve(loss, metric) for loss in settings.losses]) for metric in METRICS
    ]
    with atomic_file(folder / "losses.png") as handle:
        handle.write(figure_png(loss_figure(panels)))


def _outcome(scores: list[Score], truth: _Truth, shards: ShardSet, settings: Settings) -> Outcome:
    largest = max(settings.missed)
    lacks = {
        one.loss: 1 - one.value for one in scores if (one.missed, one.metric) == (largest, "auroc")
    }
    record: dict[str, Any] = {"ratio": round(lacks["bce"] / lacks.get("pu_hill", np.nan), 3)}
    lines = [
        f"{len(shards.rows('train')):,} training ECGs, {settings.samples:,} seen, "
        f"{settings.num_seeds} seed(s); {len(truth.targets):,} held-out ECGs of "
        f"{truth.patients.max() + 1:,} patients with their true statements, "
        f"{int(truth.counted.sum())} labels",
        f"{'missed':>6}  {'loss':<22}{'AUROC':>8}{'95 %':>16}{'to bce':>9}{'95 %':>20}"
        f"{'AP':>8}{'to bce':>9}{'95 %':>20}",
    ]
    by_name = {(one.missed, one.loss, one.metric): one for one in scores}
    for share in settings.missed:
        for loss in settings.losses:
            area, precision = (by_name[share, loss, metric] for metric in METRICS)
            lines.append(
                f"{100 * share:>5g}%  {loss:<22}{area.value:>8.4f}{_range(area.interval):>16}"
                f"{_change(area)}{precision.value:>8.4f}{_change(precision)}"
            )
            for one in (area, precision):
                key = f"{one.metric}_{100 * share:g}_{loss.replace(', pos_weight=', '_')}"
                record[key] = round(one.value, 5)
    record |= {
        "missed": list(settings.missed),
        "num_labels": int(truth.counted.sum()),
        "num_patients": settings.num_patients,
        "num_training_ecgs": len(shards.rows("train")),
        "num_test_ecgs": len(truth.targets),
        "num_seeds": settings.num_seeds,
        "samples": settings.samples,
        "lr": settings.lr,
    }
    return Outcome("\n".join(lines), record)


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"


def _change(score: Score) -> str:
    if score.loss == "bce":
        return f"{'':>29}"
    low, high = score.difference_interval
    return f"{score.difference:>+9.4f}{f'{low:+.4f} to {high:+.4f}':>20}"
