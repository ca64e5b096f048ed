"""A page per recording for reading: the ECG on paper grid, the model's outputs, the warnings."""

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.core.private_files import open_private_folder
from ecgfounder_train.core.untrusted import reject_unexpected
from ecgfounder_train.figures import Cell, Column, HtmlPage, strip_figure
from ecgfounder_train.inference.pipeline import OK, RecordResult, resolved_record
from ecgfounder_train.inference.table import OutputTable
from ecgfounder_train.records import EcgRecord

BANNER = "Stays on this machine: names of files may identify patients. Research use only."
NUM_SHOWN = 15
_NUM_IN_LIST = 3
_LINES_IN_NOTE, _NOTE_WIDTH = 2, 60  # what the strip's header has room for
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class StripWriter:
    """Writes a page for each of the first recordings, and one that lists them.

    Args:
        folder: Where the pages go.
        table: What the outputs mean.
        max_strips: Recordings that get a page; a page takes about half a second.
        derive_leads: As for the prediction.
    """

    def __init__(
        self, folder: Path, table: OutputTable, max_strips: int = 100, derive_leads: bool = True
    ) -> None:
        self.folder = open_private_folder(folder)
        self.table = table
        self.max_strips = max_strips
        self.derive_leads = derive_leads
        self._rows: list[tuple[str, list[Cell]]] = []
        self._left_out = 0

    def write(self, results: Sequence[RecordResult]) -> None:
        """Write the pages of these recordings, as far as there is room for more."""
        for result in results:
            if len(self._rows) >= self.max_strips:
                self._left_out += 1
                continue
            number = len(self._rows) + 1
            stem = _UNSAFE.sub("_", Path(result.name).name)[-60:] or "record"
            name = f"{number:05d}_{stem}.html"
            strip_page(result, self.table, self.derive_leads).write(self.folder / name)
            codes = ", ".join(dict.fromkeys(r.code.value for r in result.prepared.remarks))
            said = self._headline(result)
            self._rows.append((name, [result.name, result.prepared.status, said, codes]))

    def _headline(self, result: RecordResult) -> str:
        if result.logits is None:
            return result.prepared.detail
        rows = _ranked(result, self.table)
        return "; ".join(f"{label} {value:.2f}" for label, value, *_ in rows[:_NUM_IN_LIST])

    def finish(self) -> Path:
        """Write the list of pages and return it."""
        page = HtmlPage("Recordings", f"{len(self._rows):,} pages", BANNER)
        if self._left_out:
            page.paragraph(
                f"{self._left_out:,} further recordings have none (max_strips={self.max_strips})."
            )
        columns = [Column("record"), Column("status"), Column("surest"), Column("warnings")]
        page.table(columns, [cells for _, cells in self._rows], filterable=True)
        page.section("Pages")
        for name, cells in self._rows:
            page.link(name, str(cells[0]))
        return page.write(self.folder / "index.html")


def strip_page(result: RecordResult, table: OutputTable, derive_leads: bool = True) -> HtmlPage:
    """Return the page of one recording; of a rejected one as much as can be read."""
    prepared = result.prepared
    rate = f"{prepared.fs:g} Hz, {prepared.duration_s:.1f} s, " if prepared.fs > 0 else ""
    windows = f"{result.num_windows} window{'s' if result.num_windows != 1 else ''}"
    status = windows if prepared.status == OK else f"rejected: {prepared.status}"
    page = HtmlPage(Path(result.name).name, f"{rate}{status}", BANNER, landscape=True)
    if prepared.status != OK:
        page.paragraph(f"Not predicted ({prepared.status}): {prepared.detail}")
    if prepared.remarks:
        page.section("Warnings")
        page.bullets(f"{remark.code.value}: {remark.detail}" for remark in prepared.remarks)
    ranked = _ranked(result, table) if result.logits is not None else []
    record = _signal(result, table, derive_leads)
    if record is not None:
        page.section("Recording")
        surest = [(shorten(label, _NOTE_WIDTH), value) for label, value, *_ in ranked]
        note = "\n".join(f"{label} {value:.2f}" for label, value in surest[:_LINES_IN_NOTE])
        figure = strip_figure(
            record.signal,
            record.fs,
            record.lead_names,
            title=Path(result.name).name,
            subtitle="as recorded, without the model's filters",
            note=note,
        )
        page.figure(figure, "25 mm/s, 10 mm/mV when printed.", "ECG strip", true_scale=True)
    if ranked:
        page.section("Outputs of the model")
        page.paragraph(f"Probabilities: {table.calibration_summary}.")
        columns = [
            Column("output"),
            Column("value", ".3f"),
            Column("threshold", ".3f", "yes from here on; the rule is fitted on validation"),
            Column("yes"),
            Column("unit"),
        ]
        shown = ranked[:NUM_SHOWN]
        used = [place for place in range(len(columns)) if any(row[place] for row in shown)]
        page.table([columns[p] for p in used], [[row[p] for p in used] for row in shown])
        if len(ranked) > NUM_SHOWN:
            page.paragraph(f"The first {NUM_SHOWN} of {len(ranked)}.", hint=True)
    return page


def _ranked(
    result: RecordResult, table: OutputTable
) -> list[tuple[str, float, float | None, str | None, str]]:
    """Return output, value, threshold, yes and unit: quantities, then yes first, by probability."""
    assert result.logits is not None
    values = table.values(result.logits[None])[0]
    rows = []
    for number, output in enumerate(table.trained.outputs):
        limit = float(table.threshold_values[number])
        known = bool(np.isfinite(limit))
        yes = bool(result.logits[number] >= table.thresholds[number])
        word = ("yes" if yes else "no") if known else None
        order = (output.kind == "binary", not (known and yes), -float(values[number]))
        row = (output.name, float(values[number]), limit if known else None, word, output.unit)
        rows.append((order, row))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _signal(result: RecordResult, table: OutputTable, derive_leads: bool) -> EcgRecord | None:
    try:
        with reject_unexpected():
            return resolved_record(result.prepared.reference, table.trained.profile, derive_leads)[
                0
            ]
    except (RejectedRecordError, UserError):
        pass
    try:
        with reject_unexpected():
            return result.prepared.reference.read().record
    except (RejectedRecordError, UserError):
        return None
