"""SCP-ECG, HL7 aECG, GE MUSE XML and Philips Sierra XML, read with `ecgdatakit`.

A library that is kept (Apache 2.0): it decodes SCP-ECG's Huffman tables, differences and reference
beats and Philips' compression, and refuses XML with entities. What it cannot read (SCP-ECG's
bimodal compression, long-term sections) it says, and so do we. Vendor exports that store only I, II
and V1-V6 come with these eight leads; the other four are derived when leads are chosen.
"""

import re
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    millivolts_per,
    unreadable,
    with_options,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import EcgRecord

_ROOTS = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?(AnnotatedECG|RestingECG|restingecgdata)[\s>]", re.I)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the rhythm recording of a file."""
    try:
        from ecgdatakit.exceptions import (
            ChecksumWarning,
            CorruptedFileError,
            ECGDataKitError,
            UnsupportedFormatError,
        )
        from ecgdatakit.parsing import FileParser
    except ImportError as error:
        raise UserError(
            "SCP-ECG, aECG, MUSE and Philips XML files need the package ecgdatakit: "
            "pip install ecgdatakit."
        ) from error
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parsed = FileParser.parse(path, units="mV")
    except UnsupportedFormatError as error:
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT,
            _without(path, error) + "; export it as uncompressed SCP-ECG, XML, DICOM or WFDB",
        ) from None
    except CorruptedFileError as error:
        raise unreadable(_without(path, error)) from None
    except (ECGDataKitError, OSError, ValueError, ImportError) as error:
        raise unreadable(f"ecgdatakit cannot read it: {type(error).__name__}") from None
    leads = [lead for lead in parsed.leads if len(lead.samples)]
    if not leads:
        raise unreadable("the file holds no signal")
    if len({lead.sampling_rate for lead in leads}) > 1:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE, "its leads have different sampling rates"
        )
    remarks = [
        Remark(WarningCode.CHECKSUM, "a checksum of the file does not match its content")
        for warning in caught
        if issubclass(warning.category, ChecksumWarning)
    ][:1]
    signal = np.full((len(leads), max(len(lead.samples) for lead in leads)), np.nan, np.float32)
    for row, lead in enumerate(leads):
        if (lead.is_raw or millivolts_per(lead.units) is None) and options.unit is None:
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS,
                f"lead {lead.label} states no voltage; give input_unit=uV or mV",
            )
        first = int(lead.annotations.get("start_sample", 1)) - 1
        if first:
            # SCP-ECG: a lead that was switched on later starts later.
            signal = _widened(signal, first + len(lead.samples))
        signal[row, first : first + len(lead.samples)] = lead.samples
    names = tuple(str(lead.label) for lead in leads)
    record = EcgRecord(signal, names, float(leads[0].sampling_rate))
    stated = leads[0].resolution_unit or leads[0].units or "mV"
    return with_options(record, "mV" if leads[0].is_raw else stated, options, remarks)


def _widened(signal: NDArray[np.float32], num_samples: int) -> NDArray[np.float32]:
    missing = num_samples - signal.shape[1]
    if missing <= 0:
        return signal
    return np.pad(signal, ((0, 0), (0, missing)), constant_values=np.nan)


def _without(path: Path, error: Exception) -> str:
    """The message without the file's path or name, which may identify a patient."""
    text = str(error).replace(str(path), "the file").replace(path.name, "the file")
    return " ".join(text.split())[:200]


def _recognises(head: bytes) -> bool:
    if head.startswith(_UTF16):
        head = head.decode("utf-16", errors="ignore").encode("utf-8", errors="ignore")
    if _ROOTS.search(head):
        return True
    # SCP-ECG: section 0 comes first, has a length of 16 + 10 n, and begins at byte 7.
    if len(head) < 32 or head[8:10] != b"\0\0":
        return False
    length = int.from_bytes(head[10:14], "little")
    return length >= 26 and (length - 16) % 10 == 0 and head[28:32] == b"\x07\0\0\0"


FORMAT = InputFormat("SCP-ECG or ECG XML", (".scp", ".ecg", ".xml"), _recognises, read)
