"""What fine-tuning shows: predicted against measured, and how much is learnt from how little."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.figures.style import (
    DASHES,
    MUTED,
    PALETTE,
    house_style,
    light_grid,
    new_figure,
)

_MARKERS = ("o", "s", "D", "^", "v")


@dataclass(frozen=True)
class EfficiencyCurve:
    """One way of starting: the score at each share of the training patients.

    Shape:
        share, mean: (number of shares,); the mean over seeds.
        points: (n, 2), share and score of every single run.
    """

    name: str
    share: NDArray[np.floating]
    mean: NDArray[np.floating]
    points: NDArray[np.floating]


def agreement_figure(
    measured: ArrayLike, predicted: ArrayLike, name: str, unit: str = ""
) -> Figure:
    """Return predictions over measurements, with the line of agreement; dense places darker."""
    x, y = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    with house_style():
        figure = new_figure(4.6, 4.2)
        axes = figure.add_subplot()
        low, high = np.quantile(np.concatenate([x, y]), [0.002, 0.998])
        pad = 0.03 * (high - low) or 1.0
        low, high = low - pad, high + pad
        if len(x) > 500:
            axes.hexbin(
                x, y, gridsize=45, mincnt=1, cmap="Blues", bins="log",
                extent=(low, high, low, high), linewidths=0.0,
            )  # fmt: skip
        else:
            axes.plot(x, y, linestyle="", marker="o", markersize=3, alpha=0.5, color=PALETTE[0])
        axes.plot([low, high], [low, high], color=MUTED, linewidth=0.9, linestyle=":")
        unit = f" ({unit})" if unit else ""
        axes.set(
            xlim=(low, high),
            ylim=(low, high),
            xlabel=f"{name}, measured{unit}",
            ylabel=f"predicted{unit}",
            box_aspect=1,
        )
        light_grid(axes)
        return figure


def efficiency_figure(curves: Sequence[EfficiencyCurve], y_label: str) -> Figure:
    """Return scores over the share of training patients: every run, and the mean over seeds."""
    with house_style():
        figure = new_figure(6.4, 3.8)
        axes = figure.add_subplot()
        for index, curve in enumerate(curves):
            colour = PALETTE[index % len(PALETTE)]
            # Side by side, so that runs at one share do not hide each other.
            shift = 1.0 + 0.05 * (index - (len(curves) - 1) / 2)
            axes.plot(
                curve.points[:, 0] * 100 * shift,
                curve.points[:, 1],
                linestyle="",
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                alpha=0.45,
                color=colour,
            )
            axes.plot(
                curve.share * 100 * shift,
                curve.mean,
                color=colour,
                linewidth=1.6,
                linestyle=DASHES[index % len(DASHES)],
                label=curve.name,
            )
        axes.set_xscale("log")
        shares = sorted({float(share) for curve in curves for share in curve.share})
        axes.set_xticks([share * 100 for share in shares], [f"{s * 100:g} %" for s in shares])
        axes.minorticks_off()
        axes.set(xlabel="share of the training patients", ylabel=y_label)
        axes.legend(loc="best")
        light_grid(axes)
        return figure
