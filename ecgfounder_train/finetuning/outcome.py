"""Report of the test split, written once: metrics with intervals by patient."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import yaml

from ecgfounder_train import __version__
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file, sha256_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.assessment import assess
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.evaluation.report import write_assessment
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.figures import (
    Cell,
    Column,
    HtmlPage,
    Undefined,
    WithInterval,
    agreement_figure,
    training_figure,
)
from ecgfounder_train.finetuning.task_shards import TaskShards
from ecgfounder_train.metrics import (
    RegressionEstimates,
    clusters_from_keys,
    ranking_intervals,
    regression_intervals,
)
from ecgfounder_train.metrics.predictions import Predictions, read_predictions, write_predictions
from ecgfounder_train.weights.checkpoint import BEST
from ecgfounder_train.weights.decisions import Decisions, decisions_file, reading_of
from ecgfounder_train.weights.trained_model import TrainedModel

RESULT_NAME = "result.json"


@dataclass(frozen=True)
class Reporting:
    """How a report is made.

    Attributes:
        device: Where the network runs.
        batch_size: Windows per forward pass.
        crops: Pieces of each window, their answers averaged.
        calibration, threshold: As of `configs/evaluate.yaml`.
        controls: Fine-tuned runs of the same task to compare with.
        words: Sentences on how the network came to be.
        features: Of a frozen network, per row of the index and crop: only its head is computed.
    """

    device: torch.device
    batch_size: int
    crops: int
    calibration: str
    threshold: str
    controls: tuple[RunDirectory, ...] = ()
    words: tuple[str, ...] = ()
    features: npt.NDArray[np.float32] | None = None


def read_result(run: RunDirectory) -> dict[str, Any] | None:
    """Return what `report` wrote for the run's best checkpoint, None before that."""
    path, best = run.evaluation("test") / RESULT_NAME, run.checkpoints / BEST
    if not path.is_file() or not best.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return result if result.get("checkpoint_sha256") == sha256_file(best) else None


def report(run: RunDirectory, shards: TaskShards, how: Reporting) -> dict[str, Any]:
    """Report the test split of a finished run, unless that has been done; return the numbers.

    The test split is looked at here and nowhere else: the checkpoint was chosen, and thresholds and
    calibration are fitted, on validation.

    Raises:
        UserError: The run has no best checkpoint, or a control has other records.
    """
    done = read_result(run)
    if done is not None:
        return done
    if not (run.checkpoints / BEST).is_file():
        raise UserError(
            f"Run {run.name!r} has no best checkpoint: no validation gave a finite "
            "checkpoint.monitor. Train longer, or look at metrics.csv."
        )
    if not len(shards.rows("test")):
        raise UserError("The task has no test records. Raise task.test_fraction or name folds.")
    trained = TrainedModel.load(run.checkpoints / BEST, how.device)
    regression = trained.outputs[0].kind == "regression"
    content = (_report_quantities if regression else _report_labels)(run, trained, shards, how)
    result = {
        "run": run.name,
        "task": shards.manifest.vocabulary["options"]["task"],
        "kind": "regression" if regression else "binary",
        "checkpoint_sha256": sha256_file(run.checkpoints / BEST),
        "samples_seen": trained.samples_seen,
        "num_train_windows": len(shards.rows("train")),
        "num_train_patients": len(np.unique(shards.patients[shards.rows("train")])),
        "num_test_records": content.pop("num_records"),
        "num_test_patients": len(np.unique(shards.patients[shards.rows("test")])),
        **content,
    }
    with atomic_file(run.evaluation("test") / RESULT_NAME, "w") as handle:
        json.dump(result, handle, indent=1)
    return result


def _predict(
    trained: TrainedModel, shards: TaskShards, split: str, run: RunDirectory, how: Reporting
) -> Predictions:
    """Return one row per record."""
    windows = predict_split(
        trained, shards, split, how.device, how.batch_size, run.name, how.crops, how.features
    )
    return pool_windows(windows, "mean")


def _facts(run: RunDirectory, trained: TrainedModel, how: Reporting) -> dict[str, str]:
    return {
        "checkpoint": f"best ({trained.samples_seen:,} samples seen)",
        "sha256 of the checkpoint": sha256_file(run.checkpoints / BEST),
        "model": trained.model_name,
        "signal profile": f"{trained.profile.name}, {trained.profile.fs:g} Hz",
        "crops": str(how.crops),
        "licence of the weights": trained.licence,
    }


def _report_labels(
    run: RunDirectory, trained: TrainedModel, shards: TaskShards, how: Reporting
) -> dict[str, Any]:
    best = run.checkpoints / BEST
    validation = _predict(trained, shards, "val", run, how)
    reading = reading_of("mean", how.crops, how.calibration)
    decisions = Decisions.fit(validation, sha256_file(best), reading, how.calibration)
    decisions.write(decisions_file(best))
    predictions = _predict(trained, shards, "test", run, how)
    folder = run.evaluation("test")
    write_predictions(folder / "predictions.parquet", predictions)
    assessment = assess(
        predictions,
        decisions=decisions,
        threshold=how.threshold,
        controls={control.name: _control(control) for control in how.controls},
    )
    write_assessment(
        folder / "report.html",
        assessment,
        run.metrics_file if run.metrics_file.is_file() else None,
        f"Fine-tuned run {run.name}, test split",
        _facts(run, trained, how),
        remarks=[*how.words, shards.summary(), *_positive_side(_task(run))],
        seen_in_training=False,
    )
    ranking = ranking_intervals(
        predictions.logits,
        predictions.targets,
        predictions.observed,
        patients=assessment.clusters,
        labels=predictions.labels,
    )
    macro = ranking.auroc.macro()
    defined = ranking.auroc.value[~np.isnan(ranking.auroc.value)]
    # Too few patients for any interval: the mean has none.
    value = macro.value if macro.num_labels else defined.mean() if len(defined) else np.nan
    return {
        "num_records": len(predictions),
        "score": {
            "metric": "macro AUROC" if len(predictions.labels) > 1 else "AUROC",
            "value": _plain(float(value)),
            "lower": _plain(macro.lower),
            "upper": _plain(macro.upper),
            "num_labels": macro.num_labels or len(defined),
        },
        "outputs": [
            {
                "name": label,
                **{
                    metric: [_plain(e.value[i]), _plain(e.lower[i]), _plain(e.upper[i])]
                    for metric, e in (
                        ("auroc", ranking.auroc),
                        ("average_precision", ranking.average_precision),
                    )
                },
                "num_positives": int(ranking.auroc.num_positives[i]),
                "reason": ranking.auroc.reasons[i],
            }
            for i, label in enumerate(predictions.labels)
        ],
    }


def _task(run: RunDirectory) -> dict[str, Any]:
    """Return the task's settings as the run keeps them."""
    content = yaml.safe_load(run.config_file.read_text(encoding="utf-8")) or {}
    task = content.get("task")
    return task if isinstance(task, dict) else {}


def _positive_side(task: Mapping[str, Any]) -> list[str]:
    """Return which side of which cut is positive where labels are made of numbers."""
    sides = [
        f"{side} {task[key]:g}" + (f" {task['unit']}" if task.get("unit") else "")
        for key, side in (("positive_below", "below"), ("positive_above", "above"))
        if task.get(key) is not None
    ]
    names = ", ".join(str(target) for target in task.get("targets") or ())
    return [f"A record is positive where {names} is {' or '.join(sides)}."] if sides else []


def _fold_errors(trained: TrainedModel, estimates: Mapping[str, RegressionEstimates]) -> list[str]:
    """Return the errors of logarithms as factors of the quantity itself."""
    mae = estimates["mae"]
    return [
        f"{output.name} is learnt and reported as its natural logarithm: on average a prediction "
        f"is off by a factor of {np.exp(mae.value[i]):.2f}"
        + (
            f" (95 % interval {np.exp(mae.lower[i]):.2f} to {np.exp(mae.upper[i]):.2f})."
            if np.isfinite(mae.lower[i])
            else "."
        )
        for i, output in enumerate(trained.outputs)
        if np.isfinite(mae.value[i])
    ]


def _control(run: RunDirectory) -> Predictions:
    path = run.evaluation("test") / "predictions.parquet"
    if not path.is_file():
        raise UserError(
            f"controls= names {run.name!r}, which has no {path.name} of a test split. Finish that "
            "run first."
        )
    return read_predictions(path)


def _report_quantities(
    run: RunDirectory, trained: TrainedModel, shards: TaskShards, how: Reporting
) -> dict[str, Any]:
    predictions = _predict(trained, shards, "test", run, how)
    rows = shards.rows("test")
    keys = shards.index["record_key"][rows].astype(str)
    value_of = dict(zip(keys.tolist(), shards.values[rows], strict=True))
    truth = np.stack([value_of[key] for key in predictions.record_key.tolist()]).astype(np.float64)
    mean = np.array([output.mean for output in trained.outputs])
    std = np.array([output.std for output in trained.outputs])
    guess = predictions.logits.astype(np.float64) * std + mean
    clusters = clusters_from_keys(predictions.patient_key, predictions.record_key)
    estimates = regression_intervals(guess, truth, patients=clusters)
    folder = run.evaluation("test")
    table = _quantity_table(trained, estimates)
    with atomic_file(folder / "report.csv") as handle:
        write_frame(table, handle)
    with atomic_file(folder / "predictions.parquet") as handle:
        _quantity_predictions(trained, predictions, guess, truth).write_parquet(handle)
    remarks = [*how.words, shards.summary(), clusters.note]
    if _task(run).get("transform") == "log":
        remarks += _fold_errors(trained, estimates)
    _quantity_page(run, trained, estimates, guess, truth, remarks, how)
    return {
        "num_records": len(predictions),
        "score": _headline(estimates),
        "outputs": [
            {
                "name": output.name,
                "unit": output.unit,
                **{
                    metric: [_plain(e.value[i]), _plain(e.lower[i]), _plain(e.upper[i])]
                    for metric, e in estimates.items()
                },
                "num_records": int(estimates["mae"].num_records[i]),
                "reason": estimates["r2"].reasons[i],
            }
            for i, output in enumerate(trained.outputs)
        ],
    }


def _headline(estimates: Mapping[str, RegressionEstimates]) -> dict[str, Any]:
    r2 = estimates["r2"]
    known = ~np.isnan(r2.value)
    one = int(known.sum()) == 1
    return {
        "metric": "R2" if len(known) == 1 else "mean R2",
        "value": _plain(float(r2.value[known].mean()) if known.any() else np.nan),
        # Quantities are correlated within a patient; an interval of their mean is not given.
        "lower": _plain(float(r2.lower[known][0])) if one else None,
        "upper": _plain(float(r2.upper[known][0])) if one else None,
        "num_labels": int(known.sum()),
    }


def _quantity_table(
    trained: TrainedModel, estimates: Mapping[str, RegressionEstimates]
) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "quantity": [output.name for output in trained.outputs],
        "unit": [output.unit for output in trained.outputs],
        "num_records": estimates["mae"].num_records,
        "num_patients": estimates["mae"].num_patients,
    }
    for name, found in estimates.items():
        columns |= {name: found.value, f"{name}_lower": found.lower, f"{name}_upper": found.upper}
    columns["reason"] = list(estimates["r2"].reasons)
    return pl.DataFrame(columns, schema_overrides={"reason": pl.String})


def _quantity_predictions(
    trained: TrainedModel,
    predictions: Predictions,
    guess: npt.NDArray[np.float64],
    truth: npt.NDArray[np.float64],
) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "record_key": predictions.record_key.tolist(),
        "patient_key": predictions.patient_key.tolist(),
        "split": predictions.split.tolist(),
    }
    for i, output in enumerate(trained.outputs):
        columns[f"{output.name} measured"] = truth[:, i]
        columns[f"{output.name} predicted"] = guess[:, i]
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def _quantity_page(
    run: RunDirectory,
    trained: TrainedModel,
    estimates: Mapping[str, RegressionEstimates],
    guess: npt.NDArray[np.float64],
    truth: npt.NDArray[np.float64],
    remarks: Sequence[str],
    how: Reporting,
) -> Path:
    page = HtmlPage(f"Fine-tuned run {run.name}, test split", f"{len(truth):,} test records")
    page.section("Summary")
    first = {name: found.value[0] for name, found in estimates.items()}
    output = trained.outputs[0]
    if len(trained.outputs) == 1:
        unit = f" {output.unit}" if output.unit else ""
        page.cards(
            [
                (f"{first['mae']:.3g}{unit}", "mean absolute error"),
                (f"{first['r2']:.3f}", "R2"),
                (f"{first['pearson']:.3f}", "Pearson's correlation"),
            ]
        )
    page.bullets(remarks)
    page.section("Quantities")
    page.table(
        [
            Column("quantity"),
            Column("unit"),
            Column("records", ",d"),
            Column("patients", ",d"),
            Column("MAE", ".3f", "mean absolute error, in the unit"),
            Column("RMSE", ".3f", "root mean squared error, in the unit"),
            Column("R2", ".3f", "against the mean of these records"),
            Column("Pearson", ".3f"),
            Column("Bias", "+.3f", "predicted less measured"),
            Column("Lower limit of agreement", "+.3f"),
            Column("Upper limit of agreement", "+.3f"),
        ],
        [
            [
                output.name,
                output.unit,
                int(estimates["mae"].num_records[i]),
                int(estimates["mae"].num_patients[i]),
                *(_cell(found, i) for found in estimates.values()),
            ]
            for i, output in enumerate(trained.outputs)
        ],
        "95 % intervals by patient. Limits of agreement: bias less and plus 1.96 standard "
        "deviations of the difference.",
    )
    page.section("Predicted against measured")
    for i, output in enumerate(trained.outputs[:12]):
        seen = ~np.isnan(truth[:, i])
        if seen.any():
            page.figure(
                agreement_figure(truth[seen, i], guess[seen, i], output.name, output.unit),
                f"{output.name}: dotted, the line of agreement; the darker, the more records.",
            )
    page.section("Training")
    series, x_label = read_training_log(run.metrics_file)
    figure = training_figure(series, x_label)
    if figure is None:
        page.paragraph("A linear probe is solved, not trained: it has no training log.", hint=True)
    else:
        page.figure(figure, "Pale: as logged; strong: running mean. Points: single measurements.")
    page.section("Provenance")
    page.definitions(_facts(run, trained, how) | {"report made with": f"version {__version__}"})
    path = run.evaluation("test") / "report.html"
    return page.write(path, f"ecgfounder_train {__version__}. Research use only.")


def _cell(found: RegressionEstimates, index: int) -> Cell:
    value = float(found.value[index])
    if np.isnan(value):
        return Undefined(found.reasons[index] or "undefined")
    lower, upper = float(found.lower[index]), float(found.upper[index])
    return WithInterval(value, lower, upper, found.reasons[index] or "")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def summary(result: Mapping[str, Any]) -> str:
    """Return one sentence with the result's main number."""
    score = result["score"]
    if score["value"] is None:
        return f"Test split of {result['run']}: {score['metric']} is undefined."
    interval = (
        f" (95 % interval {score['lower']:.3f} to {score['upper']:.3f})"
        if score["lower"] is not None
        else ""
    )
    return (
        f"Test split of {result['run']}: {score['metric']} {score['value']:.3f}{interval}, "
        f"{result['num_test_records']:,} records of {result['num_test_patients']:,} patients."
    )
