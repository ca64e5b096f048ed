"""The look all figures share, and their way into a page: SVG or PNG, without global state.

Only matplotlib's object interface is used. pyplot keeps every figure it ever made and switches
back-ends by environment; in a training process both have bitten.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
"""Told apart with every common colour blindness (Okabe and Ito 2008), the yellow left out: it does
not show on white."""

MARKERS = ("o", "D", "s", "^", "v", "P")
"""Of series in one figure, in the order of `PALETTE`."""

DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    "-",
    (0, (5, 2)),
    (0, (2, 1)),
    (0, (6, 2, 1, 2)),
)
"""A second sign beside the colour, for print in grey."""

INK, MUTED, FAINT = "#222222", "#6b6b6b", "#dddddd"
MM_PER_INCH = 25.4

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a label may hold dollar signs, and be no formula
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",  # text stays text: a tenth of the size, and it can be searched
    "svg.hashsalt": "ecgfounder_train",  # the same figure gives the same bytes
    "path.simplify_threshold": 0.03,  # points; the default, 0.11, planes off notches and q waves
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw or save with the style, and leave matplotlib's settings as they were."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width_in: float, height_in: float, *, constrained: bool = True) -> Figure:
    """Return an empty figure with an Agg canvas."""
    figure = Figure(
        figsize=(width_in, height_in), layout="constrained" if constrained else None, dpi=100
    )
    FigureCanvasAgg(figure)
    return figure


def light_grid(axes: Axes) -> None:
    """Lay a pale grid under the data."""
    axes.grid(True, color=FAINT, linewidth=0.6)


def figure_svg(figure: Figure) -> str:
    """Return an ``<svg>`` element to be placed into HTML, without any address of the web in it.

    Coordinates are cut to a hundredth of a point (4 micrometres on paper), which halves the file.
    """
    buffer = io.StringIO()
    with house_style():
        _write_powers_as_numbers(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # On the root instead of in a style sheet, which would rule the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.S)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    root = f'<svg {box[0]} stroke-linejoin="round" stroke-linecap="butt">'
    text = root + text[text.index(">") + 1 :]
    text = re.sub(r' d="[^"]*"', _shorten, text)
    return text.strip()


def _write_powers_as_numbers(figure: Figure) -> None:
    """Replace matplotlib's own tick labels of logarithmic axes, which are formulas."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if isinstance(axis.get_minor_formatter(), LogFormatter):
                axis.set_minor_formatter(NullFormatter())


def _shorten(path_data: re.Match[str]) -> str:
    return " " + re.sub(r"(\.\d\d)\d+", r"\1", " ".join(path_data[0].split()))


def figure_png(figure: Figure, dpi: int = 160) -> bytes:
    """Return the figure as PNG, for what is too dense for SVG."""
    buffer = io.BytesIO()
    with house_style():
        _write_powers_as_numbers(figure)
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
