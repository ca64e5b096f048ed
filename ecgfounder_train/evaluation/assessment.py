"""Everything a report says of one set of predictions, computed once: values, intervals, reasons."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.participants import known_groups
from ecgfounder_train.evaluation.tables import (
    NEEDS_PREVIOUS_ECG,
    Summary,
    label_table,
    summarise,
)
from ecgfounder_train.labels.maps import label_families
from ecgfounder_train.metrics import (
    Clusters,
    Comparison,
    Estimates,
    RankingIntervals,
    RunScores,
    agreement_intervals,
    clusters_from_keys,
    compare_runs,
    decision_intervals,
    net_benefit_interval,
    probability_intervals,
    ranking_intervals,
    subgroup_intervals,
)
from ecgfounder_train.metrics.estimates import Intervals
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.metrics.subgroups import Subgroup
from ecgfounder_train.weights.decisions import Decisions

Triple = tuple[float, float, float]

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
class GroupOfLabel:
    """What one label's numbers are among the records of one subgroup.

    Attributes:
        auroc, sensitivity, specificity, observed_expected: Value, lower and upper limit; NaN where
            too few patients.
    """

    label: str
    group: str
    num_positive_patients: int
    auroc: Triple
    sensitivity: Triple
    specificity: Triple
    observed_expected: Triple


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
    group_labels: Sequence[GroupOfLabel] = ()

    @property
    def alone(self) -> NDArray[np.bool_]:
        """Which labels one trace can show, (K,); the others compare with a previous ECG."""
        notes = self.table["note"].to_list()
        return np.array([NEEDS_PREVIOUS_ECG not in (note or "") for note in notes], np.bool_)


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
        extra |= _threshold_columns(predictions, decisions, threshold, clusters)
        decided = decision_intervals(*arrays, thresholds=chosen, **common)
        for name in DECISION_METRICS:
            extra |= {
                name: decided[name].value,
                f"{name}_lower": decided[name].lower,
                f"{name}_upper": decided[name].upper,
            }
        calibrated = probability_intervals(*arrays, calibration=decisions.calibration, **common)
        extra |= {name: estimates.value for name, estimates in calibrated.items()}
    calibration = decisions.calibration if decisions is not None else None
    for name, agreement in agreement_intervals(*arrays, calibration=calibration, **common).items():
        extra |= {
            name: agreement.value,
            f"{name}_lower": agreement.lower,
            f"{name}_upper": agreement.upper,
        }
    paired = []
    for name, other in (controls or {}).items():
        control = _control(name, predictions, other, clusters)
        extra[f"auroc_{name.replace(' ', '_')}"] = control.ranking.auroc.value
        paired.append(control)
    table = table.with_columns(
        pl.Series(name, values, strict=False) for name, values in extra.items()
    )
    groups_of = known_groups(predictions)
    subgroups = subgroup_intervals(*arrays, groups=groups_of, **common) if groups_of else []
    return Assessment(
        predictions,
        clusters,
        table,
        summarise(table),
        ranking,
        decisions,
        threshold if decisions is not None else "",
        subgroups,
        paired,
        tuple(_confusions(predictions, decisions, threshold)) if decisions is not None else (),
        tuple(_group_labels(predictions, subgroups, clusters, decisions, threshold)),
    )


def _threshold_columns(
    predictions: Predictions, decisions: Decisions, threshold: str, clusters: Clusters
) -> dict[str, Any]:
    """Return the chosen thresholds as logits and probabilities, their reasons and net benefit."""
    chosen = decisions.thresholds[threshold]
    cuts = np.asarray(chosen.values, np.float64)
    known = ~np.isnan(cuts)
    as_rows = np.where(known, cuts, 0.0)[None]
    probabilities = np.where(known, decisions.calibration.apply(as_rows)[0], np.nan)
    benefit = np.full((3, len(cuts)), np.nan)
    for column in np.flatnonzero(known & (probabilities < 1)):
        seen = predictions.observed[:, column] == 1
        positive = predictions.targets[seen, column] == 1
        if positive.any():
            called = predictions.logits[seen, column] >= cuts[column]
            benefit[:, column] = net_benefit_interval(
                called, positive, probabilities[column], clusters.codes[seen]
            )
    return {
        "threshold_logit": chosen.values,
        "threshold_probability": probabilities,
        "threshold_reason": list(chosen.reasons),
        "threshold_positive_patients": [pair[0] for pair in chosen.num_patients] or None,
        "calibration": [curve.method for curve in decisions.calibration.curves],
        "net_benefit": benefit[0],
        "net_benefit_lower": benefit[1],
        "net_benefit_upper": benefit[2],
    }


def _group_labels(
    predictions: Predictions,
    subgroups: Sequence[Subgroup],
    clusters: Clusters,
    decisions: Decisions | None,
    threshold: str,
) -> Iterator[GroupOfLabel]:
    """Yield the labels of every subgroup that have patients enough for an interval there."""
    calibration = decisions.calibration if decisions is not None else None
    for group in subgroups:
        arrays = tuple(
            array[group.rows]
            for array in (predictions.logits, predictions.targets, predictions.observed)
        )
        _, codes = np.unique(clusters.codes[group.rows], return_inverse=True)
        own = Clusters(codes.astype(np.int32), group.num_patients, clusters.by)
        common: dict[str, Any] = {"patients": own, "labels": predictions.labels}
        agreement = agreement_intervals(*arrays, calibration=calibration, **common)
        decided: dict[str, Any] = {}
        if decisions is not None:
            cuts = decisions.thresholds[threshold]
            decided = decision_intervals(*arrays, thresholds=cuts, **common)
        for column, label in enumerate(predictions.labels):
            if group.auroc.reasons[column] is not None:
                continue
            yield GroupOfLabel(
                label,
                f"{group.attribute}: {group.value}",
                int(group.auroc.num_positive_patients[column]),
                _triple(group.auroc, column),
                _triple(decided.get("sensitivity"), column),
                _triple(decided.get("specificity"), column),
                _triple(agreement["observed_expected"], column),
            )


def _triple(item: Estimates | Intervals | None, column: int) -> Triple:
    if item is None:
        return np.nan, np.nan, np.nan
    return float(item.value[column]), float(item.lower[column]), float(item.upper[column])


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
