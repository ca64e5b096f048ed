"""Warnings about a recording beside its result: a countable code and a sentence."""

from enum import StrEnum
from typing import NamedTuple


class WarningCode(StrEnum):
    """Why a prediction deserves a second look. The value is what tables and summaries show."""

    CHECKSUM = "checksum_mismatch"
    LEAD_ORDER_ASSUMED = "lead_order_assumed"
    LEADS_RENAMED = "leads_renamed"
    LEADS_DERIVED = "leads_derived"
    LEAD_INVERTED = "lead_inverted"
    UNIT_ASSUMED = "unit_assumed"
    UNIT_SUSPECT = "unit_suspect"
    RATE_DERIVED = "rate_from_time_axis"
    RATE_ASSUMED = "rate_assumed"
    RATE_CONFLICT = "rate_conflict"
    LOW_RATE = "low_sampling_rate"
    FLAT = "flat_lead"
    GAP = "gap"
    CLIPPED = "clipped"
    MAINS_50 = "mains_50hz"
    MAINS_60 = "mains_60hz"
    LIMB_LEADS = "limb_leads_inconsistent"
    ARM_REVERSAL = "arm_reversal_suspected"
    INTERPOLATED = "interpolated"
    PADDED = "padded"
    CROPPED = "cropped"
    PARTLY_READ = "partly_read"
    READER_NOTE = "reader_note"


class Remark(NamedTuple):
    """One warning about one recording; its sentence holds no identifier."""

    code: WarningCode
    detail: str
