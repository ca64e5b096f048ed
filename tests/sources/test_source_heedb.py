"""HEEDB 5.0 tables: every quirk HEEDB.md names, in a handful of rows written by hand."""

from pathlib import Path

import polars as pl
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources import SourceTable, open_source

STEMS = [f"de_11{i}_20500101000000_20500102000000" for i in range(5)]
MUSE = [f"MUSE_20400101_00000{i}_0000{i}" for i in range(4)]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "ECG" / "I0006" / "WFDB").mkdir(parents=True)
    mgh, emory = tmp_path / "ECG" / "I0001", tmp_path / "ECG" / "I0006"
    days = ["20000", "", "-3", "0", "33000"]
    sexes = ["Female", "Male", "", "Unknown", "Male"]
    rows = [f'11{i},/S0001/1988/0{i + 1}/{STEMS[i]},"a, b",{sexes[i]},{days[i]}' for i in range(5)]
    rows.append(f"110,/S0002/1990/01/{STEMS[0]},x,Female,20000")  # the same stem again
    header = "BDSPPatientID,FileName,EthnicGroupDSC,SexDSC,AgeAtAcquisition"
    write(mgh / "metadata" / "metadata.csv", "\n".join([header, *rows]) + "\n")
    write(
        mgh / "12SL_diagnoses" / "diagnoses_acquisition.csv",
        "FileName,codes_software,codes_physician,jaccard_index\n"
        f'/S0001/1988/01/{STEMS[0]},"22, 1684","299, 390, 410",0.1\n'
        f'/S0001/1988/02/{STEMS[1]},"161, 1699",,\n'
        f'/S0001/1988/03/{STEMS[2]},,"22",\n'
        f'/S0001/1988/03/{STEMS[2]},"23","23",\n'
        f'/S0001/1988/04/{STEMS[3]},"",""," "\n'
        '/S0001/1999/04/de_nobody,"22","22",1\n',
    )
    write(
        mgh / "12SL_diagnoses" / "diagnoses_v24.csv",
        "FileName,codes\n"
        + "".join(f'"./S0001/1988/01/{s}.hea\n","19, 1699"\n' for s in STEMS[:3]),
    )
    write(
        mgh / "12SL_diagnoses" / "diagnoses_dictionary.csv",
        "codes,acronym,diagnoses\n162,FLUT,Atrial flutter\n273,,Atrial flutter\n",
    )
    ids, years = ["179020000.0", "2.0", "3.0", ""], [2010, 2010, 2010, 2011]
    rows = [f"{ids[i]},WFDB/{years[i]}/{MUSE[i]},F,12784.0" for i in range(4)]
    write(
        emory / "metadata" / "metadata.csv",
        "BDSPPatientID,FileName,Sex,AgeAtAcquisition\n" + "\n".join(rows) + "\n",
    )
    write(
        emory / "12SL_diagnoses" / "diagnoses_acquisition.csv",
        "FileName,codes_software,codes_physician,jaccard_index\n"
        + "".join(f'WFDB/2010/{s},"22,1684, 831","22,1684, 831",1\n' for s in MUSE),
    )
    write(
        emory / "12SL_diagnoses" / "diagnoses_v24.csv",
        f'FileName,codes\nWFDB/2010/{MUSE[0]},""\nWFDB/2010/{MUSE[1]},"19,1699"\n',
    )
    write(
        tmp_path / "PatientMergeHistory" / "history.csv",
        "OldBDSPPatientID,NewBDSPPatientID\n112,110\n179020000.0,3\n",
    )
    return tmp_path


def read(root: Path, **settings: object) -> tuple[SourceTable, pl.DataFrame]:
    table = open_source({"name": "heedb", "root": root, **settings}).read()
    return table, table.records.collect()


def test_both_sites_are_found_and_paths_lead_to_the_record(archive: Path) -> None:
    _, records = read(archive)
    assert records.height == 10
    first, last = records.row(0, named=True), records.row(-1, named=True)
    assert first["record_path"] == f"ECG/I0001/WFDB/S0001/1988/01/{STEMS[0]}"
    assert last["record_path"] == f"ECG/I0006/WFDB/2011/{MUSE[3]}"
    assert (first["site"], last["site"]) == ("I0001", "I0006")


def test_year_is_that_of_the_folder_not_of_the_shifted_file_name(archive: Path) -> None:
    _, records = read(archive)
    assert set(records["year"]) == {1988, 1990, 2010, 2011}


def test_ids_are_plain_text_whatever_the_column_parsed_as(archive: Path) -> None:
    table, records = read(archive)
    emory = records.filter(pl.col("site") == "I0006")
    assert set(emory["patient_id"]) == {"2", "3", "179020000", None}
    assert table.merges is not None
    assert table.merges.rows() == [("112", "110"), ("179020000", "3")]


def test_ages_in_days_become_years_and_nonsense_becomes_unknown(archive: Path) -> None:
    _, records = read(archive)
    ages = records["age_years"].to_list()
    assert ages[0] == pytest.approx(54.757, abs=1e-3)
    assert ages[1:5] == [None, None, None, 90.0]
    assert ages[7] == pytest.approx(35.0, abs=1e-2)


def test_sex_is_read_from_either_column(archive: Path) -> None:
    _, records = read(archive)
    assert records["sex"].to_list()[:5] == ["F", "M", None, None, "M"]
    assert set(records.filter(pl.col("site") == "I0006")["sex"]) == {"F"}


@pytest.mark.parametrize(
    ("label_source", "expected"),
    [
        ("physician", [["299", "390", "410"], None, ["22", "23"], None, None]),
        ("software", [["22", "1684"], ["161", "1699"], ["23"], None, None]),
        (
            "physician_else_software",
            [["299", "390", "410"], ["161", "1699"], ["22", "23"], None, None],
        ),
        ("v24", [["19", "1699"], ["19", "1699"], ["19", "1699"], None, None]),
    ],
)
def test_label_sources_and_what_counts_as_read(
    archive: Path, label_source: str, expected: list[list[str] | None]
) -> None:
    _, records = read(archive, label_source=label_source)
    assert records["statements"].to_list()[:5] == expected


def test_mixed_separators_split_and_an_empty_cell_says_nothing(archive: Path) -> None:
    _, records = read(archive)
    emory = records.filter(pl.col("site") == "I0006")
    assert emory["statements"].to_list() == [["22", "1684", "831"]] * 4
    _, records = read(archive, label_source="v24")
    emory = records.filter(pl.col("site") == "I0006").sort("record_id")
    assert emory["statements"].to_list() == [None, ["19", "1699"], None, None]


def test_every_quirk_is_counted(archive: Path) -> None:
    table, _ = read(archive)
    assert table.counts == {
        "rows": 10,
        "label_rows": 10,
        "label_rows_empty": 2,
        "label_rows_of_a_stem_seen_before": 1,
        "label_rows_without_metadata": 1,
        "metadata_without_label_row": 1,
        "without_statement": 3,
        "patient_id_blank": 1,
        "stem_seen_before": 1,
        "age_missing": 1,
        "age_not_positive": 2,
        "age_capped": 1,
        "sex_unknown": 2,
        "merged_patient_pairs": 2,
        "patients": 8,
        "file_name_blank": 0,
        "acquisition_rows": 10,
        "over_read_missing": 2,
        "software_codes_missing": 2,
        "v24_rows": 5,
        "v24_rows_empty": 1,
        "v24_newline_in_file_name": 3,
        "dictionary_codes": 2,
        "dictionary_without_acronym": 1,
        "dictionary_texts_of_two_codes": 1,
    }


def test_a_stem_of_two_patients_is_rejected_and_its_other_contradictions_are_counted(
    archive: Path,
) -> None:
    path = archive / "ECG" / "I0001" / "metadata" / "metadata.csv"
    again = f"110,/S0002/1990/01/{STEMS[0]},x,Female,20000"
    path.write_text(path.read_text().replace(again, f"999,/S0002/1990/01/{STEMS[0]},x,Male,1"))
    table, records = read(archive)
    both = records.filter(pl.col("record_path").str.ends_with(STEMS[0]))
    assert both["reject_reason"].to_list() == ["contradictory_rows"] * 2
    assert both["age_years"].to_list() == both["sex"].to_list() == [None, None]
    assert records["reject_reason"].null_count() == records.height - 2
    for column in ("patient_id", "age", "sex"):
        assert table.counts[f"records_with_contradictory_{column}"] == 1


def test_quirks_stand_site_by_site_beside_the_published_figures(archive: Path) -> None:
    table, _ = read(archive)
    quirks = {(quirk.site, quirk.name): quirk for quirk in table.quirks}
    assert quirks["I0006", "patient_id_blank"][2:] == (1, 1)
    assert quirks["I0001", "rows"][2:] == (6, 10_608_417)
    assert quirks["I0001", "age_missing"][2:] == (1, None)
    totals: dict[str, int] = {}
    for quirk in table.quirks:
        totals[quirk.name] = totals.get(quirk.name, 0) + quirk.found
    assert totals.items() <= table.counts.items()


def test_every_reader_is_kept_beside_the_records_for_comparison(archive: Path) -> None:
    table, _ = read(archive)
    assert table.label_source == "physician"
    assert list(table.readings) == ["physician", "software", "v24"]
    for name, statements in table.readings.items():
        frame = statements.numbers.alias("numbers").to_frame().lazy()
        said = frame.select(statements.texts("numbers")).collect()["numbers"].to_list()
        _, chosen = read(archive, label_source=name)
        assert said == chosen["statements"].to_list()
    alone, _ = read(archive, compare_readers=False)
    assert list(alone.readings) == ["physician"]


def test_headers_that_no_table_names_are_counted_when_asked_for(archive: Path) -> None:
    folder = archive / "ECG" / "I0001" / "WFDB" / "S0001" / "1988" / "01"
    for stem in (*STEMS[:2], "de_999_20500101000000_20500102000000"):
        write(folder / f"{stem}.hea", "x")
    counts = {
        quirk[:2]: quirk.found
        for quirk in read(archive, scan_headers=True)[0].quirks
        if quirk.site == "I0001"
    }
    assert counts["I0001", "headers_on_disk"] == 3
    assert counts["I0001", "headers_without_table_row"] == 1
    assert counts["I0001", "table_rows_without_header"] == 3


def test_the_dictionary_gives_texts_and_two_codes_may_share_one(archive: Path) -> None:
    table, _ = read(archive)
    assert table.texts == {"162": "Atrial flutter", "273": "Atrial flutter"}


@pytest.mark.parametrize("below", ["ECG", "ECG/I0006"])
def test_the_root_may_be_the_ecg_folder_or_one_site(archive: Path, below: str) -> None:
    whole, _ = read(archive)
    part, records = read(archive / below)
    assert part.merges is not None
    assert whole.merges is not None
    assert part.merges.rows() == whole.merges.rows()
    last = records["record_path"].to_list()[-1]
    assert f"{below}/{last}" == f"ECG/I0006/WFDB/2011/{MUSE[3]}"
    assert records["site"].to_list()[-1] == "I0006"


def test_a_folder_without_a_site_says_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "nothing here")
    with pytest.raises(UserError, match=r"metadata/metadata\.csv.*source=wfdb_folder"):
        read(tmp_path)
    (tmp_path / "Metadata").mkdir()
    with pytest.raises(UserError, match=r"demographics_ECG\.csv of release 2\.0"):
        read(tmp_path)


def test_a_missing_labels_table_names_the_file_and_the_remedy(archive: Path) -> None:
    (archive / "ECG" / "I0006" / "12SL_diagnoses" / "diagnoses_acquisition.csv").unlink()
    with pytest.raises(UserError, match=r"I0006.*diagnoses_acquisition\.csv.*label_source"):
        read(archive)
    read(archive, label_source="v24")


def test_a_missing_column_is_named_with_those_found(archive: Path) -> None:
    path = archive / "ECG" / "I0006" / "metadata" / "metadata.csv"
    path.write_text(path.read_text().replace("BDSPPatientID", "Patient"))
    with pytest.raises(UserError, match=r"no column 'BDSPPatientID' \(found: Patient, FileName"):
        read(archive)


def test_an_empty_table_is_no_csv(archive: Path) -> None:
    (archive / "ECG" / "I0001" / "metadata" / "metadata.csv").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a CSV"):
        read(archive)


def test_unknown_settings_and_sources_suggest_the_nearest(archive: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'heedb'"):
        open_source({"name": "heeb", "root": archive})
    with pytest.raises(UserError, match="Did you mean 'label_source'"):
        read(archive, labels_source="v24")
    with pytest.raises(UserError, match="Did you mean 'physician'"):
        read(archive, label_source="physican")


def test_missing_file_or_empty_roots_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "file", "x")
    for root, message in [
        ("absent", "folder does not exist"),
        ("empty", "folder is empty"),
        ("file", "is a file"),
    ]:
        with pytest.raises(UserError, match=message):
            read(tmp_path / root)
    with pytest.raises(UserError, match=r"source\.root is missing"):
        open_source({"name": "heedb", "root": None})
