"""ISHNE Holter files (`.ecg`), read in windows.

Own code instead of `ecgdatakit`, whose parser holds a file as float64: a day of 12 leads at 500 Hz
takes more than 4 GB there, a memory map here.

Source: Badilini, Ann Noninvasive Electrocardiol 1998;3(3):263-266.
"""

import binascii
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.inputs.reading import (
    MAX_VALUES_IN_MEMORY,
    InputFormat,
    InputOptions,
    SourceRecord,
    WindowedSignal,
    regular_file_bytes,
    unreadable,
    with_options,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode

_MAGIC = b"ISHNE1.0"
_HEADER_BYTES = 522
_LEADS = {
    2: "X", 3: "Y", 4: "Z", 5: "I", 6: "II", 7: "III", 8: "aVR", 9: "aVL", 10: "aVF", 11: "V1",
    12: "V2", 13: "V3", 14: "V4", 15: "V5", 16: "V6", 17: "ES", 18: "AS", 19: "AI",
}  # fmt: skip
_FAULT = -32768
"""Of a sample: the lead had no contact."""


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the recording."""
    head = regular_file_bytes(path, 1 << 16)
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        raise unreadable("not an ISHNE header")
    variable_bytes, stated_samples, _, start = struct.unpack_from("<4i", head, 10)
    num_leads = struct.unpack_from("<h", head, 156)[0]
    codes = struct.unpack_from("<12h", head, 158)
    nanovolts = struct.unpack_from("<12h", head, 206)
    fs = float(struct.unpack_from("<h", head, 272)[0])
    if not 1 <= num_leads <= 12:
        raise unreadable(f"{num_leads} leads in an ISHNE header, 1 to 12 are possible")
    if fs <= 0:
        raise RejectedRecordError(RejectReason.BAD_SAMPLING_RATE, f"{fs:g} Hz")
    num_bytes = path.stat().st_size
    if not _HEADER_BYTES <= start <= num_bytes:
        start = _HEADER_BYTES + max(variable_bytes, 0)
    num_samples = (num_bytes - start) // (2 * num_leads)
    if num_samples < 1:
        raise RejectedRecordError(
            RejectReason.TRUNCATED_SIGNAL, f"{num_bytes} bytes hold no sample of {num_leads} leads"
        )
    remarks = _checksum(head, max(variable_bytes, 0))
    # Writers disagree whether the size counts samples per lead or all, and some store a maximum.
    if stated_samples > num_samples and stated_samples // num_leads != num_samples:
        detail = f"the header announces {stated_samples} samples, {num_samples} per lead are there"
        remarks.append(Remark(WarningCode.PARTLY_READ, detail))
    units: list[str | None] = []
    for number in range(num_leads):
        known = nanovolts[number] > 0
        if not known and options.unit is None:
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS,
                f"lead {number + 1} states no resolution; give input_unit=uV or mV",
            )
        units.append("nV" if known else None)
    data: NDArray[Any] = np.memmap(path, "<i2", "r", start, (num_samples, num_leads))
    gains = np.array([n * 1e-6 if n > 0 else 1.0 for n in nanovolts[:num_leads]], np.float32)

    def samples(first: int, stop: int) -> NDArray[np.float32]:
        stored = np.ascontiguousarray(data[first:stop].T)
        signal = stored.astype(np.float32)
        signal[stored == _FAULT] = np.nan
        return signal * gains[:, None]

    names = tuple(_LEADS.get(code, f"channel {n + 1}") for n, code in enumerate(codes[:num_leads]))
    source = WindowedSignal(names, fs, num_samples, samples)
    short = num_samples * num_leads <= MAX_VALUES_IN_MEMORY
    return with_options(source.to_record() if short else source, units, options, remarks)


def _checksum(head: bytes, variable_bytes: int) -> list[Remark]:
    """Return a remark where the header's checksum is stored and wrong, in either byte order."""
    stored = head[8:10]
    computed = binascii.crc_hqx(head[10 : _HEADER_BYTES + variable_bytes], 0xFFFF)
    if stored == b"\0\0" or stored in (computed.to_bytes(2, "little"), computed.to_bytes(2, "big")):
        return []
    return [Remark(WarningCode.CHECKSUM, "the header's checksum does not match its content")]


FORMAT = InputFormat("ISHNE Holter", (".ecg",), lambda head: head.startswith(_MAGIC), read)
