"""One sample as four tar members of fixed size, so that every offset is known beforehand.

A sample is a block of constant length: header and payload of ``.ecg.npy``, ``.stats.npy``,
``.labels.npy`` and ``.json``, each padded to 512 bytes. Any tar reader and any `webdataset` user
sees ordinary members; a reader that knows the layout reads signal and statistics with one
``preadv``.

Headers are encoded here rather than by `tarfile`, because the bytes must be the same on every
machine: no owner, no time, no PAX extension, mode 0644.

Source: POSIX.1-1988 ustar (IEEE Std 1003.1, pax, "ustar Interchange Format"); NumPy NEP 1 (.npy).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError

TAR_BLOCK_BYTES = 512
TAR_END = bytes(2 * TAR_BLOCK_BYTES)
NPY_HEADER_BYTES = 128
SAMPLE_JSON_BYTES = 512
"""The .json member is padded with spaces to this, which JSON readers skip."""

SAMPLE_NAME = re.compile(r"(?P<record_key>[0-9a-f]{32})_w(?P<window>0|[1-9][0-9]{0,4})\Z")


class Part(NamedTuple):
    """Byte range of one member's data within a sample's block."""

    suffix: str
    header_offset: int
    """Of the tar header."""
    offset: int
    """Of the array data (behind the .npy header) or of the JSON text."""
    num_bytes: int
    dtype: str
    """NumPy's little-endian descriptor; empty for the JSON text."""
    shape: tuple[int, ...]

    @property
    def member_bytes(self) -> int:
        """Size of the member as the tar header states it."""
        return self.num_bytes + (NPY_HEADER_BYTES if self.dtype else 0)


@dataclass(frozen=True)
class Sample:
    """What is stored of one window of one record.

    Shape:
        ecg: (num_leads, num_samples) int16, microvolts.
        stats: (num_leads, 2) float32, mean and standard deviation in mV.
        labels: (2, num_labels) uint8: row 0 the values, row 1 whether observed.
    """

    record_key: str
    window: int
    ecg: NDArray[np.int16]
    stats: NDArray[np.float32]
    labels: NDArray[np.uint8]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Member name without suffix; also webdataset's ``__key__``."""
        return f"{self.record_key}_w{self.window}"

    @property
    def xxh3(self) -> int:
        """Checksum of the array data of ecg, then stats (no .npy headers)."""
        return signal_checksum(self.ecg, self.stats)


def signal_checksum(ecg: NDArray[np.int16], stats: NDArray[np.float32]) -> int:
    """Return the xxh3-64 of the two arrays' little-endian bytes, one after the other."""
    digest = xxhash.xxh3_64(np.ascontiguousarray(ecg, "<i2").data)
    digest.update(np.ascontiguousarray(stats, "<f4").data)
    return digest.intdigest()


@dataclass(frozen=True)
class SampleLayout:
    """Byte offsets of a sample's parts, constant within a data set."""

    num_leads: int
    num_samples: int
    num_labels: int

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The members in file order: ecg, stats, labels, json."""
        arrays = (
            (".ecg.npy", "<i2", (self.num_leads, self.num_samples)),
            (".stats.npy", "<f4", (self.num_leads, 2)),
            (".labels.npy", "|u1", (2, self.num_labels)),
        )
        parts, position = [], 0
        for suffix, dtype, shape in arrays:
            num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            offset = position + TAR_BLOCK_BYTES + NPY_HEADER_BYTES
            parts.append(Part(suffix, position, offset, num_bytes, dtype, shape))
            position = _padded(offset + num_bytes)
        offset = position + TAR_BLOCK_BYTES
        parts.append(Part(".json", position, offset, SAMPLE_JSON_BYTES, "", ()))
        return tuple(parts)

    @property
    def ecg(self) -> Part:
        """The int16 signal."""
        return self.parts[0]

    @property
    def stats(self) -> Part:
        """Mean and standard deviation per lead."""
        return self.parts[1]

    @property
    def labels(self) -> Part:
        """Values and what was observed."""
        return self.parts[2]

    @property
    def json(self) -> Part:
        """The facts."""
        return self.parts[3]

    @property
    def gap_bytes(self) -> int:
        """Bytes between the end of the ecg data and the stats data (the middle iovec)."""
        return self.stats.offset - self.ecg.offset - self.ecg.num_bytes

    @cached_property
    def block_bytes(self) -> int:
        """Length of one sample in a shard; sample i of a shard starts at i times this."""
        return _padded(self.json.offset + self.json.num_bytes)

    def shard_bytes(self, count: int) -> int:
        """Return the size of a shard with `count` samples."""
        return count * self.block_bytes + len(TAR_END)

    def encode(self, sample: Sample) -> bytes:
        """Return the sample's block; the same sample gives the same bytes everywhere.

        Raises:
            UserError: The facts do not fit (a very long site name).
        """
        payloads = [sample.ecg, sample.stats, sample.labels]
        pieces: list[bytes | memoryview] = []
        for part, array in zip(self.parts, payloads, strict=False):
            data = np.ascontiguousarray(array, dtype=part.dtype)
            assert data.shape == part.shape, f"{part.suffix}: {data.shape} is not {part.shape}"
            pieces += [
                tar_header(sample.name + part.suffix, part.member_bytes),
                npy_header(part.dtype, part.shape),
                data.data,
                bytes(-part.member_bytes % TAR_BLOCK_BYTES),
            ]
        pieces += [tar_header(sample.name + ".json", SAMPLE_JSON_BYTES), _encode_facts(sample)]
        block = b"".join(pieces)
        assert len(block) == self.block_bytes
        return block

    def decode(self, block: bytes | memoryview) -> Sample:
        """Return the sample in a block, after checking every byte that is not data.

        Raises:
            BadTarError: The block is not exactly what `encode` writes.
        """
        block = memoryview(block)
        if len(block) != self.block_bytes:
            raise BadTarError(f"{len(block):,} bytes where a sample has {self.block_bytes:,}")
        stems = [self._check_member(part, block) for part in self.parts]
        if len(set(stems)) != 1:
            raise BadTarError(f"members of different samples in one block: {sorted(set(stems))}")
        match = SAMPLE_NAME.match(stems[0])
        if match is None:
            raise BadTarError(f"unexpected member name {stems[0]!r}")
        ecg, stats, labels = (self.array(part, block) for part in self.parts[:3])
        try:
            facts = json.loads(bytes(block[self.json.offset :][:SAMPLE_JSON_BYTES]))
        except ValueError as error:
            raise BadTarError(f"{stems[0]}.json is not JSON") from error
        if not isinstance(facts, dict):
            raise BadTarError(f"{stems[0]}.json is not a JSON object")
        return Sample(match["record_key"], int(match["window"]), ecg, stats, labels, facts)

    def array(self, part: Part, block: bytes | memoryview) -> NDArray[Any]:
        """Return a read-only view of one array in a block."""
        count = part.num_bytes // np.dtype(part.dtype).itemsize
        return np.frombuffer(block, part.dtype, count, part.offset).reshape(part.shape)

    def _check_member(self, part: Part, block: memoryview) -> str:
        header = bytes(block[part.header_offset :][:TAR_BLOCK_BYTES])
        name, size = parse_tar_header(header)
        if not name.endswith(part.suffix):
            raise BadTarError(f"member {name!r} where '...{part.suffix}' is due")
        if size != part.member_bytes:
            raise BadTarError(f"member {name!r} has {size} bytes, not {part.member_bytes}")
        if header != tar_header(name, size):
            raise BadTarError(f"the header of {name!r} is not as this project writes it")
        if part.dtype:
            found = block[part.offset - NPY_HEADER_BYTES : part.offset]
            if found != npy_header(part.dtype, part.shape):
                raise BadTarError(f"the .npy header of {name!r} is not {part.dtype} {part.shape}")
        end = part.offset + part.num_bytes
        if any(block[end : _padded(end)]):
            raise BadTarError(f"bytes other than zero behind {name!r}")
        return name.removesuffix(part.suffix)


class BadTarError(Exception):
    """A shard's bytes are not a tar of this layout; the message says what is there instead."""


def tar_header(name: str, size: int) -> bytes:
    """Return the 512-byte ustar header of a regular file."""
    template, base_sum = _header_template(size)
    raw = name.encode("ascii")
    assert len(raw) < 100, name
    checksum = b"%06o\0 " % (base_sum + sum(raw))
    return b"".join((raw, bytes(100 - len(raw)), template[100:148], checksum, template[156:]))


@lru_cache(maxsize=64)
def _header_template(size: int) -> tuple[bytes, int]:
    template = b"".join(
        (
            bytes(100),
            b"0000644\0" + b"0000000\0" * 2,
            b"%011o\0" % size,
            b"%011o\0" % 0,
            b" " * 8,  # the checksum is taken with its own field as spaces
            b"0",
            bytes(100),
            b"ustar\x0000",
            bytes(247),
        )
    )
    assert len(template) == TAR_BLOCK_BYTES
    return template, sum(template)


_TAR_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"L": "a GNU long name",
    b"K": "a GNU long link",
    b"S": "a sparse file",
    b"x": "a PAX header",
    b"g": "a PAX header",
}


def parse_tar_header(header: bytes) -> tuple[str, int]:
    """Return name and size of a regular member.

    Raises:
        BadTarError: Anything but a regular file with a plain relative name.
    """
    if len(header) != TAR_BLOCK_BYTES:
        raise BadTarError("the file ends within a tar header")
    if not any(header):
        raise BadTarError("the end-of-archive mark comes before the samples are complete")
    try:
        stated = int(header[148:156].rstrip(b"\0 "), 8)
        size = int(header[124:136].rstrip(b"\0 "), 8)
        name = header[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        raise BadTarError("no tar header where one is due") from None
    if stated != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise BadTarError("a tar header's checksum does not match")
    if header[156:157] != b"0":
        what = _TAR_TYPES.get(header[156:157], f"a member of type {header[156:157]!r}")
        raise BadTarError(f"{what} ({name!r}); only regular files are allowed")
    if name.startswith("/") or any(header[345:500]) or ".." in name.split("/"):
        raise BadTarError(f"member {name!r} points outside the archive's own folder")
    return name, size


@lru_cache(maxsize=64)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the .npy header, always 128 bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text_bytes = NPY_HEADER_BYTES - 10
    assert len(text) < text_bytes
    return (
        b"\x93NUMPY\x01\x00"
        + text_bytes.to_bytes(2, "little")
        + (text.ljust(text_bytes - 1) + "\n").encode("ascii")
    )


def _encode_facts(sample: Sample) -> bytes:
    text = json.dumps(dict(sample.facts), separators=(",", ":"), ensure_ascii=False)
    raw = text.encode()
    if len(raw) > SAMPLE_JSON_BYTES:
        raise UserError(
            f"The facts of a sample take {len(raw)} bytes and {SAMPLE_JSON_BYTES} are kept for "
            f"them: shorten the site name {sample.facts.get('site')!r:.80}."
        )
    return raw.ljust(SAMPLE_JSON_BYTES)


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
