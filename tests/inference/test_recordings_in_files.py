"""What a file holds is enumerated: each recording is one result, what is left out is named."""

import struct
from pathlib import Path

import h5py
import input_files as files
import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.inference import InputOptions, find_records, read_file
from ecgfounder_train.inference.inputs import SourceRecord, WindowedSignal, list_items
from ecgfounder_train.inference.leads import resolve_leads
from ecgfounder_train.records import EcgRecord

LEADS = files.LEADS


def remarks(source: SourceRecord, code: str = "partly_read") -> str:
    return "; ".join(r.detail for r in source.remarks if r.code.value == code)


def test_leads_of_different_hdf5_groups_are_different_exams(tmp_path: Path) -> None:
    ecg = files.heartbeat()
    with h5py.File(tmp_path / "exams.h5", "w") as file:
        for exam, size in (("a/2001", 1.0), ("a/2002", 2.0), ("b/2001", 3.0)):
            group = file.create_group(exam)
            group.attrs.update(sampling_rate="500 Hz", unit="millivolts")
            for lead, values in zip(LEADS, ecg, strict=True):
                group[lead] = values * size
        file["b/2001/V6x"] = np.zeros(3)
        del file["a/2002/V6"]
        file["a/2002/V6"] = np.zeros(100)
    assert list_items(tmp_path / "exams.h5") == ("a/2001", "a/2002", "b/2001")
    third = read_file(tmp_path / "exams.h5", "b/2001")
    record, _ = resolve_leads(third.record, LEADS)
    np.testing.assert_allclose(record.signal, 3 * ecg, rtol=1e-6)
    assert record.fs == 500 and not third.remarks
    second = read_file(tmp_path / "exams.h5", "a/2002")
    assert "lead V6 of 100 samples" in remarks(second)
    assert len(second.record.lead_names) == 11


def test_the_nearest_metadata_of_an_hdf5_file_counts(tmp_path: Path) -> None:
    many = np.stack([files.heartbeat(), files.heartbeat()])
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["x"] = many * 1000
        file["fs"] = np.array([500.0, 250.0])
        file["unit"] = "uV"
        file["leads"] = np.array(LEADS, "S3")
        file.attrs["fs"] = 100
        file["x"].attrs["fs"] = 400
    assert read_file(tmp_path / "many.h5", "x/1").record.fs == 400
    with h5py.File(tmp_path / "many.h5", "a") as file:
        del file["x"].attrs["fs"], file.attrs["fs"]
    source = read_file(tmp_path / "many.h5", "x/1")
    assert source.record.fs == 250 and not source.remarks
    np.testing.assert_allclose(source.record.signal, many[1], atol=1e-6)


def test_links_and_storage_outside_an_hdf5_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(200)) * 60)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        storage = [(str(tmp_path / "secret"), 0, 12000)]
        file.create_dataset("ecg", (12, 1000), "i1", external=storage).attrs["fs"] = 100
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["ecg"] = h5py.ExternalLink("a.h5", "ecg")
    for name in ("a.h5", "b.h5"):
        with pytest.raises(RejectedRecordError, match=r"refused|refers to another"):
            read_file(tmp_path / name, options=InputOptions(fs=100, unit="mV"))


def test_units_of_an_npz_may_differ_by_lead_and_arrays_may_be_leads(tmp_path: Path) -> None:
    ecg = files.heartbeat()
    sizes = np.array([1000.0, *[1.0] * 11])[:, None]
    units = np.array(["uV", *["mV"] * 11])
    np.savez(tmp_path / "a.npz", ecg=ecg * sizes, fs=500, leads=np.array(LEADS), units=units)
    np.testing.assert_allclose(read_file(tmp_path / "a.npz").record.signal, ecg, atol=1e-5)
    np.savez(
        tmp_path / "b.npz", fs=500, unit="mV", **{name: ecg[n] for n, name in enumerate(LEADS)}
    )
    record, _ = resolve_leads(read_file(tmp_path / "b.npz").record, LEADS)
    np.testing.assert_array_equal(record.signal, ecg)
    np.savez(tmp_path / "c.npz", first=ecg, second=2 * ecg, fs=500)
    assert list_items(tmp_path / "c.npz") == ("first", "second")


def test_dicom_groups_of_one_recording_are_one_and_others_are_named(tmp_path: Path) -> None:
    from pydicom import dcmread

    ecg = files.heartbeat()
    files.write_dicom(tmp_path / "beat.dcm", ecg)
    assert "average beat (12 leads, 1 s at 500 Hz)" in remarks(read_file(tmp_path / "beat.dcm"))
    files.write_dicom(tmp_path / "limb.dcm", ecg[:6], leads=LEADS[:6], with_median_beat=False)
    files.write_dicom(tmp_path / "chest.dcm", ecg[6:], leads=LEADS[6:], with_median_beat=False)
    data, other = dcmread(tmp_path / "limb.dcm"), dcmread(tmp_path / "chest.dcm")
    data.WaveformSequence.append(other.WaveformSequence[0])
    data.save_as(tmp_path / "both.dcm")
    source = read_file(tmp_path / "both.dcm")
    np.testing.assert_allclose(source.record.signal, ecg, atol=0.0026)
    assert not source.remarks
    other.WaveformSequence[0].MultiplexGroupTimeOffset = "60000"
    data.WaveformSequence[1] = other.WaveformSequence[0]
    data.save_as(tmp_path / "later.dcm")
    assert "waveform group (6 leads" in remarks(read_file(tmp_path / "later.dcm"))


def _aecg(path: Path, ecg: np.ndarray, *, second: str) -> None:
    """Write a file whose second half is another sequence set or another series."""
    files.write_aecg(path, ecg[:, :2500])
    files.write_aecg(path.with_suffix(".more"), ecg[:, 2500:])
    first, more = path.read_text(), path.with_suffix(".more").read_text()
    tag = {"set": "sequenceSet", "series": "series"}[second]
    start = more.index(f"<component><{tag}>")
    end = more.index(f"</{tag}></component>") + len(f"</{tag}></component>")
    added = more[start:end].replace("20190317101500", "20190317101505")
    place = first.index(f"</{tag}></component>") + len(f"</{tag}></component>")
    path.write_text(first[:place] + added + first[place:])


def test_sequence_sets_are_joined_and_series_are_recordings(tmp_path: Path) -> None:
    ecg = files.heartbeat()
    _aecg(tmp_path / "sets.xml", ecg, second="set")
    whole = read_file(tmp_path / "sets.xml")
    np.testing.assert_allclose(whole.record.signal, ecg, atol=0.0013)
    assert not whole.remarks
    text = (tmp_path / "sets.xml").read_text()
    (tmp_path / "gap.xml").write_text(text.replace("20190317101505", "20190317101506"))
    gap = read_file(tmp_path / "gap.xml").record.signal
    assert gap.shape == (12, 5500) and np.isnan(gap[:, 2500:3000]).all()
    _aecg(tmp_path / "series.xml", ecg, second="series")
    found = find_records(str(tmp_path / "series.xml"))
    assert [r.read().record.signal.shape for r in found.records] == [(12, 2500), (12, 2500)]
    assert "another recording of 5 s" in remarks(read_file(tmp_path / "series.xml"))


def test_rates_of_xml_need_not_be_whole(tmp_path: Path) -> None:
    ecg = files.heartbeat(fs=62.5)
    files.write_aecg(tmp_path / "a.xml", ecg, fs=62.5)
    files.write_scp(tmp_path / "b.scp", files.heartbeat(fs=800 / 3), fs=800 / 3)
    assert read_file(tmp_path / "a.xml").record.fs == 62.5
    assert read_file(tmp_path / "b.scp").record.fs == pytest.approx(800 / 3, rel=1e-6)


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("level_mv", [0.5, 1.0])
def test_a_calibration_pulse_is_no_part_of_the_recording(
    tmp_path: Path, where: str, level_mv: float
) -> None:
    ecg = files.heartbeat() + np.float32(0.02)
    mark = np.zeros((12, 200), np.float32)
    mark[:, 50:150] = level_mv
    parts = [ecg, mark] if where == "end" else [mark, ecg]
    files.write_aecg(tmp_path / "a.xml", np.concatenate(parts, axis=1))
    source = read_file(tmp_path / "a.xml")
    assert f"calibration pulse (0.40 s at the {where})" in remarks(source)
    np.testing.assert_allclose(source.record.signal, ecg, atol=0.0013)


def test_one_clipped_lead_is_no_calibration_pulse(tmp_path: Path) -> None:
    ecg = files.heartbeat() + np.float32(0.02)
    ecg[3, -100:] = 1.0
    np.savez(tmp_path / "a.npz", signal=ecg, fs=500, leads=np.array(LEADS), unit="mV")
    source = read_file(tmp_path / "a.npz")
    assert source.record.signal.shape == (12, 5000) and not source.remarks


def _edf(path: Path, signals: list[tuple[str, str, np.ndarray, int]], reserved: str = "") -> None:
    """Write data records of 1 s: label, unit, numbers in steps of 5, rate."""
    number = len(signals)

    def field(text: object, size: int) -> bytes:
        return str(text).ljust(size).encode()

    seconds = len(signals[0][2]) // signals[0][3]
    head = field("0", 8) + field("X X X X", 80) + field("Startdate X X X X", 80)
    head += field("01.01.20", 8) + field("10.00.00", 8) + field(256 * (number + 1), 8)
    head += field(reserved, 44) + field(seconds, 8) + field(1, 8) + field(number, 4)
    for values, size in (
        ([s[0] for s in signals], 16),
        ([""] * number, 80),
        ([s[1] for s in signals], 8),
        ([-163840] * number, 8),
        ([163835] * number, 8),
        ([-32768] * number, 8),
        ([32767] * number, 8),
        ([""] * number, 80),
        ([s[3] for s in signals], 8),
        ([""] * number, 32),
    ):
        head += b"".join(field(value, size) for value in values)
    body = b"".join(
        s[2][second * s[3] : (second + 1) * s[3]].astype("<i2").tobytes()
        for second in range(seconds)
        for s in signals
    )
    path.write_bytes(head + body)


def test_edf_signals_that_are_not_leads_are_named(tmp_path: Path) -> None:
    ecg = np.rint(files.heartbeat(fs=200)[1] * 200)
    _edf(
        tmp_path / "night.EDF",
        [
            ("ECG II", "uV", ecg, 200),
            ("Resp chest", "uV", np.zeros(250), 25),
            ("SpO2", "%", np.full(10, 97), 1),
        ],
    )
    source = find_records(str(tmp_path)).records[0].read()
    assert source.record.lead_names == ("ECG II",) and source.record.fs == 200
    np.testing.assert_allclose(source.record.signal[0], ecg * 0.005, atol=1e-4)
    assert "Resp chest (uV, 25 Hz)" in remarks(source) and "SpO2 (%, 1 Hz)" in remarks(source)


def test_a_discontinuous_edf_has_missing_samples_in_its_gaps(tmp_path: Path) -> None:
    ecg = np.rint(files.heartbeat(fs=200)[1] * 200)
    onsets = [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    marks = b"".join(f"+{onset}\x14\x14".encode().ljust(40, b"\0") for onset in onsets)
    signals = [("II", "uV", ecg, 200), ("EDF Annotations", "", np.frombuffer(marks, "<i2"), 20)]
    _edf(tmp_path / "a.edf", signals, "EDF+D")
    source = read_file(tmp_path / "a.edf")
    assert source.record.signal.shape == (1, 3000) and "5.0 s" in remarks(source, "gap")
    assert np.isnan(source.record.signal[0, 1000:2000]).all()
    np.testing.assert_allclose(source.record.signal[0, 2000:], ecg[1000:] * 0.005, atol=1e-4)


def test_long_holter_files_are_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecgfounder_train.inference.inputs import ishne_files

    samples = np.rint(files.heartbeat(fs=250)[:3] * 200).astype("<i2")
    samples[1, 7] = -32768
    head = bytearray(512)
    struct.pack_into("<4i", head, 0, 0, samples.shape[1], 522, 522)
    struct.pack_into("<h", head, 146, 3)
    for number in range(12):
        for place, values in ((148, (5, 6, 7)), (196, (5000, 5000, 5000))):
            value = values[number] if number < 3 else -9
            struct.pack_into("<h", head, place + 2 * number, value)
    struct.pack_into("<h", head, 262, 250)
    (tmp_path / "a.ecg").write_bytes(b"ISHNE1.0\0\0" + bytes(head) + samples.T.tobytes())
    whole = read_file(tmp_path / "a.ecg")
    assert whole.record.lead_names == ("I", "II", "III") and whole.record.fs == 250
    assert np.isnan(whole.record.signal).sum() == 1
    monkeypatch.setattr(ishne_files, "MAX_VALUES_IN_MEMORY", 1000)
    long = read_file(tmp_path / "a.ecg")
    assert isinstance(long.signal, WindowedSignal) and isinstance(whole.signal, EcgRecord)
    np.testing.assert_array_equal(long.signal.read(100, 200), whole.signal.signal[:, 100:200])


def test_headers_without_signals_and_signals_without_headers(tmp_path: Path) -> None:
    (tmp_path / "alone.mat").write_bytes(b"MATLAB 5.0")
    (tmp_path / "two_files.hea").write_text(
        "two_files 2 500 10\na.dat 16 200 16 0 0 0 0 I\nb.dat 16 200 16 0 0 0 0 II\n"
    )
    for name in ("a.dat", "b.dat"):
        (tmp_path / name).write_bytes(bytes(20))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    found = find_records(str(tmp_path))
    assert [Path(r.name).name for r in found.records] == ["alone.mat", "two_files"]
    with pytest.raises(RejectedRecordError, match=r"missing_header.*without its header"):
        found.records[0].read()
    assert "1 hidden files" in found.summary
    with pytest.raises(UserError, match="neither a file"):
        find_records(str(tmp_path / "absent"))
