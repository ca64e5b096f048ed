"""Ablations: AUROC against size with seeds and intervals, and the curves of all members."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ecgfounder_train.figures.style import (
    DASHES,
    INK,
    MUTED,
    PALETTE,
    house_style,
    light_grid,
    new_figure,
)
from ecgfounder_train.figures.training import Series


@dataclass(frozen=True)
class SizePoint:
    """A variant in a figure against size: its mean, its interval, and its single runs.

    Attributes:
        positions: x in each panel, by the panel's label.
    """

    name: str
    positions: Mapping[str, float]
    value: float
    lower: float
    upper: float
    runs: Sequence[float]


def size_figure(
    points: Sequence[SizePoint],
    y_label: str,
    law: tuple[str, NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> Figure:
    """Return one panel per kind of size, on logarithmic axes.

    Args:
        points: Variants; all name the same panels.
        y_label: What is plotted.
        law: Panel and curve of a fitted law.
    """
    panels = list(points[0].positions)
    with house_style():
        figure = new_figure(3.7 * max(len(panels), 2), 3.1)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            if law is not None and law[0] == panel:
                axes.plot(law[1], law[2], color=MUTED, linewidth=1.2, label="power law")
            for point in points:
                x = point.positions[panel]
                if point.lower == point.lower:
                    axes.vlines(x, point.lower, point.upper, color=PALETTE[0], linewidth=1.4)
                axes.plot(
                    [x] * len(point.runs),
                    list(point.runs),
                    linestyle="",
                    marker="_",
                    markersize=9,
                    color=PALETTE[1],
                )
                axes.plot(x, point.value, marker="o", markersize=5, color=PALETTE[0])
                axes.annotate(
                    point.name,
                    (x, point.value),
                    xytext=(6, -3),
                    textcoords="offset points",
                    fontsize=7,
                    color=INK,
                )
            axes.set_xscale("log")
            axes.margins(x=0.18)
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(_compact))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel=panel)
            light_grid(axes)
        row[0].set_ylabel(y_label)
        _legend(row[0])
        return figure


def _compact(value: float, _: object) -> str:
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _legend(axes: Axes) -> None:
    axes.plot([], [], marker="o", color=PALETTE[0], label="mean over seeds, 95 % interval")
    axes.plot([], [], linestyle="", marker="_", markersize=9, color=PALETTE[1], label="one run")
    # Above the panel: within it the intervals need the room.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=7, borderaxespad=0.2)


def rate_figure(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    fits: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    best: Mapping[str, tuple[float, float]],
    y_label: str,
) -> Figure:
    """Return results over the learning rate, a colour per network.

    Args:
        points: Rates and results by network.
        fits: The fitted curve of each, empty where nothing was fitted.
        best: Where the rule puts the best rate of each.
        y_label: What is plotted.
    """
    with house_style():
        figure = new_figure(7.2, 3.4)
        axes = figure.add_subplot()
        for index, (name, (rates, values)) in enumerate(points.items()):
            colour = PALETTE[index % len(PALETTE)]
            axes.plot(rates, values, linestyle="", marker="o", color=colour, label=name)
            if name in fits:
                axes.plot(*fits[name], color=colour, linewidth=1.2)
            if name in best:
                axes.plot(*best[name], marker="*", markersize=12, color=colour, linestyle="")
        axes.set_xscale("log")
        axes.set(xlabel="learning rate", ylabel=y_label)
        axes.plot([], [], marker="*", markersize=12, linestyle="", color=MUTED, label="by the rule")
        axes.legend(loc="best", fontsize=8)
        light_grid(axes)
        return figure


def curves_figure(
    members: Mapping[str, Sequence[Mapping[str, Series]]], columns: Mapping[str, str]
) -> Figure | None:
    """Return one panel per column of metrics.csv with a line per variant, the mean of its seeds.

    Args:
        members: The curves of each variant's runs.
        columns: Titles of the panels by column; those nobody measured are left out.
    """
    shown = {
        column: title
        for column, title in columns.items()
        if any(column in curves for runs in members.values() for curves in runs)
    }
    if not shown:
        return None
    with house_style():
        figure = new_figure(3.7 * max(len(shown), 2), 3.0)
        row = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (column, title) in zip(row, shown.items(), strict=True):
            for index, (name, runs) in enumerate(members.items()):
                series = [curves[column] for curves in runs if column in curves]
                if not series:
                    continue
                x, y = _mean(series)
                axes.plot(
                    x,
                    y,
                    color=PALETTE[index % len(PALETTE)],
                    linestyle=DASHES[index // len(PALETTE) % len(DASHES)],
                    marker="o" if len(x) <= 60 else "",
                    markersize=3,
                    linewidth=1.3,
                    label=name,
                )
            axes.set_title(title)
            axes.set_xlabel("ECGs seen")
            axes.locator_params(axis="x", nbins=5)
            light_grid(axes)
        row[0].legend(loc="best", fontsize=7)
        return figure


def _mean(series: Sequence[Series]) -> Series:
    """Return the mean of curves at their common points, in fifty stretches where there are many."""
    shortest = min(float(x.max()) for x, _ in series)
    grid = np.unique(np.concatenate([x[x <= shortest] for x, _ in series]))
    mean = np.mean([np.interp(grid, x, y) for x, y in series], axis=0)
    if len(grid) <= 60:
        return grid, mean
    pieces = np.array_split(np.arange(len(grid)), 50)
    return (
        np.array([grid[piece].mean() for piece in pieces]),
        np.array([mean[piece].mean() for piece in pieces]),
    )
