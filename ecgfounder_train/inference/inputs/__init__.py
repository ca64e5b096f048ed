"""Files into recordings, one module per format.

To add a format: a module with a function `read(path, item, options) -> SourceRecord` that returns
the recording in mV with the names its leads are stored under (`from_array` converts an array of
numbers; `with_options` completes one that is in mV already), and a constant
`FORMAT = InputFormat(name, suffixes, recognises, read, items)`; a line in `FORMATS` below; a test
that writes a genuine file. What cannot be read raises `RejectedRecordError` with a detail that
holds no path and no identifier; what had to be assumed becomes a `Remark`. Anything else a reader
raises is a rejection too, with the exception's kind: one damaged file never ends a batch.
"""

from pathlib import Path

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.untrusted import check_num_records, reject_unexpected
from ecgfounder_train.inference.inputs import (
    delimited_files,
    dicom_files,
    edf_files,
    exchange_files,
    hdf5_files,
    ishne_files,
    numpy_files,
    wfdb_files,
    xml_files,
)
from ecgfounder_train.inference.inputs.calibration import without_calibration_pulse
from ecgfounder_train.inference.inputs.reading import (
    HEAD_BYTES,
    InputFormat,
    InputOptions,
    SourceRecord,
    WindowedSignal,
    regular_file_bytes,
    too_large,
    unreadable,
)

FORMATS: tuple[InputFormat, ...] = (
    wfdb_files.FORMAT,
    numpy_files.FORMAT,
    hdf5_files.FORMAT,
    dicom_files.FORMAT,
    edf_files.FORMAT,
    ishne_files.FORMAT,
    xml_files.FORMAT,
    exchange_files.FORMAT,
    delimited_files.FORMAT,
)


def identify(path: Path) -> InputFormat | None:
    """Return the format of a file by its content, where that is unmistakable, else by its name.

    None: the file is in none of the known formats.
    """
    suffix = path.suffix.lower()
    named = [item for item in FORMATS if suffix in item.suffixes]
    if named == [wfdb_files.FORMAT] or wfdb_files.header_of(path) is not None:
        return wfdb_files.FORMAT
    head = first_bytes(path)
    # A table of numbers is a weak sign: only by the file's name, or if nothing else fits.
    others = [item for item in FORMATS if item not in named and item is not delimited_files.FORMAT]
    for item in (*named, *others):
        if item.recognises(head):
            return item
    return named[0] if named else None


def first_bytes(path: Path) -> bytes:
    """Return the beginning of a regular file; nothing where it cannot be read."""
    try:
        return regular_file_bytes(path, HEAD_BYTES)
    except RejectedRecordError:
        return b""


def list_items(path: Path) -> tuple[str, ...]:
    """Return the names of the recordings in a file; one empty name where they cannot be listed.

    A damaged file is an item, so that reading it states why it is rejected.
    """
    found = identify(path)
    if found is None or found.items is None:
        return ("",)
    try:
        return _items(found, path)
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
        if path.exists():
            raise unreadable("not a regular file")
        raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "file is absent")
    if found is None:
        known = ", ".join(item.name for item in FORMATS)
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, f"none of the known formats ({known})"
        )
    with reject_unexpected(RejectReason.UNREADABLE_SIGNAL):
        if not item and found.items is not None and not found.has_main_item:
            names = _items(found, path)
            if len(names) > 1:
                raise UserError(f"The file holds {len(names)} recordings; say which one.")
            item = names[0]
        _check_size(found, path)
        source = found.read(path, item, options or InputOptions())
        return without_calibration_pulse(source)


def _items(found: InputFormat, path: Path) -> tuple[str, ...]:
    assert found.items is not None
    _check_size(found, path)
    with reject_unexpected(RejectReason.UNREADABLE_SIGNAL):
        names = tuple(found.items(path))
    check_num_records(len(names))
    return names


def _check_size(found: InputFormat, path: Path) -> None:
    limit = found.max_bytes
    if limit is not None and path.is_file() and (size := path.stat().st_size) > limit:
        raise too_large(f"{size} bytes of a {found.name} file (at most {limit})")


__all__ = [
    "FORMATS",
    "InputFormat",
    "InputOptions",
    "SourceRecord",
    "WindowedSignal",
    "first_bytes",
    "identify",
    "list_items",
    "read_file",
]
