"""How well a model tells and how honestly: ROC, precision-recall, calibration, prevalence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.figures.style import (
    DASHES,
    FAINT,
    INK,
    MUTED,
    PALETTE,
    house_style,
    light_grid,
    new_figure,
)

_CURVE_POINTS = 400  # as many as a print resolves


@dataclass(frozen=True)
class Curve:
    """One label's line: its name, its points, and what the legend says after the name."""

    name: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    note: str = ""


@dataclass(frozen=True)
class CalibrationPoints:
    """One label's calibration bins with intervals of the observed frequency."""

    name: str
    predicted: NDArray[np.floating]
    frequency: NDArray[np.floating]
    lower: NDArray[np.floating]
    upper: NDArray[np.floating]


def roc_figure(curves: Sequence[Curve]) -> Figure:
    """Return ROC curves: sensitivity against one minus specificity."""
    with house_style():
        figure, axes = _square()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate("chance", (0.6, 0.54), color=MUTED, fontsize=7.5, ha="left", va="center")
        _draw_curves(axes, curves, step=False)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity")
        return figure


def precision_recall_figure(curves: Sequence[Curve]) -> Figure:
    """Return precision-recall curves; what chance gives is each label's own prevalence."""
    with house_style():
        figure, axes = _square()
        _draw_curves(axes, curves, step=True)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)")
        return figure


def _square() -> tuple[Figure, Axes]:
    figure = new_figure(7.2, 3.9)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", box_aspect=1)
    light_grid(axes)
    return figure, axes


def _draw_curves(axes: Axes, curves: Sequence[Curve], step: bool) -> None:
    for index, curve in enumerate(curves):
        x, y = thinned(curve.x, curve.y)
        axes.plot(
            x,
            y,
            color=PALETTE[index % len(PALETTE)],
            linestyle=DASHES[index % len(DASHES)],
            drawstyle="steps-pre" if step else "default",
            linewidth=1.5,
            label=f"{short_name(curve.name)}\n{curve.note}"
            if curve.note
            else short_name(curve.name),
        )
    if curves:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), labelspacing=0.9)


def short_name(name: str, limit: int = 44) -> str:
    """Return a name that fits beside a figure."""
    return name if len(name) <= limit else name[: limit - 1].rstrip() + "…"


def thinned(
    x: NDArray[np.floating], y: NDArray[np.floating], num_points: int = _CURVE_POINTS
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return points evenly spaced along the line, so that the steep start of a ROC stays sharp."""
    if len(x) <= num_points:
        return x, y
    length = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    chosen = np.searchsorted(length, np.linspace(0, length[-1], num_points))
    chosen = np.unique(np.append(chosen, len(x) - 1).clip(max=len(x) - 1))
    return x[chosen], y[chosen]


def draw_calibration(axes: Axes, points: CalibrationPoints, high: float) -> None:
    """Draw one label's calibration with its intervals and the diagonal, both axes up to `high`."""
    axes.plot([0, high], [0, high], color=MUTED, linewidth=0.8, linestyle=":")
    errors = np.stack([points.frequency - points.lower, points.upper - points.frequency])
    axes.errorbar(
        points.predicted,
        points.frequency,
        yerr=errors.clip(min=0),
        color=PALETTE[0],
        marker="o",
        markersize=3,
        linewidth=1.1,
        elinewidth=0.8,
    )
    axes.set(xlim=(0, high), ylim=(0, high), box_aspect=1)


def calibration_figure(labels: Sequence[CalibrationPoints]) -> Figure:
    """Return one small panel per label: observed frequency against mean predicted probability.

    Each panel has its own range. On a common 0 to 1 axis a label of 2 % prevalence is a dot.
    """
    columns = 4 if len(labels) > 6 else min(max(len(labels), 1), 3)
    rows = max(-(-len(labels) // columns), 1)
    with house_style():
        figure = new_figure(2.15 * columns + 0.3, 2.3 * rows + 0.2)
        for index, label in enumerate(labels):
            axes = figure.add_subplot(rows, columns, index + 1)
            high = max(float(label.predicted.max()), float(label.frequency.max()), 1e-3) * 1.12
            high = min(high, 1.02)
            draw_calibration(axes, label, high)
            axes.set_title(short_name(label.name, 26), fontsize=7.5)
            axes.tick_params(labelsize=7)
            axes.locator_params(nbins=4)
            light_grid(axes)
        figure.supxlabel("mean predicted probability", fontsize=8.5)
        figure.supylabel("observed frequency", fontsize=8.5)
        return figure


def auroc_by_prevalence_figure(
    prevalence: ArrayLike,
    auroc: ArrayLike,
    num_positives: ArrayLike,
    names: Sequence[str],
    min_positives: int = 10,
) -> Figure:
    """Return a scatter of AUROC over prevalence; labels with few positives are hollow.

    The worst labels with enough positives are named.

    Shape:
        prevalence (fractions), auroc, num_positives: (K,); NaN is left out.
    """
    rate, area = np.asarray(prevalence, np.float64), np.asarray(auroc, np.float64)
    positives = np.asarray(num_positives)
    shown = ~np.isnan(area) & (rate > 0)
    enough = positives >= min_positives
    with house_style():
        figure = new_figure(7.2, 3.6)
        axes = figure.add_subplot()
        light_grid(axes)
        axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        few = shown & ~enough
        axes.scatter(
            rate[few] * 100,
            area[few],
            s=18,
            facecolors="none",
            edgecolors=MUTED,
            label=f"fewer than {min_positives} positives",
        )
        axes.scatter(
            rate[shown & enough] * 100,
            area[shown & enough],
            s=20,
            color=PALETTE[0],
            alpha=0.8,
            linewidths=0,
            label=f"at least {min_positives} positives",
        )
        if shown.any():
            axes.set_xscale("log")
        axes.set(xlabel="prevalence in % (log scale)", ylabel="AUROC")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if shown.any():
            axes.set_ylim(min(0.48, float(area[shown].min()) - 0.02), 1.01)
        named: list[float] = []
        apart = 0.045 * np.diff(axes.get_ylim())[0]
        candidates = [i for i in np.argsort(area) if shown[i] and enough[i]][:6]
        for index in candidates:
            # Names that would lie on one another are worse than none.
            if len(named) == 3 or any(abs(area[index] - other) < apart for other in named):
                continue
            named.append(float(area[index]))
            left = rate[index] > np.sqrt(rate[shown].min() * rate[shown].max())
            axes.annotate(
                short_name(names[index], 34),
                (rate[index] * 100, area[index]),
                xytext=(-6 if left else 6, -3),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=7,
                color=INK,
            )
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        return figure


def prevalence_figure(
    num_positives: ArrayLike,
    num_observed: ArrayLike,
    names: Sequence[str],
    min_positives: int = 10,
    max_named: int = 40,
) -> Figure:
    """Return prevalence per label, the most frequent first; up to `max_named` as named bars.

    A longer vocabulary is drawn by rank instead: 150 names are for the table, the shape of the tail
    is for the eye.

    Shape:
        num_positives, num_observed: (K,).
    """
    positives = np.asarray(num_positives, np.float64)
    percent = 100 * positives / np.maximum(np.asarray(num_observed, np.float64), 1)
    order = np.argsort(-percent, kind="stable")
    percent, enough = percent[order], positives[order] >= min_positives
    colours = [PALETTE[0] if sufficient else "#bbbbbb" for sufficient in enough]
    few = f"grey: fewer than {min_positives} positives"
    with house_style():
        if len(order) <= max_named:
            figure = new_figure(7.2, 0.9 + 0.19 * len(order))
            axes = figure.add_subplot()
            bars = axes.barh(np.arange(len(order)), percent, color=colours, height=0.7)
            axes.bar_label(bars, [f"{value:.3g}" for value in percent], fontsize=7, padding=3)
            axes.set_yticks(
                np.arange(len(order)), [short_name(names[i]) for i in order], fontsize=7.5
            )
            axes.invert_yaxis()
            axes.set(xlabel="prevalence in %", ylim=(len(order) - 0.4, -0.6))
            axes.xaxis.grid(True, color=FAINT, linewidth=0.6)
            axes.margins(x=0.08)
            corner = (0.99, 0.03)
        else:
            figure = new_figure(7.2, 3.0)
            axes = figure.add_subplot()
            axes.bar(np.arange(1, len(order) + 1), percent, color=colours, width=0.8)
            if percent.any():
                axes.set_yscale("log")
            axes.set(xlabel="label, by rank", ylabel="prevalence in % (log scale)")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.grid(True, color=FAINT, linewidth=0.6)
            axes.margins(x=0.01)
            corner = (0.99, 0.93)
        if not enough.all():
            axes.text(*corner, few, transform=axes.transAxes, ha="right", fontsize=8, color=MUTED)
        return figure
