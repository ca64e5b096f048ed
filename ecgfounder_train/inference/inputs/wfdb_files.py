"""WFDB records: a header (.hea) and its signal files."""

from pathlib import Path

from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    WindowedSignal,
    left_out,
    with_options,
)
from ecgfounder_train.records import EcgRecord, read_header
from ecgfounder_train.records.reader import read_or_open

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
    """Return the record of a header or signal file; signals that are not leads are named."""
    stored = read_or_open(path)
    source: EcgRecord | WindowedSignal
    if isinstance(stored, EcgRecord):
        source, unused = stored, stored.unused_signals
    else:
        unused = stored.read(0, 1).unused_signals
        source = WindowedSignal(
            stored.lead_names,
            stored.fs,
            stored.num_samples,
            lambda start, stop: stored.read(start, stop).signal,
        )
    units: list[str | None] = [None] * len(source.lead_names)
    if options.unit is not None:
        by_name = {signal.name: signal.units for signal in read_header(path).signals}
        units = [by_name.get(name) for name in source.lead_names]
    remarks = left_out([f"signal {signal.name[:16]} ({signal.detail})" for signal in unused])
    return with_options(source, units, options, remarks)


# A header has no magic number: a text file that begins with a name and two numbers could be one.
FORMAT = InputFormat("WFDB", SUFFIXES, lambda head: False, read)
