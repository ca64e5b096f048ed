"""One ECG in memory: millivolts, in the order it was stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead, limb_lead_recipe


class UnusedSignal(NamedTuple):
    """A stored signal that is not among the leads: not a voltage, or at another rate."""

    name: str
    reason: RejectReason
    detail: str
    """Such as "in mmHg" or "sampled at 62.5 Hz, the others at 250 Hz"."""


@dataclass(frozen=True)
class EcgRecord:
    """A recording as stored.

    Shape:
        signal: float32 (num_leads, num_samples) in mV at `fs` Hz; NaN where a sample is missing.
    """

    signal: NDArray[np.float32]
    lead_names: tuple[str, ...]
    fs: float
    start_time: datetime | None = None
    comments: tuple[str, ...] = ()
    derived_leads: tuple[str, ...] = ()
    unused_signals: tuple[UnusedSignal, ...] = ()

    def to_standard_leads(
        self,
        leads: Sequence[str] = STANDARD_LEADS,
        derive: bool = False,
        aliases: Mapping[str, str] | None = None,
    ) -> "EcgRecord":
        """Return the record with exactly `leads`, in that order, found by name.

        Names are compared as `canonical_lead` does; `aliases` adds what only the data set's
        documentation can know (``{"ECG": "I"}``) and never overrides a lead of the right name.
        With `derive`, limb leads that are absent are computed where two others are present, and
        listed in `derived_leads`.

        Raises:
            RejectedRecordError: MISSING_LEADS; DUPLICATE_LEADS where a wanted lead is stored twice
                (which one is meant is not known); UNKNOWN_UNITS or BAD_SAMPLING_RATE where it is
                one of the `unused_signals`.
        """
        if self.lead_names == tuple(leads):
            return self
        names = [canonical_lead(name) for name in self.lead_names]
        if aliases:
            proper = set(names)
            renamed = [canonical_lead(name, aliases) for name in names]
            names = [
                new if new not in proper else old for old, new in zip(names, renamed, strict=True)
            ]
        duplicates = sorted({lead for lead in leads if names.count(lead) > 1})
        if duplicates:
            raise RejectedRecordError(
                RejectReason.DUPLICATE_LEADS, f"stored more than once: {', '.join(duplicates)}"
            )
        recipes = {}
        if derive:
            unique = tuple(name for name in names if names.count(name) == 1)
            recipes = {
                lead: recipe
                for lead in leads
                if lead not in names and (recipe := limb_lead_recipe(lead, unique)) is not None
            }
        absent = [lead for lead in leads if lead not in names and lead not in recipes]
        if absent:
            raise self._missing(absent, names, derive, aliases)
        rows = {name: row for row, name in enumerate(names)}
        if not recipes:
            signal = self.signal[[rows[lead] for lead in leads]]
        else:
            signal = np.empty((len(leads), self.signal.shape[1]), np.float32)
            for row, lead in enumerate(leads):
                if lead in recipes:
                    (first, a), (second, b) = recipes[lead]
                    signal[row] = a * self.signal[rows[first]] + b * self.signal[rows[second]]
                else:
                    signal[row] = self.signal[rows[lead]]
        return replace(
            self,
            signal=signal,
            lead_names=tuple(leads),
            derived_leads=tuple(
                lead for lead in leads if lead in recipes or lead in self.derived_leads
            ),
        )

    def _missing(
        self,
        absent: Sequence[str],
        names: Sequence[str],
        derive: bool,
        aliases: Mapping[str, str] | None,
    ) -> RejectedRecordError:
        """Return the rejection that says why wanted leads are absent, and what would help."""
        for signal in self.unused_signals:
            lead = canonical_lead(signal.name, aliases)
            if lead in absent:
                return RejectedRecordError(signal.reason, f"lead {lead} is {signal.detail}")
        detail = f"{', '.join(absent)} not among the {len(names)} stored leads"
        if not derive and all(limb_lead_recipe(lead, tuple(names)) for lead in absent):
            detail += "; signal.derive_leads=true computes them from the stored limb leads"
        return RejectedRecordError(RejectReason.MISSING_LEADS, detail)


class StoredRecording(Protocol):
    """A recording that is read piece by piece: a day of 12 leads does not fit into memory."""

    @property
    def fs(self) -> float:
        """Sampling rate of the leads, Hz."""

    @property
    def num_samples(self) -> int:
        """Length at `fs`."""

    @property
    def comments(self) -> tuple[str, ...]:
        """Comments of the header."""

    def read(self, start: int = 0, stop: int | None = None) -> EcgRecord:
        """Return the samples from `start` to `stop`."""
