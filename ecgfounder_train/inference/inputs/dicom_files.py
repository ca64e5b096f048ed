"""DICOM waveforms (12-lead, general and ambulatory ECG storage), read with pydicom.

PS3.3 A.34.3 allows one to five multiplex groups. Groups of one rate, length and time offset with
different leads are one recording (limb leads beside chest leads). Of several recordings (a rhythm
strip beside 12 leads, an average beat) the one with most standard leads is read, then the longest
in seconds; the others are named. Derived groups (average beats) are the last choice.

Source: DICOM PS3.3 C.10.9 (waveform module), PS3.16 CID 3001 (lead names).
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.core.extras import needs
from ecgfounder_train.inference.inputs.reading import (
    MAX_LEADS,
    InputFormat,
    InputOptions,
    SourceRecord,
    left_out,
    millivolts_per,
    regular_file_bytes,
    too_large,
    unreadable,
    with_options,
)
from ecgfounder_train.inference.leads import device_lead
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord

MAX_BYTES = 1 << 28
_MAX_INFLATED_BYTES = 1 << 27
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CID_3001 = {
    "2:1": "I", "2:2": "II", "2:3": "V1", "2:4": "V2", "2:5": "V3", "2:6": "V4", "2:7": "V5",
    "2:8": "V6", "2:61": "III", "2:62": "aVR", "2:63": "aVL", "2:64": "aVF",
}  # fmt: skip
"""ISO/IEEE 11073 codes, of which `5.6.3-9-1` is an older way to write 2:1."""


@dataclass(frozen=True)
class _Group:
    """A multiplex group: what was sampled together."""

    number: int
    names: tuple[str, ...]
    fs: float
    num_samples: int
    offset_ms: float
    derived: bool
    label: str

    @property
    def seconds(self) -> float:
        return self.num_samples / self.fs if self.fs > 0 else 0.0

    def named(self) -> str:
        """Return what a remark calls the group."""
        what = "average beat" if self.derived else "waveform group"
        if self.derived and "beat" not in self.label.lower() and self.seconds > 2:
            what = "derived waveform group"
        leads = ", ".join(self.names) if len(self.names) < 4 else f"{len(self.names)} leads"
        return f"{what} ({leads}, {self.seconds:g} s at {self.fs:g} Hz)"


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return the main recording; the other groups are named in a remark."""
    data = _parsed(path)
    sequence = list(data.get("WaveformSequence") or [])
    if not sequence:
        what = getattr(getattr(data, "SOPClassUID", None), "name", "unknown class")
        raise RejectedRecordError(
            RejectReason.UNSUPPORTED_FORMAT, f"a DICOM file without waveforms ({what})"
        )
    groups = [_described(number, group) for number, group in enumerate(sequence)]
    chosen = _chosen(groups)
    others = [group.named() for group in groups if group not in chosen]
    parts = [_signal(data, group, options) for group in chosen]
    signal = np.concatenate([values for values, _ in parts])
    units = [unit for _, each in parts for unit in each]
    names = tuple(name for group in chosen for name in group.names)
    record = EcgRecord(signal, names, chosen[0].fs)
    return with_options(record, units, options, left_out(others))


def _parsed(path: Path) -> Any:
    with needs("formats", "A DICOM file"):
        import pydicom

    content = regular_file_bytes(path)
    if _DEFLATED in content[:4096]:
        # The data set begins behind the file meta group, whose length is its first element.
        start = 144 + int.from_bytes(content[140:144], "little")
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        if len(inflater.decompress(content[start:], _MAX_INFLATED_BYTES + 1)) > _MAX_INFLATED_BYTES:
            raise too_large(f"more than {_MAX_INFLATED_BYTES} bytes of a deflated data set")
    # From memory: a damaged length then ends at the file's end instead of asking for gigabytes.
    return pydicom.dcmread(io.BytesIO(content))


def _described(number: int, group: Any) -> _Group:
    channels = list(group.get("ChannelDefinitionSequence") or [])
    fs = float(group.get("SamplingFrequency") or 0)
    count = int(group.get("NumberOfWaveformSamples") or 0)
    if not channels or len(channels) > MAX_LEADS * 4 or count <= 0 or not fs > 0:
        raise unreadable(
            f"waveform group {number + 1}: {len(channels)} channels, {count} samples, {fs:g} Hz"
        )
    label = str(group.get("MultiplexGroupLabel", ""))
    derived = str(group.get("WaveformOriginality", "")).upper() == "DERIVED"
    # Many devices call their average beat so and leave the originality as it is.
    derived = derived or any(word in label.lower() for word in ("median", "average", "beat"))
    return _Group(
        number,
        tuple(_lead_name(channel) for channel in channels),
        fs,
        count,
        float(group.get("MultiplexGroupTimeOffset") or 0),
        derived,
        label,
    )


def _chosen(groups: Sequence[_Group]) -> list[_Group]:
    """Return the groups that are the main recording together."""
    sets: list[list[_Group]] = []
    for group in groups:
        for together in sets:
            first = together[0]
            held = {name for member in together for name in member.names}
            if (first.fs, first.num_samples, first.offset_ms, first.derived) == (
                group.fs,
                group.num_samples,
                group.offset_ms,
                group.derived,
            ) and not held & set(group.names):
                together.append(group)
                break
        else:
            sets.append([group])

    def rank(together: list[_Group]) -> tuple[bool, int, float]:
        leads = {device_lead(name) for group in together for name in group.names}
        return (
            not together[0].derived,
            len(leads & set(STANDARD_LEADS)),
            together[0].seconds,
        )

    return max(sets, key=rank)


def _signal(
    data: Any, described: _Group, options: InputOptions
) -> tuple[NDArray[np.float32], list[str | None]]:
    """Return the group's leads in mV, and the unit of each."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    group = data.WaveformSequence[described.number]
    bits = int(group.get("WaveformBitsAllocated") or 16)
    claimed = described.num_samples * len(described.names) * bits // 8
    if claimed > len(group.get("WaveformData", b"")) + 1:
        raise RejectedRecordError(
            RejectReason.TRUNCATED_SIGNAL,
            f"{claimed} bytes of samples are announced, "
            f"{len(group.get('WaveformData', b''))} are stored",
        )
    stored = multiplex_array(data, described.number, as_raw=True)
    raw = stored.astype(np.float64)
    units: list[str | None] = []
    for column, channel in enumerate(group.ChannelDefinitionSequence):
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
        units.append(unit if scale is not None else None)
        # PS3.3 C.10.9.1.4.6: (sample x sensitivity x correction) + baseline, in the unit.
        baseline = float(channel.get("ChannelBaseline", 0.0))
        raw[:, column] = (raw[:, column] * sensitivity * factor + baseline) * (scale or 1.0)
    padding = group.get("WaveformPaddingValue")
    if padding is not None:
        value = np.frombuffer(padding, stored.dtype)[0] if isinstance(padding, bytes) else padding
        raw[stored == value] = np.nan
    return np.ascontiguousarray(raw.T, np.float32), units


def _lead_name(channel: Any) -> str:
    label = str(channel.get("ChannelLabel", "")).strip()
    if "ChannelSourceSequence" not in channel:
        return label
    source = channel.ChannelSourceSequence[0]
    code = str(source.get("CodeValue", ""))
    short = "2:" + code.rsplit("-", 1)[-1] if code.startswith("5.6.3-9-") else code
    return _CID_3001.get(short) or str(source.get("CodeMeaning", "")).strip() or label


FORMAT = InputFormat(
    "DICOM",
    (".dcm", ".dicom"),
    lambda head: head[128:132] == b"DICM",
    read,
    max_bytes=MAX_BYTES,
)
