"""Samples of a WFDB signal file: every format, several samples per frame, any range of frames.

Own code rather than `wfdb.rdrecord`, which averages the samples of a frame, joins segments by
column, opens what a header names, reads format 8 wrongly from the middle and takes 2.5 to 3.3 ms
per record (0.1 ms here for formats 16 and 212). It is the reference of the tests.

Source: https://wfdb.io/spec/signal-files.html
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.core.extras import needs
from ecgfounder_train.records.header import SignalSpec, header_error

FLAC_BITS = {508: 8, 516: 16, 524: 24}
_MAX_SAMPLES_PER_FRAME = 1024
_MAX_SKEW = 1 << 20
_FLAC_FRAMES = 1 << 20
"""Read at once: libsndfile fails beyond 2^24 values (libsndfile issue 431)."""


def open_regular(
    path: Path, root: Path | None, missing: RejectReason, unreadable: RejectReason
) -> int:
    """Return a descriptor of a regular file, whatever the case of its name.

    Copies from Windows, DOS or a CD-ROM have names in upper case. A pipe or device would hang or
    flood the reader. A symbolic link is followed within `root` and within the file's own folder
    only: an archive of a stranger must not have another file of this machine read.

    Raises:
        RejectedRecordError: `missing` or `unreadable`.
    """
    for name in _spellings(path.name):
        try:
            descriptor = _open(path.with_name(name) if name != path.name else path, root)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            raise RejectedRecordError(unreadable, f"cannot be opened: {describe(error)}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RejectedRecordError(unreadable, "not a regular file")
        return descriptor
    raise RejectedRecordError(missing, "file is absent")


def _spellings(name: str) -> tuple[str, ...]:
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        return (name,)
    upper, lower = f"{stem}.{suffix.upper()}", f"{stem}.{suffix.lower()}"
    return tuple(dict.fromkeys((name, upper, lower, name.upper(), name.lower())))


def _open(path: Path, root: Path | None) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.ELOOP or not path.is_symlink():
            raise
    target = Path(os.path.realpath(path, strict=True))  # an OSError for a loop
    folders = [path.parent.resolve(), *([root.resolve()] if root is not None else [])]
    if not any(target.is_relative_to(folder) for folder in folders):
        raise OSError(
            errno.ELOOP, "a link that leads out of the archive; copy the file, or link its folder"
        )
    return os.open(target, flags | os.O_NOFOLLOW)


def describe(error: Exception) -> str:
    """Return an error without the path that its message would hold (file stems hold ids)."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


class _Packing(NamedTuple):
    """How a format packs values: blocks of so many values in so many bytes."""

    values: int
    bytes: int
    unpack: Callable[[NDArray[np.uint8]], NDArray[Any]]
    missing: int | None
    """The stored value of a missing sample."""
    tails: tuple[int, ...] = (0,)
    """Bytes that the first 0, 1, ... values of a block take."""


def _unpack_24(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    low, middle, high = packed.reshape(-1, 3).astype(np.int32).T
    return (low | (middle << 8) | (high << 16)) - ((high & 0x80) << 17)


def unpack_212(packed: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return int16 from pairs of 12 bits in three bytes; -2048 (missing) becomes -32768."""
    low, middle, high = packed.astype(np.int16).reshape(-1, 3).T
    values = np.empty((len(low), 2), np.int16)
    values[:, 0] = low | ((middle & 0x0F) << 8)
    values[:, 1] = high | ((middle & 0xF0) << 4)
    values[values > 2047] -= 4096
    values[values == -2048] = -32768
    return values.reshape(-1)


def _ten_bits(values: Sequence[NDArray[Any]]) -> NDArray[np.int32]:
    stacked = np.stack(values, axis=1).astype(np.int32).reshape(-1) & 0x3FF
    return stacked - ((stacked & 0x200) << 1)


def _unpack_310(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    first, second = packed.view("<u2").reshape(-1, 2).T
    return _ten_bits([first >> 1, second >> 1, (first >> 11) | ((second >> 11) << 5)])


def _unpack_311(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    block = packed.view("<u4")
    return _ten_bits([block, block >> 10, block >> 20])


_PACKINGS = {
    8: _Packing(1, 1, lambda packed: packed.view("i1"), None),
    16: _Packing(1, 2, lambda packed: packed.view("<i2"), -32768),
    24: _Packing(1, 3, _unpack_24, -(1 << 23)),
    32: _Packing(1, 4, lambda packed: packed.view("<i4"), -(1 << 31)),
    61: _Packing(1, 2, lambda packed: packed.view(">i2"), -32768),
    80: _Packing(1, 1, lambda packed: packed.astype(np.int16) - 128, -128),
    160: _Packing(1, 2, lambda packed: packed.view("<u2").astype(np.int32) - 32768, -32768),
    212: _Packing(2, 3, unpack_212, -32768, (0, 2)),
    310: _Packing(3, 4, _unpack_310, -512, (0, 2, 4)),
    311: _Packing(3, 4, _unpack_311, -512, (0, 2, 3)),
}


def num_bytes(fmt: int, num_values: int) -> int:
    """Return how many bytes so many values take in a format that is not compressed."""
    packing = _PACKINGS[fmt]
    whole, rest = divmod(num_values, packing.values)
    return whole * packing.bytes + packing.tails[rest]


class SignalFile:
    """The signals of one file, in the order in which a frame holds them.

    Attributes:
        num_frames: Length of the record; where the header leaves it open, of the file.
    """

    def __init__(
        self, path: Path, specs: Sequence[SignalSpec], num_frames: int | None, root: Path | None
    ) -> None:
        """Check that the file is there and long enough.

        Raises:
            RejectedRecordError: It is absent, too short, not a regular file, or of a format that
                WFDB does not have.
        """
        self.path, self.specs, self.root = path, tuple(specs), root
        self.fmt, self.offset = specs[0].fmt, specs[0].byte_offset
        self.frame_values = sum(spec.samples_per_frame for spec in specs)
        if unknown := {spec.fmt for spec in specs} - {*_PACKINGS, *FLAC_BITS}:
            raise RejectedRecordError(
                RejectReason.UNSUPPORTED_FORMAT, f"WFDB has no signal format {min(unknown)}"
            )
        if any((spec.fmt, spec.byte_offset) != (self.fmt, self.offset) for spec in specs):
            raise header_error("signals of one file differ in format or offset")
        if any(
            spec.samples_per_frame > _MAX_SAMPLES_PER_FRAME or spec.skew > _MAX_SKEW
            for spec in specs
        ):
            raise header_error("samples per frame or skew is implausible")
        # Format 8 holds differences: where the sums stand, for the next range to continue from.
        self._sums = (0, [spec.initial_value for spec in specs])
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            check_matlab(os.pread(descriptor, 24, 0), self.offset, len(self.specs))
        finally:
            os.close(descriptor)
        self.num_frames = self._checked_length(num_frames, size)

    def _open(self) -> int:
        return open_regular(
            self.path,
            self.root,
            RejectReason.MISSING_SIGNAL_FILE,
            RejectReason.UNREADABLE_SIGNAL,
        )

    def _checked_length(self, num_frames: int | None, size: int) -> int:
        if self.fmt in FLAC_BITS:
            with self._flac() as content:
                there = (content.frames - self.offset) // self.specs[0].samples_per_frame
            found, needed = f"{max(there, 0)} frames", f"{num_frames or 1}"
        else:
            packing = _PACKINGS[self.fmt]
            values = max(size - self.offset, 0) * packing.values // packing.bytes
            there = values // self.frame_values
            due = num_bytes(self.fmt, max(num_frames or 1, 1) * self.frame_values)
            found, needed = f"{size} bytes", f"{self.offset + due}"
            # The last block may be cut behind its last value.
            there = num_frames if num_frames and size >= self.offset + due else there
        if there < max(num_frames or 1, 1):
            raise RejectedRecordError(
                RejectReason.TRUNCATED_SIGNAL, f"signal file has {found}, not {needed}"
            )
        return num_frames or there

    def read(self, start: int, stop: int) -> list[NDArray[np.float32]]:
        """Return each signal of the frames from `start` to `stop`, NaN where a sample is missing.

        In mV, or in ADC units less the baseline for a signal that is not a voltage.
        """
        reach = max(spec.skew for spec in self.specs)
        end = min(stop + reach, self.num_frames)
        begin = min(start, end)
        frames = self._frames(begin, end)
        missing = _PACKINGS[self.fmt].missing if self.fmt in _PACKINGS else None
        if self.fmt in FLAC_BITS:
            missing = -(1 << (FLAC_BITS[self.fmt] - 1))
        signals, column = [], 0
        for spec in self.specs:
            per_frame = spec.samples_per_frame
            stored = frames[spec.skew :, column : column + per_frame][: stop - start]
            column += per_frame
            signal = np.full(((stop - start) * per_frame), np.nan, np.float32)
            values = (stored - float(spec.baseline)) / (spec.gain if spec.is_voltage else 1.0)
            if missing is not None:
                values[stored == missing] = np.nan
            signal[: values.size] = values.reshape(-1)
            signals.append(signal)
        return signals

    def _frames(self, start: int, stop: int) -> NDArray[Any]:
        """Return the stored values, integers (frames, values of a frame)."""
        if self.fmt in FLAC_BITS:
            return self._flac_frames(start, stop)
        if self.fmt != 8:
            return self._unpacked(start, stop)
        at, sums = self._sums
        if start < at:
            at, sums = 0, [spec.initial_value for spec in self.specs]
        while at < start:
            until = min(start, at + _FLAC_FRAMES)
            sums = [int(part[-1, -1]) for part in self._summed(at, until, sums)]
            at = until
        parts = self._summed(start, stop, sums)
        if stop > start:
            self._sums = (stop, [int(part[-1, -1]) for part in parts])
        return np.concatenate(parts, axis=1)

    def _summed(self, start: int, stop: int, sums: Sequence[int]) -> list[NDArray[np.int64]]:
        steps = self._unpacked(start, stop)
        parts, column = [], 0
        for spec, before in zip(self.specs, sums, strict=True):
            own = steps[:, column : column + spec.samples_per_frame]
            column += spec.samples_per_frame
            parts.append((own.reshape(-1).cumsum(dtype=np.int64) + before).reshape(own.shape))
        return parts

    def _unpacked(self, start: int, stop: int) -> NDArray[Any]:
        packing = _PACKINGS[self.fmt]
        first, count = start * self.frame_values, (stop - start) * self.frame_values
        block, skipped = divmod(first, packing.values)
        begin = block * packing.bytes
        needed = num_bytes(self.fmt, first + count) - begin
        content = bytearray(-(-(skipped + count) // packing.values) * packing.bytes)
        descriptor = self._open()
        try:
            filled = 0
            while filled < needed:
                view = memoryview(content)[filled:needed]
                got = os.preadv(descriptor, [view], self.offset + begin + filled)
                if not got:
                    raise RejectedRecordError(
                        RejectReason.TRUNCATED_SIGNAL, "signal file became shorter while read"
                    )
                filled += got
        except OSError as error:
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL, f"cannot be read: {describe(error)}"
            ) from None
        finally:
            os.close(descriptor)
        values = packing.unpack(np.frombuffer(content, np.uint8))[skipped : skipped + count]
        return values.reshape(stop - start, self.frame_values)

    def _flac(self) -> Any:
        """Return the open FLAC file, after the checks that its decoder does not make."""
        with needs("formats", "A record in FLAC"):
            import soundfile

        handle = os.fdopen(self._open(), "rb")
        try:
            if handle.read(4) != b"fLaC":
                raise RejectedRecordError(RejectReason.UNREADABLE_SIGNAL, "not a FLAC file")
            handle.seek(0)
            content = _Flac(handle, soundfile.SoundFile(handle))
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            handle.close()
            raise _flac_error(error) from None
        except RejectedRecordError:
            handle.close()
            raise
        bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}.get(content.file.subtype, 99)
        per_frame = {spec.samples_per_frame for spec in self.specs}
        if bits > FLAC_BITS[self.fmt] or content.file.channels != len(self.specs):
            content.close()
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL,
                f"FLAC file of {content.file.channels} channels with {bits} bits",
            )
        if len(per_frame) > 1:
            content.close()
            raise header_error("signals of a FLAC file differ in samples per frame")
        return content

    def _flac_frames(self, start: int, stop: int) -> NDArray[Any]:
        per_frame, channels = self.specs[0].samples_per_frame, len(self.specs)
        wanted = (stop - start) * per_frame
        shift = {"PCM_S8": 24, "PCM_16": 16, "PCM_24": 8}
        parts = []
        try:
            with self._flac() as content:
                content.file.seek(start * per_frame + self.offset)
                for at in range(0, wanted, _FLAC_FRAMES):
                    size = min(_FLAC_FRAMES, wanted - at)
                    part = content.file.read(size, dtype="int32", always_2d=True)
                    if len(part) < size:
                        raise RejectedRecordError(
                            RejectReason.TRUNCATED_SIGNAL, f"FLAC file ends {size - len(part)} "
                            "samples early"
                        )  # fmt: skip
                    parts.append(part >> shift[content.file.subtype])
        except (RuntimeError, OSError, ValueError) as error:
            raise _flac_error(error) from None
        values = np.concatenate(parts) if parts else np.empty((0, channels), np.int32)
        return values.reshape(-1, per_frame, channels).transpose(0, 2, 1).reshape(
            stop - start, self.frame_values
        )  # fmt: skip


class _Flac(NamedTuple):
    """An open FLAC file and the handle below it; closes both."""

    handle: Any
    file: Any

    @property
    def frames(self) -> int:
        return int(self.file.frames)

    def __enter__(self) -> "_Flac":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.handle.close()


def _flac_error(error: Exception) -> RejectedRecordError:
    return RejectedRecordError(
        RejectReason.UNREADABLE_SIGNAL, f"FLAC file cannot be decoded: {type(error).__name__}"
    )


def check_matlab(head: bytes, offset: int, count: int) -> None:
    """Reject a MATLAB file whose own header says it is not what format 16+24 promises."""
    if offset != 24:
        return
    if head.startswith(b"MATLAB "):
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL,
            "MATLAB file of version 5 or later; WFDB reads version 4 (save it as .npy or .csv)",
        )
    if len(head) >= 24 and head[20:24] == b"val\0":
        kind, rows, _, imaginary, _ = np.frombuffer(head, "<i4", 5)
        if (kind, rows, imaginary) != (30, count, 0):
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL, "MATLAB matrix is not int16 of the header's leads"
            )
