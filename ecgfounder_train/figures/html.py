"""Self-contained HTML pages: one file, no network, pleasant on a screen and on paper."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.figures.style import MM_PER_INCH, figure_png, figure_svg

_PNG_DPI = 160
_LONG_TEXT = 40
"""Characters beyond which a cell is not squeezed into a column of one word."""

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A table's column: its head, and how its numbers are written (``None``: it holds text)."""

    title: str
    number_format: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Undefined:
    """A value that does not exist, and why; shown as a dash with a footnote, never as a number."""

    reason: str


@dataclass(frozen=True)
class Withheld:
    """A value that is suppressed, and the text shown instead. It sorts as missing."""

    text: str


@dataclass(frozen=True)
class WithNote:
    """Text with a remark below it in small print; the text alone sorts."""

    text: str
    note: str


@dataclass(frozen=True)
class WithInterval:
    """A number with its interval; the number alone sorts. A NaN interval's reason is a footnote."""

    value: float
    lower: float
    upper: float
    reason: str = ""


Cell = str | int | float | None | Undefined | Withheld | WithNote | WithInterval


class HtmlPage:
    """A page built from top to bottom; every text given to it is escaped.

    Args:
        title: Heading and name of the browser's tab.
        subtitle: One line below.
        banner: A warning over everything, such as that the page must stay on this machine.
        landscape: Print across: for what is wider than 186 mm, such as a 12-lead strip.
    """

    def __init__(
        self, title: str, subtitle: str = "", banner: str = "", landscape: bool = False
    ) -> None:
        self.title = title
        self.subtitle = subtitle
        self.banner = banner
        self.landscape = landscape
        self._parts: list[str] = []
        self._sections: list[str] = []
        self._num_tables = 0

    def section(self, title: str) -> None:
        """Start a section; it appears in the list of contents."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="s{len(self._sections)}">{escape(title)}</h2>')

    def paragraph(self, text: str, *, hint: bool = False) -> None:
        """Add a paragraph, in grey when it is only a hint."""
        self._parts.append(f"<p{' class=hint' if hint else ''}>{escape(text)}</p>")

    def bullets(self, items: Iterable[str]) -> None:
        """Add a list; nothing when there are no items."""
        lines = "".join(f"<li>{escape(item)}</li>" for item in items)
        if lines:
            self._parts.append(f"<ul>{lines}</ul>")

    def cards(self, values: Sequence[tuple[str, str]]) -> None:
        """Add the few numbers a reader comes for: (value, what it is)."""
        cards = "".join(
            f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
            for value, name in values
        )
        self._parts.append(f'<div class="cards">{cards}</div>')

    def definitions(self, rows: Mapping[str, str]) -> None:
        """Add a table of names and values, such as where a result comes from."""
        lines = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            for name, value in rows.items()
        )
        self._parts.append(f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>')

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[Cell]],
        caption: str = "",
        filterable: bool = False,
        totals: Sequence[Cell] | None = None,
    ) -> None:
        """Add a table that sorts when a head is clicked; missing and undefined values stay last.

        Args:
            columns: Heads and formats.
            rows: Cells; a long text gets room.
            caption: What stands above the table.
            filterable: Offer a field that hides the rows without a text.
            totals: A last row that is never sorted among the others.

        Raises:
            UserError: A row has more or fewer cells than there are columns.
        """
        self._num_tables += 1
        name = f"t{self._num_tables}"
        heads = "".join(
            f'<th scope="col"{" class=number" if column.number_format is not None else ""}'
            f"{f' title={_quoted(column.hint)}' if column.hint else ''}>"
            # No <button>: Chromium leaves it blank in the heads it repeats on every printed page.
            f'<span role="button" tabindex="0">{escape(column.title)}</span></th>'
            for column in columns
        )
        lines = []
        notes = _Footnotes()
        for row in [*rows, totals] if totals else rows:
            if len(row) != len(columns):
                raise UserError(f"A row has {len(row)} cells for {len(columns)} columns.")
            cells = "".join(
                _cell(value, column, notes) for value, column in zip(row, columns, strict=True)
            )
            lines.append(f"<tr>{cells}</tr>")
        last = f"<tfoot>{lines.pop()}</tfoot>" if totals else ""
        if filterable:
            self._parts.append(
                f'<input class="filter" type="search" data-table="{name}" '
                'placeholder="Filter rows" aria-label="Filter rows">'
            )
        self._parts.append(
            f'<div class="scroll"><table class="sortable" id="{name}">'
            f"{f'<caption>{escape(caption)}</caption>' if caption else ''}"
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>{last}</table></div>"
            f"{notes.html()}"
        )

    def figure(
        self,
        figure: Figure,
        caption: str,
        description: str = "",
        image: Literal["svg", "png"] = "svg",
        true_scale: bool = False,
    ) -> None:
        """Add a figure, embedded.

        Args:
            figure: A matplotlib figure.
            caption: What to see in it.
            description: What a screen reader says instead of the caption.
            image: `png` where the drawing has very many points.
            true_scale: Keep the figure's size in millimetres when printed.
        """
        spoken = _quoted(description or caption)
        width = f"{figure.get_figwidth() * MM_PER_INCH:.2f}mm"
        if image == "svg":
            root = f'<svg role="img" aria-label={spoken} style="width:{width}"'
            drawing = figure_svg(figure).replace("<svg", root, 1)
        else:
            data = base64.b64encode(figure_png(figure, _PNG_DPI)).decode()
            drawing = f'<img alt={spoken} style="width:{width}" src="data:image/png;base64,{data}">'
        kind = ' class="true-scale"' if true_scale else ""
        self._parts.append(
            f"<figure{kind}>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def details(self, summary: str) -> None:
        """Begin a part that opens on a click; closed, it is not printed. `end_details` ends it."""
        self._parts.append(f"<details><summary>{escape(summary)}</summary>")

    def end_details(self) -> None:
        """End the part that `details` began."""
        self._parts.append("</details>")

    def link(self, target: str, text: str) -> None:
        """Add a link to a file beside the page."""
        self._parts.append(f"<p><a href={_quoted(target)}>{escape(text)}</a></p>")

    def html(self, footer: str = "") -> str:
        """Return the whole page."""
        # Blanks between the links: without them the line could not break.
        links = " ".join(
            f'<a href="#s{number}">{escape(title)}</a>'
            for number, title in enumerate(self._sections, start=1)
        )
        orientation, width = ("landscape", "72rem") if self.landscape else ("portrait", "64rem")
        style = (
            _asset("page.css").replace("PAGE_ORIENTATION", orientation).replace("PAGE_WIDTH", width)
        )
        # The policy makes "works without network" a rule the browser enforces.
        policy = (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'"
        )
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                f"<title>{escape(self.title)}</title>\n<style>{style}</style>\n</head>\n<body>",
                f'<div class="banner" role="note">{escape(self.banner)}</div>'
                if self.banner
                else "",
                f"<h1>{escape(self.title)}</h1>",
                f'<div class="subtitle">{escape(self.subtitle)}</div>' if self.subtitle else "",
                f"<nav>{links}</nav>" if len(self._sections) > 1 else "",
                *self._parts,
                f"<footer>{escape(footer)}</footer>" if footer else "",
                f"<script>{_asset('page.js')}</script>\n</body>\n</html>\n",
            ]
        )

    def write(self, path: Path | str, footer: str = "") -> Path:
        """Write the page (whole or absent) and return its path.

        Raises:
            UserError: The folder cannot be written.
        """
        path = Path(path)
        with atomic_file(path, "w") as handle:
            handle.write(self.html(footer))
        return path


def _asset(name: str) -> str:
    """Return the text of a file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _quoted(text: str) -> str:
    return f'"{escape(text, quote=True)}"'


class _Footnotes:
    """The reasons of a table's dashes, each once: letters in the cells, a line below."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        """Return the superscript of a reason; nothing for no reason."""
        if not reason:
            return ""
        number = len(self._marks)
        letters = chr(97 + number % 26) * (1 + number // 26)
        mark = self._marks.setdefault(reason, letters)
        return f"<sup title={_quoted(reason)}>{mark}</sup>"

    def html(self) -> str:
        """Return the line below the table."""
        if not self._marks:
            return ""
        items = "; ".join(f"<sup>{mark}</sup> {escape(text)}" for text, mark in self._marks.items())
        return f"<p class=hint>{_DASH} no value or no interval: {items}</p>"


def _cell(value: Cell, column: Column, notes: _Footnotes) -> str:
    kind = " class=number" if column.number_format is not None else ""
    if isinstance(value, float) and math.isnan(value):
        value = Undefined("")
    if isinstance(value, Undefined):
        return f"<td{kind}>{_DASH}{notes.mark(value.reason)}</td>"
    if value is None:
        return f"<td{kind}></td>"
    if isinstance(value, Withheld):
        return f"<td{kind}><small>{escape(value.text)}</small></td>"
    if isinstance(value, WithNote):
        note = f"<br><small>{escape(value.note)}</small>"
        return f"<td{kind} data-sort={_quoted(value.text)}>{escape(value.text)}{note}</td>"
    if isinstance(value, WithInterval):
        return _interval_cell(value, column, kind, notes)
    if isinstance(value, str) or column.number_format is None:
        if len(str(value)) > _LONG_TEXT:
            kind = " class=long"
        return f"<td{kind} data-sort={_quoted(str(value))}>{escape(str(value))}</td>"
    # The full value sorts: what rounds to the same digits is not the same.
    return f'<td{kind} data-sort="{value!r}">{value:{column.number_format}}</td>'


def _interval_cell(value: WithInterval, column: Column, kind: str, notes: _Footnotes) -> str:
    form = column.number_format or ".3f"
    if math.isnan(value.value):
        return _cell(Undefined(value.reason), column, notes)
    if math.isnan(value.lower) or math.isnan(value.upper):
        remark = _DASH + notes.mark(value.reason)
    else:
        # Unbroken: an interval over two lines reads as two numbers.
        text = f"{value.lower:{form}} to {value.upper:{form}}".replace(" ", "\N{NO-BREAK SPACE}")
        remark = escape(text)
    number = f"{value.value:{form}}"
    return f'<td{kind} data-sort="{value.value!r}">{number}<br><small>{remark}</small></td>'
