"""A recording comes out the same whichever file it was written to, or is rejected with a reason."""

from pathlib import Path
from typing import Any

import h5py
import input_files as files
import numpy as np
import pytest
import wfdb

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.inference import InputOptions, WarningCode, read_file
from ecgfounder_train.inference.inputs import FORMATS, identify, list_items
from ecgfounder_train.inference.leads import resolve_leads

LEADS = files.LEADS
MV = InputOptions(fs=500.0, unit="mV")


@pytest.fixture(scope="module")
def ecg() -> np.ndarray:
    return files.heartbeat()


def codes(source: Any) -> set[str]:
    return {remark.code.value for remark in source.remarks}


def rejection(path: Path, options: InputOptions | None = None, item: str = "") -> str:
    with pytest.raises(RejectedRecordError) as error:
        read_file(path, item, options)
    assert path.stem not in str(error.value), "a detail names no file"
    return str(error.value)


def write_table(path: Path, ecg: np.ndarray, head: str | None, separator: str = ",") -> None:
    lines = [] if head is None else [head]
    lines += [separator.join(f"{value:.3f}" for value in row) for row in ecg.T]
    path.write_text("\n".join(lines) + "\n")


def write_every_format(folder: Path, ecg: np.ndarray) -> dict[str, Path]:
    named = ",".join(LEADS)
    wfdb.wrsamp("wfdb", fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=ecg.T,
                fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12,
                write_dir=str(folder))  # fmt: skip
    write_table(folder / "table.csv", ecg, named)
    np.savez(folder / "array.npz", signal=ecg, fs=500, leads=np.array(LEADS), unit="mV")
    with h5py.File(folder / "array.h5", "w") as file:
        data = file.create_dataset("ecg", data=ecg.T * 1000)
        data.attrs.update(fs=500.0, leads=list(LEADS), unit="uV")
    files.write_dicom(folder / "waveform.dcm", ecg)
    files.write_aecg(folder / "annotated.xml", ecg)
    files.write_scp(folder / "huffman.scp", ecg)
    files.write_scp(folder / "plain.scp", ecg, compressed=False)
    files.write_muse(folder / "muse.xml", ecg)
    suffixes = (".hea", ".csv", ".npz", ".h5", ".dcm", ".xml", ".scp")
    return {path.name: path for path in folder.iterdir() if path.suffix in suffixes}


def test_every_format_gives_the_same_recording(ecg: np.ndarray, tmp_path: Path) -> None:
    written = write_every_format(tmp_path, ecg)
    assert len(written) == 9
    for name, path in written.items():
        source = read_file(path, options=InputOptions(fs=500.0))
        record, _ = resolve_leads(source.record, LEADS)
        # 2.5 microvolts per step; 4.88 where the four derived leads add two roundings.
        limit = {"muse.xml": 0.009, "waveform.dcm": 0.0026, "annotated.xml": 0.0013}.get(name, 6e-4)
        np.testing.assert_allclose(record.signal, ecg, atol=limit, err_msg=name)
        assert record.fs == 500.0 and record.lead_names == LEADS, name


def test_a_file_is_known_by_its_content_where_its_name_says_nothing(
    ecg: np.ndarray, tmp_path: Path
) -> None:
    written = write_every_format(tmp_path, ecg)
    for name in ("array.npz", "array.h5", "waveform.dcm", "annotated.xml", "huffman.scp"):
        bare = written[name].rename(tmp_path / name.replace(".", "_"))
        found = identify(bare)
        assert found is not None and bare.name.split("_")[1] in "".join(found.suffixes)
        np.testing.assert_allclose(
            read_file(bare).record.signal.max(), ecg.max(), atol=0.005, err_msg=name
        )
    # A DICOM file that calls itself something else.
    other = (tmp_path / "waveform_dcm").rename(tmp_path / "ecg.xml")
    assert read_file(other).record.fs == 500.0
    (tmp_path / "note").write_text("just words\n")
    assert "unsupported_format" in rejection(tmp_path / "note")


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
def test_tables_of_any_separator_are_read(ecg: np.ndarray, tmp_path: Path, separator: str) -> None:
    path = tmp_path / "ecg.csv"
    write_table(path, ecg, separator.join(LEADS), separator)
    np.testing.assert_allclose(read_file(path, options=MV).record.signal, ecg, atol=1e-6)
    write_table(path, ecg, None, separator)
    source = read_file(path, options=MV)
    np.testing.assert_allclose(source.record.signal, ecg, atol=1e-6)
    assert source.record.lead_names == LEADS and "lead_order_assumed" in codes(source)


def test_a_table_may_say_its_rate_and_unit(ecg: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ecg.csv"
    names = ",".join(f"{lead} (uV)" for lead in LEADS)
    rows = [f"{2 * n},{','.join(f'{v:.0f}' for v in row * 1000)}" for n, row in enumerate(ecg.T)]
    for head, fs in (("time_ms", 500.0), ("time", 500.0), ("time (s)", 0.5)):
        path.write_text("\n".join([f"{head},{names}", *rows]))
        source = read_file(path)
        assert source.record.fs == fs and "rate_from_time_axis" in codes(source)
        np.testing.assert_allclose(source.record.signal, ecg, atol=1e-6)
    commented = ["# fs: 500", "# unit: uV", ";".join(LEADS)]
    commented += [";".join(f"{v:.1f}".replace(".", ",") for v in row * 1000) for row in ecg.T]
    path.write_text("\n".join(commented))
    source = read_file(path)
    assert source.record.fs == 500.0 and not source.remarks
    np.testing.assert_allclose(source.record.signal, ecg, atol=1e-6)
    rows[100] = rows[100].replace("200,", "900,", 1)
    path.write_text("\n".join([f"time_ms,{names}", *rows]))
    assert "does not rise in equal steps" in rejection(path)


def test_damaged_tables_are_rejected(ecg: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "brokentable.csv"
    write_table(path, ecg, ",".join(LEADS))
    text = path.read_text()
    path.write_text(text.replace("\n", "\nfoo,", 200).replace("foo,", "", 199))
    assert "unreadable_signal" in rejection(path, MV)
    path.write_text("I,II\n")
    assert "no rows" in rejection(path, MV)
    path.write_text("")
    assert "not a table" in rejection(path, MV)
    path.write_text("path\na.dcm\nb.dcm\n")
    assert "a list of files" in rejection(path, MV)


def test_empty_cells_are_missing_samples(ecg: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ecg.csv"
    rows = [[f"{value:.3f}" for value in row] for row in ecg.T]
    rows[7][3], rows[9][0] = "", "NaN"
    path.write_text("\n".join(",".join(row) for row in [list(LEADS), *rows]))
    signal = read_file(path, options=MV).record.signal
    assert np.isnan(signal[3, 7]) and np.isnan(signal[0, 9]) and np.isnan(signal).sum() == 2


def test_axes_of_an_array_come_in_either_order(ecg: np.ndarray, tmp_path: Path) -> None:
    for values in (ecg, ecg.T):
        np.save(tmp_path / "a.npy", values)
        np.testing.assert_array_equal(read_file(tmp_path / "a.npy", "", MV).record.signal, ecg)
    short = ecg[:, :8]  # fewer samples than leads: only names can tell
    np.save(tmp_path / "a.npy", short.T)
    named = InputOptions(500.0, "mV", LEADS)
    np.testing.assert_array_equal(read_file(tmp_path / "a.npy", "", named).record.signal, short)


def test_a_file_of_many_recordings_lists_them(ecg: np.ndarray, tmp_path: Path) -> None:
    many = np.stack([ecg * size for size in (1, 2, 3)])
    np.save(tmp_path / "many.npy", many)
    assert list_items(tmp_path / "many.npy") == ("0", "1", "2")
    second = read_file(tmp_path / "many.npy", "1", MV).record.signal
    np.testing.assert_array_equal(second, many[1])
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file.create_dataset("train/x", data=many.transpose(0, 2, 1))
        file["train/x"].attrs["fs"] = 250
        file.create_dataset("ages", data=np.arange(3))
    assert list_items(tmp_path / "many.h5") == ("train/x/0", "train/x/1", "train/x/2")
    record = read_file(tmp_path / "many.h5", "train/x/2", InputOptions(unit="mV")).record
    assert record.fs == 250.0
    np.testing.assert_array_equal(record.signal, many[2])
    with pytest.raises(UserError, match="holds 3 recordings"):
        read_file(tmp_path / "many.h5")


@pytest.mark.parametrize("order", [("aVR", "aVL", "aVF"), ("aVL", "aVF", "aVR")])
@pytest.mark.parametrize("per_mv", [1.0, 10.0])
def test_code_tracings_are_read_in_their_order_and_unit(
    tmp_path: Path, order: tuple[str, ...], per_mv: float
) -> None:
    ecg = files.heartbeat(fs=400.0, duration_s=7.0)
    rows = [LEADS.index(lead) for lead in ("I", "II", "III", *order, *LEADS[6:])]
    tracings = np.zeros((2, 4096, 12), np.float32)
    tracings[1, 600 : 600 + ecg.shape[1]] = ecg[rows].T * per_mv
    with h5py.File(tmp_path / "code.hdf5", "w") as file:
        file["exam_id"] = np.arange(2)
        file["tracings"] = tracings
    assert list_items(tmp_path / "code.hdf5") == ("tracings/0", "tracings/1")
    source = read_file(tmp_path / "code.hdf5", "tracings/1")
    record, _ = resolve_leads(source.record, LEADS)
    assert record.fs == 400.0
    # What is zero at both ends is filling, to the sample.
    first, last = np.flatnonzero(ecg.any(axis=0))[[0, -1]]
    np.testing.assert_allclose(record.signal, ecg[:, first : last + 1], atol=1e-5)
    assert "all_zero" in rejection(tmp_path / "code.hdf5", item="tracings/0")


def test_leads_of_an_hdf5_file_may_be_data_sets_of_their_own(
    ecg: np.ndarray, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "leads.h5", "w") as file:
        file.attrs.update(sampling_rate=500, units="mV")
        for lead, values in zip(LEADS, ecg, strict=True):
            file[f"ecg/{lead.lower()}"] = values
    record, _ = resolve_leads(read_file(tmp_path / "leads.h5").record, LEADS)
    np.testing.assert_array_equal(record.signal, ecg)


def test_dicom_leads_are_found_by_meaning_where_the_code_is_foreign(
    ecg: np.ndarray, tmp_path: Path
) -> None:
    files.write_dicom(tmp_path / "a.dcm", ecg, coded=False, with_median_beat=False)
    source = read_file(tmp_path / "a.dcm")
    assert source.record.lead_names[3] == "Lead aVR" and not source.remarks
    record, _ = resolve_leads(source.record, LEADS)
    np.testing.assert_allclose(record.signal, ecg, atol=0.0026)
    files.write_dicom(tmp_path / "b.dcm", ecg, unit="mm[Hg]")
    assert "unknown_units" in rejection(tmp_path / "b.dcm")
    by_hand = read_file(tmp_path / "b.dcm", "", InputOptions(unit="uV"))
    np.testing.assert_allclose(by_hand.record.signal, ecg, atol=0.0026)


def test_units_override_what_files_say(ecg: np.ndarray, tmp_path: Path) -> None:
    wrong = ecg * 1000  # microvolts in a header that says mV
    wfdb.wrsamp("wrong", fs=500, units=["mV"] * 12, sig_name=list(LEADS),
                p_signal=wrong.T.astype(float), fmt=["16"] * 12, adc_gain=[1.0] * 12,
                baseline=[0] * 12, write_dir=str(tmp_path))  # fmt: skip
    fixed = read_file(tmp_path / "wrong.hea", "", InputOptions(unit="uV")).record.signal
    np.testing.assert_allclose(fixed, ecg, atol=1e-6)
    files.write_aecg(tmp_path / "a.xml", ecg)
    as_mv = read_file(tmp_path / "a.xml", "", InputOptions(unit="mV")).record.signal
    np.testing.assert_allclose(as_mv / 1000, ecg, atol=0.0013)
    files.write_dicom(tmp_path / "a.dcm", ecg)
    same = read_file(tmp_path / "a.dcm", "", InputOptions(unit="uV")).record.signal
    np.testing.assert_allclose(same, ecg, atol=0.0026)


def test_what_a_file_does_not_say_must_be_given(ecg: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "silent.npy", ecg)
    assert "give it with input_fs" in rejection(tmp_path / "silent.npy")
    source = read_file(tmp_path / "silent.npy", "", InputOptions(fs=500.0))
    assert codes(source) == {"unit_assumed", "lead_order_assumed"}
    np.save(tmp_path / "silent.npy", ecg[:5])
    assert "input_leads" in rejection(tmp_path / "silent.npy", MV)
    named = InputOptions(500.0, "mV", ("I", "II"))
    assert "5 leads are stored, but 2 names" in rejection(tmp_path / "silent.npy", named)
    np.savez(tmp_path / "other.npz", signal=ecg, fs=250)
    source = read_file(tmp_path / "other.npz", "", MV)
    assert source.record.fs == 250.0 and WarningCode.RATE_CONFLICT in codes(source)
    for wrong in ({"fs": 0.0}, {"unit": "bananas"}, {"leads": ("I", "I")}):
        with pytest.raises(UserError, match="input_"):
            InputOptions(**wrong)


@pytest.mark.parametrize("suffix", [s for f in FORMATS for s in f.suffixes])
@pytest.mark.parametrize("damage", ["empty", "noise", "half", "absent"])
def test_damaged_files_of_every_format_are_rejected_with_a_reason(
    ecg: np.ndarray, tmp_path: Path, suffix: str, damage: str
) -> None:
    written = write_every_format(tmp_path, ecg) if damage == "half" else {}
    match = [path for path in written.values() if path.suffix == suffix]
    path = tmp_path / f"patient4711{suffix}"
    content = match[0].read_bytes() if match else b"\x00\x01half a file\xff" * 40
    noise = np.random.default_rng(len(suffix)).bytes(5000)
    if damage != "absent":
        path.write_bytes({"empty": b"", "noise": noise, "half": content}[damage])
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
        if suffix == ".csv":
            return  # half a table is a table
    assert rejection(path, MV)


def test_xml_that_would_expand_without_end_is_refused(tmp_path: Path) -> None:
    bomb = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 9))
    path = tmp_path / "bomb.xml"
    path.write_text(
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "x">{bomb}]>'
        "<AnnotatedECG>&a8;</AnnotatedECG>"
    )
    assert "unreadable_signal" in rejection(path)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert "unreadable_signal" in rejection(tmp_path / "objects.npy", MV)


def test_a_wrong_checksum_is_said(ecg: np.ndarray, tmp_path: Path) -> None:
    files.write_scp(tmp_path / "a.scp", ecg, compressed=False)
    content = bytearray((tmp_path / "a.scp").read_bytes())
    content[-1000] ^= 1
    (tmp_path / "a.scp").write_bytes(content)
    assert "checksum_mismatch" in codes(read_file(tmp_path / "a.scp"))
