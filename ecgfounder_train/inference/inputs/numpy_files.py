"""NumPy files: `.npy` with one recording (leads, time) or many (record, leads, time); `.npz`.

An `.npz` may hold the metadata itself: arrays named `fs`, `leads` and `unit` (one for all, or one
per lead) beside the signal, or one array per lead, named like it. Axes come in either order.
Shapes are compared with the file's size before anything is read; nothing pickled is ever loaded.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ecgfounder_train.core.untrusted import check_num_records
from ecgfounder_train.inference.inputs.reading import (
    LEAD_NAMES,
    MAX_VALUES_IN_MEMORY,
    RATE_NAMES,
    UNIT_NAMES,
    InputFormat,
    InputOptions,
    SourceRecord,
    from_array,
    left_out,
    number_in,
    texts_in,
    too_large,
    unreadable,
)
from ecgfounder_train.records import STANDARD_LEADS, canonical_lead

_SIGNAL = ("signal", "signals", "ecg", "x", "data", "tracings", "p_signal", "arr_0")
_SINGLE_LEADS = "."
_MAX_METADATA_BYTES = 1 << 24


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:  # Python integers: no overflow
            count *= size
        return count * self.dtype.itemsize

    @property
    def is_signal(self) -> bool:
        return self.dtype.kind in "iuf" and len(self.shape) in (1, 2, 3)


def items(path: Path) -> Sequence[str]:
    """Return a number per recording of a file with many, else one name per recording."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as handle:
            header = _header(handle, path.stat().st_size)
        return _numbered("", header.shape)
    with zipfile.ZipFile(path) as archive:
        names = _recordings(_headers(archive))
        if not names:
            listed = ", ".join(archive.namelist()[:5])
            raise unreadable(f"no array of the archive is a signal: {listed or 'it is empty'}")
        if len(names) == 1:
            return [""] if len(names[0][1]) != 3 else _numbered("", names[0][1])
        return [item for name, shape in names for item in _numbered(name, shape)]


def _numbered(name: str, shape: tuple[int, ...]) -> Sequence[str]:
    if len(shape) != 3:
        return [name]
    return [f"{name}/{number}" if name else str(number) for number in range(shape[0])]


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return one recording."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _from_archive(archive, item, options)
    with open(path, "rb") as handle:
        header = _header(handle, path.stat().st_size)
    if header.dtype.kind not in "iuf":
        raise unreadable(f"values of type {header.dtype} are not a recording")
    # A memory map, so that one recording of many costs one read and a long one is read in windows.
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return from_array(values[int(item)] if item else values, options)


def _from_archive(archive: zipfile.ZipFile, item: str, options: InputOptions) -> SourceRecord:
    headers = _headers(archive)
    found = dict(_recordings(headers))
    if not found:
        raise unreadable("no array of the archive is a signal")
    name, _, number = item.rpartition("/")
    if not name:
        name = next(iter(found)) if item.isdigit() or not item else item
        number = item if item.isdigit() else ""
    if name not in found:
        name, number = item, ""
    if name not in found:
        raise unreadable("the recording that was asked for is not in the archive")
    rate, units = _metadata(archive, headers, RATE_NAMES), _metadata(archive, headers, UNIT_NAMES)
    place = int(number) if number else 0
    if rate is not None and rate.ndim == 1 and number and len(rate) > place:
        rate = rate[place : place + 1]
    remarks = left_out(
        [
            f"array {other} of shape {headers[other].shape}"
            for other in headers
            if headers[other].is_signal and len(headers[other].shape) > 1 and other not in found
        ]
    )
    if name == _SINGLE_LEADS:
        leads = _lead_arrays(headers)
        values = np.stack([_load(archive, member) for member in leads.values()])
        names: list[str] | None = list(leads)
    else:
        array = _load(archive, name)
        values = array[place] if array.ndim == 3 else array
        names = texts_in(_metadata(archive, headers, LEAD_NAMES))
    fs = number_in(rate) if rate is not None else None
    return from_array(values, options, names=names, fs=fs, unit=texts_in(units), remarks=remarks)


def _recordings(headers: dict[str, _Header]) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of the arrays that are signals.

    One with a usual name is the signal; without one, every array of two or three axes is a
    recording (or many), and the arrays of one axis that are named like leads are one together.
    """
    lowered = {name.lower(): name for name in headers}
    for usual in _SIGNAL:
        if usual in lowered and headers[lowered[usual]].is_signal:
            name = lowered[usual]
            return [(name, headers[name].shape)]
    metadata = {*RATE_NAMES, *UNIT_NAMES, *LEAD_NAMES}
    found = [
        (name, header.shape)
        for name, header in headers.items()
        if header.is_signal and len(header.shape) > 1 and name.lower() not in metadata
    ]
    if leads := _lead_arrays(headers):
        found.append((_SINGLE_LEADS, headers[next(iter(leads.values()))].shape))
    return found


def _lead_arrays(headers: dict[str, _Header]) -> dict[str, str]:
    """Return the arrays of one axis and one length that are named like leads, by lead."""
    found: dict[str, str] = {}
    for name, header in headers.items():
        lead = canonical_lead(name)
        if lead in STANDARD_LEADS and header.is_signal and len(header.shape) == 1:
            found.setdefault(lead, name)
    longest = max((headers[name].shape for name in found.values()), default=())
    return {lead: name for lead, name in found.items() if headers[name].shape == longest}


def _header(handle: IO[bytes], num_bytes: int) -> _Header:
    """Return shape and type of an array whose file or member has `num_bytes`.

    Raises:
        RejectedRecordError: The shape is impossible, or larger than the file.
    """
    version = npy.read_magic(handle)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = reader(handle)
    header = _Header(tuple(shape), dtype)
    if dtype.hasobject:
        raise unreadable("the array is pickled, and nothing pickled is ever loaded")
    if any(size < 0 for size in shape) or header.num_bytes > num_bytes:
        raise unreadable(f"an array of shape {shape} does not fit into its {num_bytes} bytes")
    if 0 in shape and header.is_signal and len(shape) > 1:
        raise unreadable(f"an array of shape {shape} is empty")
    if len(shape) == 3:
        check_num_records(shape[0])
    return header


def _headers(archive: zipfile.ZipFile) -> dict[str, _Header]:
    found = {}
    for info in archive.infolist()[:1000]:
        if info.filename.endswith(".npy"):
            with archive.open(info) as handle:
                found[info.filename.removesuffix(".npy")] = _header(handle, info.file_size)
    return found


def _load(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > 4 * MAX_VALUES_IN_MEMORY:
        raise too_large(f"{info.file_size} bytes of array {name}")
    with archive.open(info) as handle:
        values: NDArray[Any] = npy.read_array(handle, allow_pickle=False)
    return values


def _metadata(
    archive: zipfile.ZipFile, headers: dict[str, _Header], names: Sequence[str]
) -> NDArray[Any] | None:
    lowered = {name.lower(): name for name in headers}
    for name in names:
        if name in lowered and headers[lowered[name]].num_bytes <= _MAX_METADATA_BYTES:
            return _load(archive, lowered[name])
    return None


FORMAT = InputFormat(
    "NumPy",
    (".npy", ".npz"),
    lambda head: head.startswith(b"\x93NUMPY") or (head[:4] == b"PK\x03\x04" and b".npy" in head),
    read,
    items,
)
