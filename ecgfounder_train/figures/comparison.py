"""Many labels at once: estimates with their intervals, and which finding is taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.figures.curves import (
    CalibrationPoints,
    Curve,
    draw_calibration,
    short_name,
    thinned,
)
from ecgfounder_train.figures.style import (
    FAINT,
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    house_style,
    light_grid,
    new_figure,
)


@dataclass(frozen=True)
class ForestSeries:
    """One column of estimates with intervals; NaN is left out.

    Shape:
        value, lower, upper: (number of rows,).
    """

    name: str
    value: NDArray[np.floating]
    lower: NDArray[np.floating]
    upper: NDArray[np.floating]


def forest_figure(
    names: Sequence[str],
    series: Sequence[ForestSeries],
    x_label: str = "AUROC",
    reference: float | None = None,
) -> Figure:
    """Return one line per name with an estimate and its interval per series, from top to bottom."""
    rows = np.arange(len(names), dtype=np.float64)
    offsets = np.linspace(-0.24, 0.24, len(series)) if len(series) > 1 else np.zeros(1)
    with house_style():
        height = 0.9 + max(0.2, 0.11 * len(series)) * max(len(names), 1)
        figure = new_figure(7.2, height)
        axes = figure.add_subplot()
        axes.xaxis.grid(True, color=FAINT, linewidth=0.6)
        for row in rows[1::2]:
            axes.axhspan(row - 0.5, row + 0.5, color="#f7f7f7", linewidth=0, zorder=0)
        if reference is not None:
            axes.axvline(reference, color=MUTED, linewidth=0.8, linestyle=":")
        for index, column in enumerate(series):
            colour = PALETTE[index % len(PALETTE)]
            place = rows + offsets[index]
            known = ~np.isnan(column.lower) & ~np.isnan(column.upper)
            axes.hlines(
                place[known], column.lower[known], column.upper[known], color=colour, linewidth=1.3
            )
            for chosen, face in ((known, colour), (~known, "white")):
                # A value without an interval is drawn hollow: a bare dot looks certain.
                axes.plot(
                    column.value[chosen],
                    place[chosen],
                    linestyle="",
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=4.2,
                    color=colour,
                    markerfacecolor=face,
                    label=column.name if face == colour else None,
                )
        axes.set_yticks(rows, [short_name(name) for name in names], fontsize=7.5)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=x_label)
        if len(series) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
        return figure


def confusion_figure(
    names: Sequence[str], columns: Sequence[str], share: ArrayLike, counts: Sequence[int]
) -> Figure:
    """Return a table of shares in colour: of the records of a row, those called each column.

    Shape:
        share: (number of names, number of columns), from 0 to 1; NaN stays white.
        counts: records per row.
    """
    values = np.asarray(share, np.float64)
    with house_style():
        figure = new_figure(2.9 + 0.52 * len(columns), 1.5 + 0.3 * len(names))
        axes = figure.add_subplot()
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(
                    column,
                    row,
                    f"{value:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if value > 0.6 else INK,
                )
        titles = [f"{short_name(n, 34)}  ({c:,})" for n, c in zip(names, counts, strict=True)]
        axes.set_yticks(np.arange(len(names)), titles, fontsize=7)
        axes.set_xticks(
            np.arange(len(columns)),
            [short_name(name, 30) for name in columns],
            fontsize=7,
            rotation=35,
            ha="left",
            rotation_mode="anchor",
        )
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("stated", fontsize=8)
        axes.set_xlabel("called by the model", fontsize=8)
        axes.xaxis.set_label_position("bottom")
        return figure


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit of acting on a model and on everybody, over threshold probabilities.

    Shape:
        thresholds, model, everyone: (num_points,).

    Attributes:
        used: The threshold probability in use; NaN where there is none.
    """

    thresholds: NDArray[np.floating]
    model: NDArray[np.floating]
    everyone: NDArray[np.floating]
    used: float = np.nan


def label_figure(
    roc: Curve,
    precision_recall: Curve,
    prevalence: float,
    calibration: CalibrationPoints,
    decision: DecisionCurve,
    threshold: tuple[float, float] | None = None,
) -> Figure:
    """Return one label's ROC, precision-recall, calibration and decision curve in five panels.

    Args:
        roc: Sensitivity over one minus specificity.
        precision_recall: Precision over recall.
        prevalence: The precision of a guessing model.
        calibration: Observed frequency over predicted probability.
        decision: Net benefit over threshold probability.
        threshold: The chosen threshold on the ROC (1 - specificity, sensitivity).
    """
    with house_style():
        figure = new_figure(7.2, 4.9)
        grid = figure.subplots(2, 3)
        left, middle, right = grid[0]
        left.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        left.plot(*thinned(roc.x, roc.y, 120), color=PALETTE[0], linewidth=1.4)
        if threshold is not None:
            left.plot(*threshold, marker="o", markersize=5, color=PALETTE[1])
        left.set(xlabel="1 - specificity", ylabel="sensitivity", title=roc.note)
        middle.axhline(prevalence, color=MUTED, linewidth=0.8, linestyle=":")
        middle.plot(
            *thinned(precision_recall.x, precision_recall.y, 120),
            color=PALETTE[0],
            linewidth=1.4,
            drawstyle="steps-pre",
        )
        middle.set(xlabel="recall", ylabel="precision", title=precision_recall.note)
        for axes in (left, middle):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
        draw_calibration(right, calibration, 1.0)
        right.set(xlabel="predicted", ylabel="observed", title="calibration")
        used = prevalence if np.isnan(decision.used) else max(decision.used, prevalence)
        zoomed, curve, empty = grid[1]
        draw_calibration(zoomed, calibration, float(np.clip(3 * used, 1e-3, 1.0)))
        zoomed.set(xlabel="predicted", ylabel="observed", title="calibration, near the threshold")
        _draw_decision(curve, decision)
        empty.axis("off")
        empty.legend(*curve.get_legend_handles_labels(), loc="upper left", fontsize=7)
        if not np.isnan(decision.used):
            zoomed.axvline(decision.used, color=PALETTE[1], linewidth=0.9, linestyle="--")
        for axes in (left, middle, right, zoomed, curve):
            axes.tick_params(labelsize=7)
            axes.title.set_fontsize(8.0)
            axes.locator_params(nbins=5)
            light_grid(axes)
        return figure


def _draw_decision(axes: Axes, decision: DecisionCurve) -> None:
    axes.axhline(0, color=MUTED, linewidth=0.9, label="call nobody positive")
    axes.plot(
        decision.thresholds,
        decision.everyone,
        color=PALETTE[4],
        linestyle="--",
        linewidth=1.1,
        label="call everybody positive",
    )
    axes.plot(decision.thresholds, decision.model, color=PALETTE[0], linewidth=1.4, label="model")
    if not np.isnan(decision.used):
        axes.axvline(
            decision.used, color=PALETTE[1], linewidth=0.9, linestyle="--", label="threshold"
        )
    high = max(float(decision.model.max()), float(decision.everyone.max()), 1e-4)
    axes.set(
        ylim=(-0.25 * high, 1.08 * high),
        xlabel="threshold probability",
        ylabel="net benefit",
        title="decision curve",
        box_aspect=1,
    )
