"""What losses are worth when positives go missing: scores over the share that is missed."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ecgfounder_train.figures.style import (
    DASHES,
    MARKERS,
    PALETTE,
    house_style,
    light_grid,
    new_figure,
)


@dataclass(frozen=True)
class LossCurve:
    """One loss in one panel: value and interval at each share of missed positives."""

    name: str
    shares: Sequence[float]
    values: Sequence[float]
    lower: Sequence[float]
    upper: Sequence[float]


def loss_figure(panels: Sequence[tuple[str, Sequence[LossCurve]]]) -> Figure:
    """Return one panel per metric; losses stand side by side so that none hides another."""
    with house_style():
        figure = new_figure(3.9 * len(panels), 3.3)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (label, curves) in zip(row, panels, strict=True):
            for index, curve in enumerate(curves):
                shift = 1.2 * (index - (len(curves) - 1) / 2)
                x = [100 * share + shift for share in curve.shares]
                colour = PALETTE[index % len(PALETTE)]
                axes.vlines(x, curve.lower, curve.upper, color=colour, linewidth=1.0)
                axes.plot(
                    x,
                    curve.values,
                    color=colour,
                    linewidth=1.4,
                    linestyle=DASHES[index % len(DASHES)],
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=4,
                    label=curve.name,
                )
            axes.set_xticks([100 * share for share in curves[0].shares])
            axes.set(xlabel="true statements left out, %", ylabel=label)
            light_grid(axes)
        # Above the panels: within them the curves need the room.
        handles, names = row[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))
        return figure
