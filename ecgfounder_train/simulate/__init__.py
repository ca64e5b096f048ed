"""A synthetic HEEDB: an archive with the layout, quirks and label habits of the real one.

Read in this order: `patients` (who has what, at the rates of `prevalence`), `rhythm` (when the
heart beats; `sinus` and `events` beside it), `morphology` (what a beat looks like), `noise`,
`waveform` (twelve leads of all that), `statements` (what is said of it), `recordings` (files with
their faults), `tables` (the layouts of the releases), `archive` (all of it, in parallel);
`full_tables` (the tables alone, at their true size).
"""

from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.archive import ArchiveSummary, write_archive
from ecgfounder_train.simulate.events import Findings
from ecgfounder_train.simulate.full_tables import write_full_tables
from ecgfounder_train.simulate.waveform import Truth, simulate_ecg, simulate_with_truth

__all__ = [
    "Anatomy",
    "ArchiveSummary",
    "Findings",
    "Truth",
    "simulate_ecg",
    "simulate_with_truth",
    "write_archive",
    "write_full_tables",
]
