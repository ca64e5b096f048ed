"""Two or more runs side by side on the same records, with paired tests against the first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ecgfounder_train import __version__
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.small_cells import MIN_CELL, is_small
from ecgfounder_train.evaluation.assessment import run_scores
from ecgfounder_train.evaluation.tables import MIN_POSITIVES, write_label_csv
from ecgfounder_train.figures import (
    Cell,
    Column,
    ForestSeries,
    HtmlPage,
    Undefined,
    Withheld,
    WithInterval,
    forest_figure,
)
from ecgfounder_train.metrics import (
    Comparison,
    RankingIntervals,
    clusters_from_keys,
    compare_runs,
    holm,
    ranking_intervals,
)
from ecgfounder_train.metrics.predictions import Predictions

_METRICS = {"auroc": "AUROC", "average_precision": "AUPRC"}
_NUM_FOREST = 40
_ALPHA = 0.05


def write_comparison(
    path: Path | str,
    runs: Mapping[str, Predictions],
    title: str = "",
    remarks: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write a page that compares runs on the same records, and its table as CSV beside it.

    Args:
        path: Of the HTML file.
        runs: Predictions by the run's name, one row per record; the first is compared with.
        title: Heading.
        remarks: Sentences for the summary.
        provenance: Rows of the provenance table.

    Raises:
        UserError: Fewer than two runs, no common label, or other records or answers.
    """
    if len(runs) < 2:
        raise UserError("A comparison needs two runs or more: compare=[A,B].")
    names = list(runs)
    aligned = _aligned(runs)
    first = aligned[names[0]]
    clusters = clusters_from_keys(first.patient_key, first.record_key)
    rankings = {
        name: ranking_intervals(
            item.logits, item.targets, item.observed, patients=clusters, labels=item.labels
        )
        for name, item in aligned.items()
    }
    scores = {name: run_scores(item, clusters, name) for name, item in aligned.items()}
    comparisons = {
        (metric, name): compare_runs(scores[name], scores[names[0]], metric=metric)
        for metric in _METRICS
        for name in names[1:]
    }
    page = HtmlPage(
        title or f"Comparison of {' and '.join(names)}",
        f"{first.num_records:,} records, {first.num_labels} labels, differences are to {names[0]}",
    )
    path = Path(path)
    page.section("Summary")
    page.paragraph(_summary(names, comparisons))
    _add_means(page, names, rankings, comparisons)
    dropped = max(item.num_labels for item in runs.values()) - first.num_labels
    page.bullets(
        [
            clusters.note,
            *remarks,
            *([f"{dropped} labels that not all runs have are left out."] if dropped else []),
        ]
    )
    page.section("AUROC by label")
    _add_forest(page, first, rankings)
    csv_path = write_label_csv(
        path.with_suffix(".csv"), _table(names, first, rankings, comparisons)
    )
    _add_labels(page, names, first, rankings, comparisons, csv_path.name)
    page.section("Provenance")
    page.definitions(dict(provenance or {}) | {"compared with": f"ecgfounder_train {__version__}"})
    page.section("How the numbers are made")
    page.bullets(
        [
            "Both runs saw the same records, so differences are paired: their variance is that of "
            "the difference per patient, not the sum of the two runs'.",
            "p values are two-sided. Those of labels are corrected over the labels of one "
            "comparison, those of means over the runs compared with the first (Holm). "
            f"Labels with fewer than {MIN_POSITIVES} positive patients have no test.",
            "A difference between two single runs includes the chance of their seeds.",
        ]
    )
    return page.write(path, f"ecgfounder_train {__version__}. Research use only.")


def _aligned(runs: Mapping[str, Predictions]) -> dict[str, Predictions]:
    first = next(iter(runs.values()))
    common = [
        label for label in first.labels if all(label in other.labels for other in runs.values())
    ]
    if not common:
        raise UserError("The runs have no label in common.")
    keys = {key: place for place, key in enumerate(first.record_key.tolist())}
    aligned = {}
    for name, item in runs.items():
        if set(item.record_key.tolist()) != set(keys) or len(item) != len(first):
            shared = len(set(keys) & set(item.record_key.tolist()))
            raise UserError(
                f"Run {name} was evaluated on {len(item):,} records, of which {shared:,} are among "
                f"the {len(first):,} of the first run. Evaluate both on the same shards or source."
            )
        order = np.argsort([keys[key] for key in item.record_key.tolist()])
        columns = [item.labels.index(label) for label in common]
        chosen: dict[str, Any] = {
            field: getattr(item, field)[order][:, columns]
            for field in ("logits", "targets", "observed")
        }
        same = all(
            name not in ("targets", "observed")
            or np.array_equal(
                value, getattr(first, name)[:, [first.labels.index(x) for x in common]]
            )
            for name, value in chosen.items()
        )
        if not same:
            raise UserError(
                f"Run {name} was evaluated on the same records with other answers. Use the same "
                "labels, map and shards for both."
            )
        aligned[name] = replace(
            item,
            labels=tuple(common),
            **{
                field: getattr(item, field)[order]
                for field in ("record_key", "patient_key", "window", "split", "site", "sex",
                              "age_years", "native_fs")
            },
            **chosen,
        )  # fmt: skip
    return aligned


def _summary(names: Sequence[str], comparisons: Mapping[tuple[str, str], Comparison]) -> str:
    sentences = []
    for name in names[1:]:
        found = comparisons["auroc", name]
        macro = found.macro
        if not macro.num_labels:
            sentences.append(f"{name} and {names[0]} share no label with enough patients to test")
            continue
        adjusted = np.nan_to_num(np.asarray(found.p_holm, np.float64), nan=1.0) < _ALPHA
        better = int((adjusted & (np.asarray(found.difference) > 0)).sum())
        worse = int((adjusted & (np.asarray(found.difference) < 0)).sum())
        p_value = _corrected(names, comparisons, "auroc")[name]
        verdict = "significant at 5 %" if p_value < _ALPHA else "not significant at 5 %"
        sentences.append(
            f"{name} differs from {names[0]} in macro AUROC by {macro.difference:+.3f} (95 % "
            f"interval {macro.lower:+.3f} to {macro.upper:+.3f}, {_p_name(names)} = {p_value:.2g}; "
            f"over {macro.num_labels} labels), {verdict}; after Holm's correction it is better on "
            f"{better} labels and worse on {worse}"
        )
    return ". ".join(sentences) + "."


def _corrected(
    names: Sequence[str], comparisons: Mapping[tuple[str, str], Comparison], metric: str
) -> dict[str, float]:
    """Return the p value of each run's mean difference, Holm over the runs compared."""
    others = names[1:]
    adjusted = holm([comparisons[metric, name].macro.p_value for name in others])
    return dict(zip(others, adjusted.tolist(), strict=True))


def _p_name(names: Sequence[str]) -> str:
    return "p" if len(names) == 2 else f"p (Holm over {len(names) - 1} runs)"


def _add_means(
    page: HtmlPage,
    names: Sequence[str],
    rankings: Mapping[str, RankingIntervals],
    comparisons: Mapping[tuple[str, str], Comparison],
) -> None:
    columns = [Column("Run")]
    for title in _METRICS.values():
        columns += [
            Column(f"Macro {title}", ".3f"),
            Column("Difference", "+.3f"),
            Column(_p_name(names), ".2g"),
        ]
    rows: list[list[Cell]] = []
    for name in names:
        cells: list[Cell] = [name]
        for metric, estimates in zip(_METRICS, rankings[name], strict=True):
            mean = estimates.macro()
            cells.append(WithInterval(mean.value, mean.lower, mean.upper, "too few patients"))
            if name == names[0]:
                cells += [None, None]
            else:
                macro = comparisons[metric, name].macro
                p_value = _corrected(names, comparisons, metric)[name]
                cells += [WithInterval(macro.difference, macro.lower, macro.upper), p_value]
        rows.append(cells)
    page.table(columns, rows, f"Labels with at least {MIN_POSITIVES} positive patients.")


def _add_forest(
    page: HtmlPage, first: Predictions, rankings: Mapping[str, RankingIntervals]
) -> None:
    areas = next(iter(rankings.values())).auroc
    enough = np.flatnonzero(~np.isnan(areas.value) & (areas.num_positive_patients >= MIN_POSITIVES))
    shown = enough[np.argsort(-areas.num_positive_patients[enough], kind="stable")][:_NUM_FOREST]
    shown = shown[np.argsort(-areas.value[shown], kind="stable")]
    if not len(shown):
        page.paragraph(f"No label has {MIN_POSITIVES} positive patients.", hint=True)
        return
    page.figure(
        forest_figure(
            [first.labels[column] for column in shown],
            [
                ForestSeries(
                    name,
                    ranking.auroc.value[shown],
                    ranking.auroc.lower[shown],
                    ranking.auroc.upper[shown],
                )
                for name, ranking in rankings.items()
            ],
            reference=0.5,
        ),
        "Intervals that overlap do not say that there is no difference: the table below tests it.",
        "AUROC per label and run",
    )


def _table(
    names: Sequence[str],
    first: Predictions,
    rankings: Mapping[str, RankingIntervals],
    comparisons: Mapping[tuple[str, str], Comparison],
) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "label": list(first.labels),
        "num_positives": rankings[names[0]].auroc.num_positives,
    }
    for metric in _METRICS:
        for name, pair in rankings.items():
            estimates = pair.auroc if metric == "auroc" else pair.average_precision
            columns |= {
                f"{metric}_{name}": estimates.value,
                f"{metric}_{name}_lower": estimates.lower,
                f"{metric}_{name}_upper": estimates.upper,
            }
        for name in names[1:]:
            found = comparisons[metric, name]
            for field in ("difference", "lower", "upper", "p_value", "p_holm"):
                columns[f"{metric}_{name}_minus_{names[0]}_{field}"] = getattr(found, field)
    return pl.DataFrame(columns)


def _add_labels(
    page: HtmlPage,
    names: Sequence[str],
    first: Predictions,
    rankings: Mapping[str, RankingIntervals],
    comparisons: Mapping[tuple[str, str], Comparison],
    csv_name: str,
) -> None:
    areas = {name: pair.auroc for name, pair in rankings.items()}
    columns = [Column("Label"), Column("Positives", ",d")]
    columns += [Column(f"AUROC {name}", ".3f") for name in names]
    for name in names[1:]:
        columns += [Column(f"{name} minus {names[0]}", "+.3f"), Column("p (Holm)", ".2g")]
    rows: list[list[Cell]] = []
    counts = areas[names[0]].num_positives
    for column in np.argsort(-counts, kind="stable"):
        count = int(counts[column])
        shown = Withheld(f"<{MIN_CELL}") if is_small(count) else count
        cells: list[Cell] = [first.labels[column], shown]
        for name in names:
            item = areas[name]
            cells.append(
                WithInterval(
                    float(item.value[column]),
                    float(item.lower[column]),
                    float(item.upper[column]),
                    item.reasons[column] or "",
                )
            )
        for name in names[1:]:
            found = comparisons["auroc", name]
            reason = found.reasons[column] or ""
            if np.isnan(found.p_holm[column]):
                cells += [Undefined(reason), None]
            else:
                cells += [
                    WithInterval(
                        float(found.difference[column]),
                        float(found.lower[column]),
                        float(found.upper[column]),
                    ),
                    float(found.p_holm[column]),
                ]
        rows.append(cells)
    page.table(columns, rows, f"The same with AUPRC and every digit: {csv_name}", filterable=True)
