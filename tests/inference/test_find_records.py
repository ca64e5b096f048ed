"""`input=` means what it says: a folder, a glob, a file, a list, and which of them is told."""

from pathlib import Path
from typing import Any

import input_files as files
import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.inference import InputOptions, find_records

LEADS = files.LEADS


def names(pattern: object, options: InputOptions | None = None) -> list[str]:
    return [record.name for record in find_records(str(pattern), options).records]


def test_records_are_found_by_folder_glob_and_name(tiny_set: Any) -> None:
    root = tiny_set.root
    one = root / tiny_set.catalog["record_path"][0]
    assert len(names(root)) == len(names(f"{root}/**/*.hea")) == 100
    assert len(names(f"{root}/S0/*")) == 50
    assert names(one) == names(f"{one}.hea") == [str(one)]
    with pytest.raises(UserError, match="finds no recording"):
        find_records(f"{root}/*.hea")
    with pytest.raises(UserError, match="no WFDB record"):
        find_records(f"{root}/absent")


def test_a_folder_of_many_formats_counts_what_is_no_ecg(tmp_path: Path) -> None:
    ecg = files.heartbeat()
    (tmp_path / "deep").mkdir()
    files.write_dicom(tmp_path / "deep" / "IM0001", ecg)  # DICOM files often have no suffix
    files.write_scp(tmp_path / "a.scp", ecg)
    np.save(tmp_path / "many.npy", np.stack([ecg, ecg]))
    np.savetxt(tmp_path / "samples.csv", ecg.T, "%.3f", ",")
    (tmp_path / "labels.csv").write_text("name,diagnosis\na,normal\n")
    (tmp_path / "LICENSE.txt").write_text("Do what you like.\n")
    (tmp_path / "config.xml").write_text("<?xml version='1.0'?><settings/>\n")
    (tmp_path / ".hidden.scp").write_bytes(b"")
    found = find_records(str(tmp_path))
    shown = [Path(record.name).name for record in found.records]
    assert shown == ["a.scp", "IM0001", "many.npy::0", "many.npy::1", "samples.csv"]
    assert found.num_left_out == 3
    assert "5 recordings in 4 files" in found.summary and "3 other files" in found.summary


def test_a_csv_of_files_is_a_list_and_one_of_numbers_a_recording(tmp_path: Path) -> None:
    ecg = files.heartbeat()
    files.write_dicom(tmp_path / "a.dcm", ecg)
    np.save(tmp_path / "b.npy", ecg * 1000)
    listed = tmp_path / "list.csv"
    listed.write_text("patient_id,Path,fs,units\np1,a.dcm,,\np2,b.npy,500,uV\np3,gone.scp,,\n")
    found = find_records(str(listed))
    assert "is a list of 3 files (column 'Path')" in found.summary
    assert [(r.name, r.patient) for r in found.records] == [
        ("a.dcm", "p1"),
        ("b.npy", "p2"),
        ("gone.scp", "p3"),
    ]
    np.testing.assert_allclose(found.records[1].read().record.signal, ecg, atol=1e-6)
    with pytest.raises(RejectedRecordError, match="file is absent"):
        found.records[2].read()
    samples = tmp_path / "samples.csv"
    samples.write_text(",".join(LEADS) + "\n" + "0.1," * 11 + "0.1\n" * 1)
    assert "is one recording (12 columns)" in find_records(str(samples)).summary
    samples.write_text("name,diagnosis\na,normal\n")
    with pytest.raises(UserError, match="neither a list of files nor a recording"):
        find_records(str(samples))


def test_records_called_by_numbers_may_be_listed(tiny_set: Any, tmp_path: Path) -> None:
    for suffix in (".hea", ".dat"):
        source = tiny_set.root / tiny_set.catalog["record_path"][0]
        (tmp_path / f"100{suffix}").write_bytes(Path(f"{source}{suffix}").read_bytes())
    (tmp_path / "list.csv").write_text("record\n100\n")
    found = find_records(str(tmp_path / "list.csv"))
    assert [record.name for record in found.records] == ["100"]
    assert "is a list of 1 files" in found.summary
    (tmp_path / "bare.txt").write_text("100\n")  # one number: nobody can know
    assert "one recording" in find_records(str(tmp_path / "bare.txt")).summary
    (tmp_path / "RECORDS.csv").write_text("100.hea\n")
    assert "is a list" in find_records(str(tmp_path / "RECORDS.csv")).summary


def test_mistakes_in_a_list_name_the_line(tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("file,fs\na.npy,500\nb.npy,quick\n")
    with pytest.raises(UserError, match="line 3: could not convert"):
        find_records(str(listed))
    listed.write_text("file,fs\na.npy,500\n,500\n")
    with pytest.raises(UserError, match="line 3: column 'file' names no file"):
        find_records(str(listed))
    listed.write_text("file,unit\na.npy,bananas\n")
    with pytest.raises(UserError, match=r"line 2: input_unit='bananas' is not a voltage"):
        find_records(str(listed))
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match="none of the known formats: WFDB"):
        find_records(str(tmp_path / "x.pdf"))
