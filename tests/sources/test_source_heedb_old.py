"""HEEDB 2.0 and 4.0: other places, one column of codes, a table of duplicates."""

from pathlib import Path

import polars as pl
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources import SourceTable, open_source

STEMS = [f"de_11{i}_20500101000000_20500102000000" for i in range(5)]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")


def read(root: Path, **settings: object) -> tuple[SourceTable, pl.DataFrame]:
    table = open_source({"name": "heedb", "root": root, **settings}).read()
    return table, table.records.collect()


@pytest.fixture
def release_2(tmp_path: Path) -> Path:
    ages = ["54", "", "-3", "95", "30"]
    rows = [f"./S0001/1988/0{i + 1}/{STEMS[i]}.hea,Male,{ages[i]},11{i}.0" for i in range(5)]
    write(
        tmp_path / "Metadata" / "demographics_ECG.csv",
        "FileName,SexDSC,Age,BDSPPatientID\n" + "\n".join(rows) + "\n",
    )
    write(
        tmp_path / "Metadata" / "ECG_Interpretations.psv",
        "file_source|interpretation|diagnostic_codes\n"
        f"./S0001/1988/01/{STEMS[0]}.hea|SINUS RHYTHM, NORMAL|19, 1684\n"
        f"./S0001/1988/02/{STEMS[1]}.hea|X|161,1699\n"
        f"./S0001/1988/03/{STEMS[2]}.hea||\n"
        "./S0001/1988/04/de_nobody.hea|X|22\n",
    )
    write(tmp_path / "Metadata" / "duplicated.csv", f"file_name\n./S0001/1988/05/{STEMS[4]}.hea\n")
    (tmp_path / "ECG" / "WFDB").mkdir(parents=True)
    return tmp_path


def test_release_2_is_found_and_paths_lead_to_the_record(release_2: Path) -> None:
    _, records = read(release_2)
    assert records["record_path"][0] == f"ECG/WFDB/S0001/1988/01/{STEMS[0]}"
    assert records["statements"].to_list()[:3] == [["19", "1684"], ["161", "1699"], None]
    assert records["patient_id"].to_list() == ["110", "111", "112", "113", "114"]
    assert records["age_years"].to_list() == [54.0, None, None, 90.0, 30.0]
    assert set(records["year"]) == {1988}
    assert set(records["site"]) == {"I0001"}


def test_duplicates_of_release_2_are_left_out_by_name(release_2: Path) -> None:
    table, records = read(release_2)
    assert records["reject_reason"].to_list() == [None] * 4 + ["duplicate_record"]
    assert table.counts["duplicates_left_out"] == 1


def test_quirks_of_release_2_are_counted(release_2: Path) -> None:
    counts = read(release_2)[0].counts
    assert counts["rows"] == 5
    assert counts["label_rows_of_unknown_reader"] == 4
    assert counts["label_rows_without_metadata"] == 1
    assert counts["metadata_without_label_row"] == 2
    assert counts["without_statement"] == 3
    assert counts["age_not_positive"] == 1


def test_the_root_may_be_the_ecg_folder_of_release_2(release_2: Path) -> None:
    _, records = read(release_2 / "ECG")
    assert records["record_path"][0] == f"WFDB/S0001/1988/01/{STEMS[0]}"


def test_release_2_without_its_statements_names_the_file(release_2: Path) -> None:
    (release_2 / "Metadata" / "ECG_Interpretations.psv").unlink()
    with pytest.raises(UserError, match=r"ECG_Interpretations\.psv"):
        read(release_2)


@pytest.mark.parametrize("label_source", ["physician", "software", "v24"])
def test_release_4_has_one_column_of_codes_whatever_is_asked_for(
    tmp_path: Path, label_source: str
) -> None:
    site = tmp_path / "ECG" / "I0001"
    write(
        site / "metadata" / "metadata.csv",
        "BDSPPatientID,FileName,SexDSC,AgeAtAcquisition\n"
        f"110,/S0001/1988/01/{STEMS[0]},Female,20000\n",
    )
    write(
        site / "12SL_diagnoses" / "diagnoses.csv",
        f'FileName,codes\n./S0001/1988/01/{STEMS[0]}.hea,"19, 1684"\n',
    )
    table, records = read(tmp_path, label_source=label_source)
    assert records["statements"].to_list() == [["19", "1684"]]
    assert table.counts["label_rows_of_unknown_reader"] == 1


@pytest.mark.parametrize("layout", ["4.0", "2.0"])
def test_simulated_archives_of_older_releases_are_read_back(tmp_path: Path, layout: str) -> None:
    from ecgfounder_train.simulate import write_archive

    summary = write_archive(
        {
            **{"out": tmp_path / "a", "num_patients": 12, "layout": layout, "duration_s": 5.0},
            **{"exact_duplicates": 0.2, "missing_files": 0.0},
        }
    )
    _, records = read(tmp_path / "a")
    counts = summary.counts.values()
    assert records.height == sum(site["metadata_rows"] for site in counts)
    paths = {str(tmp_path / "a" / path) for path in records["record_path"]}
    headers = {str(path.with_suffix("")) for path in (tmp_path / "a").rglob("*.hea")}
    assert paths <= headers
    doubled = sum(site["exact_duplicates"] for site in counts)
    assert doubled > 0
    assert records["reject_reason"].count() == (doubled if layout == "2.0" else 0)
    said = records["statements"].drop_nulls()
    assert len(said) == sum(site["v24_rows"] - site["empty_codes"] for site in counts)
