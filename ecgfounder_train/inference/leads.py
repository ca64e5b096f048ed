"""Lead names of foreign files resolved to the model's leads; every change is a remark.

`records.canonical_lead` knows how archives spell leads. Files from devices add coding schemes
(``MDC_ECG_LEAD_I``), remarks (``Lead I (Einthoven)``) and inverted leads (``-aVR``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord, canonical_lead
from ecgfounder_train.records.leads import limb_lead_recipe

_SCHEMES = re.compile(
    r"^(?:mdc_ecg_lead_|scpecg[_ :]*|einthoven[_ ]+|goldberger[_ ]+|ecg_lead_)", re.I
)
_REMARK = re.compile(r"[\s_]*(?:\([^)]*\)|\[[^\]]*\])\s*$")
_WORDS = re.compile(r"^(?:channel|ch|derivation|deriv|ableitung|abl)[\s_.:-]*(?=\S)", re.I)
_UNICODE_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-"})


def device_lead(name: str, aliases: Mapping[str, str] | None = None) -> str:
    """Return the standard spelling of a lead's name in a device's file, or the name itself.

    An inverted lead keeps its minus: ``-aVR``.
    """
    text = name.strip().translate(_UNICODE_MINUS)
    found = canonical_lead(text, aliases)
    if found in STANDARD_LEADS:
        return found
    bare = _WORDS.sub("", _SCHEMES.sub("", _REMARK.sub("", text)))
    sign = ""
    if bare[:1] == "-":
        sign, bare = "-", bare[1:].strip()
    found = canonical_lead(bare, aliases)
    return sign + found if found in STANDARD_LEADS else name.strip()


def resolve_leads(
    record: EcgRecord,
    wanted: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    derive: bool = True,
) -> tuple[EcgRecord, tuple[Remark, ...]]:
    """Return the record with exactly the wanted leads, and what had to be done for that.

    Args:
        record: As stored.
        wanted: The leads of the model's profile.
        aliases: Names that only the data set's documentation explains.
        derive: Compute absent limb leads from two others.

    Raises:
        RejectedRecordError: Leads are missing or stored twice; the detail lists what is there.
    """
    remarks: list[Remark] = []
    names = [device_lead(name) for name in record.lead_names]
    if aliases:
        proper = set(names)
        renamed = [device_lead(name, aliases) for name in record.lead_names]
        names = [new if new not in proper else old for old, new in zip(names, renamed, strict=True)]
    changed = [
        f"{old.strip()} is {new}"
        for old, new in zip(record.lead_names, names, strict=True)
        # Another spelling of the very same letters needs no word.
        if new in wanted and old.strip().lower() not in (new.lower(), f"lead {new.lower()}")
    ]
    signal = record.signal
    for row, name in enumerate(names):
        upright = name.removeprefix("-")
        if name.startswith("-") and upright in wanted and upright not in names:
            signal = np.array(signal)
            signal[row] = -signal[row]
            names[row] = upright
            remarks.append(Remark(WarningCode.LEAD_INVERTED, f"{name} was turned to {upright}"))
    if changed:
        remarks.append(Remark(WarningCode.LEADS_RENAMED, ", ".join(changed)))
    present = tuple(name for name in names if names.count(name) == 1)
    absent = [lead for lead in wanted if lead not in names]
    derivable = [lead for lead in absent if limb_lead_recipe(lead, present) is not None]
    if missing := [lead for lead in absent if not (derive and lead in derivable)]:
        raise RejectedRecordError(
            RejectReason.MISSING_LEADS, _explain(missing, derivable, record.lead_names)
        )
    record = replace(record, signal=signal, lead_names=tuple(names))
    resolved = record.to_standard_leads(wanted, derive)
    if resolved.derived_leads:
        recipe = limb_lead_recipe(resolved.derived_leads[0], present) or ()
        sources = " and ".join(name for name, _ in recipe)
        detail = f"{', '.join(resolved.derived_leads)} computed from {sources}"
        remarks.append(Remark(WarningCode.LEADS_DERIVED, detail))
    return resolved, tuple(remarks)


def _explain(missing: Sequence[str], derivable: Sequence[str], stored: Sequence[str]) -> str:
    there = ", ".join(name.strip() or "(no name)" for name in stored[:16])
    text = f"no lead {', '.join(missing)} among the {len(stored)} stored ({there})"
    if could := [lead for lead in missing if lead in derivable]:
        text += f"; derive_leads=true computes {', '.join(could)}"
    if any(name.strip() == "" or name.strip().isdigit() for name in stored):
        text += "; name them in stored order with input_leads=[...]"
    return text
