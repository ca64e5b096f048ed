"""Who was evaluated: the flow of records, a table of participants, and the reporting checklists."""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from io import StringIO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.small_cells import MIN_CELL, is_small
from ecgfounder_train.figures import Cell, Column, HtmlPage
from ecgfounder_train.figures.html import Withheld
from ecgfounder_train.metrics import Clusters, age_bands, rate_names
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.metrics.subgroups import sort_key

ATTRIBUTES: Mapping[str, Callable[[Predictions], Sequence[str | None]]] = {
    "site": lambda predictions: predictions.site.tolist(),
    "sex": lambda predictions: predictions.sex.tolist(),
    "age band": lambda predictions: age_bands(predictions.age_years),
    "sampling rate": lambda predictions: rate_names(predictions.native_fs),
}
"""What is known of each record, by name; None or "" where it is not."""


def add_participants(
    page: HtmlPage, predictions: Predictions, clusters: Clusters, flow: Mapping[str, int]
) -> None:
    """Add the flow of records and the table of participants; small counts are withheld.

    Args:
        flow: Counts of records before the evaluation, by what they are, in order.
    """
    answered = predictions.observed.any(axis=1)
    steps = dict(flow) | {
        "records evaluated": predictions.num_records,
        "of these with at least one observed answer": len(
            set(predictions.record_key[answered].tolist())
        ),
    }
    page.section("Participants")
    page.table(
        [Column("Flow of records"), Column("Records", ",d")],
        [[name, _shown(count)] for name, count in steps.items()],
    )
    by_patient = clusters.by != "record"
    rows: list[list[Cell]] = []
    for attribute, values_of in ATTRIBUTES.items():
        values = np.array([value or "unknown" for value in values_of(predictions)])
        names = sorted(set(values.tolist()), key=sort_key)
        if names == ["unknown"]:
            rows.append([f"{attribute}: unknown", len(predictions), clusters.num_clusters])
            continue
        records = withheld([int((values == name).sum()) for name in names])
        patients = withheld(
            [len(np.unique(clusters.codes[values == name])) for name in names], records
        )
        for name, record_cell, patient_cell in zip(names, records, patients, strict=True):
            rows.append([f"{attribute}: {name}", record_cell, patient_cell])
    if not by_patient:
        rows = [row[:2] for row in rows]
    page.table(
        [Column("Group"), Column("Records", ",d"), Column("Patients", ",d")][: 2 + by_patient],
        rows,
        f"Counts below {MIN_CELL} are withheld, and one more of the attribute where a single one "
        "could be worked out from the total. A patient can be in several groups. Race and "
        "ethnicity are not part of the catalog.",
    )


def withheld(counts: Sequence[int], beside: Sequence[Cell] | None = None) -> list[Cell]:
    """Return counts that add up to a known total, with small ones and one more withheld.

    Args:
        beside: Cells of another column of the same rows: what is withheld there is here too.
    """
    hidden = [is_small(count) for count in counts]
    if beside is not None:
        hidden = [
            one or isinstance(cell, Withheld) for one, cell in zip(hidden, beside, strict=True)
        ]
    if sum(hidden) == 1 and len(counts) > 1:
        largest = max(counts) + 1
        hidden[
            int(np.argmin([largest if h else c for c, h in zip(counts, hidden, strict=True)]))
        ] = True
    return [
        Withheld(f"<{MIN_CELL}" if is_small(count) else "withheld") if is_hidden else count
        for count, is_hidden in zip(counts, hidden, strict=True)
    ]


def _shown(count: int) -> Cell:
    return Withheld(f"<{MIN_CELL}") if is_small(count) else count


def add_checklists(page: HtmlPage) -> None:
    """Add where each item of TRIPOD+AI and CLAIM is answered.

    Source:
        Collins et al. 2024, BMJ 385, e078378 (TRIPOD+AI); Tejani et al. 2024, Radiology:
        Artificial Intelligence 6(4), e240300 (CLAIM, 2024 update). Titles are shortened.
    """
    content = files(__package__).joinpath("reporting_items.csv").read_text(encoding="utf-8")
    items = pl.read_csv(StringIO(content), infer_schema=False)
    page.section("Reporting checklists")
    page.details("Where the items of TRIPOD+AI and CLAIM are answered")
    page.table(
        [Column("Guideline"), Column("Item"), Column("Title (shortened)"), Column("Place")],
        items.rows(),
        "Sections of this report, pages of the documentation, or what its authors have to write.",
    )
    page.end_details()


def known_groups(predictions: Predictions) -> dict[str, NDArray[np.str_]]:
    """Return the attributes that differ between records, with the value of each record."""
    groups = {name: values_of(predictions) for name, values_of in ATTRIBUTES.items()}
    return {
        name: np.array([value or "unknown" for value in values])
        for name, values in groups.items()
        if len(set(values)) > 1
    }
