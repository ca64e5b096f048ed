"""Lead names as archives write them, and the limb leads that follow from two others.

Names are compared after `canonical_lead`: `AVR`, `avr`, `Lead aVR` and `ECG_AVR` are aVR, `DII` is
II, `C1` is V1. Deliberately *not* the same: `MLII` (modified limb lead of a Holter: the electrodes
sit on the torso, amplitudes and axes differ), `-aVR`, `V` (some chest lead) and `ECG` (whatever
the device records). A data set whose documentation says which lead those are states it with
`lead_aliases` of the signal profile.
"""

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

_PREFIX = re.compile(r"^(?:(?:ecg|ekg|lead)[\s_:.-]*)+(?=.)")
_ALIASES = {
    **{lead.lower(): lead for lead in STANDARD_LEADS},
    **{f"d{lead.lower()}": lead for lead in ("I", "II", "III")},
    **{f"d{number}": lead for number, lead in enumerate(("I", "II", "III"), start=1)},
    **{f"c{number}": f"V{number}" for number in range(1, 7)},
}

# Every limb lead is a weighted sum of I and II (Einthoven, Goldberger).
_LIMB_WEIGHTS = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}


def canonical_lead(name: str, aliases: Mapping[str, str] | None = None) -> str:
    """Return the standard spelling of a lead name, or the name itself where it is none."""
    name = name.strip()
    lowered = name.lower()
    found = _ALIASES.get(lowered) or _ALIASES.get(_PREFIX.sub("", lowered))
    if found is None and aliases:
        found = {key.lower(): lead for key, lead in aliases.items()}.get(lowered)
    return found or name


def limb_lead_recipe(lead: str, present: tuple[str, ...]) -> tuple[tuple[str, float], ...] | None:
    """Return ((lead, weight), (lead, weight)) that add up to `lead`, or None if it cannot be.

    Any two different limb leads determine the other four; I, II and III are preferred over the
    augmented ones because those are themselves differences of the recorded potentials.
    """
    sources = [name for name in _LIMB_WEIGHTS if name in present and name != lead][:2]
    if lead not in _LIMB_WEIGHTS or len(sources) < 2:
        return None
    basis: NDArray[np.float64] = np.array([_LIMB_WEIGHTS[name] for name in sources])
    weights = np.linalg.solve(basis.T, np.array(_LIMB_WEIGHTS[lead]))
    return tuple((name, float(weight)) for name, weight in zip(sources, weights, strict=True))
