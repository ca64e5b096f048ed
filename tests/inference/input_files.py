"""Genuine files of every format, written by code that knows nothing of the readers."""

import base64
import binascii
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
FS = 500.0

_MDC = {"I": 1, "II": 2, "V1": 3, "V2": 4, "V3": 5, "V4": 6, "V5": 7, "V6": 8,
        "III": 61, "aVR": 62, "aVL": 63, "aVF": 64}  # fmt: skip


def heartbeat(
    fs: float = FS, duration_s: float = 10.0, size_mv: float = 1.0
) -> NDArray[np.float32]:
    """Return twelve consistent leads of a made-up heart, in whole microvolts.

    Shape: (12, num_samples) in mV.
    """
    time = np.arange(round(fs * duration_s)) / fs
    beat = np.zeros_like(time)
    wave = np.zeros_like(time)
    for start in np.arange(0.4, duration_s, 0.8):
        beat += np.exp(-(((time - start) / 0.012) ** 2))
        wave += 0.25 * np.exp(-(((time - start - 0.28) / 0.05) ** 2))
    one = size_mv * (0.7 * beat + 0.8 * wave)
    two = size_mv * (1.1 * beat + 1.0 * wave)
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    chest = [size_mv * (a * beat + 0.9 * wave) for a in (-0.8, -0.5, 0.3, 1.0, 1.2, 0.9)]
    microvolts = np.rint(np.stack([*limbs, *chest]) * 1000)
    return (microvolts / 1000).astype(np.float32)


def write_dicom(
    path: Path,
    signal: NDArray[np.float32],
    fs: float = FS,
    leads: Sequence[str] = LEADS,
    unit: str = "uV",
    with_median_beat: bool = True,
    coded: bool = True,
) -> None:
    """Write a 12-lead ECG waveform object, with a median beat as a second group."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality = "ECG"
    data.PatientID = "471100815"

    def group(values: NDArray[np.float32], label: str) -> Dataset:
        item = Dataset()
        item.MultiplexGroupLabel = label
        item.NumberOfWaveformChannels = len(values)
        item.NumberOfWaveformSamples = values.shape[1]
        item.SamplingFrequency = str(fs)
        channels = []
        for lead in leads:
            channel = Dataset()
            source = Dataset()
            source.CodeValue = f"2:{_MDC[lead]}" if coded else "X"
            source.CodingSchemeDesignator = "MDC"
            source.CodeMeaning = f"Lead {lead}"
            channel.ChannelSourceSequence = [source]
            channel.ChannelSensitivity = "2.5"
            units = Dataset()
            units.CodeValue, units.CodingSchemeDesignator = unit, "UCUM"
            units.CodeMeaning = unit
            channel.ChannelSensitivityUnitsSequence = [units]
            channel.ChannelSensitivityCorrectionFactor = "2"
            channel.ChannelBaseline = "10"
            channel.WaveformBitsStored = 16
            channels.append(channel)
        item.ChannelDefinitionSequence = channels
        item.WaveformBitsAllocated = 16
        item.WaveformSampleInterpretation = "SS"
        steps = np.rint((values * 1000 - 10) / 5).astype("<i2")  # 2.5 x 2 microvolts, baseline 10
        item.WaveformData = steps.T.tobytes()
        return item

    groups = [group(signal[:, : round(fs)], "MEDIAN BEAT")] if with_median_beat else []
    data.WaveformSequence = [*groups, group(signal, "RHYTHM")]
    data.save_as(path, enforce_file_format=True)


_AECG_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<id root="61d1a24f-b47e-41aa-ae95-f8ac302f4eeb"/>
<code code="93000" codeSystem="2.16.840.1.113883.6.12"/>
<effectiveTime><low value="20190317101500.000"/><high value="20190317101510.000"/></effectiveTime>
<component><series><code code="RHYTHM" codeSystem="2.16.840.1.113883.5.4"/>
<effectiveTime><low value="20190317101500.000"/><high value="20190317101510.000"/></effectiveTime>
<component><sequenceSet>
<component><sequence><code code="TIME_ABSOLUTE" codeSystem="2.16.840.1.113883.5.4"/>
<value xsi:type="GLIST_TS"><head value="20190317101500.000"/><increment value="{step}" unit="s"/>
</value></sequence></component>"""


def write_aecg(
    path: Path, signal: NDArray[np.float32], fs: float = FS, leads: Sequence[str] = LEADS
) -> None:
    """Write an HL7 annotated ECG: scale 2.5 microvolts, origin 5."""
    parts = [_AECG_HEAD.format(step=1 / fs)]
    for lead, values in zip(leads, signal, strict=True):
        digits = " ".join(str(int(v)) for v in np.rint((values * 1000 - 5) / 2.5))
        parts.append(
            f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}" '
            'codeSystem="2.16.840.1.113883.6.24"/><value xsi:type="SLIST_PQ">'
            '<origin value="5" unit="uV"/><scale value="2.5" unit="uV"/>'
            f"<digits>{digits}</digits></value></sequence></component>"
        )
    parts.append("</sequenceSet></component></series></component></AnnotatedECG>")
    path.write_text("\n".join(parts), encoding="utf-8")


def write_muse(path: Path, signal: NDArray[np.float32], fs: float = FS) -> None:
    """Write a GE MUSE export: the eight measured leads, 4.88 microvolts per bit."""
    eight = [LEADS.index(lead) for lead in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")]
    leads = []
    for row in eight:
        steps = np.rint(signal[row] * 1000 / 4.88).astype("<i2").tobytes()
        data = base64.b64encode(steps).decode()
        leads.append(
            f"<LeadData><LeadByteCountTotal>{len(steps)}</LeadByteCountTotal>"
            f"<LeadSampleCountTotal>{len(steps) // 2}</LeadSampleCountTotal>"
            "<LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit>"
            "<LeadAmplitudeUnits>MICROVOLTS</LeadAmplitudeUnits>"
            f"<LeadSampleSize>2</LeadSampleSize><LeadDataCRC32>{binascii.crc32(steps)}"
            f"</LeadDataCRC32><LeadID>{LEADS[row]}</LeadID>"
            f"<WaveFormData>{data}</WaveFormData></LeadData>"
        )
    median = (
        "<Waveform><WaveformType>Median</WaveformType><SampleBase>500</SampleBase>"
        f"<SampleExponent>0</SampleExponent>{''.join(leads[:1])}</Waveform>"
    )
    path.write_text(
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n'
        "<RestingECG><MuseInfo><MuseVersion>8.0</MuseVersion></MuseInfo><PatientDemographics>"
        f"<PatientID>471100815</PatientID></PatientDemographics>{median}"
        "<Waveform><WaveformType>Rhythm</WaveformType>"
        f"<NumberofLeads>8</NumberofLeads><SampleBase>{fs:g}</SampleBase>"
        f"<SampleExponent>0</SampleExponent>{''.join(leads)}</Waveform></RestingECG>",
        encoding="latin-1",
    )


_SCP_CODES = {"I": 1, "II": 2, "V1": 3, "V2": 4, "V3": 5, "V4": 6, "V5": 7, "V6": 8,
              "III": 61, "aVR": 62, "aVL": 63, "aVF": 64}  # fmt: skip


def write_scp(
    path: Path,
    signal: NDArray[np.float32],
    fs: float = FS,
    leads: Sequence[str] = LEADS,
    compressed: bool = True,
) -> None:
    """Write an SCP-ECG record: second differences under the default Huffman table, or plain.

    Source: EN 1064, sections 0 to 3 and 6.
    """
    num_samples = signal.shape[1]
    section_3 = bytes([len(leads), 0x04 | len(leads) << 3])
    for lead in leads:
        section_3 += struct.pack("<IIB", 1, num_samples, _SCP_CODES[lead])
    blocks = [_scp_lead(np.rint(values * 1000).astype(int), compressed) for values in signal]
    section_6 = struct.pack("<HHBB", 1000, round(1e6 / fs), 2 if compressed else 0, 0)
    section_6 += b"".join(struct.pack("<H", len(block)) for block in blocks) + b"".join(blocks)
    bodies = {3: section_3, 6: section_6}
    if compressed:
        bodies[2] = struct.pack("<H", 19999)
    sections = {number: _scp_section(number, body) for number, body in sorted(bodies.items())}
    pointers = b""
    length_0 = 16 + 10 * 12
    place = 6 + length_0
    places = {}
    for number, section in sections.items():
        places[number] = place + 1
        place += len(section)
    for number in range(12):
        length = length_0 if number == 0 else len(sections.get(number, b""))
        index = 7 if number == 0 else places.get(number, 0)
        pointers += struct.pack("<HII", number, length, index)
    content = _scp_section(0, pointers, b"SCPECG") + b"".join(sections.values())
    record = struct.pack("<I", len(content) + 6) + content
    path.write_bytes(struct.pack("<H", binascii.crc_hqx(record, 0xFFFF)) + record)


def _scp_section(number: int, body: bytes, reserved: bytes = b"\0" * 6) -> bytes:
    body += b"\0" * (len(body) % 2)
    head = struct.pack("<HIBB", number, 16 + len(body), 20, 20) + reserved
    return struct.pack("<H", binascii.crc_hqx(head + body, 0xFFFF)) + head + body


def _scp_lead(values: NDArray[np.int_], compressed: bool) -> bytes:
    if not compressed:
        return values.astype("<i2").tobytes()
    differences = values.copy()
    differences[2:] = values[2:] - 2 * values[1:-1] + values[:-2]
    bits = "".join(_huffman(int(value)) for value in differences)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _huffman(value: int) -> str:
    """Return the default table's code: 0 for nought, n ones, a zero and a sign for n up to 8."""
    size = abs(value)
    if size == 0:
        return "0"
    if size <= 8:
        return "1" * size + "0" + ("1" if value < 0 else "0")
    if -128 <= value < 128:
        return "1111111110" + f"{value & 0xFF:08b}"
    return "1111111111" + f"{value & 0xFFFF:016b}"
