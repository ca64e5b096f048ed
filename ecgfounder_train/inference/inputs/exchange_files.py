"""SCP-ECG, Philips Sierra and Mortara XML, MFER and Kardia JSON, read with `ecgdatakit`.

A library that is kept (Apache 2.0): it decodes SCP-ECG's Huffman tables, differences and reference
beats and Philips' compression, and refuses XML with entities. What it cannot read (SCP-ECG's
bimodal compression, long-term sections) it reports, and each of its warnings becomes a remark.
Vendor exports that store only I, II and V1-V6 give these eight leads; the other four are derived
when leads are chosen.
"""

import re
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.core.extras import needs
from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    left_out,
    millivolts_per,
    number_in,
    regular_file_bytes,
    too_large,
    unreadable,
    with_options,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import EcgRecord

MAX_BYTES = 1 << 26
_MAX_SAMPLES = 1 << 25
_MAX_NOTES = 5
_SIERRA = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?restingecgdata[\s>]", re.I)
_MORTARA = re.compile(rb"<ECG[\s>].*?(?:ACQUISITION_TIME|<TYPICAL_CYCLE|<CHANNEL)", re.S)
_KARDIA = re.compile(rb'^\s*\{.*"recordedAt"', re.S)
_NOT_READ = re.compile(r"ignored|not loaded|not read|skipped|only the first|dropped", re.I)
# warnings.catch_warnings replaces the list of the whole process: one reader at a time.
_ONE_AT_A_TIME = threading.Lock()


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the rhythm recording of a file."""
    parsed, caught = _parsed(path)
    leads = [lead for lead in parsed.leads if len(lead.samples)]
    if not leads:
        raise unreadable("the file holds no signal")
    rate = _exact_rate(path, parsed)
    rates = {float(lead.sampling_rate) for lead in leads}
    if len(rates) > 1:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE, "its leads have different sampling rates"
        )
    starts = [int(number_in(lead.annotations.get("start_sample", 1)) or 1) - 1 for lead in leads]
    ends = [first + len(lead.samples) for first, lead in zip(starts, leads, strict=True)]
    if min(starts) < 0 or max(ends) > _MAX_SAMPLES:
        raise too_large(f"{max(ends)} samples per lead")
    signal = np.full((len(leads), max(ends)), np.nan, np.float32)
    units: list[str | None] = []
    for row, (lead, first, end) in enumerate(zip(leads, starts, ends, strict=True)):
        if (lead.is_raw or millivolts_per(lead.units) is None) and options.unit is None:
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS,
                f"lead {lead.label} states no voltage; give input_unit=uV or mV",
            )
        # SCP-ECG: a lead that was switched on later starts later.
        signal[row, first:end] = lead.samples
        units.append("mV" if lead.is_raw else lead.resolution_unit or lead.units or "mV")
    names = tuple(str(lead.label) for lead in leads)
    record = EcgRecord(signal, names, rate or rates.pop())
    return with_options(record, units, options, _remarks(path, parsed, caught))


def _parsed(path: Path) -> tuple[Any, list[warnings.WarningMessage]]:
    with needs("formats", "An SCP-ECG, Philips or Mortara XML, MFER or Kardia file"):
        from ecgdatakit.exceptions import CorruptedFileError, UnsupportedFormatError
        from ecgdatakit.parsing import FileParser
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parsed = FileParser.parse(path, units="mV")
    except UnsupportedFormatError as error:
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT,
            _without(path, error) + "; export it as uncompressed SCP-ECG, XML, DICOM or WFDB",
        ) from None
    except CorruptedFileError as error:
        raise unreadable(_without(path, error)) from None
    return parsed, list(caught)


def _remarks(path: Path, parsed: Any, caught: Sequence[warnings.WarningMessage]) -> list[Remark]:
    """Return the library's warnings and the parts that are not the rhythm as remarks."""
    beats = len(parsed.median_beats)
    remarks = left_out([f"average beat ({beats} leads)"] if beats else [])
    for warning in caught:
        text = _without(path, warning.message)
        if warning.category.__name__ == "ChecksumWarning":
            remark = Remark(
                WarningCode.CHECKSUM, "a checksum of the file does not match its content"
            )
        elif _NOT_READ.search(text):
            remark = Remark(WarningCode.PARTLY_READ, text)
        else:
            remark = Remark(WarningCode.READER_NOTE, text)
        if remark not in remarks:
            remarks.append(remark)
    return remarks[:_MAX_NOTES]


def _exact_rate(path: Path, parsed: Any) -> float | None:
    """Return the rate of an SCP-ECG file by its sample interval; the library rounds to whole Hz."""
    exact = number_in(parsed.raw_metadata.get("sampling_rate_exact"))
    if exact:
        return exact
    if parsed.file_format.parser != "SCPECGParser":
        return None
    content = regular_file_bytes(path)
    for place in range(22, 22 + 10 * 12, 10):  # pointers of section 0
        number = int.from_bytes(content[place : place + 2], "little")
        start = int.from_bytes(content[place + 6 : place + 10], "little") - 1
        if number == 6 and start > 0:
            interval_us = int.from_bytes(content[start + 18 : start + 20], "little")
            return 1e6 / interval_us if interval_us else None
    return None


def _without(path: Path, message: object) -> str:
    """Return a message without the file's path or name, which may identify a patient."""
    text = str(message).replace(str(path), "the file").replace(path.name, "the file")
    return " ".join(text.split())[:200]


def recognises(head: bytes) -> bool:
    """Whether the first bytes are of one of these formats."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.decode("utf-16", errors="ignore").encode("utf-8", errors="ignore")
    if _SIERRA.search(head) or _MORTARA.search(head) or _KARDIA.search(head):
        return True
    if head[2:6] == b"MFR ":
        return True
    # SCP-ECG: section 0 is first, has a length of 16 + 10 n, and begins at byte 7.
    if len(head) < 32 or head[8:10] != b"\0\0":
        return False
    length = int.from_bytes(head[10:14], "little")
    return length >= 26 and (length - 16) % 10 == 0 and head[28:32] == b"\x07\0\0\0"


FORMAT = InputFormat(
    "SCP-ECG, Philips or Mortara XML, MFER, Kardia",
    (".scp", ".ecg", ".xml", ".mwf", ".mfer"),
    recognises,
    read,
    max_bytes=MAX_BYTES,
)
