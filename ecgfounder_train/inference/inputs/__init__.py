"""Files into recordings, one module per format.

To add a format: a module with a function `read(path, item, options) -> SourceRecord` that returns
the recording in mV with the names its leads are stored under (`from_array` does that from an array
of numbers; `with_options` for one that is in mV already), and a constant
`FORMAT = InputFormat(name, suffixes, recognises, read, items)`; a line in `FORMATS` below; a test
that writes a genuine file. What cannot be read raises `RejectedRecordError` with a detail that
holds no path and no identifier; what had to be assumed becomes a `Remark`.
"""

from pathlib import Path

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.untrusted import check_num_records, reject_unexpected
from ecgfounder_train.inference.inputs import (
    delimited_files,
    dicom_files,
    exchange_files,
    hdf5_files,
    numpy_files,
    wfdb_files,
)
from ecgfounder_train.inference.inputs.reading import (
    HEAD_BYTES,
    InputFormat,
    InputOptions,
    SourceRecord,
)

FORMATS: tuple[InputFormat, ...] = (
    wfdb_files.FORMAT,
    numpy_files.FORMAT,
    hdf5_files.FORMAT,
    dicom_files.FORMAT,
    exchange_files.FORMAT,
    delimited_files.FORMAT,
)


def identify(path: Path) -> InputFormat | None:
    """Return the format of a file by its content, where that is unmistakable, else by its name.

    None: no format knows it.
    """
    suffix = path.suffix.lower()
    named = [item for item in FORMATS if suffix in item.suffixes]
    if named == [wfdb_files.FORMAT] or path.with_name(path.name + ".hea").is_file():
        return wfdb_files.FORMAT
    head = first_bytes(path)
    # A table of numbers is a weak sign: only where the name says so, or nothing else fits.
    others = [item for item in FORMATS if item not in named and item is not delimited_files.FORMAT]
    for item in (*named, *others):
        if item.recognises(head):
            return item
    return named[0] if named else None


def first_bytes(path: Path) -> bytes:
    """Return the beginning of a file; nothing where it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return handle.read(HEAD_BYTES)
    except OSError:
        return b""


def list_items(path: Path) -> tuple[str, ...]:
    """Return the names of the recordings in a file; one empty name where nobody can tell.

    A damaged file is an item, so that reading it says why it is rejected.
    """
    found = identify(path)
    if found is None or found.items is None:
        return ("",)
    try:
        with reject_unexpected(RejectReason.UNREADABLE_SIGNAL):
            names = found.items(path)
            check_num_records(len(names))
            return tuple(names)
    except (RejectedRecordError, UserError):
        return ("",)


def read_file(
    path: Path | str, item: str = "", options: InputOptions | None = None
) -> SourceRecord:
    """Return the recording `item` of a file in any of the known formats.

    Raises:
        RejectedRecordError: It cannot be read; the reason says why.
    """
    path = Path(path)
    found = identify(path)
    if found is not wfdb_files.FORMAT and not path.is_file():
        raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "file is absent")
    if found is None:
        known = ", ".join(item.name for item in FORMATS)
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, f"none of the known formats ({known})"
        )
    with reject_unexpected(RejectReason.UNREADABLE_SIGNAL):
        if not item and found.items is not None:
            names = found.items(path)
            if len(names) > 1:
                raise UserError(f"The file holds {len(names)} recordings; say which one.")
            item = names[0]
        return found.read(path, item, options or InputOptions())


__all__ = [
    "FORMATS",
    "InputFormat",
    "InputOptions",
    "SourceRecord",
    "first_bytes",
    "identify",
    "list_items",
    "read_file",
]
