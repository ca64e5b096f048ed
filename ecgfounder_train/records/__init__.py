"""Recordings: WFDB files into memory, leads by name, and the signal profiles."""

from ecgfounder_train.records.header import RecordHeader, SignalSpec, decode_header, parse_header
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead
from ecgfounder_train.records.normalisation import LoadNormalisation, normalise
from ecgfounder_train.records.profiles import ProfiledRecord, SignalProfile, Window
from ecgfounder_train.records.reader import decode_record, read_header, read_record
from ecgfounder_train.records.record import EcgRecord

__all__ = [
    "STANDARD_LEADS",
    "EcgRecord",
    "LoadNormalisation",
    "ProfiledRecord",
    "RecordHeader",
    "SignalProfile",
    "SignalSpec",
    "Window",
    "canonical_lead",
    "decode_header",
    "decode_record",
    "normalise",
    "parse_header",
    "read_header",
    "read_record",
]
