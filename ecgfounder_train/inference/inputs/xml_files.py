"""HL7 aECG and GE MUSE XML: every rhythm recording in a file.

The XML is parsed by `ecgdatakit` (encodings, namespaces, refused entities). The waveforms are taken
from it here, because the library returns the first series, sequence set and waveform alone, and
whole Hz: 62.5 Hz become 62.

* aECG: a series is a recording. Its sequence sets are joined by lead name where they follow each
  other (gaps are missing samples); representative beats are named, not read.
* MUSE: each waveform of type Rhythm is a recording; medians are named, not read.

Source: HL7 V3 PORT_MT020001; restecg.dtd.
"""

import base64
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
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
from ecgfounder_train.records.header import MAX_FS

MAX_BYTES = 1 << 26
_ROOTS = re.compile(rb"<(?:[A-Za-z_][\w.-]*:)?(AnnotatedECG|RestingECG)[\s>]", re.I)
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9}
_MAX_GAP_S = 600.0
_MAX_SAMPLES = 1 << 25
_NAMES = {"AVRNEG": "-aVR"}


@dataclass
class _Part:
    """A stretch of leads that were sampled together.

    Attributes:
        leads: Numbers as stored, by name.
        scales: Size of a stored unit in mV, by name; None where no voltage is stated.
        offsets_mv: Value of a stored zero, by name.
        fs: Rate in Hz.
        start: Of the first sample, where the file states it.
        units: As stated, by name.
    """

    fs: float
    leads: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    scales: dict[str, float | None] = field(default_factory=dict)
    offsets_mv: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    start: datetime | float | None = None

    @property
    def num_samples(self) -> int:
        return max((len(values) for values in self.leads.values()), default=0)

    @property
    def seconds(self) -> float:
        return self.num_samples / self.fs


@dataclass
class _Recording:
    """One recording: its parts, and what was left out beside them."""

    parts: list[_Part]
    others: list[str] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def size(self) -> tuple[float, int]:
        """What the longest is chosen by; of two of one length, the one with more samples."""
        return round(self.seconds, 2), sum(part.num_samples for part in self.parts)


def items(path: Path) -> Sequence[str]:
    """Return the number of each rhythm recording, one empty name where there is one."""
    found, _ = _recordings(path)
    return [str(number) for number in range(len(found))] if len(found) > 1 else [""]


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return one recording; without an item the longest, with the others named."""
    found, others = _recordings(path)
    if item:
        if not item.isdigit() or int(item) >= len(found):
            raise unreadable("the recording that was asked for is not in the file")
        chosen = found[int(item)]
    else:
        chosen = max(found, key=lambda recording: recording.size)
        others = [
            *others,
            *(
                f"another recording of {other.seconds:g} s ({len(other.parts[0].leads)} leads, "
                f"{other.parts[0].fs:g} Hz)"
                for other in found
                if other is not chosen
            ),
        ]
    record, units = _joined(chosen, options)
    return with_options(
        record, units, options, [*left_out([*others, *chosen.others]), *chosen.notes]
    )


def _recordings(path: Path) -> tuple[list[_Recording], list[str]]:
    """Return the rhythm recordings of a file and what else is in it."""
    root = _parsed(path)
    if root.tag.lower() == "restingecg":
        found, others = _muse(root)
    elif root.tag == "AnnotatedECG":
        found, others = _aecg(root)
    else:
        raise unreadable("the XML is neither an HL7 aECG nor a GE MUSE export")
    found = [recording for recording in found if recording.seconds > 0]
    if not found:
        there = f": {'; '.join(others[:4])}" if others else ""
        raise unreadable(f"the file holds no rhythm recording{there}")
    return found, others


def _parsed(path: Path) -> Any:
    try:
        from ecgdatakit.exceptions import CorruptedFileError
        from ecgdatakit.parsing.helpers.xml import parse_xml_root
    except ImportError as error:
        raise UserError(
            "aECG and MUSE XML files need the package ecgdatakit: pip install ecgdatakit."
        ) from error
    try:
        return parse_xml_root(regular_file_bytes(path))
    except CorruptedFileError as error:
        raise unreadable(str(error)[:100]) from None


def _aecg(root: Any) -> tuple[list[_Recording], list[str]]:
    found: list[_Recording] = []
    others: list[str] = []
    for series in root.findall("component/series"):
        others += [
            _aecg_named(derived, "derived series")
            for derived in series.findall("derivation/derivedSeries")
        ]
        if _code(series).upper() == "REPRESENTATIVE_BEAT":
            others.append(_aecg_named(series, "average beat"))
            continue
        found.append(_aecg_series(series))
    return found, others


def _aecg_named(series: Any, otherwise: str) -> str:
    """Return the name of a series that is not read, with its number of leads."""
    code = _code(series).upper()
    name = "average beat" if code in ("REPRESENTATIVE_BEAT", "") else otherwise
    leads = [
        sequence
        for sequence in series.findall("component/sequenceSet/component/sequence")
        if not _code(sequence).upper().startswith("TIME_")
    ]
    return f"{name} ({len(leads)} leads)"


def _aecg_series(series: Any) -> _Recording:
    recording = _Recording([])
    for sequence_set in series.findall("component/sequenceSet"):
        part: _Part | None = None
        waves = []
        for sequence in sequence_set.findall("component/sequence"):
            code, value = _code(sequence), sequence.find("value")
            if code.upper().startswith("TIME_"):
                part = part or _aecg_time(value)
            elif "_ECG_LEAD_" in code.upper():
                waves.append((code[code.upper().index("_ECG_LEAD_") + 10 :], value))
            else:
                recording.others.append(f"sequence {code[:30]}")
        if not waves:
            continue
        if part is None:
            raise RejectedRecordError(
                RejectReason.BAD_SAMPLING_RATE, "no usable time increment beside its leads"
            )
        for name, value in waves:
            _aecg_lead(part, _NAMES.get(name.upper(), name), value)
        _add_part(recording, part)
    return recording


def _add_part(recording: _Recording, part: _Part) -> None:
    """Add a sequence set; one that holds further leads of the same stretch becomes one with it."""
    for earlier in recording.parts:
        same = (earlier.start, earlier.fs, earlier.num_samples) == (
            part.start,
            part.fs,
            part.num_samples,
        )
        if same and not set(earlier.leads) & set(part.leads):
            earlier.leads |= part.leads
            earlier.scales |= part.scales
            earlier.offsets_mv |= part.offsets_mv
            earlier.units |= part.units
            return
    recording.parts.append(part)


def _aecg_time(value: Any) -> _Part | None:
    increment = value.find("increment") if value is not None else None
    if increment is None:
        return None
    step = number_in(increment.get("value", ""))
    unit = increment.get("unit", "")
    if step is None or step <= 0 or unit not in _SECONDS:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE,
            f"a time increment of {increment.get('value', '')[:20]!r} {unit[:10]!r}",
        )
    head = value.find("head")
    start = head.get("value", "") if head is not None else ""
    part = _Part(_checked_rate(1 / (step * _SECONDS[unit])))
    part.start = _time_of(start, head.get("unit", "") if head is not None else "")
    return part


def _time_of(text: str, unit: str) -> datetime | float | None:
    """Return an HL7 time stamp, or a relative time in seconds; None where it is neither."""
    digits = re.fullmatch(r"(\d{14})(?:\.(\d{1,6})\d*)?(?:[+-]\d{4})?", text.strip())
    if digits:
        moment = datetime.strptime(digits[1], "%Y%m%d%H%M%S")
        return moment.replace(microsecond=int((digits[2] or "0").ljust(6, "0")))
    number = number_in(text) if text else None
    return number * _SECONDS[unit] if number is not None and unit in _SECONDS else None


def _aecg_lead(part: _Part, name: str, value: Any) -> None:
    digits = value.find("digits") if value is not None else None
    text = (digits.text or "") if digits is not None else ""
    if not text.split():
        raise unreadable(f"lead {name[:20]} has no digits")
    numbers = np.array(text.split(), np.float64)
    scale, origin = value.find("scale"), value.find("origin")
    unit = scale.get("unit", "") if scale is not None else ""
    size = millivolts_per(unit) if unit else None
    step = number_in(scale.get("value", "1")) if scale is not None else 1.0
    offset = number_in(origin.get("value", "0")) or 0.0 if origin is not None else 0.0
    origin_unit = origin.get("unit", "") if origin is not None else ""
    _add_lead(
        part,
        name,
        numbers * (1.0 if step is None else step),
        size,
        offset * (millivolts_per(origin_unit) or size or 1.0),
        unit,
    )


def _add_lead(
    part: _Part,
    name: str,
    values: NDArray[np.float64],
    size: float | None,
    offset_mv: float,
    unit: str,
) -> None:
    """Add a lead; a second one of the same name is kept under a name of its own."""
    unique, number = name, 2
    while unique in part.leads:
        unique, number = f"{name} ({number})", number + 1
    if len(values) > _MAX_SAMPLES:
        raise too_large(f"{len(values)} samples in XML")
    part.leads[unique] = values
    part.scales[unique] = size
    part.offsets_mv[unique] = offset_mv
    part.units[unique] = unit


def _muse(root: Any) -> tuple[list[_Recording], list[str]]:
    found: list[_Recording] = []
    others: list[str] = []
    for waveform in root.findall("Waveform"):
        kind = _text(waveform, "WaveformType").lower() or "rhythm"
        leads = waveform.findall("LeadData")
        if kind != "rhythm":
            name = "average beat" if kind == "median" else f"waveform of type {kind[:20]}"
            others.append(f"{name} ({len(leads)} leads)")
            continue
        base, exponent = (number_in(_text(waveform, f"Sample{n}")) for n in ("Base", "Exponent"))
        if not base or base <= 0:
            raise RejectedRecordError(
                RejectReason.BAD_SAMPLING_RATE,
                f"SampleBase {_text(waveform, 'SampleBase')[:20]!r} is not a sampling rate",
            )
        part = _Part(_checked_rate(base * 10.0 ** max(min(exponent or 0.0, 9), -9)))
        recording = _Recording([part])
        for lead in leads:
            recording.notes += _muse_lead(part, lead)
        found.append(recording)
    return found, others


def _muse_lead(part: _Part, lead: Any) -> Iterator[Remark]:
    name = _text(lead, "LeadID")
    try:
        payload = base64.b64decode("".join(_text(lead, "WaveFormData").split()), validate=True)
    except ValueError:
        raise unreadable(f"lead {name[:20]} is not Base64") from None
    size = int(number_in(_text(lead, "LeadSampleSize")) or 2)
    if not name or not payload or size not in (1, 2, 4) or len(payload) % size:
        raise unreadable(f"lead {name[:20] or '(no name)'}: {len(payload)} bytes of samples")
    for tag, count in (("LeadByteCountTotal", 1), ("LeadSampleCountTotal", size)):
        stated = number_in(_text(lead, tag))
        if stated is not None and stated * count != len(payload):
            raise RejectedRecordError(
                RejectReason.TRUNCATED_SIGNAL,
                f"lead {name[:20]}: {tag} {stated:g}, but {len(payload)} bytes are stored",
            )
    crc = _text(lead, "LeadDataCRC32")
    if crc.isdigit() and zlib.crc32(payload) != int(crc):
        yield Remark(
            WarningCode.CHECKSUM, f"the checksum of lead {name[:20]} does not match its samples"
        )
    for tag in ("FirstSampleBaseline", "LeadOffsetFirstSample"):
        if number_in(_text(lead, tag)):
            yield Remark(
                WarningCode.READER_NOTE, f"{tag} of lead {name[:20]} is undocumented; not applied"
            )
    step = number_in(_text(lead, "LeadAmplitudeUnitsPerBit"))
    unit = _text(lead, "LeadAmplitudeUnits")
    values = np.frombuffer(payload, f"<i{size}").astype(np.float64)
    size_mv = millivolts_per(unit) if step is not None and unit else None
    _add_lead(part, name, values * (1.0 if step is None else step), size_mv, 0.0, unit)


def _joined(recording: _Recording, options: InputOptions) -> tuple[EcgRecord, list[str | None]]:
    """Return the parts of one recording as one signal, by lead name, gaps as missing samples."""
    first = recording.parts[0]
    names = list(first.leads)
    parts = [first]
    for part in recording.parts[1:]:
        follows = part.fs == first.fs and set(part.leads) == set(names)
        if not follows or _gap(parts, part) is None:
            recording.others.append(
                f"sequence set of {part.seconds:g} s ({len(part.leads)} leads, {part.fs:g} Hz)"
            )
            continue
        parts.append(part)
    starts, total = [0], first.num_samples
    for number, part in enumerate(parts[1:], start=1):
        starts.append(total + round((_gap(parts[:number], part) or 0.0) * first.fs))
        total = starts[-1] + part.num_samples
    if total > _MAX_SAMPLES:
        raise too_large(f"{total} samples in XML")
    signal = np.full((len(names), total), np.nan, np.float32)
    units: list[str | None] = []
    for row, name in enumerate(names):
        for start, part in zip(starts, parts, strict=True):
            size = part.scales[name]
            if size is None and options.unit is None:
                stated = f"is in {part.units[name]!r}" if part.units[name] else "states no unit"
                raise RejectedRecordError(
                    RejectReason.UNKNOWN_UNITS,
                    f"lead {name[:20]} {stated[:40]}; give input_unit=uV or mV",
                )
            values = part.leads[name] * (1.0 if size is None else size) + part.offsets_mv[name]
            signal[row, start : start + len(values)] = values
        units.append(first.units[name] if first.scales[name] is not None else None)
    return EcgRecord(signal, tuple(names), first.fs), units


def _gap(parts: Sequence[_Part], part: _Part) -> float | None:
    """Return the time between joined parts and the next one in s; None if it does not follow.

    Parts without times follow each other directly.
    """
    last = parts[-1]
    if last.start is None or part.start is None:
        return 0.0
    if isinstance(last.start, datetime) and isinstance(part.start, datetime):
        between = (part.start - last.start).total_seconds()
    elif isinstance(last.start, float) and isinstance(part.start, float):
        between = part.start - last.start
    else:
        return None
    gap = between - last.seconds
    # Times are stated to the millisecond or the second.
    return max(gap, 0.0) if -1.5 / part.fs - 0.001 <= gap <= _MAX_GAP_S else None


def _checked_rate(fs: float) -> float:
    whole = round(fs)
    fs = float(whole) if abs(fs - whole) < 1e-6 * max(fs, 1.0) else fs
    if not 0 < fs <= MAX_FS:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE, f"{fs:g} Hz is not a sampling rate of an ECG"
        )
    return fs


def _code(node: Any) -> str:
    found = node.find("code")
    return str(found.get("code", "")) if found is not None else ""


def _text(node: Any, tag: str) -> str:
    """Return the text of a child, whatever the case of its name."""
    child = node.find(tag)
    if child is None:
        child = next((each for each in node if str(each.tag).lower() == tag.lower()), None)
    return " ".join("".join(child.itertext()).split()) if child is not None else ""


def recognises(head: bytes) -> bool:
    """Whether the first bytes are an HL7 aECG or a GE MUSE export."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.decode("utf-16", errors="ignore").encode("utf-8", errors="ignore")
    return _ROOTS.search(head) is not None


FORMAT = InputFormat(
    "aECG or MUSE XML",
    (".xml",),
    recognises,
    read,
    items,
    has_main_item=True,
    max_bytes=MAX_BYTES,
)
