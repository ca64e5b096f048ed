"""A part of an archive: records and folds by choice, missing files found before the work."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ecgfounder_train.catalog import patient_hashes
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources import SourceTable, open_source
from ecgfounder_train.records.sources.presence import PRESENT_NAME, missing_files, require_files
from ecgfounder_train.splits import PatientSplit

NAMES = ("a/r1", "a/r2", "b/r1", "b/r3")


def write(root: Path, name: str, suffixes: tuple[str, ...] = (".hea", ".dat")) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    stem = name.rpartition("/")[2]
    contents = {".hea": f"{stem} 1 500 10\n{stem}.dat 16 1000 16 0 0 0 0 I\n#Dx: 1\n"}
    for suffix in suffixes:
        (root / f"{name}{suffix}").write_text(contents.get(suffix, "x" * 20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        write(tmp_path / "archive", name)
    return tmp_path / "archive"


def read(root: Path, name: str = "wfdb_folder", **settings: Any) -> SourceTable:
    return open_source({"name": name, "root": root, **settings}).read()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["a/r1.hea", "./b/r3"], ["a/r1", "b/r3"]),
        (["r3"], ["b/r3"]),
        (["r1"], ["a/r1", "b/r1"]),
        ("b/*", ["b/r1", "b/r3"]),
        ("*/r1", ["a/r1", "b/r1"]),
        (["a/*", "b/r3"], ["a/r1", "a/r2", "b/r3"]),
    ],
)
def test_records_are_chosen_by_path_name_or_glob(
    folder: Path, chosen: Any, expected: list[str]
) -> None:
    table = read(folder, records=chosen)
    assert table.records.collect()["record_path"].to_list() == expected
    assert table.counts["records_not_selected"] == 4 - len(expected)
    assert table.counts["selected_entries_unknown"] == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part.csv", "id,filename,fold\n1,a/r2.hea,3\n2,b/r1,4\n3,nowhere,5\n"),
        ("part.csv", "a\na/r2\nb/r1\nnowhere\n"),
        ("part.txt", "# chosen\na/r2\n\nb/r1.dat\nnowhere\n"),
        ("part.tsv", "n\trecord\n1\ta/r2\n2\tb/r1\n3\tnowhere\n"),
    ],
)
def test_records_are_chosen_by_a_file_and_unknown_entries_are_counted(
    folder: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    table = read(folder, records=str(tmp_path / name))
    assert table.records.collect()["record_path"].to_list() == ["a/r2", "b/r1"]
    assert table.counts["selected_entries_unknown"] == 1


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("absent.csv", r"source\.records=absent\.csv: the file does not exist"),
        (["x", "y"], r"source\.records fits none of the 4 records"),
        ([], "must be a list of records"),
        (3, "must be a list of records"),
    ],
)
def test_a_selection_that_cannot_be_is_named(folder: Path, chosen: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(folder, records=chosen)


def test_readings_of_several_readers_stay_beside_their_records(tmp_path: Path) -> None:
    site = tmp_path / "ECG" / "I0001"
    for place in ("metadata", "12SL_diagnoses", "WFDB"):
        (site / place).mkdir(parents=True)
    rows = [f"{n},S1/2000/01/s{n},F,20000" for n in range(6)]
    (site / "metadata" / "metadata.csv").write_text(
        "\n".join(["BDSPPatientID,FileName,SexDSC,AgeAtAcquisition", *rows]) + "\n"
    )
    rows = [f"S1/2000/01/s{n},{n},{n + 100},1" for n in range(6)]
    (site / "12SL_diagnoses" / "diagnoses_acquisition.csv").write_text(
        "\n".join(["FileName,codes_software,codes_physician,jaccard_index", *rows]) + "\n"
    )
    table = read(tmp_path, "heedb", records=["s2", "ECG/I0001/WFDB/S1/2000/01/s4"])
    records = table.records.collect()
    assert records["statements"].to_list() == [["102"], ["104"]]
    said = table.readings["software"]
    assert [[said.names[n] for n in numbers] for numbers in said.numbers] == [["2"], ["4"]]


def ptbxl(root: Path, folds: list[int], there: set[int]) -> Path:
    lines = ["ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr"]
    (root / "records100").mkdir(parents=True)
    for number, fold in enumerate(folds):
        name = f"records100/{fold:05d}/{number:05d}_lr"
        lines.append(f"{number},{number},50,0,\"{{'NORM': 100.0}}\",{fold},{name},x")
        if fold in there:
            write(root, name)
    (root / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")
    return root


def test_folds_of_ptbxl_are_chosen_and_found_counts_them(tmp_path: Path) -> None:
    root = ptbxl(tmp_path / "p", [*range(1, 11), 1], {1, 8, 9})
    table = read(root, "ptbxl", folds=[1, 8, 9])
    records = table.records.collect()
    assert sorted(records["fold"].to_list()) == [1, 1, 8, 9]
    assert missing_files(table) is None
    with pytest.raises(UserError, match=r"source\.folds=11 must be one of 1, 2"):
        read(root, "ptbxl", folds=[11])
    with pytest.raises(UserError, match=r"source\.folds=\['1'\] must be a list of numbers"):
        read(root, "ptbxl", folds=["1"])


def test_missing_files_are_found_before_the_work_with_what_prepares_the_rest(
    tmp_path: Path,
) -> None:
    root = ptbxl(tmp_path / "p", list(range(1, 11)) * 3, {1, 8, 9})
    table = read(root, "ptbxl")
    (tmp_path / "private").mkdir()
    with pytest.raises(
        UserError, match=r"21 of 30 .*source\.folds=\[1,8,9\].*source\.records="
    ) as e:
        require_files(table, 0.2, 20, tmp_path / "private")
    assert "max_reject_share" not in str(e.value)
    listed = tmp_path / "private" / PRESENT_NAME
    again = read(root, "ptbxl", records=str(listed))
    assert again.records.collect().height == 9
    assert require_files(again, 0.2, 20, tmp_path / "private") == ""
    assert "they will be rejected" in require_files(table, 0.7, 20, tmp_path / "private")
    assert "they will be rejected" in require_files(table, 0.2, 22, tmp_path / "private")


def test_missing_signal_files_count_and_other_names_do_not(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root, "a/whole")
    write(root, "a/no_signal", (".hea",))
    write(root, "b/UPPER")
    for suffix in (".hea", ".dat"):
        (root / f"b/UPPER{suffix}").rename(root / f"b/UPPER{suffix.upper()}")
    write(root, "b/other", ())
    (root / "b/other.hea").write_text("other 1 500 10\nelse.bin 16 1000 16 0 0 0 0 I\n#Dx: 1\n")
    (root / "b/else.bin").write_text("x" * 20)
    records = missing_files(read(root))
    assert records is not None
    assert records.filter("is_missing")["record_path"].to_list() == ["a/no_signal"]


def test_an_archive_that_is_not_there_at_all_names_the_root(tmp_path: Path) -> None:
    root = ptbxl(tmp_path / "p", list(range(1, 11)) * 3, set())
    with pytest.raises(UserError, match=r"30 of 30 .*check source\.root"):
        require_files(read(root, "ptbxl"), 0.2, 20, tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["train", "train", "val", "test"]),
        ({"val_folds": [8]}, ["train", "val", "train", "test"]),
        ({"val_folds": [9], "test_folds": [1]}, ["test", "train", "val", "train"]),
        ({"test_folds": [8, 10]}, ["train", "test", "val", "test"]),
    ],
)
def test_validation_and_test_folds_can_be_chosen(
    settings: dict[str, Any], expected: list[str]
) -> None:
    hashes = patient_hashes(["1", "2", "3", "4"])
    records = pl.DataFrame(
        {
            "patient_hash": hashes,
            "canonical_hash": hashes,
            "split": ["train", "train", "val", "test"],
            "fold": pl.Series([1, 8, 9, 10], dtype=pl.Int16),
            "site": ["x"] * 4,
            "year": [None] * 4,
        }
    )
    split = PatientSplit.from_config({"kind": "official", **settings})
    assert split.assign(records).parts.to_list() == expected


def test_a_choice_of_folds_changes_the_fingerprint_and_no_choice_does_not() -> None:
    plain = PatientSplit.from_config({"kind": "official"})
    empty = PatientSplit.from_config({"kind": "official", "val_folds": [], "test_folds": []})
    chosen = PatientSplit.from_config({"kind": "official", "val_folds": [8]})
    assert plain.fingerprint == empty.fingerprint != chosen.fingerprint
    assert plain.to_dict() == empty.to_dict()


def test_numbered_folds_of_any_table_can_be_split_by(folder: Path) -> None:
    (folder / "t.csv").write_text("record,fold\na/r1,1\na/r2,2.0\nb/r1,3\nb/r3,3\n")
    table = read(folder, table="t.csv", split_column="fold")
    records = table.records.collect()
    assert records["fold"].to_list() == [1, 2, 3, 3]
    hashes = patient_hashes(records["record_path"])
    frame = records.select("split", "fold", "site", "year").with_columns(
        hashes.alias("patient_hash"), hashes.alias("canonical_hash")
    )
    chosen = PatientSplit.from_config({"kind": "official", "val_folds": [2], "test_folds": [3]})
    assert chosen.assign(frame).parts.to_list() == ["train", "val", "test", "test"]
    with pytest.raises(UserError, match=r"split\.val_folds=\[9\] split\.test_folds=\[10\]"):
        PatientSplit.from_config({"kind": "official"}).assign(frame)
    with pytest.raises(UserError, match="There is no fold 7 in this source"):
        PatientSplit.from_config({"kind": "official", "val_folds": [7]}).assign(frame)
