"""The report of one evaluation: one HTML file with figures, and its table as CSV beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train import __version__
from ecgfounder_train.core.small_cells import MIN_CELL, is_small
from ecgfounder_train.evaluation.assessment import DECISION_METRICS, Assessment, assess
from ecgfounder_train.evaluation.participants import add_checklists, add_participants, withheld
from ecgfounder_train.evaluation.tables import (
    MIN_POSITIVES,
    has_small_cell,
    summarise,
    write_label_csv,
)
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.figures import (
    CalibrationPoints,
    Cell,
    Column,
    Curve,
    DecisionCurve,
    ForestSeries,
    HtmlPage,
    Undefined,
    Withheld,
    WithInterval,
    WithNote,
    auroc_by_prevalence_figure,
    calibration_figure,
    confusion_figure,
    forest_figure,
    label_figure,
    precision_recall_figure,
    prevalence_figure,
    roc_figure,
    strip_figure,
    training_figure,
)
from ecgfounder_train.metrics import (
    AGREEMENT,
    MacroEstimate,
    OperatingPoints,
    calibration_curve,
    net_benefit,
    operating_points,
)
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.weights.decisions import Decisions

_NUM_CURVES = 6
_NUM_CALIBRATIONS = 8
_NUM_FOREST = 40
_NUM_SINGLE = 24
_METHODS = {"isotonic": "isotonic", "platt": "Platt", "none": "sigmoid"}
_ALPHA = 0.05
_LOCAL_ONLY = (
    "Local only: this page shows ECGs of single patients. It must not leave this machine; share "
    "the report, which holds no signal."
)


def write_report(
    path: Path | str,
    predictions: Predictions,
    metrics_csv: Path | str | None = None,
    title: str = "",
    provenance: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    *,
    decisions: Decisions | None = None,
    threshold: str = "youden",
    controls: Mapping[str, Predictions] | None = None,
    excluded: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
    mistakes_page: str = "",
    seen_in_training: bool | None = None,
    flow: Mapping[str, int] | None = None,
) -> Path:
    """Write the report and, beside it, the label table under the same name with `.csv`.

    Args:
        path: Of the HTML file.
        predictions: What to evaluate, one row per record; no model is needed.
        metrics_csv: Log of the training; without it the training section says so.
        title: Heading; made from the run's name when empty.
        provenance: Rows of the provenance table beyond those the predictions know.
        notes: Remarks per label, from `label_notes`.
        groups: Group per label, as the vocabulary has them; several groups get means of their own.
        decisions: Thresholds and calibration fitted on validation.
        threshold: Which of the decisions' thresholds decides; see `decisions.RULES`.
        controls: Predictions for the same records, by what made them.
        excluded: Labels of the model that are not evaluated, with the reason.
        remarks: More sentences for the cautions.
        mistakes_page: File beside the report with the most confident mistakes.
        seen_in_training: Whether the model was trained on these records; None: not known.
        flow: Counts of records before the evaluation, for the participants.

    Raises:
        UserError: A counted logit is NaN, a control has other records, or the folder cannot be
            written.
    """
    assessment = assess(predictions, notes, groups, decisions, threshold, controls)
    return write_assessment(
        path,
        assessment,
        metrics_csv,
        title,
        provenance,
        excluded=excluded,
        remarks=remarks,
        mistakes_page=mistakes_page,
        seen_in_training=seen_in_training,
        flow=flow,
    )


def write_assessment(
    path: Path | str,
    assessment: Assessment,
    metrics_csv: Path | str | None = None,
    title: str = "",
    provenance: Mapping[str, str] | None = None,
    *,
    excluded: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
    mistakes_page: str = "",
    seen_in_training: bool | None = None,
    flow: Mapping[str, int] | None = None,
) -> Path:
    """Write the report of numbers that were computed before; see `write_report`."""
    path = Path(path)
    predictions, table = assessment.predictions, assessment.table
    defined = assessment.summary.auroc.num_labels
    csv_path = write_label_csv(path.with_suffix(".csv"), table)
    page = HtmlPage(
        title or f"Evaluation of {predictions.run_name or 'predictions without a run'}",
        _what_was_evaluated(predictions),
    )
    _add_summary(page, assessment, remarks, seen_in_training)
    add_participants(page, predictions, assessment.clusters, flow or {})
    if defined:
        _add_discrimination(page, assessment)
    if assessment.controls:
        _add_controls(page, assessment)
    if assessment.decisions is not None and defined:
        _add_decisions(page, assessment)
    if defined:
        _add_calibration(page, assessment)
    if assessment.confusions:
        _add_confusions(page, assessment)
    if assessment.subgroups:
        _add_subgroups(page, assessment)
    _add_prevalence(page, predictions, table)
    _add_label_table(page, assessment, csv_path.name)
    if defined:
        _add_single_labels(page, assessment)
    if excluded:
        _add_excluded(page, excluded)
    if mistakes_page:
        page.section("Most confident mistakes")
        page.paragraph(
            "ECGs of single patients, on a page of their own that must not leave this machine:"
        )
        page.link(mistakes_page, mistakes_page)
    _add_training(page, metrics_csv)
    _add_provenance(page, predictions, provenance or {})
    _add_method(page, assessment)
    add_checklists(page)
    return page.write(path, f"ecgfounder_train {__version__}. Research use only.")


def _what_was_evaluated(predictions: Predictions) -> str:
    records = f"{predictions.num_records:,} records"
    if predictions.num_patients is not None:
        records += f" of {predictions.num_patients:,} patients"
    splits = sorted({split for split in predictions.split.tolist() if split})
    part = f", split {' and '.join(splits)}" if splits else ""
    return f"{records}{part}, {predictions.num_labels} labels"


def _labels(count: int) -> str:
    return f"{count} label{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"


def _add_summary(
    page: HtmlPage, assessment: Assessment, remarks: Sequence[str], seen_in_training: bool | None
) -> None:
    predictions, summary = assessment.predictions, assessment.summary
    areas = assessment.ranking.auroc.macro(assessment.alone)
    page.section("Summary")
    cards = []
    if areas.num_labels:
        precisions = assessment.ranking.average_precision.macro(assessment.alone)
        cards += [
            (
                _number(areas.value),
                f"macro AUROC over the {_labels(areas.num_labels)} with at least {MIN_POSITIVES} "
                f"positive and negative patients, 95 % interval {areas.lower:.3f} to "
                f"{areas.upper:.3f}",
            ),
            (
                _number(precisions.value),
                f"macro average precision over {_labels(precisions.num_labels)}, 95 % interval "
                f"{precisions.lower:.3f} to {precisions.upper:.3f}",
            ),
        ]
    elif summary.auroc.num_labels:
        cards.append(
            (
                _number(summary.auroc.value),
                f"macro AUROC over {_labels(summary.auroc.num_labels)} without an interval: none "
                f"has {MIN_POSITIVES} positive and negative patients",
            )
        )
    else:
        cards.append(("\N{EN DASH}", "macro AUROC: no label has both positives and negatives"))
    cards.append((f"{predictions.num_records:,}", "records"))
    if predictions.num_patients is not None:
        cards.append((f"{predictions.num_patients:,}", "patients"))
    page.cards(cards)
    page.paragraph(_summary(assessment))
    _add_groups(page, assessment.table)
    page.bullets([assessment.clusters.note, *remarks, *_cautions(assessment, seen_in_training)])


def _add_groups(page: HtmlPage, table: pl.DataFrame) -> None:
    """Add the means of each group of labels, where the vocabulary has several."""
    groups = table.drop_nulls("group").partition_by("group", maintain_order=True)
    if len(groups) < 2:
        return
    rows: list[list[Cell]] = []
    for part in groups:
        means = summarise(part)
        rows.append(
            [part["group"][0], part.height]
            + [
                Undefined("no label with positives and negatives")
                if np.isnan(mean.value)
                else mean.value
                for mean in (means.auroc, means.auroc_enough, means.auprc)
            ]
        )
    page.table(
        [
            Column("group of labels"),
            Column("labels", ",.0f"),
            Column("macro AUROC", ".3f"),
            Column(f"macro AUROC, {MIN_POSITIVES}+ positives", ".3f"),
            Column("macro average precision", ".3f"),
        ],
        rows,
        "Means by group of the vocabulary.",
    )


def _summary(assessment: Assessment) -> str:
    table, summary, area = assessment.table, assessment.summary, assessment.ranking.auroc
    if not summary.auroc.num_labels:
        return (
            "No label has both a positive and a negative among these records, so nothing about the "
            "model's discrimination can be said."
        )
    sentences = []
    counted = area.macro(assessment.alone)
    if counted.num_labels:
        sentences.append(
            f"With 95 % confidence for all labels together, at least {area.num_above(0.95)} labels "
            f"have an AUROC above 0.95 and at least {area.num_above(0.9)} above 0.90"
        )
    enough = table.filter(
        pl.Series([reason is None for reason in area.reasons], dtype=pl.Boolean)
    ).sort("auroc", descending=True)
    if enough.height >= 8:
        best, worst = (
            ", ".join(
                f"{row['label']} ({row['auroc']:.3f}, {row['auroc_lower']:.3f} to "
                f"{row['auroc_upper']:.3f})"
                for row in rows.head(3).to_dicts()
            )
            for rows in (enough, enough.reverse())
        )
        sentences.append(
            f"Of the {enough.height} labels with at least {MIN_POSITIVES} positive and negative "
            f"patients, the best are {best}; the worst {worst}"
        )
    for control in assessment.controls:
        macro = control.comparison.macro
        if macro.num_labels:
            sentences.append(
                f"Over {macro.num_labels} labels the model is {abs(macro.difference):.3f} "
                f"{'above' if macro.difference >= 0 else 'below'} {control.name} (95 % interval of "
                f"the difference {macro.lower:+.3f} to {macro.upper:+.3f})"
            )
    sentences.append(
        f"Over all {summary.auroc.num_labels} labels where it is defined, however few their "
        f"positives, the mean AUROC is {summary.auroc.value:.3f}; it has no interval"
    )
    return ". ".join(sentences) + "."


def _cautions(assessment: Assessment, seen_in_training: bool | None) -> Iterable[str]:
    predictions, table = assessment.predictions, assessment.table
    if seen_in_training:
        yield (
            "The model was trained on these records: the numbers measure memory, not "
            "generalisation."
        )
    elif seen_in_training is None and "train" in predictions.split.tolist():
        yield (
            "Some records are of a split that is named train. If the model was trained on this "
            "split, the numbers measure memory, not generalisation."
        )
    apart = table.filter(~pl.Series(assessment.alone, dtype=pl.Boolean))
    compared = assessment.ranking.auroc.macro(~assessment.alone)
    if apart.height:
        yield (
            f"{_labels(apart.height)} state{'s' if apart.height == 1 else ''} a comparison with a "
            "previous ECG, which one trace does not show, and are not in the means above"
            + (
                f" (mean AUROC {compared.value:.3f}, {compared.lower:.3f} to {compared.upper:.3f}, "
                f"over the {compared.num_labels} of them with enough patients)."
                if compared.num_labels
                else "."
            )
        )
    undefined = table.filter(pl.col("undefined_reason").is_not_null())
    if undefined.height:
        counts = undefined["undefined_reason"].value_counts(sort=True).rows()
        reasons = ", ".join(f"{reason}: {count}" for reason, count in counts)
        yield (
            f"{undefined.height} labels have no AUROC ({reasons}). They are left out of every "
            "mean, not counted as zero."
        )
    few = sum(
        reason is None and why is not None and why.startswith("fewer than")
        for reason, why in table.select("undefined_reason", "interval_reason").rows()
    )
    if few:
        yield (
            f"{few} label{' has' if few == 1 else 's have'} fewer than {MIN_POSITIVES} positive or "
            "negative patients: no interval, no place in the means, and values that are mostly "
            "chance."
        )
    if (share := 1 - float(predictions.observed.mean() if len(predictions) else 1)) > 0:
        yield f"{share:.1%} of the answers were not observed and do not count either way."
    if len(predictions) > predictions.num_records:
        yield (f"Some records have several windows; all {len(predictions):,} windows count singly.")


def _add_provenance(page: HtmlPage, predictions: Predictions, more: Mapping[str, str]) -> None:
    page.section("Provenance")
    rows = {"run": predictions.run_name or "unknown"}
    rows |= predictions.provenance | dict(more)
    rows |= {
        f"fingerprint of the {name.replace('_', ' ')}": value
        for name, value in predictions.fingerprints.items()
    }
    if sites := sorted({site for site in predictions.site.tolist() if site}):
        rows["sites"] = ", ".join(sites)
    if rates := np.unique(predictions.native_fs[~np.isnan(predictions.native_fs)]).tolist():
        rows["recorded at"] = ", ".join(f"{rate:g}" for rate in rates) + " Hz"
    rows["report made with"] = f"ecgfounder_train {__version__}"
    page.definitions(rows)


def _add_training(page: HtmlPage, metrics_csv: Path | str | None) -> None:
    page.section("Training")
    series, x_label = read_training_log(metrics_csv)
    figure = training_figure(series, x_label)
    if figure is None:
        page.paragraph("No training log was given, or it holds no measurements.", hint=True)
        return
    page.figure(
        figure,
        "Pale: as logged; strong: running mean. Points: single measurements.",
        "Training curves: loss, validation AUROC, learning rate and speed over samples seen",
    )


def _main_labels(table: pl.DataFrame, limit: int) -> list[int]:
    """Return the columns of the labels with most positive patients, 10 or more."""
    worthy = (
        table.with_row_index("column")
        .filter(pl.col("auroc").is_not_nan() & (pl.col("num_positive_patients") >= MIN_POSITIVES))
        .sort("num_positive_patients", descending=True)
    )
    return worthy["column"].head(limit).to_list()


def _points(predictions: Predictions, column: int) -> OperatingPoints:
    return operating_points(
        predictions.logits[:, column],
        predictions.targets[:, column],
        predictions.observed[:, column],
    )


def _add_discrimination(page: HtmlPage, assessment: Assessment) -> None:
    predictions, table = assessment.predictions, assessment.table
    page.section("Discrimination")
    _add_forest(page, assessment)
    roc, precision_recall = [], []
    for column in _main_labels(table, _NUM_CURVES):
        one, other = _curves(predictions, table, column)
        roc.append(one)
        precision_recall.append(other)
    if roc:
        page.figure(
            roc_figure(roc),
            f"ROC curves of the {len(roc)} labels with most positive patients.",
            _spoken("ROC curves", roc),
        )
        page.figure(
            precision_recall_figure(precision_recall),
            "Precision and recall of the same labels. A guessing model's precision is the "
            "prevalence, so curves of different labels do not compare.",
            _spoken("Precision-recall curves", precision_recall),
        )
    else:
        page.paragraph(
            f"No label has {MIN_POSITIVES} positive patients and a negative: no curve is drawn.",
            hint=True,
        )
    shown = _without_small(table)
    page.figure(
        auroc_by_prevalence_figure(
            shown["prevalence"].fill_nan(0),
            shown["auroc"],
            shown["num_positives"],
            shown["label"].to_list(),
            MIN_POSITIVES,
        ),
        "Each label's AUROC against how often it occurs. The weakest labels are named; the further "
        "left, the more of the spread is chance.",
        "AUROC by prevalence",
    )


def _add_forest(page: HtmlPage, assessment: Assessment) -> None:
    table = assessment.table
    shown = np.array(_main_labels(table, _NUM_FOREST), dtype=np.int64)
    if not len(shown):
        return
    shown = shown[np.argsort(-table["auroc"].to_numpy()[shown], kind="stable")]
    columns = [("model", assessment.ranking)]
    columns += [(control.name, control.ranking) for control in assessment.controls]
    page.figure(
        forest_figure(
            [assessment.predictions.labels[c] for c in shown],
            [
                ForestSeries(
                    name,
                    ranking.auroc.value[shown],
                    ranking.auroc.lower[shown],
                    ranking.auroc.upper[shown],
                )
                for name, ranking in columns
            ],
            reference=0.5,
        ),
        f"AUROC with 95 % intervals of the {len(shown)} labels with most positive patients (at "
        f"least {MIN_POSITIVES}). Hollow and without a bar: no interval.",
        "AUROC per label with intervals",
    )


def _curves(predictions: Predictions, table: pl.DataFrame, column: int) -> tuple[Curve, Curve]:
    row = table.row(column, named=True)
    points = _points(predictions, column)
    return (
        Curve(
            row["label"],
            points.false_positive_rate,
            points.sensitivity,
            f"AUROC {row['auroc']:.3f}, {row['num_positives']:,} positives",
        ),
        Curve(
            row["label"],
            points.sensitivity[1:],
            points.precision,
            f"AP {row['auprc']:.3f}, prevalence {row['prevalence']:.1%}",
        ),
    )


def _add_controls(page: HtmlPage, assessment: Assessment) -> None:
    page.section("Controls")
    rows: list[list[Cell]] = []
    for control in assessment.controls:
        areas = control.ranking.auroc.macro()
        macro = control.comparison.macro
        adjusted = np.asarray(control.comparison.p_holm, np.float64)
        better = np.asarray(control.comparison.difference) > 0
        sure = np.nan_to_num(adjusted, nan=1.0) < _ALPHA
        rows.append(
            [
                control.name,
                WithInterval(areas.value, areas.lower, areas.upper),
                WithInterval(macro.difference, macro.lower, macro.upper),
                macro.p_value,
                int((sure & better).sum()),
                int((sure & ~better).sum()),
                macro.num_labels,
            ]
        )
    page.table(
        [
            Column("Control"),
            Column("Macro AUROC", ".3f"),
            Column("Model minus control", "+.3f"),
            Column("p", ".2g"),
            Column("Labels model better", "d", "at 5 % after Holm"),
            Column("Labels control better", "d", "at 5 % after Holm"),
            Column("Labels compared", "d"),
        ],
        rows,
        "The same records seen by what the model must beat; paired, clustered, Holm over labels.",
    )


def _add_decisions(page: HtmlPage, assessment: Assessment) -> None:
    decisions = assessment.decisions
    assert decisions is not None
    page.section("Decisions")
    own = set(assessment.predictions.split.tolist()) == {"val"}
    page.paragraph(
        f"{decisions.summary(assessment.threshold)} A label gets either only from "
        f"{MIN_POSITIVES} positive and {MIN_POSITIVES} negative patients on."
        + (
            " The records evaluated here are validation records: where they are those of the fit, "
            "the numbers below and the calibration are optimistic."
            if own
            else ""
        )
    )
    rows: list[list[Cell]] = []
    missing: dict[str, list[str]] = {}
    ordered = assessment.table.sort(
        "num_positive_patients", descending=True, maintain_order=True
    ).to_dicts()
    for row in ordered:
        if row["undefined_reason"]:
            continue
        if np.isnan(row["threshold_logit"]):
            missing.setdefault(str(row["threshold_reason"]), []).append(row["label"])
            continue
        if has_small_cell(row):
            rows.append([row["label"], _patients(row), *[Withheld("withheld")] * 8])
            continue
        rows.append(
            [
                row["label"],
                _patients(row),
                row["threshold_probability"],
                row["threshold_positive_patients"],
                *[
                    WithInterval(row[name], row[f"{name}_lower"], row[f"{name}_upper"])
                    for name in (*DECISION_METRICS, "net_benefit")
                ],
            ]
        )
    if rows:
        page.table(
            [
                Column("Label"),
                Column("Positive patients", ",d"),
                Column("Threshold", ".3g", "probability; the logit is in the CSV"),
                Column("Fitted on", ",d", "positive validation patients"),
                Column("Sensitivity", ".3f"),
                Column("Specificity", ".3f"),
                Column("PPV", ".3f"),
                Column("NPV", ".3f"),
                Column("F1", ".3f"),
                Column("Net benefit", "+.4f", "per record, against calling nobody positive"),
            ],
            rows,
            "With 95 % intervals by patient; a dash where fewer than 10 patients are in the "
            "denominator.",
            filterable=True,
        )
    page.bullets(
        f"No threshold, {reason}: {len(names)} label{'' if len(names) == 1 else 's'} "
        f"({', '.join(names)})."
        for reason, names in missing.items()
    )


def _add_confusions(page: HtmlPage, assessment: Assessment) -> None:
    page.section("Confusion of related labels")
    page.paragraph(
        "Of the records that state the finding on the left (in brackets: how many), the share that "
        "the model calls each finding above. A record can have several; rows do not add up to one."
    )
    for confusion in assessment.confusions:
        page.figure(
            confusion_figure(confusion.rows, confusion.labels, confusion.share, confusion.counts),
            f"{confusion.family[0].upper()}{confusion.family[1:]}.",
            f"Confusion among {confusion.family}",
        )


def _add_subgroups(page: HtmlPage, assessment: Assessment) -> None:
    page.section("Subgroups")
    rows: list[list[Cell]] = []
    hidden: dict[str, list[Cell]] = {}
    for attribute in dict.fromkeys(group.attribute for group in assessment.subgroups):
        groups = [group for group in assessment.subgroups if group.attribute == attribute]
        hidden[attribute] = withheld([group.num_records for group in groups])
    for group in assessment.subgroups:
        records = hidden[group.attribute].pop(0)
        rows.append(
            [
                f"{group.attribute}: {group.value}",
                records,
                records if isinstance(records, Withheld) else _count(group.num_patients),
                group.auroc_group.num_labels,
                _macro_cell(group.auroc_group),
                _macro_cell(group.auroc_rest),
                WithInterval(*group.auroc_difference),
            ]
        )
    page.table(
        [
            Column("Group"),
            Column("Records", ",d"),
            Column("Patients", ",d"),
            Column("Labels", "d", f"with {MIN_POSITIVES} positive patients in the group and rest"),
            Column("Macro AUROC", ".3f"),
            Column("The rest, same labels", ".3f"),
            Column("Difference", "+.3f"),
        ],
        rows,
        "Each group against all other records, over the labels that have enough patients in both. "
        "Several groups are looked at: of twenty intervals one misses by chance.",
    )
    if not assessment.group_labels:
        return
    page.details("Label by label in each group")
    page.table(
        [
            Column("Label"),
            Column("Group"),
            Column("Positive patients", ",d"),
            Column("AUROC", ".3f"),
            Column("Sensitivity", ".3f"),
            Column("Specificity", ".3f"),
            Column("Observed : expected", ".2f", "positives over the sum of probabilities"),
        ],
        [
            [
                item.label,
                item.group,
                item.num_positive_patients,
                WithInterval(*item.auroc),
                WithInterval(*item.sensitivity),
                WithInterval(*item.specificity),
                WithInterval(*item.observed_expected),
            ]
            for item in assessment.group_labels
        ],
        f"Labels with at least {MIN_POSITIVES} positive and negative patients in the group.",
        filterable=True,
    )
    page.end_details()


def _macro_cell(macro: MacroEstimate) -> Cell:
    return WithInterval(macro.value, macro.lower, macro.upper)


def _patients(row: Mapping[str, Any]) -> Cell:
    patients: int = row["num_positive_patients"]
    if is_small(patients):
        return Withheld(f"<{MIN_CELL}")
    return Withheld("withheld") if has_small_cell(row) else patients


def _add_excluded(page: HtmlPage, excluded: Mapping[str, str]) -> None:
    page.section("Labels that are not evaluated")
    page.table(
        [Column("Label"), Column("Why")],
        [[label, reason] for label, reason in excluded.items()],
        f"{len(excluded)} labels of the model have no answer in this data set.",
        filterable=True,
    )


def _spoken(kind: str, curves: Iterable[Curve]) -> str:
    return f"{kind}: " + "; ".join(f"{curve.name}, {curve.note}" for curve in curves)


def _add_prevalence(page: HtmlPage, predictions: Predictions, table: pl.DataFrame) -> None:
    page.section("Prevalence")
    shown = _without_small(table)
    page.figure(
        prevalence_figure(
            shown["num_positives"], shown["num_observed"], shown["label"].to_list(), MIN_POSITIVES
        ),
        "How often each label is positive among the records where it was observed.",
        "Prevalence by label",
    )


def _without_small(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows whose counts may be shown."""
    return table.filter([not has_small_cell(row) for row in table.to_dicts()])


def _count(count: int | None) -> Cell:
    return Withheld(f"<{MIN_CELL}") if count is not None and is_small(count) else count


def _positives(row: Mapping[str, Any]) -> Cell:
    positives: int = row["num_positives"]
    if is_small(positives):
        return Withheld(f"<{MIN_CELL}")
    return Withheld("withheld") if has_small_cell(row) else positives


def _probabilities(assessment: Assessment) -> NDArray[np.float64]:
    if assessment.decisions is not None:
        return np.asarray(assessment.decisions.calibration.apply(assessment.predictions.logits))
    return _sigmoid(assessment.predictions.logits)


def _calibration_points(
    assessment: Assessment, probabilities: NDArray[np.float64], column: int
) -> CalibrationPoints:
    predictions = assessment.predictions
    curve = calibration_curve(
        probabilities[:, column].clip(0, 1),
        predictions.targets[:, column],
        predictions.observed[:, column],
        patients=assessment.clusters.codes,
        split_top=True,
    )
    return CalibrationPoints(
        predictions.labels[column], curve.predicted, curve.frequency, curve.lower, curve.upper
    )


def _add_calibration(page: HtmlPage, assessment: Assessment) -> None:
    shown = _main_labels(assessment.table, _NUM_CALIBRATIONS)
    if not shown:
        return
    page.section("Calibration")
    probabilities, decisions = _probabilities(assessment), assessment.decisions
    page.paragraph(
        "Nothing was recalibrated: probabilities are the sigmoid of the logits."
        if decisions is None
        else f"Calibrated: {decisions.calibration.summary} labels, on {decisions.fitted_on}. The "
        "others have the sigmoid of the logits."
    )
    page.figure(
        calibration_figure([_calibration_points(assessment, probabilities, c) for c in shown]),
        "Observed frequency against mean predicted probability in tenths of equally many records, "
        "the highest tenth split further, with 95 % intervals by patient. On the dotted line "
        "probabilities are right; below it the model is overconfident.",
        "Calibration of the labels with most positive patients",
    )
    rows: list[list[Cell]] = []
    for column in _main_labels(assessment.table, len(assessment.table)):
        row = assessment.table.row(column, named=True)
        rows.append(
            [row["label"], _patients(row)]
            + ([] if decisions is None else [_METHODS[row["calibration"]]])
            + [
                WithInterval(row[name], row[f"{name}_lower"], row[f"{name}_upper"])
                for name in AGREEMENT
            ]
        )
    page.table(
        [Column("Label"), Column("Positive patients", ",d")]
        + ([] if decisions is None else [Column("Calibration")])
        + [
            Column("Slope", ".2f", "1 is right; below it the model is overconfident"),
            Column("Intercept", "+.2f", "0 is right; above it risks are underestimated"),
            Column("Observed : expected", ".2f", "1 is right"),
        ],
        rows,
        f"Labels with at least {MIN_POSITIVES} positive patients, with 95 % intervals by patient.",
        filterable=True,
    )


def _add_single_labels(page: HtmlPage, assessment: Assessment) -> None:
    shown = _main_labels(assessment.table, _NUM_SINGLE)
    if not shown:
        return
    page.section("Label by label")
    page.paragraph(
        "ROC, precision-recall, calibration (whole and near the threshold) and decision curve of "
        f"the {len(shown)} labels with most positive patients (at least {MIN_POSITIVES}). The dot "
        "and the vertical line are the threshold. Those that are open are printed.",
        hint=True,
    )
    probabilities = _probabilities(assessment)
    for column in shown:
        row = assessment.table.row(column, named=True)
        roc, precision_recall = _curves(assessment.predictions, assessment.table, column)
        dot = None
        if "sensitivity" in row and not np.isnan(row["sensitivity"] + row["specificity"]):
            dot = (1 - row["specificity"], row["sensitivity"])
        page.details(
            f"{row['label']}: AUROC {row['auroc']:.3f}, {row['num_positive_patients']:,} positive "
            "patients" + (f". {row['note']}" if row["note"] else "")
        )
        page.figure(
            label_figure(
                roc,
                precision_recall,
                row["prevalence"],
                _calibration_points(assessment, probabilities, column),
                _decision_curve(assessment, probabilities, column),
                dot,
            ),
            "",
            f"{row['label']}: {roc.note}",
        )
        page.end_details()


def _decision_curve(
    assessment: Assessment, probabilities: NDArray[np.float64], column: int
) -> DecisionCurve:
    """Return net benefit over threshold probabilities up to three times those in use."""
    predictions, row = assessment.predictions, assessment.table.row(column, named=True)
    seen = predictions.observed[:, column] == 1
    cut = row.get("threshold_probability", np.nan)
    used = max(row["prevalence"], 0.0 if np.isnan(cut) else cut)
    thresholds = np.linspace(0, min(3 * used, 0.99), 100)
    model, everyone = net_benefit(
        probabilities[seen, column], predictions.targets[seen, column] == 1, thresholds
    )
    return DecisionCurve(thresholds, model, everyone, float(cut))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # By tanh, which does not overflow where exp would.
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _add_label_table(page: HtmlPage, assessment: Assessment, csv_name: str) -> None:
    page.section("All labels")
    calibrated = "brier" in assessment.table.columns
    columns = [
        Column("Label"),
        Column("Positive patients", ",d"),
        Column("Positives", ",d", "records"),
        Column("Observed", ",d", "records in which the label's answer is known"),
        Column("Prevalence %", ".2f"),
        Column("AUROC", ".3f"),
        Column("AUPRC", ".3f", "average precision; a guessing model's equals the prevalence"),
    ]
    columns += [Column(f"AUROC of {control.name}", ".3f") for control in assessment.controls]
    if calibrated:
        columns += [
            Column("Brier", ".4f", "mean squared error of the calibrated probability"),
            Column("Calibration error", ".4f", "mean over tenths of |observed - predicted|"),
        ]
    rows = []
    precision_reasons = dict(
        zip(assessment.table["label"], assessment.ranking.average_precision.reasons, strict=True)
    )
    ordered = assessment.table.sort("num_positive_patients", descending=True, maintain_order=True)
    for row in ordered.to_dicts():
        reason = row["undefined_reason"]
        cells: list[Cell] = [
            WithNote(row["label"], row["note"]) if row["note"] else row["label"],
            _patients(row),
            _positives(row),
            row["num_observed"],
            Withheld("withheld")
            if has_small_cell(row)
            else 100 * row["prevalence"]
            if row["num_observed"]
            else None,
        ]
        for name, why in (
            ("auroc", row["interval_reason"]),
            ("auprc", precision_reasons[row["label"]]),
        ):
            cells.append(
                Undefined(reason)
                if reason
                else WithInterval(row[name], row[f"{name}_lower"], row[f"{name}_upper"], why or "")
            )
        cells += [row[f"auroc_{c.name.replace(' ', '_')}"] for c in assessment.controls]
        if calibrated:
            cells += [row["brier"], row["calibration_error"]]
        rows.append(cells)
    page.table(
        columns,
        rows,
        f"Most positive patients first; click a header to sort. The same as CSV: {csv_name}",
        filterable=True,
    )


def _add_method(page: HtmlPage, assessment: Assessment) -> None:
    page.section("How the numbers are made")
    lines = [
        "AUROC: the share of (positive, negative) pairs in which the positive has the higher "
        "score, ties counting half. Exact, over observed answers only.",
        "AUPRC: average precision, the mean over positives of the precision at their score.",
        "Intervals (95 %): Obuchowski's clustered variance for AUROC, with a limit near 1 that "
        "allows for one more misranked patient; the influence function per patient for AUPRC; "
        "Student's quantiles; none below ten positive or ten negative patients. The interval of a "
        "mean uses the covariance between labels.",
        "The numbers of labels above 0.95 and 0.90 rest on one-sided lower limits that hold for "
        "all labels together (Holm).",
        "A label without positives or without negatives has neither AUROC nor AUPRC. It is in no "
        "mean; each mean states its number of labels.",
        "Calibration slope and intercept: logistic regression of the answer on the logit of the "
        "probability, with a sandwich variance by patient. Net benefit: true positives less false "
        "positives at the exchange rate of the threshold probability, per record.",
    ]
    if assessment.decisions is not None:
        lines.append(
            "Thresholds and calibration were fitted on the validation split of the data that the "
            "model was trained or fine-tuned on, and applied unchanged."
        )
    if assessment.controls:
        lines.append(
            "A control `untrained + probe` is the same network with random weights and a linear "
            "head fitted on the run's training split. Differences are tested paired and clustered, "
            "Holm over labels."
        )
    page.bullets(lines)


@dataclass(frozen=True)
class Strip:
    """One ECG for a page of strips; keys and findings, never a name, path or date.

    Shape:
        signal: (num_leads, num_samples) in mV, at `fs` Hz.
    """

    signal: ArrayLike
    fs: float
    lead_names: tuple[str, ...]
    title: str = ""
    subtitle: str = ""
    note: str = ""
    caption: str = ""

    def figure(self) -> Figure:
        """Return the ECG on paper."""
        return strip_figure(
            self.signal,
            self.fs,
            self.lead_names,
            self.title,
            self.subtitle,
            self.note,
            mark="Local only. Research use only",
        )


def write_strips_page(
    path: Path | str, strips: Iterable[Strip], title: str = "ECG strips", introduction: str = ""
) -> Path:
    """Write a page of ECGs that is marked local-only, true to scale on A4 landscape.

    Raises:
        UserError: A strip's signal does not fit, or the folder cannot be written.
    """
    page = HtmlPage(title, banner=_LOCAL_ONLY, landscape=True)
    if introduction:
        page.paragraph(introduction)
    page.paragraph(
        "Printed at 100 % on A4, a large box is 5 mm: 0.2 s and 0.5 mV. Turn off the printer's "
        "fitting to the page.",
        hint=True,
    )
    for strip in strips:
        page.figure(strip.figure(), strip.caption, strip.title, true_scale=True)
    return page.write(path)
