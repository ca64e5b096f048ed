"""A synthetic HEEDB: an archive with the layout, quirks and label habits of the real one.

`rhythm` says when the heart beats, `waveform` what the twelve leads show of it, `statements` what
the interpretation says, `archive` lays all of it out as HEEDB 5.0 does.
"""

from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.archive import ArchiveSummary, write_archive
from ecgfounder_train.simulate.rhythm import Findings
from ecgfounder_train.simulate.waveform import simulate_ecg

__all__ = ["Anatomy", "ArchiveSummary", "Findings", "simulate_ecg", "write_archive"]
