"""PTB-XL: statements are keys, folds are official, unknown patients are counted."""

from pathlib import Path

import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources import open_source

HEADER = "ecg_id,patient_id,age,sex,recording_date,scp_codes,strat_fold,filename_lr,filename_hr\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "records100").mkdir()
    (tmp_path / "records500").mkdir()
    folds = [1, 8, 9, 10]
    codes = ["{'NORM': 100.0, 'SR': 0.0}", "{'LAO/LAE': 0.0, 'PRC(S)': 0}", "{}", "{'IMI': 35.0}"]
    patients = ["15709.0", "", "3.0", "15709.0"]
    ages = ["56.0", "300.0", "", "0.0"]
    rows = [
        f'{i + 1},{patients[i]},{ages[i]},{i % 2},1984-11-09 09:17:34,"{codes[i]}",{folds[i]},'
        f"records100/00000/0000{i + 1}_lr,records500/00000/0000{i + 1}_hr\n"
        for i in range(4)
    ]
    (tmp_path / "ptbxl_database.csv").write_text(HEADER + "".join(rows))
    return tmp_path


def test_a_statement_is_present_whatever_its_likelihood(root: Path) -> None:
    records = open_source({"name": "ptbxl", "root": root}).read().records.collect()
    assert records["statements"].to_list() == [["NORM", "SR"], ["LAO/LAE", "PRC(S)"], None, ["IMI"]]


def test_folds_sex_age_year_and_rate(root: Path) -> None:
    records = open_source({"name": "ptbxl", "root": root}).read().records.collect()
    assert records["split"].to_list() == ["train", "train", "val", "test"]
    assert records["sex"].to_list() == ["M", "F", "M", "F"]
    assert records["age_years"].to_list() == [56.0, 300.0, None, 0.0]
    assert records["year"].to_list() == [1984] * 4
    assert records["fs"].to_list() == [100.0] * 4


def test_an_unknown_patient_is_stood_in_for_by_the_record_and_counted(root: Path) -> None:
    table = open_source({"name": "ptbxl", "root": root}).read()
    patients = table.records.collect()["patient_id"].to_list()
    assert patients == ["15709", "record:2", "3", "15709"]
    assert table.counts["patient_unknown_record_stands_in"] == 1


def test_the_rate_chooses_the_files_and_not_the_record(root: Path) -> None:
    low, high = (
        open_source({"name": "ptbxl", "root": root, "rate": rate}).read().records.collect()
        for rate in (100, 500)
    )
    assert low["record_id"].to_list() == high["record_id"].to_list()
    assert high["record_path"][0] == "records500/00000/00001_hr"


def test_wrong_layouts_are_named(root: Path) -> None:
    with pytest.raises(UserError, match="rate=250 must be one of 100, 500"):
        open_source({"name": "ptbxl", "root": root, "rate": 250}).read()
    (root / "records500").rmdir()
    with pytest.raises(UserError, match=r"no folder records500.*source\.rate to 100"):
        open_source({"name": "ptbxl", "root": root, "rate": 500}).read()
    (root / "ptbxl_database.csv").unlink()
    with pytest.raises(UserError, match=r"No labels table: .*ptbxl_database\.csv"):
        open_source({"name": "ptbxl", "root": root}).read()


def test_tables_are_read_from_a_url_and_signals_stay_there(root: Path) -> None:
    local = open_source({"name": "ptbxl", "root": root}).read()
    remote = open_source({"name": "ptbxl", "root": f"file://{root}"}).read()
    assert remote.records.collect().equals(local.records.collect())
    assert (remote.root, local.root) == (f"file://{root}", root)
