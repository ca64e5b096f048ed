"""The report of an ablation: a page, a table as CSV, and a paragraph in words."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfounder_train import __version__
from ecgfounder_train.ablation.learning_rates import RatePoint, fit_rate_rule
from ecgfounder_train.ablation.plan import SEED, Ablation, short_count
from ecgfounder_train.ablation.results import MemberResult, Results, read_results
from ecgfounder_train.ablation.scaling import PowerLaw, fit_power_law, why_no_law
from ecgfounder_train.ablation.statistics import (
    Compared,
    Macro,
    Variant,
    compare_variants,
    macro_aurocs,
)
from ecgfounder_train.ablation.wording import conclusion
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.files import atomic_file, sweep_partial_files
from ecgfounder_train.figures import (
    Cell,
    Column,
    ForestSeries,
    HtmlPage,
    SizePoint,
    WithInterval,
    curves_figure,
    figure_png,
    forest_figure,
    rate_figure,
    size_figure,
)
from ecgfounder_train.labels.groups import in_group
from ecgfounder_train.metrics import clusters_from_keys
from ecgfounder_train.weights.trained_model import choose_device

SPLITS = ("val", "test")
BANDS = (
    ("below 1 %", 0.0, 0.01),
    ("1 to 5 %", 0.01, 0.05),
    ("5 to 20 %", 0.05, 0.2),
    ("20 % and more", 0.2, 1.01),
)
"""Bands of prevalence: rare findings are where size might matter most, and a mean hides them."""

RATE = "optimizer.lr"
_HEADLINE = "headline"
_TEST_NOTE = "test_was_used.json"
_PARAMETERS, _FLOPS, _ECGS = "parameters", "training FLOPs", "training ECGs at hand"


@dataclass(frozen=True)
class Row:
    """A variant with all columns of its row of the table."""

    variant: Variant
    members: list[MemberResult]
    bands: dict[str, Variant]

    @property
    def hours(self) -> float:
        """Training hours of one run, the mean over the seeds."""
        return float(np.mean([member.hours for member in self.members]))

    def mean(self, name: str) -> float:
        """Return the mean of a number of the members."""
        return float(np.mean([getattr(member, name) for member in self.members]))


def report_ablation(config: Mapping[str, Any]) -> int:
    """Write `report_SPLIT.html` and `.csv` of an ablation and print the paragraph.

    Args:
        config: The composed `configs/ablate.yaml`.

    Raises:
        UserError: Nothing to compare, runs that do not compare, or a second look at the test part.
    """
    if config["split"] not in SPLITS:
        hint = did_you_mean(str(config["split"]), SPLITS)
        raise UserError(f"split={config['split']!r} is unknown.{hint}")
    ablation = Ablation.from_config(config)
    folder = Path(config["paths"]["ablations"]) / ablation.name
    sweep_partial_files(folder)
    look = _look_at_test(config, ablation, folder)
    results = read_results(config, ablation, choose_device(config["device"]))
    if config["split"] == "test":
        with atomic_file(folder / _TEST_NOTE, "w") as handle:
            json.dump(look, handle, indent=2)
    path = write_report(folder / f"report_{config['split']}.html", ablation, results, config)
    print(f"Report: {path}")
    return 0


def _look_at_test(config: Mapping[str, Any], ablation: Ablation, folder: Path) -> dict[str, Any]:
    """Return what is looked at, and refuse a second look with other members or weights."""
    names = sorted(member.name for member in ablation.members)
    look = {"members": names, "checkpoint": str(config["checkpoint"])}
    note = folder / _TEST_NOTE
    if config["split"] == "test" and note.is_file() and json.loads(note.read_text()) != look:
        raise UserError(
            f"The test part was used for this ablation already, with other members or another "
            f"checkpoint ({note}). Looked at again and again it is a second validation part: "
            "choose on split=val."
        )
    return look


def write_report(
    path: Path, ablation: Ablation, results: Results, config: Mapping[str, Any]
) -> Path:
    """Write the page and its table, print the paragraph, and return the page's path."""
    first = results.finished[0].predictions
    clusters = clusters_from_keys(first.patient_key, first.record_key)
    chosen = in_group(results.finished[0].groups, config["group"])
    selections = {_HEADLINE: chosen, **_bands(first.targets, first.observed)}
    runs: dict[str, dict[str, list[Macro]]] = {name: {} for name in selections}
    members: dict[str, list[MemberResult]] = {}
    for result in results.finished:
        item = result.predictions
        found = macro_aurocs(item.logits, item.targets, item.observed, clusters, selections)
        members.setdefault(result.member.variant, []).append(result)
        for name, macro in found.items():
            runs[name].setdefault(result.member.variant, []).append(macro)
    num_labels = next(iter(runs[_HEADLINE].values()))[0].num_labels
    if not num_labels:
        raise UserError(
            f"No label of the {config['split']} part has ten positive and ten negative patients: "
            "there is nothing to compare."
        )
    compared = compare_variants(runs[_HEADLINE])
    by_band = {
        name: compare_variants(group)
        for name, group in runs.items()
        if name != _HEADLINE and next(iter(group.values()))[0].num_labels
    }
    band_labels = {name: next(iter(runs[name].values()))[0].num_labels for name in by_band}
    rows = [
        Row(
            compared.variant(name),
            group,
            {band: found.variant(name) for band, found in by_band.items()},
        )
        for name, group in members.items()
    ]
    axis = _size_axis(rows)
    law, no_law = _power_law(rows, compared, axis)
    ordered = (
        [row.variant.name for row in sorted(rows, key=lambda r: r.mean(axis[1]))] if axis else None
    )
    headline = f"macro AUROC over {num_labels} labels" + (
        f" of the group {config['group']}" if config["group"] else ""
    )
    sentences = conclusion(compared, str(config["split"]), headline, law, no_law, ordered)
    csv_path = _write_csv(path.with_suffix(".csv"), rows, compared, band_labels)
    page = HtmlPage(
        f"Ablation {ablation.name}",
        f"{len(first):,} records of {clusters.num_clusters:,} patients, {config['split']} part; "
        f"{len(results.finished)} runs, {_budget_summary(ablation)}",
        landscape=True,
    )
    page.section("Summary")
    page.paragraph(" ".join(sentences))
    page.bullets(_remarks(ablation, results, clusters.note, config))
    page.section("Table")
    _add_table(page, rows, compared, band_labels, csv_path.name)
    page.section("Figures")
    figure = _add_figures(page, rows, axis, law, headline)
    if _differing(rows) == {"model", RATE}:
        page.section("The learning rate by size")
        figure = _add_rates(page, rows, headline) or figure
    page.section("Tests against the best")
    _add_tests(page, compared)
    page.section("How the numbers are made")
    page.bullets(_METHODS)
    page.write(path, f"ecgfounder_train {__version__}. Research use only.")
    with atomic_file(path.with_suffix(".png")) as handle:
        handle.write(figure_png(figure))
    print(" ".join(sentences))
    return path


_METHODS = (
    "AUROC counts labels with at least ten positive and ten negative patients, the same for all "
    "runs. Its variance is by patient (Obuchowski's clustered form of DeLong's), and that of a "
    "difference comes from the difference of each patient's shares.",
    "The spread over seeds is pooled over all variants and enters intervals and tests with its few "
    "degrees of freedom (Student's t, Satterthwaite). Seeds are taken as independent between "
    "variants.",
    "p values are two-sided; Holm's correction is over all comparisons with the best. Parameters "
    "count the bypassed BatchNorm; a training step counts as three forward passes.",
    "Hours are those of training on the machine the runs were made on, validations not counted.",
)


def _bands(targets: NDArray[np.uint8], observed: NDArray[np.uint8]) -> dict[str, NDArray[np.bool_]]:
    positives = ((targets == 1) & (observed == 1)).sum(0)
    prevalence = positives / np.maximum((observed == 1).sum(0), 1)
    return {name: (prevalence >= low) & (prevalence < high) for name, low, high in BANDS}


def _differing(rows: Sequence[Row]) -> set[str]:
    """Return the axes on which the variants differ."""
    return {
        name
        for name in rows[0].members[0].member.choices
        if name != SEED and len({row.members[0].member.choices[name] for row in rows}) > 1
    }


def _size_axis(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Return by what the variants are ordered: parameters, or training ECGs at hand."""
    differing = _differing(rows)
    if differing == {"model"} and len({row.mean("parameters") for row in rows}) == len(rows):
        return _PARAMETERS, "parameters"
    if differing == {"data.patient_fraction"}:
        return _ECGS, "num_samples"
    return None


def _power_law(
    rows: Sequence[Row], compared: Compared, axis: tuple[str, str] | None
) -> tuple[PowerLaw | None, str | None]:
    if axis is None:
        return None, None
    reason = why_no_law(len(rows), [len(row.members) for row in rows])
    if reason is not None:
        return None, reason
    influences = np.stack([row.variant.influence for row in rows])
    covariance = influences @ influences.T
    covariance += np.diag([compared.seed_error**2 / len(row.members) for row in rows])
    values = [row.variant.estimate.value for row in rows]
    return fit_power_law([row.mean(axis[1]) for row in rows], values, covariance), None


def _budget_summary(ablation: Ablation) -> str:
    if ablation.budget.flops is not None:
        return f"{short_count(ablation.budget.flops)} training FLOPs each"
    return f"{int(ablation.budget.samples or 0):,} ECGs seen each"


def _remarks(
    ablation: Ablation, results: Results, note: str, config: Mapping[str, Any]
) -> list[str]:
    remarks = [note]
    if config["split"] == "val":
        remarks.append(
            "This is the validation part, which also decides what to choose: it selects, it does "
            "not confirm."
        )
    if results.unfinished:
        remarks.append(
            f"{len(results.unfinished)} of {len(ablation.members)} members are not finished and "
            f"left out: {', '.join(results.unfinished)}."
        )
    if results.dropped_records:
        remarks.append(
            f"{results.dropped_records:,} records are not in every member's shards and left out."
        )
    weights = "last" if config["checkpoint"] == "last" else "best by validation"
    remarks.append(
        f"Weights: the {weights} checkpoint of each run, averaged where the run does so."
    )
    return remarks


def _write_csv(
    path: Path, rows: Sequence[Row], compared: Compared, bands: Mapping[str, int]
) -> Path:
    tests = {item.name: item for item in compared.differences}
    records = []
    for row in rows:
        variant, test = row.variant, tests.get(row.variant.name)
        record: dict[str, Any] = {
            "variant": variant.name,
            "num_seeds": len(row.members),
            "parameters": round(row.mean("parameters")),
            "forward_flops_per_ecg": round(row.mean("flops_per_ecg")),
            "training_flops": row.mean("flops"),
            "samples_seen": round(row.mean("samples_seen")),
            "training_ecgs": round(row.mean("num_samples")),
            "hours": row.hours,
            "macro_auroc": variant.estimate.value,
            "lower": variant.estimate.lower,
            "upper": variant.estimate.upper,
            "patient_standard_error": variant.patient_error,
            "seed_spread": variant.seed_spread,
            "runs": " ".join(f"{value:.6f}" for value in variant.values),
            "difference_to_best": test.estimate.value if test else 0.0,
            "difference_lower": test.estimate.lower if test else math.nan,
            "difference_upper": test.estimate.upper if test else math.nan,
            "p_value": test.p_value if test else math.nan,
            "p_holm": test.p_holm if test else math.nan,
        }
        for band, count in bands.items():
            name = band.replace(" %", "_percent").replace(" ", "_")
            record[f"auroc_{name}"] = row.bands[band].estimate.value
            record[f"auroc_{name}_num_labels"] = count
        records.append(record)
    with atomic_file(path) as handle:
        write_frame(pl.DataFrame(records), handle)
    return path


def _add_table(
    page: HtmlPage,
    rows: Sequence[Row],
    compared: Compared,
    bands: Mapping[str, int],
    csv_name: str,
) -> None:
    columns = [
        Column("Variant"),
        Column("Seeds", "d"),
        Column("Parameters", ",.0f"),
        Column("GFLOP / ECG", ".3f", "forward pass"),
        Column("TFLOP", ",.1f", "of training: three forward passes per ECG seen"),
        Column("ECGs seen", ",.0f"),
        Column("Macro AUROC", ".4f"),
        Column("Seed SD", ".4f", "standard deviation over the seeds"),
        *(Column(f"{band} ({count})", ".3f", "prevalence") for band, count in bands.items()),
        Column("Hours", ".2f"),
    ]
    cells: list[list[Cell]] = []
    for row in rows:
        estimate = row.variant.estimate
        cells.append(
            [
                row.variant.name,
                len(row.members),
                row.mean("parameters"),
                row.mean("flops_per_ecg") / 1e9,
                row.mean("flops") / 1e12,
                row.mean("samples_seen"),
                WithInterval(estimate.value, estimate.lower, estimate.upper, "too few patients"),
                row.variant.seed_spread,
                *(row.bands[band].estimate.value for band in bands),
                row.hours,
            ]
        )
    page.table(
        columns,
        cells,
        "AUROC is the mean over the seeds, for the headline's labels and for all labels "
        f"by prevalence (number of labels in brackets). Every digit: {csv_name}",
    )


def _add_figures(
    page: HtmlPage,
    rows: Sequence[Row],
    axis: tuple[str, str] | None,
    law: PowerLaw | None,
    headline: str,
) -> Figure:
    """Add the figure of the result and the curves; return the former."""
    if axis is not None:
        main = summary_figure(rows, axis, law, headline)
        page.figure(
            main,
            f"Of the {headline}. Intervals are for other patients and, where several seeds were "
            "trained, other seeds. The sizes share their patients, so overlapping intervals do not "
            "say that there is no difference: the tests below do.",
            "AUROC against size",
        )
    else:
        order = sorted(rows, key=lambda row: -row.variant.estimate.value)
        found = [row.variant.estimate for row in order]
        series = ForestSeries(
            "mean over seeds",
            np.array([item.value for item in found]),
            np.array([item.lower for item in found]),
            np.array([item.upper for item in found]),
        )
        main = forest_figure([row.variant.name for row in order], [series], headline)
        page.figure(
            main,
            "The variants share their patients, so overlapping intervals do not say that there is "
            "no difference: the tests below do.",
            "AUROC by variant",
        )
    curves = curves_figure(
        {row.variant.name: [member.curves for member in row.members] for row in rows},
        {
            "train/loss": "Training loss",
            "val/loss": "Validation loss",
            "val/macro_auroc": "Validation macro AUROC",
        },
    )
    if curves is not None:
        page.figure(curves, "Means over the seeds, as training logged them.", "Curves")
    return main


def summary_figure(
    rows: Sequence[Row], axis: tuple[str, str], law: PowerLaw | None, headline: str
) -> Figure:
    """Return AUROC against parameters and training FLOPs, or against training ECGs at hand."""
    panels = {axis[0]: axis[1]}
    if axis[0] == _PARAMETERS:
        panels[_FLOPS] = "flops"
    points = [
        SizePoint(
            row.variant.name,
            {panel: row.mean(name) for panel, name in panels.items()},
            row.variant.estimate.value,
            row.variant.estimate.lower,
            row.variant.estimate.upper,
            row.variant.values,
        )
        for row in sorted(rows, key=lambda row: row.mean(axis[1]))
    ]
    curve = None
    if law is not None and not law.is_flat:
        sizes = [point.positions[axis[0]] for point in points]
        x = np.geomspace(min(sizes), max(sizes), 100)
        curve = (axis[0], x, law.at(x))
    return size_figure(points, headline.split(" over ")[0], curve)


def _add_rates(page: HtmlPage, rows: Sequence[Row], headline: str) -> Figure | None:
    """Add results over the learning rate and the rule that `optimizer.lr_rule=power` takes."""
    points = [
        RatePoint(
            row.mean("parameters"),
            float(row.members[0].member.choices[RATE].split("=")[1]),
            row.variant.estimate.value,
        )
        for row in rows
    ]
    try:
        rule = fit_rate_rule(points)
    except UserError as error:
        page.paragraph(str(error))
        return None
    shown = {size: f"{short_count(size)} parameters" for size in sorted(rule.levels)}
    by_size = {
        size: sorted((p.rate, p.auroc) for p in points if p.parameters == size) for size in shown
    }
    grid = np.geomspace(min(p.rate for p in points) / 1.2, max(p.rate for p in points) * 1.2, 80)
    figure = rate_figure(
        {
            shown[size]: ([rate for rate, _ in found], [value for _, value in found])
            for size, found in by_size.items()
        },
        {shown[s]: (grid, np.array([rule.auroc(s, x) for x in grid.tolist()])) for s in shown},
        {shown[s]: (rule.best_rate(s), rule.auroc(s, rule.best_rate(s))) for s in shown},
        headline.split(" over ")[0],
    )
    page.figure(
        figure,
        "Points are runs; the curves have one curvature, and their best rates are a power of the "
        "parameters.",
        "AUROC against learning rate",
    )
    exponent = min(max(rule.exponent, -1.0), 0.0)
    text = (
        f"Best rate = {rule.reference_rate:.3g} * (parameters / {rule.reference:,.0f}) ^ "
        f"{rule.exponent:.2f}; 95 % interval of the exponent {rule.lower:.2f} to "
        f"{rule.upper:.2f}. A rate twice or half the best costs "
        f"{rule.curvature * math.log(2) ** 2:.4f} AUROC. As settings: "
        f"optimizer.lr={rule.reference_rate:.3g} optimizer.lr_rule=power "
        f"optimizer.lr_reference_parameters={rule.reference:.0f} "
        f"optimizer.lr_exponent={exponent:.2f}"
    )
    page.paragraph(text)
    print(text)
    return figure


def _add_tests(page: HtmlPage, compared: Compared) -> None:
    if not compared.differences:
        page.paragraph("There is only one variant.", hint=True)
        return
    columns = [
        Column("Variant"),
        Column(f"Minus {compared.best}", "+.4f"),
        Column("p", ".2g"),
        Column("p (Holm)", ".2g"),
    ]
    cells: list[list[Cell]] = [
        [
            item.name,
            WithInterval(item.estimate.value, item.estimate.lower, item.estimate.upper),
            item.p_value,
            item.p_holm,
        ]
        for item in sorted(compared.differences, key=lambda item: item.estimate.value)
    ]
    page.table(columns, cells, "Paired by patient; 95 % intervals.")
