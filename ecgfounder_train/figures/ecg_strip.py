"""ECGs on paper as a cardiologist reads them: 25 mm/s, 10 mm/mV, true to scale when printed."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.figures.style import INK, MM_PER_INCH, MUTED, house_style, new_figure

MM_PER_S = 25.0
MM_PER_MV = 10.0
MAX_ROW_S = 10.0  # 250 mm: what an A4 sheet holds beside the calibration pulse

STANDARD_COLUMNS = (
    ("I", "II", "III"),
    ("aVR", "aVL", "aVF"),
    ("V1", "V2", "V3"),
    ("V4", "V5", "V6"),
)
RHYTHM_LEAD = "II"
SEGMENT_S = 2.5

_PAPER, _THIN, _THICK = "#fffbfb", "#f8d9dc", "#eeb4ba"
_PULSE_MM = 10.0
_MARGIN_MM = 5.0
_HEADER_MM, _FOOTER_MM = 13.0, 8.0
_BOX_MM = 5.0
# Room above and below a row's zero line, in whole boxes: at least the pulse and the lead's name,
# more for tall beats as long as all rows stay on A4 landscape. Beyond that a beat runs into the
# neighbouring row, as on any paper, but not off the sheet, where it would be cut.
_ABOVE_MM, _BELOW_MM = 15.0, 10.0
_LIMITS_MM = (50.0, 40.0, 35.0, 30.0, 25.0, 20.0, 15.0)
_EDGE_LIMIT_MM = 60.0
_SHEET_MM = 150.0

Array = NDArray[np.float64]
_Segment = tuple[str, Array, float]  # lead name, mV from the row's start on, start within the row


def strip_figure(
    signal: ArrayLike,
    fs: float,
    lead_names: Sequence[str],
    title: str = "",
    subtitle: str = "",
    note: str = "",
    mark: str = "Research use only",
) -> Figure:
    """Return an ECG on millimetre paper.

    The twelve standard leads, in any order, come as 3 x 4 of 2.5 s with lead II below over 10 s,
    all in one time: a beat of the rhythm strip stands under the same beat above. Any other set
    comes one row per lead; a single lead longer than 10 s goes on in further rows. Each lead is
    shown around its median, as every electrocardiograph couples out the electrode's offset.
    Missing samples leave a gap.

    Args:
        signal: The ECG; NaN where missing.
        fs: Sampling rate in Hz.
        lead_names: One name per row of `signal`.
        title: Upper left, bold.
        subtitle: Below it.
        note: Upper right, such as the findings a model was surest of.
        mark: Lower right, where a sheet says what it may be used for.

    Shape:
        signal: (num_leads, num_samples) in mV.

    Raises:
        UserError: The signal is empty or does not fit its lead names, or `fs` is impossible.
    """
    leads = np.asarray(signal, dtype=np.float64)
    if leads.ndim != 2 or 0 in leads.shape or len(leads) != len(lead_names):
        raise UserError(
            f"A strip needs a signal (num_leads, num_samples) in mV with one name per lead; got "
            f"shape {leads.shape} and {len(lead_names)} names."
        )
    if not (math.isfinite(fs) and fs > 0):
        raise UserError(f"fs={fs}: the sampling rate must be a positive number of Hz.")
    by_name = dict(zip(lead_names, _centred(leads), strict=True))
    rows = _twelve_lead_rows(by_name, fs) if _is_standard(by_name) else _plain_rows(by_name, fs)
    duration_s = leads.shape[1] / fs
    shown_s = duration_s if len(leads) == 1 else min(duration_s, MAX_ROW_S)
    scale = f"{MM_PER_S:g} mm/s, {MM_PER_MV:g} mm/mV, {fs:g} Hz"
    if shown_s < duration_s - 1e-6:
        scale += f"; first {shown_s:g} s of {duration_s:.3g} s"
    with house_style():
        return _draw(rows, fs, (title, subtitle, note, scale, mark))


def strip_png(figure: Figure, dpi: float = 90.0) -> bytes:
    """Return a strip as a PNG of 32 colours: a third of the bytes, and paper needs no more."""
    rendered, small = io.BytesIO(), io.BytesIO()
    figure.savefig(rendered, format="png", dpi=dpi)
    with Image.open(rendered) as image:
        colours = image.convert("RGB").quantize(32, dither=Image.Dither.NONE)
        colours.save(small, format="png", optimize=True)
    return small.getvalue()


def _centred(leads: Array) -> Array:
    present = ~np.isnan(leads).all(axis=1)
    centred = leads.copy()
    centred[present] -= np.nanmedian(leads[present], axis=1, keepdims=True)
    return centred


def _is_standard(by_name: dict[str, Array]) -> bool:
    return set(by_name) == {name for column in STANDARD_COLUMNS for name in column}


def _twelve_lead_rows(by_name: dict[str, Array], fs: float) -> list[list[_Segment]]:
    rows: list[list[_Segment]] = []
    for row in range(3):
        segments = []
        for column, names in enumerate(STANDARD_COLUMNS):
            start, stop = (round((column + step) * SEGMENT_S * fs) for step in (0, 1))
            # One sample more, so that neighbours meet.
            piece = by_name[names[row]][start : stop + 1]
            segments.append((names[row], piece, column * SEGMENT_S))
        rows.append(segments)
    rows.append([(RHYTHM_LEAD, by_name[RHYTHM_LEAD][: round(MAX_ROW_S * fs)], 0.0)])
    return rows


def _plain_rows(by_name: dict[str, Array], fs: float) -> list[list[_Segment]]:
    per_row = max(round(MAX_ROW_S * fs), 1)
    if len(by_name) > 1:
        return [[(name, lead[:per_row], 0.0)] for name, lead in by_name.items()]
    [(name, lead)] = by_name.items()
    return [
        [(name if start == 0 else f"{start / fs:g} s", lead[start : start + per_row + 1], 0.0)]
        for start in range(0, len(lead), per_row)
    ]


def _draw(rows: list[list[_Segment]], fs: float, texts: tuple[str, str, str, str, str]) -> Figure:
    title, subtitle, note, scale, mark = texts
    rooms = _rooms(rows)
    paper_height = sum(above + below for above, below in rooms)
    duration_s = max(start + len(lead) / fs for row in rows for _, lead, start in row)
    # At least 100 mm, so that header and footer have room over a very short piece.
    trace_width = max(math.ceil(min(duration_s, MAX_ROW_S) * MM_PER_S / _BOX_MM) * _BOX_MM, 100.0)
    paper_width = _PULSE_MM + trace_width
    width, height = paper_width + 2 * _MARGIN_MM, _HEADER_MM + paper_height + _FOOTER_MM
    figure = new_figure(width / MM_PER_INCH, height / MM_PER_INCH, constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))  # one unit is one millimetre of paper
    axes.axis("off")
    paper = Rectangle((_MARGIN_MM, _FOOTER_MM), paper_width, paper_height, fc=_PAPER, ec="none")
    axes.add_patch(paper)
    for spacing, colour, line_width in ((1.0, _THIN, 0.3), (_BOX_MM, _THICK, 0.55)):
        axes.add_patch(
            PathPatch(
                _grid(_MARGIN_MM, _FOOTER_MM, paper_width, paper_height, spacing),
                edgecolor=colour,
                facecolor="none",
                linewidth=line_width,
            )
        )
    top = height - _HEADER_MM
    for row, (above, below) in zip(rows, rooms, strict=True):
        _draw_row(axes, row, fs, zero=top - above, room_above=above, clip=paper)
        top -= above + below
    right = width - _MARGIN_MM
    axes.text(_MARGIN_MM, height - 3.0, title, va="top", fontsize=9.5, weight="bold", color=INK)
    axes.text(_MARGIN_MM, height - 8.0, subtitle, va="top", fontsize=8, color=MUTED)
    axes.text(right, height - 3.0, note, va="top", ha="right", fontsize=8.5, color=INK)
    axes.text(_MARGIN_MM, 3.0, scale, fontsize=8, color=INK)
    axes.text(right, 3.0, mark, ha="right", fontsize=8, color=MUTED)
    return figure


def _rooms(rows: list[list[_Segment]]) -> list[tuple[float, float]]:
    above, below = [], []
    for row in rows:
        values = np.concatenate([lead for _, lead, _ in row])
        values = values[np.isfinite(values)]
        above.append(max(_whole_boxes(values.max(initial=0)), _ABOVE_MM))
        below.append(max(_whole_boxes(-values.min(initial=0)), _BELOW_MM))
    for limit in _LIMITS_MM:
        tops, bottoms = [min(up, limit) for up in above], [min(down, limit) for down in below]
        tops[0], bottoms[-1] = min(above[0], _EDGE_LIMIT_MM), min(below[-1], _EDGE_LIMIT_MM)
        if sum(tops) + sum(bottoms) <= _SHEET_MM:
            break
    return list(zip(tops, bottoms, strict=True))


def _whole_boxes(extent_mv: float) -> float:
    return math.ceil((extent_mv * MM_PER_MV + 1) / _BOX_MM) * _BOX_MM


def _grid(x: float, y: float, width: float, height: float, spacing: float) -> Path:
    """Return all lines as one path: a quarter of the bytes of one element per line."""
    across = np.arange(x, x + width + 0.01, spacing)
    up = np.arange(y, y + height + 0.01, spacing)
    vertical = [[(at, y), (at, y + height)] for at in across]
    horizontal = [[(x, at), (x + width, at)] for at in up]
    vertices = np.array(vertical + horizontal).reshape(-1, 2)
    return Path(vertices, [Path.MOVETO, Path.LINETO] * (len(vertices) // 2))


def _draw_row(
    axes: Axes, row: list[_Segment], fs: float, zero: float, room_above: float, clip: Rectangle
) -> None:
    style: dict[str, Any] = {"color": INK, "linewidth": 0.75, "solid_joinstyle": "round"}
    origin = _MARGIN_MM + _PULSE_MM
    pulse_x = np.array([0, 2, 2, 7, 7, 9]) + _MARGIN_MM + 0.5
    axes.plot(pulse_x, zero + MM_PER_MV * np.array([0, 0, 1, 1, 0, 0]), **style)
    for name, lead, start_s in row:
        x = origin + start_s * MM_PER_S
        times = x + np.arange(len(lead)) / fs * MM_PER_S
        (trace,) = axes.plot(times, zero + lead * MM_PER_MV, **style)
        trace.set_clip_path(clip)
        if start_s > 0:
            axes.plot([x, x], [zero - 4, zero + 4], color=INK, linewidth=0.5)
        label = name if np.isfinite(lead).any() else f"{name}: no signal"
        axes.text(
            x + 1,
            zero + room_above - 1.2,
            label,
            va="top",
            fontsize=8.5,
            weight="bold",
            color=INK,
            bbox={"facecolor": _PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )
