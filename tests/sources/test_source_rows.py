"""Rows of one record belong together: no statement of a later row becomes a negative."""

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records.sources import SourceTable, open_source
from ecgfounder_train.records.sources.rows import gather_rows


def header(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.hea").write_text(f"{name} 1 500 5000\n{name}.dat 16 1000 16 0 0 0 0 I\n")


def folder_source(root: Path, table: str, **settings: Any) -> SourceTable:
    (root / "t.csv").write_text(table)
    config = {"name": "mine", "based_on": "wfdb_folder", "root": root, "table": "t.csv"}
    return open_source({**config, "statement_columns": ["dx"], **settings}).read()


def test_statements_of_all_rows_are_united_in_their_order(tmp_path: Path) -> None:
    header(tmp_path, "a")
    header(tmp_path, "b")
    table = folder_source(
        tmp_path, "record,who,dx\na,1,AF\nb,2,\na,1,SR\nb,2,\na,1,AF\na,1,\n", patient_column="who"
    )
    assert table.records.collect()["statements"].to_list() == [["AF", "SR"], None]
    assert table.counts["rows_of_a_record_seen_before"] == 4


def test_rows_that_name_a_record_in_several_ways_belong_together(tmp_path: Path) -> None:
    header(tmp_path / "p1", "a")
    table = folder_source(tmp_path, "record,dx\np1/a,AF\np1/a.hea,SR\n./p1/a.dat,STEMI\n")
    assert table.records.collect()["statements"].to_list() == [["AF", "SR", "STEMI"]]


def test_a_contradiction_is_counted_by_column_and_two_patients_reject_the_record(
    tmp_path: Path,
) -> None:
    for name in "abc":
        header(tmp_path, name)
    table = folder_source(
        tmp_path,
        "record,who,dx,age,sex\na,1,AF,50,F\na,1,SR,51,F\nb,2,AF,60,M\nb,3,SR,60,M\n"
        "c,4,AF,70,\nc,,SR,,F\n",
        patient_column="who",
        age_column="age",
        sex_column="sex",
    )
    records = table.records.collect()
    assert records["age_years"].to_list() == [None, 60, 70]
    assert records["sex"].to_list() == ["F", "M", "F"]
    assert records["reject_reason"].to_list() == [None, "contradictory_rows", None]
    assert records["patient_id"][2] == "4"
    assert table.counts["records_with_contradictory_age_years"] == 1
    assert table.counts["records_with_contradictory_patient_id"] == 1


def test_an_answered_row_without_finding_stays_an_observed_negative() -> None:
    frame = pl.DataFrame(
        {"record_id": ["a", "a", "b", "b", None, None], "statements": [[], None, [], ["x"], [], []]}
    )
    counts: Counter[str] = Counter()
    gathered = gather_rows(frame, "record_id", counts)
    assert gathered.rows() == [("a", []), ("b", ["x"]), (None, []), (None, [])]
    assert counts == {"rows_of_a_record_seen_before": 2}


def test_a_table_of_single_rows_is_returned_as_it_is() -> None:
    frame = pl.DataFrame({"record_id": ["b", "a"], "sex": ["F", "M"]})
    assert gather_rows(frame, "record_id", Counter()).equals(frame)


def test_exams_of_ptbxl_in_several_rows_keep_every_statement(tmp_path: Path) -> None:
    (tmp_path / "records100").mkdir()
    (tmp_path / "ptbxl_database.csv").write_text(
        "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
        "1,7,56,0,\"{'NORM': 100.0}\",3,records100/1_lr,x\n"
        "1,7,56,0,\"{'SR': 0.0}\",3,records100/1_lr,x\n"
        "2,8,56,0,\"{'AFIB': 0.0}\",3,records100/2_lr,x\n"
        "2,8,56,0,\"{'AFIB': 0.0}\",9,records100/2_lr,x\n"
    )
    table = open_source({"name": "ptbxl", "root": tmp_path}).read()
    records = table.records.collect()
    assert records["statements"].to_list() == [["NORM", "SR"], ["AFIB"]]
    assert records["reject_reason"].to_list() == [None, "contradictory_rows"]


def test_a_study_of_mimic_in_several_rows_keeps_every_sentence(tmp_path: Path) -> None:
    (tmp_path / "record_list.csv").write_text(
        "subject_id,study_id,path\n1,10,files/10\n1,10,files/10\n2,11,files/11\n3,11,files/11\n"
    )
    (tmp_path / "machine_measurements.csv").write_text(
        "study_id,report_0,report_1\n10,Sinus rhythm,\n10,,LBBB\n11,AF,\n"
    )
    records = open_source({"name": "mimic", "root": tmp_path}).read().records.collect()
    assert records["statements"].to_list() == [["Sinus rhythm", "LBBB"], ["AF"]]
    assert records["reject_reason"].to_list() == [None, "contradictory_rows"]


def test_a_tracing_that_its_file_holds_twice_is_not_guessed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["tracings"] = rng.standard_normal((3, 4096, 12)).astype("f4")
        file["exam_id"] = np.array([11, 12, 12])
    answers = "False,False,False,False,False,False"
    rows = [f"{exam},38,True,{answers},7,True,exams_part0.hdf5\n" for exam in (11, 12)]
    (tmp_path / "exams.csv").write_text(
        "exam_id,age,is_male,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,normal_ecg,trace_file\n"
        + "".join(rows)
        + "11,38,True,True,False,False,False,False,False,7,True,exams_part0.hdf5\n"
    )
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    config = {"name": "code15", "root": tmp_path, "leads": leads, "unit_mv": 1.0}
    table = open_source(config).read()
    assert table.records.collect()["statements"].to_list() == [["1dAVb"], []]
    assert table.read_ecg is not None
    assert table.read_ecg("exams_part0.hdf5/11").signal.shape == (12, 4096)
    with pytest.raises(RejectedRecordError, match="several tracings") as caught:
        table.read_ecg("exams_part0.hdf5/12")
    assert caught.value.reason is RejectReason.DUPLICATE_RECORD
