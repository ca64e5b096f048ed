"""The report of one evaluation: one HTML file with figures, and its table as CSV beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train import __version__
from ecgfounder_train.evaluation.predictions import Predictions
from ecgfounder_train.evaluation.tables import (
    MIN_POSITIVES,
    Summary,
    label_table,
    summarise,
    write_label_csv,
)
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.figures import (
    CalibrationPoints,
    Cell,
    Column,
    Curve,
    HtmlPage,
    Undefined,
    WithNote,
    auroc_by_prevalence_figure,
    calibration_figure,
    precision_recall_figure,
    prevalence_figure,
    roc_figure,
    strip_figure,
    training_figure,
)
from ecgfounder_train.metrics import OperatingPoints, calibration_curve, operating_points

_NUM_CURVES = 6
_NUM_CALIBRATIONS = 8
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
) -> Path:
    """Write the report and, beside it, the label table under the same name with `.csv`.

    Args:
        path: Of the HTML file.
        predictions: What to evaluate; no model is needed.
        metrics_csv: Log of the training; without it the training section says so.
        title: Heading; made from the run's name when empty.
        provenance: Rows of the provenance table beyond those the predictions know.
        notes: Remarks per label, from `label_notes`.
        groups: Group per label, as the vocabulary has them; several groups get means of their own.

    Raises:
        UserError: A counted logit is NaN, or the folder cannot be written.
    """
    path = Path(path)
    table = label_table(predictions, notes, groups)
    summary = summarise(table)
    csv_path = write_label_csv(path.with_suffix(".csv"), table)
    page = HtmlPage(
        title or f"Evaluation of {predictions.run_name or 'predictions without a run'}",
        _what_was_evaluated(predictions),
    )
    _add_summary(page, predictions, table, summary)
    _add_provenance(page, predictions, provenance or {})
    _add_training(page, metrics_csv)
    if summary.auroc.num_labels:
        _add_discrimination(page, predictions, table)
    _add_prevalence(page, predictions, table)
    if summary.auroc.num_labels:
        _add_calibration(page, predictions, table)
    _add_label_table(page, table, csv_path.name)
    _add_method(page)
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


def _add_summary(
    page: HtmlPage, predictions: Predictions, table: pl.DataFrame, summary: Summary
) -> None:
    page.section("Summary")
    page.cards(
        [
            (
                _number(summary.auroc.value),
                f"macro AUROC over {summary.auroc.num_labels} of {summary.num_labels} labels",
            ),
            (
                _number(summary.auroc_enough.value),
                f"macro AUROC over the {summary.auroc_enough.num_labels} labels with at least "
                f"{MIN_POSITIVES} positives",
            ),
            (
                _number(summary.auprc_enough.value),
                "macro average precision over the same labels",
            ),
            (f"{predictions.num_records:,}", "records"),
        ]
    )
    page.paragraph(_in_words(table, summary))
    _add_groups(page, table)
    page.bullets(_cautions(predictions, table))


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


def _in_words(table: pl.DataFrame, summary: Summary) -> str:
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
    if predictions.num_patients is None:
        yield (
            "The patient of some or all records is unknown: two records of one person count as two "
            "independent ones."
        )
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


def _add_discrimination(page: HtmlPage, predictions: Predictions, table: pl.DataFrame) -> None:
    page.section("Discrimination")
    roc, precision_recall = [], []
    for column in _main_labels(table, _NUM_CURVES):
        row = table.row(column, named=True)
        points = _points(predictions, column)
        count = f"{row['num_positives']:,} positives"
        roc.append(
            Curve(
                row["label"],
                points.false_positive_rate,
                points.sensitivity,
                f"AUROC {row['auroc']:.3f}, {count}",
            )
        )
        precision_recall.append(
            Curve(
                row["label"],
                points.sensitivity[1:],
                points.precision,
                f"AP {row['auprc']:.3f}, prevalence {row['prevalence']:.1%}",
            )
        )
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
    page.figure(
        auroc_by_prevalence_figure(
            table["prevalence"].fill_nan(0),
            table["auroc"],
            table["num_positives"],
            table["label"].to_list(),
            MIN_POSITIVES,
        ),
        "Each label's AUROC against how often it occurs. The weakest labels are named; the further "
        "left, the more of the spread is chance.",
        "AUROC by prevalence",
    )


def _spoken(kind: str, curves: Iterable[Curve]) -> str:
    return f"{kind}: " + "; ".join(f"{curve.name}, {curve.note}" for curve in curves)


def _add_prevalence(page: HtmlPage, predictions: Predictions, table: pl.DataFrame) -> None:
    page.section("Prevalence")
    page.figure(
        prevalence_figure(
            table["num_positives"], table["num_observed"], predictions.labels, MIN_POSITIVES
        ),
        "How often each label is positive among the records where it was observed.",
        "Prevalence by label",
    )


def _add_calibration(page: HtmlPage, predictions: Predictions, table: pl.DataFrame) -> None:
    labels = []
    for column in _main_labels(table, _NUM_CALIBRATIONS):
        curve = calibration_curve(
            _sigmoid(predictions.logits[:, column]),
            predictions.targets[:, column],
            predictions.observed[:, column],
        )
        labels.append(
            CalibrationPoints(
                predictions.labels[column],
                curve.predicted,
                curve.frequency,
                curve.lower,
                curve.upper,
            )
        )
    if labels:
        page.section("Calibration")
        page.figure(
            calibration_figure(labels),
            "Observed frequency against mean predicted probability in tenths of equally many "
            "records, with 95 % intervals (Wilson). On the dotted line, predictions mean what they "
            "say; below it, the model is too sure. Nothing was recalibrated.",
            "Calibration of the labels with most positives",
        )


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # By tanh, which does not overflow where exp would.
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _add_label_table(page: HtmlPage, table: pl.DataFrame, csv_name: str) -> None:
    page.section("All labels")
    columns = [
        Column("Label"),
        Column("Positives", ",d"),
        Column("Observed", ",d", "records in which the label's answer is known"),
        Column("Prevalence %", ".2f"),
        Column("AUROC", ".3f"),
        Column("AUPRC", ".3f", "average precision; a guessing model's equals the prevalence"),
    ]
    rows = []
    for row in table.sort("num_positives", descending=True, maintain_order=True).to_dicts():
        reason = row["undefined_reason"]
        rows.append(
            [
                WithNote(row["label"], row["note"]) if row["note"] else row["label"],
                row["num_positives"],
                row["num_observed"],
                100 * row["prevalence"] if row["num_observed"] else None,
                Undefined(reason) if reason else row["auroc"],
                Undefined(reason) if reason else row["auprc"],
            ]
        )
    page.table(
        columns,
        rows,
        f"Most frequent first; click a head to sort. The same with every digit: {csv_name}",
        filterable=True,
    )


def _add_method(page: HtmlPage) -> None:
    page.section("How the numbers are made")
    page.bullets(
        [
            "AUROC: the share of (positive, negative) pairs in which the positive has the higher "
            "score, ties counting half. Exact, over observed answers only.",
            "AUPRC: average precision, the mean over positives of the precision at their score.",
            "A label without positives or without negatives has neither. It is shown as undefined "
            "and left out of the means, whose number of labels is always given.",
            "Intervals are not part of this report: small differences between two runs may be "
            "chance.",
        ]
    )


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
