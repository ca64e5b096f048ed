"""What each reason to reject a record means, in a sentence."""

from collections.abc import Mapping

from ecgfounder_train.core.errors import RejectReason

EXPLANATIONS: Mapping[RejectReason, str] = {
    RejectReason.MISSING_HEADER: "The tables name a record whose header file is not there.",
    RejectReason.UNREADABLE_HEADER: "The header file is there, but is no WFDB header.",
    RejectReason.MISSING_SIGNAL_FILE: "The header names a signal file that is not there.",
    RejectReason.TRUNCATED_SIGNAL: "The signal file is shorter than its header says.",
    RejectReason.UNREADABLE_SIGNAL: "The signal file cannot be decoded.",
    RejectReason.UNEXPECTED_ERROR: "Its content made the reader or the filters fail.",
    RejectReason.UNSUPPORTED_FORMAT: "The signal is stored in a format that is not read.",
    RejectReason.UNKNOWN_UNITS: "The unit of the signal is not known, so neither is its amplitude.",
    RejectReason.MISSING_LEADS: "A lead that the profile needs is not in the record.",
    RejectReason.DUPLICATE_LEADS: "Two signals of the record have the same lead's name.",
    RejectReason.BAD_SAMPLING_RATE: "The sampling rate is missing or impossible.",
    RejectReason.TOO_SHORT: "The record is shorter than the profile's least duration.",
    RejectReason.ALL_ZERO: "No signal at all: every sample is zero.",
    RejectReason.CONSTANT_LEAD: "A lead has the same value throughout: an electrode was off.",
    RejectReason.MISSING_SAMPLES: "More samples are missing than may be interpolated.",
    RejectReason.AMPLITUDE: "The amplitude is beyond what a heart gives: a fault or wrong units.",
    RejectReason.SATURATED: "The signal is clipped at the end of its number range.",
    RejectReason.BLANK_PATIENT_ID: "Without a patient nobody can say which part it belongs to.",
    RejectReason.CONTRADICTORY_ROWS: "Rows of the record name two patients, files or folds.",
    RejectReason.DUPLICATE_RECORD: "The tables name the record twice, or the source as a copy.",
    RejectReason.EXCLUDED: "On the list of records and patients that are not to be used.",
    RejectReason.NO_SPLIT: "The split (folds or a list) has no part for it.",
    RejectReason.PATIENT_LIMIT: "Its patient has as many records as are wanted of one.",
}
