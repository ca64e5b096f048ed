"""The two kinds of failure: a user's mistake, and a record that cannot be used.

Everything else is a bug and may show its traceback. Entry points print a `UserError` as one
message and exit with status 1.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum


class UserError(ValueError):
    """A mistake the user can mend: the message names what, where, and what to do."""


def did_you_mean(name: str, valid: Iterable[str], limit: int = 3) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` or the list of valid names when none is near."""
    names = [str(item) for item in valid]
    lowered = {item.lower(): item for item in names}
    near = [
        lowered[match]
        for match in get_close_matches(name.lower(), list(lowered), limit, cutoff=0.5)
    ]
    if near:
        return " Did you mean " + " or ".join(repr(item) for item in near) + "?"
    return " Valid: " + ", ".join(sorted(names)) + "." if names else ""


class RejectReason(StrEnum):
    """Why a record of the archive is not written. The value is what ledgers and reports show."""

    MISSING_HEADER = "missing_header"
    UNREADABLE_HEADER = "unreadable_header"
    MISSING_SIGNAL_FILE = "missing_signal_file"
    TRUNCATED_SIGNAL = "truncated_signal"
    UNREADABLE_SIGNAL = "unreadable_signal"
    UNEXPECTED_ERROR = "unexpected_error"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNKNOWN_UNITS = "unknown_units"
    MISSING_LEADS = "missing_leads"
    DUPLICATE_LEADS = "duplicate_leads"
    BAD_SAMPLING_RATE = "bad_sampling_rate"
    TOO_SHORT = "too_short"
    ALL_ZERO = "all_zero"
    CONSTANT_LEAD = "constant_lead"
    MISSING_SAMPLES = "missing_samples"
    AMPLITUDE = "amplitude_beyond_limit"
    SATURATED = "saturated"
    BLANK_PATIENT_ID = "blank_patient_id"
    DUPLICATE_RECORD = "duplicate_record"
    CONTRADICTORY_ROWS = "contradictory_rows"
    EXCLUDED = "excluded_by_list"
    NO_SPLIT = "in_no_part_of_split"
    PATIENT_LIMIT = "beyond_max_records_per_patient"


class RejectedRecordError(Exception):
    """A record that cannot be used, with a countable reason and a detail without identifiers."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[RejectReason, str]]:
        return (type(self), (self.reason, self.detail))
