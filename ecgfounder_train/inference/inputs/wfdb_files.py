"""WFDB records: a header (.hea) and its signal files."""

from pathlib import Path

from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    with_options,
)
from ecgfounder_train.records import read_header, read_record


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the record whose header or signal file lies at `path`."""
    record = read_record(path)
    unit = None
    if options.unit is not None:
        signals = read_header(path).signals
        unit = signals[0].units if signals else None
    return with_options(record, unit, options, ())


# A header has no magic number: a text file that begins with a name and two numbers could be one.
FORMAT = InputFormat("WFDB", (".hea", ".dat", ".mat"), lambda head: False, read)
