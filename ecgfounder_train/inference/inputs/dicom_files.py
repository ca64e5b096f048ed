"""DICOM waveforms (12-lead, general and ambulatory ECG storage), read with pydicom.

Of several multiplex groups (rhythm and median beat) the one with the longest signal is taken.
Source: DICOM PS3.3 C.10.9 (waveform module), PS3.16 CID 3001 (lead names).
"""

from pathlib import Path
from typing import Any

import numpy as np

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
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

_CID_3001 = {
    "2:1": "I", "2:2": "II", "2:3": "V1", "2:4": "V2", "2:5": "V3", "2:6": "V4", "2:7": "V5",
    "2:8": "V6", "2:61": "III", "2:62": "aVR", "2:63": "aVL", "2:64": "aVF",
}  # fmt: skip
"""ISO/IEEE 11073 codes, of which `5.6.3-9-1` is an older way to write 2:1."""


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the longest waveform group."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        data = pydicom.dcmread(path)
        groups = list(data.get("WaveformSequence") or [])
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError) as error:
        raise unreadable(f"pydicom cannot read it: {type(error).__name__}") from None
    if not groups:
        what = getattr(getattr(data, "SOPClassUID", None), "name", "unknown class")
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, f"a DICOM file without waveforms ({what})"
        )
    try:
        longest = max(
            range(len(groups)), key=lambda number: int(groups[number].NumberOfWaveformSamples)
        )
        return _group(data, longest, options, len(groups))
    except RejectedRecordError:
        raise
    except Exception as error:
        # pydicom converts lazily and raises whatever a damaged element makes it stumble over.
        raise unreadable(f"the waveform is damaged: {type(error).__name__}") from None


def _group(data: Any, number: int, options: InputOptions, num_groups: int) -> SourceRecord:
    from pydicom.waveforms.numpy_handler import multiplex_array

    group = data.WaveformSequence[number]
    raw = multiplex_array(data, number, as_raw=True).astype(np.float64)
    names, units = [], []
    for column, channel in enumerate(group.ChannelDefinitionSequence):
        names.append(_lead_name(channel))
        sensitivity = float(channel.get("ChannelSensitivity", 1.0))
        factor = float(channel.get("ChannelSensitivityCorrectionFactor", 1.0))
        unit = None
        if "ChannelSensitivityUnitsSequence" in channel:
            unit = str(channel.ChannelSensitivityUnitsSequence[0].CodeValue)
        scale = millivolts_per(unit) if unit is not None else None
        if scale is None and options.unit is None:
            raise RejectedRecordError(
                RejectReason.UNKNOWN_UNITS,
                f"channel {column + 1} is in {unit or 'no unit'}; give input_unit=uV or mV",
            )
        units.append(unit)
        # PS3.3 C.10.9.1.4.6: (sample x sensitivity x correction) + baseline, in the unit.
        baseline = float(channel.get("ChannelBaseline", 0.0))
        raw[:, column] = (raw[:, column] * sensitivity * factor + baseline) * (scale or 1.0)
    padding = group.get("WaveformPaddingValue")
    if padding is not None:
        stored = multiplex_array(data, number, as_raw=True)
        value = np.frombuffer(padding, stored.dtype)[0] if isinstance(padding, bytes) else padding
        raw[stored == value] = np.nan
    signal = np.ascontiguousarray(raw.T, np.float32)
    record = EcgRecord(signal, tuple(names), float(group.SamplingFrequency))
    remarks = []
    if num_groups > 1:
        detail = f"the longest of {num_groups} waveform groups was read"
        remarks.append(Remark(WarningCode.PARTLY_READ, detail))
    return with_options(record, units[0] if units[0] else "mV", options, remarks)


def _lead_name(channel: Any) -> str:
    label = str(channel.get("ChannelLabel", "")).strip()
    if "ChannelSourceSequence" not in channel:
        return label
    source = channel.ChannelSourceSequence[0]
    code = str(source.get("CodeValue", ""))
    short = "2:" + code.rsplit("-", 1)[-1] if code.startswith("5.6.3-9-") else code
    return _CID_3001.get(short) or str(source.get("CodeMeaning", "")).strip() or label


FORMAT = InputFormat("DICOM", (".dcm", ".dicom"), lambda head: head[128:132] == b"DICM", read)
