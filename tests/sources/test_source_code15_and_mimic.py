"""CODE-15 % and MIMIC-IV-ECG: what their tables say, and what is not signal."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.labels import Vocabulary, unpack
from ecgfounder_train.records.sources import open_source

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


@pytest.fixture
def code15(tmp_path: Path) -> Path:
    """Three exams of 7 s in 4,096 samples, of two patients; a fourth in a file that is absent."""
    rng = np.random.default_rng(0)
    tracings = np.zeros((3, 4096, 12), np.float32)
    for exam in range(2):
        one, two = rng.standard_normal((2, 2800)) * 0.2
        tracings[exam, 648:3448] = np.stack(
            [
                *(one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2),
                *(rng.standard_normal((6, 2800)) * 0.2),
            ],
            axis=1,
        )
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings, np.array([11, 12, 13])
    (tmp_path / "exams.csv").write_text(
        "exam_id,age,is_male,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,normal_ecg,trace_file\n"
        "11,38,True,False,True,False,False,False,True,7,False,exams_part0.hdf5\n"
        "12,70,False,False,False,False,False,False,False,7,True,exams_part0.hdf5\n"
        "13,20,True,False,False,False,False,False,False,8,True,exams_part0.hdf5\n"
        "14,20,True,False,False,False,True,False,False,8,True,exams_part9.hdf5\n"
    )
    return tmp_path


def test_the_zeros_around_a_7_s_exam_are_not_signal(code15: Path) -> None:
    table = open_source({"name": "code15", "root": code15}).read()
    read = pickle.loads(pickle.dumps(table.read_ecg))  # as it goes to a worker
    record = read("exams_part0.hdf5/11")
    assert record.signal.shape == (12, 2800)
    assert (record.lead_names, record.fs) == (LEADS, 400.0)
    for path, reason in [
        ("exams_part0.hdf5/13", RejectReason.ALL_ZERO),
        ("exams_part0.hdf5/99", RejectReason.MISSING_SIGNAL_FILE),
        ("exams_part9.hdf5/14", RejectReason.UNREADABLE_SIGNAL),
    ]:
        with pytest.raises(RejectedRecordError) as rejected:
            read(path)
        assert rejected.value.reason == reason


def test_an_exam_with_a_blank_answer_is_unobserved_and_floats_are_answers(code15: Path) -> None:
    exams = (code15 / "exams.csv").read_text().splitlines()
    exams[1] = "11,38,1.0,0.0,1.0,0.0,0.0,0.0,1.0,7,0.0,exams_part0.hdf5"  # as pandas writes them
    exams[2] = "12,70,False,False,,False,False,False,False,7,True,exams_part0.hdf5"
    (code15 / "exams.csv").write_text("\n".join(exams) + "\n")
    records = open_source({"name": "code15", "root": code15}).read().records.collect()
    assert records["statements"].to_list()[:3] == [["RBBB", "AF"], None, []]
    assert records["sex"].to_list()[:2] == ["M", "F"]


def test_an_exam_without_finding_is_negative_and_one_without_file_rejected(code15: Path) -> None:
    table = open_source({"name": "code15", "root": code15}).read()
    records = table.records.collect()
    assert records["statements"].to_list() == [["RBBB", "AF"], [], [], ["SB"]]
    assert records["patient_id"].to_list() == ["7", "7", "8", "8"]
    assert records["sex"].to_list() == ["M", "F", "M", "M"]
    assert records["reject_reason"].to_list() == [None, None, None, "missing_signal_file"]
    assert table.counts["exams_in_files_not_there"] == 1
    values, observed = Vocabulary.load("code").encode([])
    assert observed.all() and not values.any()


@pytest.fixture
def mimic(tmp_path: Path) -> Path:
    place = "files/p1000/p10000032/s4"
    (tmp_path / "record_list.csv").write_text(
        "subject_id,study_id,file_name,ecg_time,path\n"
        + "".join(f"1000003{i},4{i},4{i},2180-07-23,{place}{i}/4{i}\n" for i in range(3))
    )
    (tmp_path / "machine_measurements.csv").write_text(
        "subject_id,study_id,cart_id,report_0,report_1,report_2,bandwidth\n"
        '10000030,40,1,Sinus rhythm,"Possible anterior infarct, age undetermined",,x\n'
        "10000031,41,1,,,,x\n"
        "10000039,49,1,Atrial fibrillation,,,x\n"
    )
    return tmp_path


def test_mimic_reports_are_statements_and_a_study_without_any_was_read_by_nobody(
    mimic: Path,
) -> None:
    table = open_source({"name": "mimic", "root": mimic}).read()
    records = table.records.collect()
    assert records["statements"].to_list() == [
        ["Sinus rhythm", "Possible anterior infarct, age undetermined"],
        None,
        None,
    ]
    assert records["record_path"][0] == "files/p1000/p10000032/s40/40"
    assert records["patient_id"][0] == "10000030"
    assert records["year"].null_count() == 3  # dates are shifted per patient
    assert table.counts == {
        "rows": 3,
        "patient_id_blank": 0,
        "label_rows": 3,
        "label_rows_empty": 1,
        "rows_of_a_record_seen_before": 0,
        "label_rows_without_record": 1,
        "records_without_label_row": 1,
        "without_statement": 2,
    }
    (mimic / "record_list.csv").unlink()
    with pytest.raises(UserError, match=r"record_list\.csv does not exist"):
        open_source({"name": "mimic", "root": mimic}).read()


@pytest.mark.parametrize(
    ("sentence", "positive", "left_open"),
    [
        ("Normal sinus rhythm", {"NORMAL SINUS RHYTHM", "SINUS RHYTHM"}, set()),
        ("Abnormal ECG", {"ABNORMAL ECG"}, set()),
        ("Borderline ECG", {"BORDERLINE ECG"}, set()),
        ("Sinus rhythm, no acute infarct", {"SINUS RHYTHM"}, set()),
        ("Possible inferior infarct", set(), {"INFERIOR INFARCT"}),
        (
            "Incomplete right bundle branch block",
            {"INCOMPLETE RIGHT BUNDLE BRANCH BLOCK"},
            set(),
        ),
    ],
)
def test_words_of_a_report_are_whole_and_doubt_and_denial_are_read(
    sentence: str, positive: set[str], left_open: set[str]
) -> None:
    words = {
        weakened: Vocabulary.load("ecgfounder150", match="words", weakened=weakened)
        for weakened in ("positive", "unobserved")
    }
    names = np.array(words["positive"].labels)
    values, _ = words["positive"].encode([sentence])
    assert set(names[values == 1]) == positive | left_open
    values, observed = words["unobserved"].encode([sentence])
    assert set(names[values == 1]) == positive
    assert set(names[observed == 0]) == left_open


def test_what_a_report_did_not_analyse_is_unobserved_and_not_negative() -> None:
    words = Vocabulary.load("ecgfounder150", match="words")
    names = np.array(words.labels)
    unsuitable = ["--- Recording unsuitable for analysis - please repeat ---"]
    paced = ["Ventricular-paced rhythm", "Sinus rhythm", "No further analysis attempted"]
    for report, known in (
        (unsuitable, set()),
        (paced, {"SINUS RHYTHM", "VENTRICULAR-PACED RHYTHM"}),
    ):
        values, observed = words.encode(report)
        assert set(names[observed == 1]) == set(names[values == 1]) == known
    both = pl.Series([paced, None, ["Sinus rhythm"], unsuitable], dtype=pl.List(pl.String))
    observed = unpack(words.encode_many(both).observed, words.num_labels)
    assert observed.sum(axis=1).tolist() == [2, 0, 150, 0]
