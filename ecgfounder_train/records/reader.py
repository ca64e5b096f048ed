"""WFDB records into memory: a lean reader for the common formats, `wfdb` for the rest.

Formats 16 and 212 (and 16+24, WFDB's MATLAB v4 files) are decoded here: `wfdb.rdrecord` costs 2.5
to 3.3 ms per record, 2.3 of it for the header, against 0.1 ms here. Several signal files, any gain
and baseline per lead are common enough to be lean too. Multi-segment records, FLAC, other formats,
skewed signals and several samples per frame go through the `wfdb` package.

Whatever a file holds, the outcome is a record or a RejectedRecordError: archives of ten million
files contain every kind of damage, and one of them must not end a build.
"""

import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records.header import (
    MAX_HEADER_BYTES,
    MAX_VALUES,
    MILLIVOLTS_PER_UNIT,
    RecordHeader,
    SignalSpec,
    decode_header,
    header_error,
    parse_header,
)
from ecgfounder_train.records.record import EcgRecord

_EXTENSIONS = (".hea", ".dat", ".mat")
# wfdb decodes to float64 and copies: 0.5 GB per copy at most.
_MAX_FALLBACK_VALUES = 1 << 26
_BITS = {8: 8, 16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 10, 311: 10}
_FLAC_FORMATS = (508, 516, 524)


def read_record(path: Path | str) -> EcgRecord:
    """Return the record whose header lies at `path` (with or without .hea, .dat or .mat).

    Raises:
        RejectedRecordError: It cannot be read; the reason says why.
    """
    stem = _stem(path)
    header = _read_header(stem)
    folder = Path(stem).parent
    if not is_lean(header):
        return _read_with_wfdb(stem, folder, header)
    files = {
        name: _read_file(
            folder / name,
            RejectReason.MISSING_SIGNAL_FILE,
            RejectReason.UNREADABLE_SIGNAL,
        )
        for name in {spec.file_name: None for spec in header.signals}
    }
    return decode_record(header, files)


def read_header(path: Path | str) -> RecordHeader:
    """Return the parsed header at `path` (with or without .hea, .dat or .mat).

    Raises:
        RejectedRecordError: It is absent or cannot be understood.
    """
    return _read_header(_stem(path))


def decode_record(header: RecordHeader, files: Mapping[str, bytes]) -> EcgRecord:
    """Return the record from its header and the content of its signal files, by file name.

    Raises:
        RejectedRecordError: A file is absent from `files`, too short, or of a format that needs
            the `wfdb` fallback, which reads from a folder only.
    """
    if not is_lean(header):
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
    return text[:-4] if text.endswith(_EXTENSIONS) else text


def _read_header(stem: str) -> RecordHeader:
    content = _read_file(
        Path(f"{stem}.hea"),
        RejectReason.MISSING_HEADER,
        RejectReason.UNREADABLE_HEADER,
        limit=MAX_HEADER_BYTES + 1,
    )
    return parse_header(decode_header(content))


def _read_file(
    path: Path, missing: RejectReason, unreadable: RejectReason, limit: int | None = None
) -> bytes:
    """Return a regular file's content; a pipe or device must not hang or flood the reader."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise RejectedRecordError(missing, "file is absent") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise RejectedRecordError(unreadable, f"cannot be opened: {_kind(error)}") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise RejectedRecordError(unreadable, "not a regular file")
        size = info.st_size if limit is None else min(info.st_size, limit)
        if size > 4 * MAX_VALUES:
            raise RejectedRecordError(unreadable, f"file has {size} bytes")
        content = os.read(descriptor, size)
        while len(content) < size and (piece := os.read(descriptor, size - len(content))):
            content += piece  # one read ends at 2 GiB or, on network file systems, earlier
        return content
    except OSError as error:
        raise RejectedRecordError(unreadable, f"cannot be read: {_kind(error)}") from None
    finally:
        os.close(descriptor)


def _kind(error: Exception) -> str:
    """The error without the path that its message would hold (file stems hold patient ids)."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def is_lean(header: RecordHeader) -> bool:
    """Tell whether `decode_record` reads it; what it does not, the `wfdb` package reads."""
    return not header.segments and all(
        spec.fmt in (16, 212) and spec.samples_per_frame == 1 and spec.skew == 0
        for spec in header.signals
    )


def _decode_file(
    content: bytes, specs: list[SignalSpec], num_samples: int | None
) -> NDArray[np.int16]:
    """Return int16 (num_samples, signals of this file), -32768 where a sample is missing."""
    fmt, offset, count = specs[0].fmt, specs[0].byte_offset, len(specs)
    if any(spec.fmt != fmt or spec.byte_offset != offset for spec in specs):
        raise header_error("signals of one file differ in format or offset")
    if offset == 24:
        _check_matlab(content, count)
    available = len(content) - offset
    if num_samples is None:
        num_samples = max(available, 0) * 8 // (16 if fmt == 16 else 12) // count
    num_values = num_samples * count
    needed = 2 * num_values if fmt == 16 else (3 * num_values + 1) // 2
    if num_values == 0 or available < needed:
        raise RejectedRecordError(
            RejectReason.TRUNCATED_SIGNAL, f"signal file has {len(content)} bytes, not {needed}"
        )
    if fmt == 16:
        values = np.frombuffer(content, "<i2", num_values, offset)
    else:
        values = _unpack_212(np.frombuffer(content, np.uint8, needed, offset), num_values)
    return values.reshape(num_samples, count)


def _check_matlab(content: bytes, count: int) -> None:
    """Reject a MATLAB file whose own header says it is not what format 16+24 promises."""
    if content.startswith(b"MATLAB "):
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL, "MATLAB file of version 5 or later, not 4"
        )
    if len(content) >= 24 and content[20:24] == b"val\0":
        kind, rows, _, imaginary, _ = np.frombuffer(content, "<i4", 5)
        if (kind, rows, imaginary) != (30, count, 0):
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL, "MATLAB matrix is not int16 of the header's leads"
            )


def _unpack_212(packed: NDArray[np.uint8], num_values: int) -> NDArray[np.int16]:
    """Return int16 from 12-bit pairs in three bytes; -2048 (missing) becomes -32768."""
    padded = packed.astype(np.int16) if len(packed) % 3 == 0 else np.append(packed, 0).astype("i2")
    low, middle, high = padded.reshape(-1, 3).T
    values = np.empty((len(low), 2), np.int16)
    values[:, 0] = low | ((middle & 0x0F) << 8)
    values[:, 1] = high | ((middle & 0xF0) << 4)
    values[values > 2047] -= 4096
    values[values == -2048] = -32768
    return values.reshape(-1)[:num_values]


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


def _read_with_wfdb(stem: str, folder: Path, header: RecordHeader) -> EcgRecord:
    """Return the record through the `wfdb` package, after the checks that it does not make."""
    _guard_fallback(folder, header, depth=0)
    import wfdb  # costs 0.3 s: only where it is needed

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = wfdb.rdrecord(str(Path(stem).absolute()), physical=True, m2s=True)
    except Exception as error:
        # wfdb raises whatever its parsing stumbles over: KeyError, IndexError, RuntimeError ...
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL, f"wfdb cannot read it: {type(error).__name__}"
        ) from None
    if record.p_signal is None or record.p_signal.size == 0:
        raise RejectedRecordError(RejectReason.UNREADABLE_SIGNAL, "record holds no samples")
    scales = [MILLIVOLTS_PER_UNIT.get((units or "mV").lower()) for units in record.units]
    if None in scales:
        raise RejectedRecordError(RejectReason.UNKNOWN_UNITS, "a signal's units are no voltage")
    signal = np.ascontiguousarray(record.p_signal.T * np.array(scales, float)[:, None], np.float32)
    names = tuple(name or "" for name in record.sig_name)
    return EcgRecord(signal, names, header.fs, header.start_time, header.comments)


def _guard_fallback(folder: Path, header: RecordHeader, depth: int) -> None:
    """Reject what would make wfdb recurse without end or allocate for a header's fantasy."""
    if header.segments:
        total = sum(length for _, length in header.segments)
        if depth > 0 or total > _MAX_FALLBACK_VALUES // 4:
            raise header_error("segments within segments, or too many samples")
        # A segment of length 0 is the layout of a variable-layout record: a header without files.
        units: dict[str, set[str]] = {}
        for name in {name for name, length in header.segments if name != "~" and length > 0}:
            segment = _read_header(str(folder / name))
            _guard_fallback(folder, segment, depth + 1)
            for spec in segment.signals:
                units.setdefault(spec.name, set()).add(spec.units.lower())
        # wfdb joins the numbers of segments as they are, and gives the first one's units.
        if any(len(different) > 1 for different in units.values()):
            raise header_error("a signal's units differ from segment to segment")
        return
    frame = sum(spec.samples_per_frame for spec in header.signals)
    if (header.num_samples or 0) * frame > _MAX_FALLBACK_VALUES:
        raise header_error(f"header promises {header.num_samples} samples")
    for spec in header.signals:
        if spec.fmt not in _BITS and spec.fmt not in _FLAC_FORMATS:
            raise RejectedRecordError(
                RejectReason.UNSUPPORTED_FORMAT, f"WFDB has no signal format {spec.fmt}"
            )
        if spec.samples_per_frame > 1024 or abs(spec.skew) > (1 << 20):
            raise header_error("samples per frame or skew is absurd")
    for name in {spec.file_name for spec in header.signals}:
        specs = [spec for spec in header.signals if spec.file_name == name]
        bits = sum(_BITS.get(spec.fmt, 0) * spec.samples_per_frame for spec in specs)
        needed = specs[0].byte_offset + (header.num_samples or 0) * bits // 8
        try:
            info = (folder / name).stat()
        except OSError:
            raise RejectedRecordError(
                RejectReason.MISSING_SIGNAL_FILE, "signal file is absent"
            ) from None
        if not stat.S_ISREG(info.st_mode) or info.st_size > 8 * _MAX_FALLBACK_VALUES:
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL, "signal file is no regular file, or too large"
            )
        if info.st_size == 0 or info.st_size < needed:
            raise RejectedRecordError(
                RejectReason.TRUNCATED_SIGNAL,
                f"signal file has {info.st_size} bytes, not {max(needed, 1)}",
            )
