"""What a data set holds: prevalences beside published ones, and which labels come together."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ecgfounder_train.figures.curves import short_name
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
class PrevalencePoint:
    """One share of recordings (0 to 1) here and where it was published.

    Attributes:
        name: The finding.
        series: What tells the points apart: one colour and one marker each.
        faint: Drawn hollow: published for a sample only.
    """

    name: str
    series: str
    published: float
    found: float
    faint: bool = False


def published_figure(points: Sequence[PrevalencePoint]) -> Figure:
    """Return found against published prevalence, both logarithmic, with the line of equality."""
    with house_style():
        figure = new_figure(7.2, 4.6)
        axes = figure.add_subplot()
        values = [100 * value for point in points for value in (point.published, point.found)]
        low, high = min(values) / 1.6, min(max(values) * 1.6, 100.0)
        line = np.array([low, high])
        axes.fill_between(line, line / 2, line * 2, color="#f2f2f2", linewidth=0, zorder=0)
        axes.plot(line, line, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
        names = list(dict.fromkeys(point.series for point in points))
        for number, series in enumerate(names):
            colour = PALETTE[number % len(PALETTE)]
            for faint in (False, True):
                chosen = [p for p in points if p.series == series and p.faint == faint]
                if chosen:
                    axes.scatter(
                        [100 * point.published for point in chosen],
                        [100 * point.found for point in chosen],
                        s=34,
                        marker=MARKERS[number % len(MARKERS)],
                        facecolor="none" if faint else colour,
                        edgecolor=colour,
                        label=series + (" (sample)" if faint else ""),
                        zorder=3,
                    )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.set(xlabel="published, % of recordings", ylabel="found here, % of recordings")
        _name_points(axes, points)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        light_grid(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
        return figure


def _name_points(axes: Axes, points: Sequence[PrevalencePoint]) -> None:
    """Write one name per finding above the highest of its points, higher or below if taken."""
    taken: list[Bbox] = []
    highest: dict[str, PrevalencePoint] = {}
    for point in sorted(points, key=lambda point: point.found):
        highest[point.name] = point
    for name, top in highest.items():
        for offset in (7, -13, 15, -21, 23, 31):
            text = axes.annotate(
                short_name(name),
                (100 * top.published, 100 * top.found),
                xytext=(0, offset),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=INK,
            )
            # A browser sets the text a little wider than it is measured here.
            place = text.get_window_extent().expanded(1.2, 1.0)
            if not place.count_overlaps(taken):
                break
            text.remove()
        else:
            continue  # the table has the name
        taken.append(place)


def together_figure(shares: NDArray[np.floating], names: Sequence[str]) -> Figure:
    """Return a heat map of how often a row's label comes with a column's; NaN is grey.

    Shape:
        shares: (K, K), 0 to 1.
    """
    number = len(names)
    with house_style():
        figure = new_figure(7.2, 2.0 + 0.215 * number)
        axes = figure.add_subplot()
        percent = np.ma.masked_invalid(100 * np.asarray(shares, np.float64))
        axes.set_facecolor("#ececec")
        image = axes.pcolormesh(
            percent, cmap=mpl.colormaps["Blues"], vmin=0, vmax=100, edgecolor="white", linewidth=0.4
        )
        for row in range(number):
            for column in range(number):
                value = percent[row, column]
                if value is not np.ma.masked and round(float(value)) > 0:
                    axes.text(
                        column + 0.5,
                        row + 0.5,
                        f"{value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6 if number > 16 else 7,
                        color="white" if value > 60 else INK,
                    )
        short = [short_name(name) for name in names]
        ticks = np.arange(number) + 0.5
        axes.set_yticks(ticks, short, fontsize=7)
        axes.set_xticks(ticks, short, fontsize=7, rotation=50, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.025, pad=0.02)
        bar.set_label("% of the row's records", fontsize=8)
        bar.outline.set_edgecolor(FAINT)
        return figure
