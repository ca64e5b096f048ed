"""Self-contained HTML pages: one file, no network, pleasant on a screen and on paper."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.figures.style import MM_PER_INCH, figure_png, figure_svg

_PNG_DPI = 160
_LONG_TEXT = 40
"""Characters beyond which a cell is not squeezed into a column of one word."""

_STYLE = """
:root { color-scheme: light; --ink: #222; --muted: #666; --line: #ddd; --accent: #0072b2; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: #fff; margin: 0 auto; padding: 1.5rem 1.5rem 4rem; max-width: PAGE_WIDTH; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
p, ul { max-width: 46rem; margin: .6rem 0; }
a { color: var(--accent); }
.subtitle, figcaption, .hint { color: var(--muted); }
.banner { background: #fff3cd; border: 1px solid #d9b44a; border-radius: 4px; padding: .6rem .9rem;
  font-weight: 600; margin-bottom: 1.2rem; }
nav { font-size: .9rem; margin: .8rem 0 0; }
nav a { margin-right: 1rem; white-space: nowrap; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.card { flex: 1 1 9rem; border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem;
  min-width: 9.5rem; max-width: 15rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.card span { font-size: .85rem; color: var(--muted); }
figure { margin: 1.2rem 0; overflow-x: auto; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
figure.true-scale svg, figure.true-scale img { max-width: none; }
figcaption { font-size: .88rem; max-width: 46rem; margin-top: .35rem; }
.scroll { overflow-x: auto; }
details { border-bottom: 1px solid #eee; padding: .2rem 0; }
summary { cursor: pointer; font-size: .92rem; }
table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; position: sticky; left: 0;
  max-width: calc(100vw - 3rem); }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #eee;
  vertical-align: top; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; background: #fff;
  overflow-wrap: normal; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  padding-left: .7rem; }
tbody tr:hover { background: #f5f9fc; }
th.number { white-space: normal; }
th[scope=row] { overflow-wrap: normal; }
table.sortable td:first-child { min-width: 11rem; }
td.long { min-width: 15rem; }
tfoot td { border-top: 2px solid var(--line); font-weight: 600; }
td small { color: var(--muted); }
td.number small { display: inline-block; max-width: 8.5rem; white-space: normal;
  overflow-wrap: normal; }
th span { cursor: pointer; font-weight: 600; }
th span:focus-visible { outline: 2px solid var(--accent); }
th span::after { content: " \\2195"; color: #aaa; }
th[aria-sort=ascending] span::after { content: " \\2191"; color: var(--accent); }
th[aria-sort=descending] span::after { content: " \\2193"; color: var(--accent); }
.filter { font: inherit; font-size: .9rem; padding: .25rem .5rem; width: 18rem; max-width: 100%;
  border: 1px solid #bbb; border-radius: 4px; }
footer { margin-top: 3rem; font-size: .85rem; color: var(--muted);
  border-top: 1px solid var(--line); padding-top: .6rem; }
@media screen and (max-width: 40rem) {
  body { padding: 1rem 1rem 3rem; }
  table { font-size: .8rem; }
  caption { max-width: calc(100vw - 2rem); }
  th.number, td.number { padding: .25rem .35rem .25rem 0; }
  table.sortable td:first-child { min-width: 7rem; }
}
@media print {
  @page { size: A4 PAGE_ORIENTATION; margin: 12mm; }
  body { font-size: 10pt; line-height: 1.4; max-width: none; padding: 0; }
  nav, .filter, .screen-only, details:not([open]) { display: none; }
  h2, h2 + p, caption, thead { break-after: avoid; }
  tbody tr:first-child, tfoot tr { break-before: avoid; }
  tfoot { display: table-row-group; }
  figure, .card, tr { break-inside: avoid; }
  figure, .scroll { overflow: visible; }
  figure.true-scale { margin: 0; }
  figure.true-scale:not(:last-of-type) { break-after: page; }
  thead { display: table-header-group; break-inside: avoid; }
  th span::after { content: ""; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

# Values that cannot be compared (undefined) carry no data-sort and stay last in both directions.
_SCRIPT = """
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sorter = head.querySelector("span");
    sorter.addEventListener("keydown", event => { if (event.key === "Enter") sorter.click(); });
    sorter.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ||
        (!head.hasAttribute("aria-sort") && head.classList.contains("number"));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.sort, number = head.classList.contains("number");
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return (down ? -1 : 1) * (number ? x - y : x.localeCompare(y));
      });
      body.append(...rows);
    });
  });
});
document.querySelectorAll("input.filter").forEach(input => input.addEventListener("input", () => {
  const wanted = input.value.toLowerCase();
  for (const row of document.getElementById(input.dataset.table).tBodies[0].rows)
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
}));
"""


@dataclass(frozen=True)
class Column:
    """A table's column: its head, and how its numbers are written (``None``: it holds text)."""

    title: str
    number_format: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Undefined:
    """A value there is none of, and why; shown as "undefined", never as a number."""

    reason: str


@dataclass(frozen=True)
class Withheld:
    """A value there is, but which is not told; what stands in its place. It sorts as missing."""

    text: str


@dataclass(frozen=True)
class WithNote:
    """Text with a remark below it in small print; the text alone sorts."""

    text: str
    note: str


@dataclass(frozen=True)
class WithInterval:
    """A number with its interval; the number alone sorts. A NaN interval says why it is absent."""

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
        for row in [*rows, totals] if totals else rows:
            if len(row) != len(columns):
                raise UserError(f"A row has {len(row)} cells for {len(columns)} columns.")
            cells = "".join(map(_cell, row, columns))
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
        style = _STYLE.replace("PAGE_ORIENTATION", orientation).replace("PAGE_WIDTH", width)
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
                f"<script>{_SCRIPT}</script>\n</body>\n</html>\n",
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


def _quoted(text: str) -> str:
    return f'"{escape(text, quote=True)}"'


def _cell(value: Cell, column: Column) -> str:
    kind = " class=number" if column.number_format is not None else ""
    if isinstance(value, float) and math.isnan(value):
        value = Undefined("")
    if isinstance(value, Undefined):
        reason = f"<br><small>{escape(value.reason)}</small>" if value.reason else ""
        return f"<td{kind}>undefined{reason}</td>"
    if value is None:
        return f"<td{kind}></td>"
    if isinstance(value, Withheld):
        return f"<td{kind}><small>{escape(value.text)}</small></td>"
    if isinstance(value, WithNote):
        note = f"<br><small>{escape(value.note)}</small>"
        return f"<td{kind} data-sort={_quoted(value.text)}>{escape(value.text)}{note}</td>"
    if isinstance(value, WithInterval):
        return _interval_cell(value, column, kind)
    if isinstance(value, str) or column.number_format is None:
        if len(str(value)) > _LONG_TEXT:
            kind = " class=long"
        return f"<td{kind} data-sort={_quoted(str(value))}>{escape(str(value))}</td>"
    # The full value sorts: what rounds to the same digits is not the same.
    return f'<td{kind} data-sort="{value!r}">{value:{column.number_format}}</td>'


def _interval_cell(value: WithInterval, column: Column, kind: str) -> str:
    form = column.number_format or ".3f"
    if math.isnan(value.value):
        return _cell(Undefined(value.reason), column)
    if math.isnan(value.lower) or math.isnan(value.upper):
        remark = f"no interval: {value.reason}" if value.reason else "no interval"
    else:
        # Unbroken: an interval over two lines reads as two numbers.
        remark = f"{value.lower:{form}} to {value.upper:{form}}".replace(" ", "\N{NO-BREAK SPACE}")
    return (
        f'<td{kind} data-sort="{value.value!r}">{value.value:{form}}'
        f"<br><small>{escape(remark)}</small></td>"
    )
