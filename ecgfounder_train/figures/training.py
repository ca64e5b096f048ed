"""How a training went: losses, validation AUROC, learning rate and speed over samples seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfounder_train.figures.style import PALETTE, house_style, light_grid, new_figure

Series = tuple[NDArray[np.float64], NDArray[np.float64]]  # x, y without gaps

_POINTS = 600
_EXACT = {"lr"}  # has no noise to smooth, but corners to keep


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: tuple[tuple[str, str, str], ...]  # series, legend, colour


_PANELS = (
    _Panel(
        "Loss",
        (("train/loss", "training", PALETTE[0]), ("val/loss", "validation", PALETTE[1])),
    ),
    _Panel("Validation macro AUROC", (("val/macro_auroc", "", PALETTE[2]),)),
    _Panel("Learning rate", (("lr", "", PALETTE[3]),)),
    _Panel("Training speed in ECG/s", (("ecg_per_s", "", PALETTE[4]),)),
)


def training_figure(series: Mapping[str, Series], x_label: str = "samples seen") -> Figure | None:
    """Return one panel per kind of curve that was measured, or None when none was.

    Args:
        series: From the metrics CSV's column names to x and y.
        x_label: What x is.
    """
    panels = [panel for panel in _PANELS if any(name in series for name, _, _ in panel.lines)]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    with house_style():
        figure = new_figure(7.2, 2.15 * rows + 0.2)
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(rows, min(len(panels), 2), index + 1)
            axes.set_title(panel.title)
            light_grid(axes)
            for name, legend, colour in panel.lines:
                if name in series:
                    smooth = name not in _EXACT
                    _draw(axes, *series[name], legend=legend, colour=colour, smooth=smooth)
            if any(legend and name in series for name, legend, _ in panel.lines):
                axes.legend(loc="best")
            if index >= len(panels) - 2:
                axes.set_xlabel(x_label)
            axes.xaxis.set_major_formatter(_compact)
            axes.locator_params(axis="x", nbins=5)
            if panel.title.startswith("Training speed"):
                axes.set_ylim(bottom=0)
        return figure


def _draw(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    legend: str,
    colour: str,
    smooth: bool,
) -> None:
    if len(x) <= 60:
        # Few points are measurements one wants to see as such (an epoch's validation).
        axes.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.3, label=legend)
        return
    keep = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
    line = y
    if smooth:
        axes.plot(x[keep], y[keep], color=colour, linewidth=0.6, alpha=0.3)
        kernel = np.ones(max(len(x) // 50, 3))
        counts = np.convolve(np.ones(len(y)), kernel, mode="same")
        line = np.convolve(y, kernel, mode="same") / counts
    axes.plot(x[keep], line[keep], color=colour, linewidth=1.5, label=legend)


def _compact(value: float, _: float) -> str:
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def without_gaps(x: Sequence[float | None], y: Sequence[float | None]) -> Series:
    """Return the pairs in which both were measured and finite, in the order of x.

    A run that was killed and resumed writes its last rows a second time; the later ones count.
    """
    pairs = {
        float(a): float(b)
        for a, b in zip(x, y, strict=True)
        if a is not None and b is not None and np.isfinite(a) and np.isfinite(b)
    }
    at = sorted(pairs)
    return np.array(at, np.float64), np.array([pairs[key] for key in at], np.float64)
