"""WFDB records: a header (.hea) and its signal files."""

from pathlib import Path

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    with_options,
)
from ecgfounder_train.records import read_header, read_record

SUFFIXES = (".hea", ".dat", ".mat")


def header_of(path: Path) -> Path | None:
    """Return the header file of a record, a signal file or a header, None where there is none.

    Suffixes in any case count: copies from Windows and CD-ROM are called X.HEA and X.DAT.
    """
    stem = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    for suffix in (".hea", ".HEA", ".Hea"):
        header = stem.with_name(stem.name + suffix)
        if header.is_file():
            return header
    return None


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the record of a header or signal file."""
    if header_of(path) is None and path.suffix.lower() in SUFFIXES[1:] and path.is_file():
        raise RejectedRecordError(
            RejectReason.MISSING_HEADER,
            f"a {path.suffix.lower()} file is read with its header (.hea) beside it, which is "
            "absent; without one, save the signal as .npy, .npz or .csv",
        )
    record = read_record(path)
    units: list[str | None] = [None] * len(record.lead_names)
    if options.unit is not None:
        signals = read_header(path).signals
        units = [signal.units for signal in signals] or units
    return with_options(record, units, options, ())


# A header has no magic number: a text file that begins with a name and two numbers could be one.
FORMAT = InputFormat("WFDB", SUFFIXES, lambda head: False, read)
