"""WFDB records into memory: a fast path for the common kind, `stored.py` for all others.

Most records are one header and files of format 16 or 212 (and 16+24, WFDB's MATLAB v4 files),
short, with one sample per frame and nothing but voltages. Those are decoded here in 0.1 ms.
Other formats, segments, several samples per frame, skewed signals, other units beside the ECG and
long records are read through `StoredRecord`.

Any content of a file ends in a record or a RejectedRecordError: archives of ten million files
contain every kind of damage, and one damaged file must not end a build.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records.header import (
    MAX_HEADER_BYTES,
    RecordHeader,
    SignalSpec,
    decode_header,
    header_error,
    layout_names,
    parse_header,
)
from ecgfounder_train.records.record import EcgRecord
from ecgfounder_train.records.signal_files import (
    check_matlab,
    describe,
    num_bytes,
    open_regular,
    unpack_212,
)
from ecgfounder_train.records.stored import StoredRecord, open_segments, open_single

_EXTENSIONS = (".hea", ".dat", ".mat")
LONG_VALUES = 1 << 24
"""A record of more values is read window by window: 47 minutes of 12 leads at 500 Hz."""


def read_record(path: Path | str, root: Path | None = None) -> EcgRecord:
    """Return the record whose header is at `path` (with or without .hea, .dat or .mat).

    Args:
        path: Header, signal file, or both without extension.
        root: The archive. Links to files elsewhere are not followed; without it, out of the
            header's folder.

    Raises:
        RejectedRecordError: It cannot be read; the reason says why.
    """
    record = read_or_open(path, root)
    return record if isinstance(record, EcgRecord) else record.read()


def read_or_open(path: Path | str, root: Path | None = None) -> EcgRecord | StoredRecord:
    """Return the record at `path`, opened but not read if it is longer than `LONG_VALUES`.

    Raises:
        RejectedRecordError: It cannot be read; the reason says why.
    """
    stem = _stem(path)
    header = _read_header(stem, root)
    folder = Path(stem).parent
    num_samples = header.num_samples
    if is_fast(header) and num_samples and num_samples * len(header.signals) <= LONG_VALUES:
        return decode_record(
            header,
            {
                name: _read_file(
                    folder / name,
                    root,
                    RejectReason.MISSING_SIGNAL_FILE,
                    RejectReason.UNREADABLE_SIGNAL,
                    specs[0].byte_offset + num_bytes(specs[0].fmt, num_samples * len(specs)),
                )
                for name, specs in _by_file(header).items()
            },
        )
    record = _opened(stem, header, root)
    return record if record.num_values > LONG_VALUES else record.read()


def open_record(path: Path | str, root: Path | None = None) -> StoredRecord:
    """Return the record at `path`, whose samples are read on demand.

    Raises:
        RejectedRecordError: A header or signal file is absent, too short or not understood.
    """
    stem = _stem(path)
    return _opened(stem, _read_header(stem, root), root)


def read_header(path: Path | str) -> RecordHeader:
    """Return the parsed header at `path` (with or without .hea, .dat or .mat).

    Raises:
        RejectedRecordError: It is absent or cannot be understood.
    """
    return _read_header(_stem(path))


def _by_file(header: RecordHeader) -> dict[str, list[SignalSpec]]:
    files: dict[str, list[SignalSpec]] = {}
    for spec in header.signals:
        files.setdefault(spec.file_name, []).append(spec)
    return files


def decode_record(header: RecordHeader, files: Mapping[str, bytes]) -> EcgRecord:
    """Return the record from its header and the content of its signal files, by file name.

    Raises:
        RejectedRecordError: A file is absent from `files`, too short, or not of the common kind.
    """
    if not is_fast(header):
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, "only formats 16 and 212 are decoded from memory"
        )
    groups: dict[str, list[int]] = {}
    for row, spec in enumerate(header.signals):
        groups.setdefault(spec.file_name, []).append(row)
    num_samples = header.num_samples
    decoded = []
    for name, rows in groups.items():
        if name not in files:
            raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "signal file is absent")
        digital = _decode_file(files[name], [header.signals[row] for row in rows], num_samples)
        num_samples = len(digital)
        decoded.append((rows, digital))
    assert num_samples is not None
    signal = np.empty((len(header.signals), num_samples), np.float32)
    for rows, digital in decoded:
        # Rows of one file are consecutive in every header we know; a slice avoids a copy.
        consecutive = rows == list(range(rows[0], rows[-1] + 1))
        target = signal[rows[0] : rows[-1] + 1] if consecutive else np.empty_like(signal[rows])
        _to_millivolts(digital, [header.signals[row] for row in rows], target)
        if not consecutive:
            signal[rows] = target
    return EcgRecord(signal, header.lead_names, header.fs, header.start_time, header.comments)


def _stem(path: Path | str) -> str:
    text = os.fspath(path)
    return text[:-4] if text.lower().endswith(_EXTENSIONS) else text


def _read_header(stem: str, root: Path | None = None) -> RecordHeader:
    return parse_header(decode_header(_header_bytes(stem, root)))


def _header_bytes(stem: str, root: Path | None) -> bytes:
    try:
        return _read_file(
            Path(f"{stem}.hea"),
            root,
            RejectReason.MISSING_HEADER,
            RejectReason.UNREADABLE_HEADER,
            MAX_HEADER_BYTES + 1,
        )
    except RejectedRecordError as error:
        if error.reason is RejectReason.MISSING_HEADER and (detail := _lonely_signal(stem)):
            raise RejectedRecordError(error.reason, detail) from None
        raise


def _lonely_signal(stem: str) -> str:
    """Return what is said of a signal file without its header."""
    for suffix in (".mat", ".MAT", ".dat", ".DAT"):
        path = Path(stem + suffix)
        if not path.is_file():
            continue
        needs = f"{suffix} file without its header (.hea), which states rate, units and leads"
        if suffix.lower() == ".mat":
            return f"{needs}; fetch the header, or save the numbers as .npy or .csv"
        return f"{needs}; fetch the header"
    return ""


def _opened(stem: str, header: RecordHeader, root: Path | None) -> StoredRecord:
    folder = Path(stem).parent
    if not header.segments:
        return open_single(folder, header, root)
    name, length = header.segments[0]
    layout: tuple[str, ...] = ()
    if length == 0 and name != "~":  # the layout of a variable-layout record: a header alone
        layout = layout_names(decode_header(_header_bytes(str(folder / name), root)))
    return open_segments(
        folder,
        header,
        root,
        lambda segment: _read_header(str(folder / segment), root),
        [(name, 0) for name in layout],
    )


def _read_file(
    path: Path, root: Path | None, missing: RejectReason, unreadable: RejectReason, limit: int
) -> bytes:
    """Return the first bytes of a regular file, `limit` at most."""
    descriptor = open_regular(path, root, missing, unreadable)
    try:
        size = min(os.fstat(descriptor).st_size, limit)
        content = os.read(descriptor, size)
        while len(content) < size and (piece := os.read(descriptor, size - len(content))):
            content += piece  # on network file systems a read ends early
        return content
    except OSError as error:
        raise RejectedRecordError(unreadable, f"cannot be read: {describe(error)}") from None
    finally:
        os.close(descriptor)


def is_fast(header: RecordHeader) -> bool:
    """Return whether `decode_record` reads the record; all others go through `StoredRecord`."""
    return not header.segments and all(
        spec.fmt in (16, 212) and spec.samples_per_frame == 1 and spec.skew == 0 and spec.is_voltage
        for spec in header.signals
    )


def _decode_file(
    content: bytes, specs: list[SignalSpec], num_samples: int | None
) -> NDArray[np.int16]:
    """Return int16 (num_samples, signals of this file), -32768 where a sample is missing."""
    fmt, offset, count = specs[0].fmt, specs[0].byte_offset, len(specs)
    if any(spec.fmt != fmt or spec.byte_offset != offset for spec in specs):
        raise header_error("signals of one file differ in format or offset")
    check_matlab(content[:24], offset, count)
    available = len(content) - offset
    if num_samples is None:
        num_samples = max(available, 0) * 8 // (16 if fmt == 16 else 12) // count
    num_values = num_samples * count
    needed = num_bytes(fmt, num_values)
    if num_values == 0 or available < needed:
        raise RejectedRecordError(
            RejectReason.TRUNCATED_SIGNAL, f"signal file has {len(content)} bytes, not {needed}"
        )
    if fmt == 16:
        values = np.frombuffer(content, "<i2", num_values, offset)
    else:
        packed = np.frombuffer(content, np.uint8, needed, offset)
        if needed % 3:
            packed = np.append(packed, np.uint8(0))
        values = unpack_212(packed)[:num_values]
    return values.reshape(num_samples, count)


def _to_millivolts(
    digital: NDArray[np.int16], specs: list[SignalSpec], target: NDArray[np.float32]
) -> None:
    """Fill `target` (leads, samples) with (ADC value - baseline) / gain."""
    transposed = digital.T
    if any(spec.baseline for spec in specs):
        baseline = np.array([[spec.baseline] for spec in specs], np.float32)
        np.subtract(transposed, baseline, out=target, dtype=np.float32)
    else:
        np.copyto(target, transposed)
    gains = [spec.gain for spec in specs]
    if gains.count(gains[0]) == len(gains):
        target /= np.float32(gains[0])
    else:
        target /= np.array(gains, np.float32)[:, None]
    if digital.min() == -32768:
        target[transposed == -32768] = np.nan
