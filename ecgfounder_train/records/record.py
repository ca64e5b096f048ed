"""One ECG in memory: millivolts, in the order it was stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead, limb_lead_recipe


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
            RejectedRecordError: MISSING_LEADS, or DUPLICATE_LEADS where a wanted lead is stored
                twice (nobody can know which one is meant).
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
            raise RejectedRecordError(
                RejectReason.MISSING_LEADS,
                f"{', '.join(absent)} not among the {len(names)} stored leads",
            )
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
