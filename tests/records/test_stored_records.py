"""What a WFDB record holds beside the common kind: rates, segments, units, names, links."""

from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import read_record
from ecgfounder_train.records.reader import open_record, read_or_open

rng = np.random.default_rng(11)
BITS = {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "8": 8}


def header(folder: Path, name: str, first: str, *lines: str) -> Path:
    (folder / f"{name}.hea").write_text("\n".join([first, *lines, ""]))
    return folder / name


def plain(folder: Path, name: str, signals: dict[str, np.ndarray], fs: float = 250) -> Path:
    values = np.stack(list(signals.values()), axis=1).astype("<i2")
    (folder / f"{name}.dat").write_bytes(values.tobytes())
    lines = [f"{name}.dat 16 100/mV 16 0 0 0 0 {signal}" for signal in signals]
    return header(folder, name, f"{name} {len(signals)} {fs:g} {len(values)}", *lines)


def rejection(path: Path, **settings: object) -> RejectedRecordError:
    with pytest.raises(RejectedRecordError) as caught:
        read_record(path, **settings)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("fmt", [*BITS, "310", "311"])
def test_several_samples_per_frame_are_read_at_the_rate_of_the_signal(tmp_path, fmt):
    content = np.frombuffer(rng.bytes(8000), np.uint8).copy()
    content[3::4] &= 0x3F if fmt == "311" else 0xFF
    (tmp_path / "r.dat").write_bytes(content.tobytes())
    header(
        tmp_path, "r", "r 3 62.5 120",
        f"r.dat {fmt}x4 200(5)/mV 16 0 7 0 0 II",
        f"r.dat {fmt} 10/mmHg 16 0 0 0 0 ABP",
        f"r.dat {fmt}x4 100/mV 16 0 -9 0 0 V5",
    )  # fmt: skip
    record = read_record(tmp_path / "r")
    expanded = wfdb.rdrecord(str(tmp_path / "r"), smooth_frames=False).e_p_signal
    assert (record.lead_names, record.fs) == (("II", "V5"), 250)
    expected = np.stack([expanded[0], expanded[2]])
    np.testing.assert_allclose(record.signal, expected, rtol=3e-7, equal_nan=True)
    stored = open_record(tmp_path / "r")
    for start, stop in [(0, 480), (3, 4), (101, 407), (400, 480), (7, 333)]:
        piece = stored.read(start, stop).signal
        np.testing.assert_array_equal(piece, record.signal[:, start:stop])


def test_a_wanted_lead_at_another_rate_is_refused_with_both_rates(tmp_path):
    (tmp_path / "r.dat").write_bytes(rng.integers(-9, 9, 5 * 1000).astype("<i2").tobytes())
    header(
        tmp_path, "r", "r 2 62.5 1000", "r.dat 16x4 200 16 0 0 0 0 II", "r.dat 16 200 16 0 0 0 0 V5"
    )
    record = read_record(tmp_path / "r")
    assert (record.lead_names, record.fs, record.signal.shape) == (("II",), 250, (1, 4000))
    assert record.to_standard_leads(["II"]).fs == 250
    with pytest.raises(RejectedRecordError, match=r"lead V5 is sampled at 62\.5 Hz") as no:
        record.to_standard_leads(["II", "V5"])
    assert no.value.reason is RejectReason.BAD_SAMPLING_RATE


def test_the_ecg_of_a_sleep_recording_is_found_beside_faster_and_slower_signals(tmp_path):
    (tmp_path / "r.dat").write_bytes(bytes(2 * 13 * 100))
    header(
        tmp_path, "r", "r 4 50 100",
        "r.dat 16x8 200/uV 16 0 0 0 0 EMG chin",
        "r.dat 16x2 200/uV 16 0 0 0 0 EEG C4-A1",
        "r.dat 16x2 200/uV 16 0 0 0 0 EKG",
        "r.dat 16 200/Ohm 16 0 0 0 0 Resp",
    )  # fmt: skip
    record = read_record(tmp_path / "r")
    assert (record.fs, record.lead_names) == (100, ("EEG C4-A1", "EKG"))
    assert [signal.name for signal in record.unused_signals] == ["EMG chin", "Resp"]


def test_signals_that_are_no_voltage_do_not_cost_the_ecg(tmp_path, write_record):
    digital = rng.integers(-500, 500, (100, 5))
    gains = ["1000/mV", "10/mmHg", "1/uV", "1000/NU", "500/Ohm"]
    path = write_record(digital, gains=gains, names=["II", "ABP", "V5", "PLETH", "Resp"])
    record = read_record(path)
    np.testing.assert_allclose(record.signal, digital.T[[0, 2]] / 1000, rtol=1e-6)
    assert record.to_standard_leads(["V5", "II"]).lead_names == ("V5", "II")
    with pytest.raises(RejectedRecordError, match="III not among the 2 stored leads"):
        record.to_standard_leads(["II", "III"])


def test_a_wanted_lead_in_another_unit_is_refused_with_the_unit(write_record):
    path = write_record(np.ones((100, 2), int), gains=["1000/mV", "10/mmHg"], names=["I", "II"])
    with pytest.raises(RejectedRecordError, match="lead II is in mmHg, not a voltage") as caught:
        read_record(path).to_standard_leads(["I", "II"])
    assert caught.value.reason is RejectReason.UNKNOWN_UNITS


def test_segments_are_joined_by_name_whatever_their_order_and_number(tmp_path):
    one, two, three = rng.integers(-99, 99, (3, 300))
    plain(tmp_path, "a", {"I": one, "II": two})
    plain(tmp_path, "b", {"II": two, "V": three, "I": one})
    plain(tmp_path, "c", {"II": two})
    header(tmp_path, "r", "r/5 2 250 1150", "a 300", "~ 100", "b 300", "c 300", "b 150")
    record = read_record(tmp_path / "r")
    gap, absent = np.full(100, np.nan), np.full(300, np.nan)
    assert record.lead_names == ("I", "II", "V")
    expected = [
        np.concatenate([one, gap, one, absent, one[:150]]),
        np.concatenate([two, gap, two, two, two[:150]]),
        np.concatenate([absent, gap, three, absent, three[:150]]),
    ]
    np.testing.assert_allclose(record.signal, np.array(expected) / 100, rtol=1e-6, equal_nan=True)
    stored = open_record(tmp_path / "r")
    for start, stop in [(0, 1150), (250, 450), (390, 401), (600, 1150), (1149, 1150)]:
        part = stored.read(start, stop).signal
        np.testing.assert_array_equal(part, record.signal[:, start:stop])


def test_a_layout_segment_gives_the_order_and_signals_it_promises_in_vain_are_absent(tmp_path):
    plain(tmp_path, "a", {"V": np.ones(100), "II": np.zeros(100)})
    header(
        tmp_path, "lay", "lay 3 250 0", "~ 0 100/mV 0 0 0 0 0 II", "~ 0 1/mmHg 0 0 0 0 0 ABP",
        "~ 0 100/mV 0 0 0 0 0 V",
    )  # fmt: skip
    header(tmp_path, "r", "r/2 3 250 100", "lay 0", "a 100")
    assert read_record(tmp_path / "r").lead_names == ("II", "V")


def test_doubled_names_stay_apart_across_segments(tmp_path):
    for name, values in (("a", (1, 2)), ("b", (3, 4))):
        (tmp_path / f"{name}.dat").write_bytes(np.tile(values, 50).astype("<i2").tobytes())
        line = f"{name}.dat 16 100/mV 16 0 0 0 0 ECG"
        header(tmp_path, name, f"{name} 2 250 50", line, line)
    header(tmp_path, "r", "r/2 2 250 100", "a 50", "b 50")
    signal = read_record(tmp_path / "r").signal
    np.testing.assert_allclose(signal[:, [0, -1]], [[0.01, 0.03], [0.02, 0.04]], rtol=1e-6)


@pytest.mark.parametrize(
    ("lines", "reason", "detail"),
    [
        (["a 100", "fast 100"], "bad_sampling_rate", "segment 2 is sampled at 500 Hz, the record"),
        (["a 100", "dense 100"], "bad_sampling_rate", "I changes its rate .*: 250, 500 Hz"),
        (["a 100", "nested 100"], "unreadable_header", "segment 2 consists of segments"),
        (["a 100", "gone 100"], "missing_header", "absent"),
        (["a 100", "a 101"], "truncated_signal", "segment 2 has 100 samples, 101 are listed"),
        (["~ 100", "~ 100"], "missing_signal_file", "gaps alone"),
        (["a 100", "../a 100"], "unreadable_header", "plain file name"),
    ],
)
def test_segments_that_do_not_fit_are_refused_by_number(tmp_path, lines, reason, detail):
    plain(tmp_path, "a", {"I": np.ones(100)})
    plain(tmp_path, "fast", {"I": np.ones(100)}, fs=500)
    (tmp_path / "dense.dat").write_bytes(bytes(400))
    header(tmp_path, "dense", "dense 1 250 100", "dense.dat 16x2 100/mV 16 0 0 0 0 I")
    header(tmp_path, "nested", "nested/1 1 250 100", "a 100")
    error = rejection(header(tmp_path, "r", "r/2 1 250 200", *lines))
    assert error.reason.value == reason
    with pytest.raises(RejectedRecordError, match=detail):
        raise error


def test_a_day_in_segments_is_opened_and_read_in_parts(tmp_path):
    hour = rng.integers(-99, 99, 900_000)
    plain(tmp_path, "h", {"II": hour})
    header(tmp_path, "day", "day/25 1 250 21600100", *["h 900000"] * 24, "~ 100")
    record = read_or_open(tmp_path / "day")
    assert not hasattr(record, "signal")  # not in memory
    assert record.num_samples == 21_600_100
    part = record.read(899_990, 900_010).signal[0]
    np.testing.assert_allclose(part, np.concatenate([hour[-10:], hour[:10]]) / 100, rtol=1e-6)
    assert np.isnan(record.read(21_600_050, None).signal[0, -50:]).all()


@pytest.mark.parametrize("fmt", ["508", "516", "524"])
def test_flac_is_read_in_parts_and_with_several_samples_per_frame(tmp_path, fmt):
    import soundfile

    depth = {"508": "PCM_S8", "516": "PCM_16", "524": "PCM_24"}[fmt]
    values = rng.integers(-100, 100, (4000, 2)) / 128
    soundfile.write(tmp_path / "r.dat", values, 8000, subtype=depth, format="FLAC")
    lines = [f"r.dat {fmt}x4 100/mV 16 0 0 0 0 {name}" for name in ("I", "II")]
    header(tmp_path, "r", "r 2 62.5 1000", *lines)
    expected = np.stack(wfdb.rdrecord(str(tmp_path / "r"), smooth_frames=False).e_p_signal)
    record = open_record(tmp_path / "r")
    np.testing.assert_allclose(record.read().signal, expected, rtol=3e-7)
    np.testing.assert_allclose(record.read(1001, 2003).signal, expected[:, 1001:2003], rtol=3e-7)


def test_skewed_signals_are_read_in_parts_as_whole(tmp_path, write_record):
    path = write_record(rng.integers(-99, 99, (300, 3)))
    text = path.with_suffix(".hea").read_text().splitlines()
    text[2] = text[2].replace(" 16 ", " 16:7 ", 1)
    path.with_suffix(".hea").write_text("\n".join(text))
    whole = wfdb.rdrecord(str(path)).p_signal.T
    stored = open_record(path)
    for start, stop in [(0, 300), (0, 10), (290, 300), (100, 296)]:
        np.testing.assert_allclose(stored.read(start, stop).signal, whole[:, start:stop], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "record_line"),
    [
        ("my record", "my record 12 500 100"),
        ("2 of 3", "2 of 3 12 500 100"),
        ("old (12 leads) 500", "old (12 leads) 500 12 500 100"),
        ("20-01-01 12.00", "20-01-01 12.00 12 500 100 12:00:00 01/01/2020"),
    ],
)
def test_names_with_blanks_are_read(tmp_path, write_record, name, record_line):
    digital = rng.integers(-99, 99, (100, 12))
    path = write_record(digital, name=name)
    file = tmp_path / f"{name}.hea"
    file.write_text("\n".join([record_line, *file.read_text().splitlines()[1:]]))
    record = read_record(path)
    np.testing.assert_allclose(record.signal, digital.T / 1000, rtol=1e-6)
    assert record.lead_names[:2] == ("I", "II")


def test_a_multi_segment_record_with_blanks_in_its_names_is_read(tmp_path):
    plain(tmp_path, "part one", {"I": np.ones(100)})
    header(tmp_path, "the whole", "the whole/2 1 250 200", "part one 100", "part one 100")
    assert read_record(tmp_path / "the whole").signal.shape == (1, 200)


def test_a_number_sign_within_a_name_is_part_of_it(tmp_path, write_record):
    path = write_record(np.ones((50, 3), int), names=["ECG #1", "ECG #2", "I #raw"])
    record = read_record(path)
    assert record.lead_names == tuple(wfdb.rdheader(str(path)).sig_name)
    assert record.to_standard_leads(["I"], aliases={"ECG #1": "I"}).signal.shape == (1, 50)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_any_line_end_is_read(write_record, end):
    digital = rng.integers(-99, 99, (50, 12))
    path = write_record(digital, comments=["Age: 60"])
    text = path.with_suffix(".hea").read_text()
    path.with_suffix(".hea").write_bytes(text.replace("\n", end).encode())
    record = read_record(path)
    np.testing.assert_allclose(record.signal, digital.T / 1000, rtol=1e-6)
    assert record.comments == ("Age: 60",)


def test_a_negative_gain_is_a_signal_stored_upside_down(write_record):
    digital = rng.integers(-99, 99, (50, 2))
    path = write_record(digital, gains=["-1000/mV", "-1(5)/uV"])
    expected = [-digital[:, 0] / 1000, -(digital[:, 1] - 5) / 1000]
    np.testing.assert_allclose(read_record(path).signal, expected, rtol=1e-6)


@pytest.mark.parametrize("named", ["keep", "upper"])
@pytest.mark.parametrize("signal", ["DAT", "dat"])
@pytest.mark.parametrize("extension", ["", ".HEA", ".hea"])
def test_extensions_in_upper_case_are_read(tmp_path, write_record, named, signal, extension):
    digital = rng.integers(-99, 99, (50, 2))
    path = write_record(digital, name="X1")
    text = path.with_suffix(".hea").read_text()
    path.with_suffix(".dat").rename(path.with_suffix(f".{signal}"))
    path.with_suffix(".hea").unlink()
    path.with_suffix(".HEA").write_text(text.replace(".dat", ".DAT") if named == "upper" else text)
    np.testing.assert_allclose(
        read_record(f"{path}{extension}").signal, digital.T / 1000, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".mat", b"MATLAB 5.0 MAT-file", "save the numbers as .npy or .csv"),
        (".mat", b"MATLAB 7.3 MAT-file", "save the numbers as .npy or .csv"),
        (".dat", bytes(1000), ".dat file without its header"),
        (".DAT", bytes(1000), ".DAT file without its header"),
    ],
)
def test_a_signal_file_without_header_says_that_the_header_is_missing(
    tmp_path, suffix, content, words
):
    (tmp_path / f"x{suffix}").write_bytes(content)
    error = rejection(tmp_path / f"x{suffix}")
    assert error.reason is RejectReason.MISSING_HEADER
    assert words in error.detail


def test_a_header_with_a_matlab_5_file_says_so(tmp_path):
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(400))
    header(tmp_path, "x", "x 1 500 100", "x.mat 16+24 1000/mV 16 0 0 0 0 I")
    error = rejection(tmp_path / "x")
    assert error.reason is RejectReason.UNREADABLE_SIGNAL
    assert "version 5 or later" in error.detail


def test_links_within_the_archive_are_followed_and_links_out_of_it_are_not(tmp_path):
    archive, elsewhere = tmp_path / "archive", tmp_path / "elsewhere"
    for folder in (archive / "a", archive / "b", elsewhere):
        folder.mkdir(parents=True)
        plain(folder, "r", {"I": np.ones(100)})
    for target in (archive / "b" / "r.dat", elsewhere / "r.dat"):
        (archive / "a" / "r.dat").unlink()
        (archive / "a" / "r.dat").symlink_to(target)
        inside = target.is_relative_to(archive)
        if inside:
            assert read_record(archive / "a" / "r", archive).signal.shape == (1, 100)
        else:
            assert rejection(archive / "a" / "r", root=archive).reason.value == "unreadable_signal"
        assert "leads out of the archive" in rejection(archive / "a" / "r").detail
    (archive / "linked").symlink_to(elsewhere)  # a folder that the user put there
    assert read_record(archive / "linked" / "r", archive).signal.shape == (1, 100)


def test_a_linked_header_out_of_the_archive_is_not_read(tmp_path):
    (tmp_path / "archive").mkdir()
    plain(tmp_path, "r", {"I": np.ones(100)})
    (tmp_path / "archive" / "r.hea").symlink_to(tmp_path / "r.hea")
    assert rejection(tmp_path / "archive" / "r").reason is RejectReason.UNREADABLE_HEADER


def test_eight_leads_name_the_setting_that_derives_the_other_four(write_record):
    names = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    record = read_record(write_record(rng.integers(-99, 99, (50, 8)), names=names))
    with pytest.raises(RejectedRecordError, match=r"signal\.derive_leads=true computes them"):
        record.to_standard_leads()
    assert record.to_standard_leads(derive=True).signal.shape == (12, 50)
    with pytest.raises(RejectedRecordError, match=r"stored leads$"):
        read_record(write_record(np.ones((50, 2), int), names=["V1", "V2"])).to_standard_leads()
