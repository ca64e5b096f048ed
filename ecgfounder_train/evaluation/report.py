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
from ecgfounder_train.metrics import OperatingPoints, calibration_curve, operating_points
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.weights.decisions import Decisions

_NUM_CURVES = 6
_NUM_CALIBRATIONS = 8
_NUM_FOREST = 40
_NUM_SINGLE = 24
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
    _add_summary(page, assessment, remarks)
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
    return page.write(path, f"ecgfounder_train {__version__}. Research use only.")


def _what_was_evaluated(predictions: Predictions) -> str:
    records = f"{predictions.num_records:,} records"
    if predictions.num_patients is not None:
        records += f" of {predictions.num_patients:,} patients"
    splits = sorted({split for split in predictions.split.tolist() if split})
    part = f", split {' and '.join(splits)}" if splits else ""
    return f"{records}{part}, {predictions.num_labels} labels"


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"


def _add_summary(page: HtmlPage, assessment: Assessment, remarks: Sequence[str]) -> None:
    predictions, table, summary = assessment.predictions, assessment.table, assessment.summary
    areas, precisions = (
        assessment.ranking.auroc.macro(),
        assessment.ranking.average_precision.macro(),
    )
    page.section("Summary")
    cards = [
        (
            _number(summary.auroc.value),
            f"macro AUROC over {summary.auroc.num_labels} of {summary.num_labels} labels",
        )
    ]
    if areas.num_labels:
        cards += [
            (
                _number(areas.value),
                f"macro AUROC over the {areas.num_labels} labels with at least {MIN_POSITIVES} "
                f"positive patients, 95 % interval {areas.lower:.3f} to {areas.upper:.3f}",
            ),
            (
                _number(precisions.value),
                f"macro average precision over {precisions.num_labels} labels, 95 % interval "
                f"{precisions.lower:.3f} to {precisions.upper:.3f}",
            ),
        ]
    page.cards([*cards, (f"{predictions.num_records:,}", "records")])
    page.paragraph(_summary(assessment))
    _add_groups(page, table)
    page.bullets([assessment.clusters.note, *remarks, *_cautions(predictions, table)])


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
    table, summary = assessment.table, assessment.summary
    if not summary.auroc.num_labels:
        return (
            "No label has both a positive and a negative among these records, so nothing about the "
            "model's discrimination can be said."
        )
    sentences = [
        f"The mean AUROC over the {summary.auroc.num_labels} labels where it is defined is "
        f"{summary.auroc.value:.3f}"
    ]
    enough = table.filter(
        pl.col("auroc").is_not_nan() & (pl.col("num_positives") >= MIN_POSITIVES)
    ).sort("auroc", descending=True)
    if enough.height >= 4:
        above = int((enough["auroc"] >= 0.9).sum())
        best = ", ".join(f"{r['label']} ({r['auroc']:.3f})" for r in enough.head(3).to_dicts())
        worst = ", ".join(
            f"{r['label']} ({r['auroc']:.3f})" for r in enough.reverse().head(3).to_dicts()
        )
        sentences.append(
            f"Of the {enough.height} labels with at least {MIN_POSITIVES} positives, {above} reach "
            f"0.9. The best are {best}; the worst {worst}"
        )
    for control in assessment.controls:
        macro = control.comparison.macro
        if macro.num_labels:
            sentences.append(
                f"Over {macro.num_labels} labels the model is {abs(macro.difference):.3f} "
                f"{'above' if macro.difference >= 0 else 'below'} {control.name} (95 % interval of "
                f"the difference {macro.lower:+.3f} to {macro.upper:+.3f})"
            )
    return ". ".join(sentences) + "."


def _cautions(predictions: Predictions, table: pl.DataFrame) -> Iterable[str]:
    if "train" in predictions.split.tolist():
        yield (
            "Records of the training split are among these: the numbers say how well the model "
            "remembers, not how well it generalises."
        )
    undefined = table.filter(pl.col("undefined_reason").is_not_null())
    if undefined.height:
        counts = undefined["undefined_reason"].value_counts(sort=True).rows()
        reasons = ", ".join(f"{reason}: {count}" for reason, count in counts)
        yield (
            f"{undefined.height} labels have no AUROC ({reasons}). They are left out of every "
            "mean, not counted as zero."
        )
    few = table.filter(
        pl.col("undefined_reason").is_null() & (pl.col("num_positives") < MIN_POSITIVES)
    ).height
    if few:
        yield (
            f"{few} labels have fewer than {MIN_POSITIVES} positives; their single values are "
            "mostly chance."
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
    """Return the columns of the labels with most positives, as far as they are worth a curve."""
    worthy = (
        table.with_row_index("column")
        .filter(pl.col("auroc").is_not_nan() & (pl.col("num_positives") >= MIN_POSITIVES))
        .sort("num_positives", descending=True)
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
            f"ROC curves of the {len(roc)} labels with most positives.",
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
            f"No label has {MIN_POSITIVES} positives and a negative: no curve is drawn.", hint=True
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
        f"AUROC with 95 % intervals of the {len(shown)} labels with most positives (at least "
        f"{MIN_POSITIVES}). No bar: too few patients for an interval.",
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
    assert assessment.decisions is not None
    page.section("Decisions")
    fitted = f"{assessment.decisions.num_records:,} validation records"
    page.paragraph(
        f"Thresholds (rule: {assessment.threshold}) were fitted on {fitted} and applied unchanged."
        + (
            " These are validation records too: the run's own make the numbers below, and the "
            "calibration, optimistic."
            if set(assessment.predictions.split.tolist()) == {"val"}
            else ""
        )
    )
    rows: list[list[Cell]] = []
    for row in assessment.table.sort(
        "num_positives", descending=True, maintain_order=True
    ).to_dicts():
        if row["undefined_reason"]:
            continue
        if np.isnan(row["threshold_logit"]):
            reason = "no threshold: too few on validation"
            rows.append([row["label"], _positives(row), *[Undefined(reason)] * 6])
            continue
        if has_small_cell(row):
            rows.append([row["label"], _positives(row), *[Withheld("withheld")] * 6])
            continue
        rows.append(
            [
                row["label"],
                row["num_positives"],
                row["threshold_logit"],
                *[
                    WithInterval(row[name], row[f"{name}_lower"], row[f"{name}_upper"])
                    for name in DECISION_METRICS
                ],
            ]
        )
    page.table(
        [
            Column("Label"),
            Column("Positives", ",d"),
            Column("Threshold (logit)", ".2f"),
            Column("Sensitivity", ".3f"),
            Column("Specificity", ".3f"),
            Column("PPV", ".3f"),
            Column("NPV", ".3f"),
            Column("F1", ".3f"),
        ],
        rows,
        "With 95 % intervals by patient.",
        filterable=True,
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
    page.section("By site, sex, age and sampling rate")
    rows: list[list[Cell]] = []
    for group in assessment.subgroups:
        own, whole = group.auroc.macro(), group.auroc_whole
        reason = "no label with enough patients"
        rows.append(
            [
                f"{group.attribute}: {group.value}",
                _count(group.num_records),
                _count(group.num_patients),
                own.num_labels,
                WithInterval(own.value, own.lower, own.upper, reason),
                Undefined(reason) if np.isnan(whole.value) else whole.value,
                None if np.isnan(own.value) else own.value - whole.value,
            ]
        )
    page.table(
        [
            Column("Group"),
            Column("Records", ",d"),
            Column("Patients", ",d"),
            Column("Labels", "d", f"labels with at least {MIN_POSITIVES} positive patients"),
            Column("Macro AUROC", ".3f"),
            Column("Everyone, same labels", ".3f"),
            Column("Difference", "+.3f"),
        ],
        rows,
        "Each group over the labels it has enough patients for, beside everyone over the same.",
    )


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
    predictions: Predictions, probabilities: NDArray[np.float64], column: int
) -> CalibrationPoints:
    curve = calibration_curve(
        probabilities[:, column].clip(0, 1),
        predictions.targets[:, column],
        predictions.observed[:, column],
    )
    return CalibrationPoints(
        predictions.labels[column], curve.predicted, curve.frequency, curve.lower, curve.upper
    )


def _add_calibration(page: HtmlPage, assessment: Assessment) -> None:
    predictions = assessment.predictions
    shown = _main_labels(assessment.table, _NUM_CALIBRATIONS)
    if not shown:
        return
    page.section("Calibration")
    probabilities = _probabilities(assessment)
    how = (
        "Nothing was recalibrated."
        if assessment.decisions is None
        else "Probabilities are calibrated with what was fitted on the "
        f"{assessment.decisions.num_records:,} validation records."
    )
    page.figure(
        calibration_figure([_calibration_points(predictions, probabilities, c) for c in shown]),
        "Observed frequency against mean predicted probability in tenths of equally many records, "
        "with 95 % intervals (Wilson). On the dotted line, predictions mean what they say; below "
        f"it, the model is too sure. {how}",
        "Calibration of the labels with most positives",
    )


def _add_single_labels(page: HtmlPage, assessment: Assessment) -> None:
    shown = _main_labels(assessment.table, _NUM_SINGLE)
    if not shown:
        return
    page.section("Label by label")
    page.paragraph(
        f"ROC, precision-recall and calibration of the {len(shown)} labels with most positives (at "
        f"least {MIN_POSITIVES}). The dot is the threshold. Those that are open are printed.",
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
            f"{row['label']}: AUROC {row['auroc']:.3f}, {row['num_positives']:,} positives"
            + (f". {row['note']}" if row["note"] else "")
        )
        page.figure(
            label_figure(
                roc,
                precision_recall,
                row["prevalence"],
                _calibration_points(assessment.predictions, probabilities, column),
                dot,
            ),
            "",
            f"{row['label']}: {roc.note}",
        )
        page.end_details()


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # By tanh, which does not overflow where exp would.
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _add_label_table(page: HtmlPage, assessment: Assessment, csv_name: str) -> None:
    page.section("All labels")
    calibrated = "brier" in assessment.table.columns
    columns = [
        Column("Label"),
        Column("Positives", ",d"),
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
    ordered = assessment.table.sort("num_positives", descending=True, maintain_order=True)
    for row in ordered.to_dicts():
        reason = row["undefined_reason"]
        cells: list[Cell] = [
            WithNote(row["label"], row["note"]) if row["note"] else row["label"],
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
        f"Most frequent first; click a head to sort. The same with every digit: {csv_name}",
        filterable=True,
    )


def _add_method(page: HtmlPage, assessment: Assessment) -> None:
    page.section("How the numbers are made")
    lines = [
        "AUROC: the share of (positive, negative) pairs in which the positive has the higher "
        "score, ties counting half. Exact, over observed answers only.",
        "AUPRC: average precision, the mean over positives of the precision at their score.",
        "Intervals (95 %): Obuchowski's clustered variance on the logit scale for AUROC, the "
        "influence function per patient for AUPRC; Student's quantiles; none below ten positive "
        "patients. The interval of a mean over labels uses the covariance between labels.",
        "A label without positives or without negatives has neither. It is shown as undefined "
        "and left out of the means, whose number of labels is always given.",
    ]
    if assessment.decisions is not None:
        lines.append(
            "Thresholds and calibration come from the validation part of the training data alone."
        )
    if assessment.controls:
        lines.append(
            "Untrained: the same network with random weights and a linear head fitted on the run's "
            "training part. Differences are tested paired and clustered, Holm over labels."
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
