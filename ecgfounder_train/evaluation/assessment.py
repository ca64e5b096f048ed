"""Everything a report says of one set of predictions, computed once: values, intervals, reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.tables import Summary, label_table, summarise
from ecgfounder_train.labels.maps import label_families
from ecgfounder_train.metrics import (
    Clusters,
    Comparison,
    RankingIntervals,
    RunScores,
    age_bands,
    clusters_from_keys,
    compare_runs,
    decision_intervals,
    probability_intervals,
    ranking_intervals,
    rate_names,
    subgroup_intervals,
)
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.metrics.subgroups import Subgroup
from ecgfounder_train.weights.decisions import Decisions

DECISION_METRICS = ("sensitivity", "specificity", "ppv", "npv", "f1")
MIN_CONFUSED = 5
"""Positives of a label from which its row in a table of confusions says anything."""


@dataclass(frozen=True)
class Control:
    """The same records seen by something the model must beat."""

    name: str
    ranking: RankingIntervals
    comparison: Comparison


@dataclass(frozen=True)
class Confusion:
    """What the records of each label of a family are called.

    Shape:
        share: (number of rows, number of labels); the last row is "none of these".
    """

    family: str
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    counts: tuple[int, ...]
    share: NDArray[np.float64]


@dataclass(frozen=True)
class Assessment:
    """Predictions with all that was computed from them."""

    predictions: Predictions
    clusters: Clusters
    table: pl.DataFrame
    summary: Summary
    ranking: RankingIntervals
    decisions: Decisions | None = None
    threshold: str = ""
    subgroups: Sequence[Subgroup] = ()
    controls: Sequence[Control] = ()
    confusions: Sequence[Confusion] = field(default_factory=tuple)


def assess(
    predictions: Predictions,
    notes: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    decisions: Decisions | None = None,
    threshold: str = "youden",
    controls: Mapping[str, Predictions] | None = None,
) -> Assessment:
    """Return the numbers of one evaluation.

    Args:
        predictions: One row per record; pool windows before.
        notes: Remarks per label.
        groups: Group per label.
        decisions: Thresholds and calibration fitted on validation.
        threshold: Which of the decisions' thresholds; see `decisions.RULES`.
        controls: Predictions for the same records, by what made them.

    Raises:
        UserError: A counted logit is NaN, or a control has other records or labels.
    """
    table = label_table(predictions, notes, groups)
    clusters = clusters_from_keys(predictions.patient_key, predictions.record_key)
    arrays = (predictions.logits, predictions.targets, predictions.observed)
    common: dict[str, Any] = {"patients": clusters, "labels": predictions.labels}
    ranking = ranking_intervals(*arrays, **common)
    extra: dict[str, Any] = {}
    for name, estimates in (("auroc", ranking.auroc), ("auprc", ranking.average_precision)):
        extra |= {f"{name}_lower": estimates.lower, f"{name}_upper": estimates.upper}
    extra["num_positive_patients"] = ranking.auroc.num_positive_patients
    extra["interval_reason"] = list(ranking.auroc.reasons)
    if decisions is not None:
        decisions = decisions.for_labels(predictions.labels)
        if threshold not in decisions.thresholds:
            raise UserError(
                f"threshold={threshold!r} is unknown. Valid: {', '.join(decisions.thresholds)}."
            )
        chosen = decisions.thresholds[threshold]
        extra["threshold_logit"] = chosen.values
        decided = decision_intervals(*arrays, thresholds=chosen, **common)
        for name in DECISION_METRICS:
            extra |= {
                name: decided[name].value,
                f"{name}_lower": decided[name].lower,
                f"{name}_upper": decided[name].upper,
            }
        calibrated = probability_intervals(*arrays, calibration=decisions.calibration, **common)
        extra |= {name: estimates.value for name, estimates in calibrated.items()}
    paired = []
    for name, other in (controls or {}).items():
        control = _control(name, predictions, other, clusters)
        extra[f"auroc_{name.replace(' ', '_')}"] = control.ranking.auroc.value
        paired.append(control)
    table = table.with_columns(
        pl.Series(name, values, strict=False) for name, values in extra.items()
    )
    return Assessment(
        predictions,
        clusters,
        table,
        summarise(table),
        ranking,
        decisions,
        threshold if decisions is not None else "",
        _subgroups(predictions, arrays, common),
        paired,
        tuple(_confusions(predictions, decisions, threshold)) if decisions is not None else (),
    )


def run_scores(predictions: Predictions, clusters: Clusters, name: str) -> RunScores:
    """Return predictions in the form paired comparisons take."""
    return RunScores(
        predictions.logits,
        predictions.targets,
        predictions.observed,
        predictions.record_key,
        clusters,
        predictions.labels,
        name,
    )


def _control(
    name: str, predictions: Predictions, other: Predictions, clusters: Clusters
) -> Control:
    if other.labels != predictions.labels:
        raise UserError(f"The control {name} has other labels than the predictions.")
    place = {key: row for row, key in enumerate(other.record_key.tolist())}
    absent = [key for key in predictions.record_key.tolist() if key not in place]
    if absent or len(other) != len(predictions):
        raise UserError(f"The control {name} was computed for other records.")
    logits = other.logits[[place[key] for key in predictions.record_key.tolist()]]
    silent = np.isnan(logits).all(axis=0)
    observed = predictions.observed * ~silent
    own = replace(predictions, observed=observed.astype(np.uint8))
    theirs = replace(own, logits=np.where(silent, 0, logits).astype(np.float32))
    ranking = ranking_intervals(
        theirs.logits, theirs.targets, theirs.observed, patients=clusters, labels=theirs.labels
    )
    comparison = compare_runs(
        run_scores(own, clusters, "model"), run_scores(theirs, clusters, name)
    )
    return Control(name, ranking, comparison)


def _subgroups(
    predictions: Predictions, arrays: tuple[Any, ...], common: Mapping[str, Any]
) -> Sequence[Subgroup]:
    attributes = {
        "site": predictions.site.tolist(),
        "sex": predictions.sex.tolist(),
        "age band": age_bands(predictions.age_years),
        "sampling rate": rate_names(predictions.native_fs),
    }
    # An attribute nobody knows, or that is the same for all, splits nothing.
    groups = {name: values for name, values in attributes.items() if len(set(values)) > 1}
    return subgroup_intervals(*arrays, groups=groups, **common) if groups else ()


def _confusions(
    predictions: Predictions, decisions: Decisions, threshold: str
) -> Sequence[Confusion]:
    values = np.asarray(decisions.thresholds[threshold].values, np.float64)
    # A label without a threshold calls nothing.
    called = predictions.logits >= np.where(np.isnan(values), np.inf, values)
    truth = (predictions.targets == 1) & (predictions.observed == 1)
    found = []
    for family, labels in label_families(predictions.labels).items():
        columns = [predictions.labels.index(label) for label in labels]
        columns = [c for c in columns if not np.isnan(values[c]) and truth[:, c].sum()]
        rows = [c for c in columns if truth[:, c].sum() >= MIN_CONFUSED]
        if len(rows) < 2:
            continue
        members = [truth[:, c] for c in rows] + [~truth[:, columns].any(axis=1)]
        members = [member for member in members if member.any()]
        names = [predictions.labels[c] for c in rows] + ["none of these"]
        found.append(
            Confusion(
                family,
                tuple(predictions.labels[c] for c in columns),
                tuple(names[: len(members)]),
                tuple(int(member.sum()) for member in members),
                np.stack([called[member][:, columns].mean(axis=0) for member in members]),
            )
        )
    return found
