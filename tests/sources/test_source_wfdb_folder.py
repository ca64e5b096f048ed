"""Any folder of WFDB records, with a table, with header comments, with neither."""

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records.sources import open_source, source_names

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "source"


def configured(name: str, **settings: Any) -> dict[str, Any]:
    with initialize_config_dir(str(FOLDER), version_base=None):
        config = OmegaConf.to_container(compose(name))
    assert isinstance(config, dict)
    return {**{str(key): value for key, value in config.items()}, **settings}


def header(path: Path, *comments: str, fs: str = "500") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"{path.stem} 12 {fs} 5000", f"{path.stem}.mat 16", *comments, ""]))


def read(root: Path, **settings: Any) -> pl.DataFrame:
    return open_source({"name": "wfdb_folder", "root": root, **settings}).read().records.collect()


def test_header_comments_give_statements_age_and_sex(tmp_path: Path) -> None:
    header(tmp_path / "b" / "two.hea", "#Age: NaN", "#Sex: Female", "#Dx: 1,2 , 3")
    header(tmp_path / "a" / "one.hea", "# Age: 81", "# Sex: Male", "# Dx: Unknown", fs="257/500(0)")
    header(tmp_path / "zero.hea", "#<age>: 76", "#<sex>: F", "#Rx: 4")
    records = read(tmp_path, site_from_folder=True)
    assert records["record_path"].to_list() == ["a/one", "b/two", "zero"]
    assert records["statements"].to_list() == [None, ["1", "2", "3"], None]
    assert records["age_years"].to_list() == [81.0, None, 76.0]
    assert records["sex"].to_list() == ["M", "F", "F"]
    assert records["fs"].to_list() == [257.0, 500.0, 500.0]
    assert records["site"].to_list() == ["a", "b", tmp_path.name]
    assert records["patient_id"].to_list() == ["record:a/one", "record:b/two", "record:zero"]


def test_statements_of_several_header_lines_add_up(tmp_path: Path) -> None:
    header(tmp_path / "x.hea", "#Dx: 1,2", "#Age: 50", "#Dx: 3", "#Dx: Unknown", "#Dx: ,")
    assert read(tmp_path)["statements"].to_list() == [["1", "2", "3"]]


def test_the_table_wins_over_the_header_and_fills_what_it_knows(tmp_path: Path) -> None:
    header(tmp_path / "x.hea", "#Dx: 1", "#Age: 50")
    header(tmp_path / "y.hea", "#Dx: 1")
    (tmp_path / "t.csv").write_text(
        'name,who,a,b,age,part\nx.hea,7.0,"p; q",r,,val\nabsent,8,p,,1,train\n'
    )
    records = read(
        tmp_path,
        table="t.csv",
        patient_column="who",
        statement_columns=["a", "b"],
        statement_separator=";",
        age_column="age",
        split_column="part",
    )
    assert records["statements"].to_list() == [["p", "q", "r"], ["1"]]
    assert records["patient_id"].to_list() == ["7", "record:y"]
    assert records["age_years"].to_list() == [50.0, None]
    assert records["split"].to_list() == ["val", None]


def test_a_row_of_another_folder_says_nothing_of_the_one_record_that_is_here(
    tmp_path: Path,
) -> None:
    header(tmp_path / "p2" / "x.hea")  # p1/x is not downloaded yet
    (tmp_path / "t.csv").write_text("path,who,dx\np1/x,1,one\np2/x,2,two\n")
    records = read(tmp_path, table="t.csv", patient_column="who", statement_columns="dx")
    assert records["statements"].to_list() == [["two"]]
    assert records["patient_id"].to_list() == ["2"]


def test_segments_of_a_record_are_no_records_of_their_own(tmp_path: Path) -> None:
    for name in ("a/x_1", "a/x_2", "x_1"):
        header(tmp_path / f"{name}.hea", "#Dx: 1")
    (tmp_path / "a" / "x.hea").write_text("x/4 12 500 10000\nx_1 5000\n~ 9\nx_2 5000\n#Dx: 1\n")
    # What lists itself, or each other, is rejected when it is read: a record must not vanish.
    (tmp_path / "y.hea").write_text("y/2 12 500 10000\ny 5000\nz 5000\n#Dx: 1\n")
    (tmp_path / "z.hea").write_text("z/1 12 500 5000\ny 5000\n#Dx: 1\n")
    table = open_source({"name": "wfdb_folder", "root": tmp_path}).read()
    assert table.records.collect()["record_path"].to_list() == ["a/x", "x_1", "y", "z"]
    assert (table.counts["rows"], table.counts["headers_of_segments"]) == (4, 2)


def test_equal_names_in_two_folders_are_told_apart_by_the_path(tmp_path: Path) -> None:
    header(tmp_path / "a" / "x.hea")
    header(tmp_path / "b" / "x.hea")
    (tmp_path / "t.csv").write_text("path,dx\ndata/a/x,one\nb/x.hea,two\nx,three\n")
    table = open_source(
        {"name": "wfdb_folder", "root": tmp_path, "table": "t.csv", "statement_columns": "dx"}
    ).read()
    assert table.records.collect()["statements"].to_list() == [["one"], ["two"]]
    assert table.counts["table_rows_without_record"] == 1


def test_table_that_is_not_utf8_is_refused_before_its_statements_are_lost(tmp_path: Path) -> None:
    header(tmp_path / "x.hea")
    (tmp_path / "t.csv").write_bytes("name,dx\nx,Vorhofflimmern Müller\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.csv is not in UTF-8: 1 of 1 rows"):
        read(tmp_path, table="t.csv", statement_columns=["dx"])


def test_table_with_semicolons_is_told_so(tmp_path: Path) -> None:
    header(tmp_path / "x.hea")
    (tmp_path / "t.csv").write_text("name;dx\nx;1\n")
    with pytest.raises(UserError, match="separates its columns by ';'"):
        read(tmp_path, table="t.csv", record_column="name", statement_columns=["dx"])


def test_signal_files_without_a_header_are_counted(tmp_path: Path) -> None:
    header(tmp_path / "x.hea", "#Dx: 1")
    (tmp_path / "lonely.mat").write_bytes(b"")
    table = open_source({"name": "wfdb_folder", "root": tmp_path}).read()
    assert table.counts["signal_files_without_header"] == 1
    assert table.counts["rows"] == 1


def test_every_file_is_a_record_part_of_one_or_left_out_with_its_reason(tmp_path: Path) -> None:
    header(tmp_path / "x.hea", "#Dx: 1")
    (tmp_path / "x.mat").write_bytes(b"")
    (tmp_path / "UPPER.HEA").write_text("UPPER 1 500 100\nupper signal.DAT 16 1000\n#Dx: 1\n")
    for name in ("Upper Signal.dat", "lonely.DAT", "x.atr", "scan.edf", "README", "sub.d/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "x.HEA").write_text("x 1 500 100\nx.dat 16 1000\n")
    (tmp_path / "t.csv").write_text("name,dx\nx,one\n")
    table = open_source(
        {"name": "wfdb_folder", "root": tmp_path, "table": "t.csv", "statement_columns": "dx"}
    ).read()
    assert table.records.collect()["record_path"].to_list() == ["UPPER", "x"]
    assert table.files_left_out is not None
    reasons = dict(table.files_left_out.iter_rows())
    assert reasons == {
        "lonely.DAT": ".dat file without a header (.hea)",
        "x.atr": "not a WFDB header or signal file (.atr)",
        "scan.edf": "not a WFDB header or signal file (.edf)",
        "README": "not a WFDB header or signal file (no suffix)",
        "sub.d/x": "not a WFDB header or signal file (no suffix)",
        "x.hea": "header without a name, or a second one of a record",
    }
    assert table.counts["files_left_out"] == len(reasons)


def test_linked_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for name in ("a/one", "z/two"):
        header(root / f"{name}.hea", "#Dx: 1")
    header(other / "three.hea", "#Dx: 1")
    (root / "b").symlink_to(other)
    (root / "c").symlink_to(other)
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "early").symlink_to(root / "z")
    (other / "back").symlink_to(root)
    (other / "self").symlink_to(other)
    assert read(root)["record_path"].to_list() == ["a/one", "b/three", "z/two"]


def test_a_header_linked_from_elsewhere_is_not_read(tmp_path: Path) -> None:
    header(tmp_path / "elsewhere" / "x.hea", "#Dx: secret")
    header(tmp_path / "root" / "y.hea", "#Dx: 1")
    (tmp_path / "root" / "x.hea").symlink_to(tmp_path / "elsewhere" / "x.hea")
    assert read(tmp_path / "root")["statements"].to_list() == [None, ["1"]]


def test_hostile_headers_do_not_stop_the_walk(tmp_path: Path) -> None:
    (tmp_path / "empty.hea").write_bytes(b"")
    (tmp_path / "noise.hea").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "gone.hea").symlink_to(tmp_path / "nowhere.hea")
    header(tmp_path / "good.hea", "#Dx: 1", fs="fast")
    records = read(tmp_path)
    assert records["record_path"].to_list() == ["empty", "gone", "good", "noise"]
    assert records["fs"].null_count() == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "No labels table: none of the 1 records"),
        ({"table": "absent.csv"}, "No labels table: .*absent.csv does not exist"),
        ({"table": "t.csv", "statement_columns": ["dxx"]}, "no column 'dxx'.*Did you mean 'dx'"),
        ({"table": "t.csv", "record_column": "dx"}, "No row of .* fits a record"),
        ({"table": "t.csv", "statement_columns": "dx", "statement_pattern": "("}, "not a regular"),
        ({"table": "t.csv", "statement_columns": "dx", "statement_pattern": "a"}, "one group"),
        ({"tabel": "t.csv"}, "Did you mean 'table'"),
    ],
)
def test_wrong_settings_say_what_was_looked_for(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    header(tmp_path / "x.hea")
    (tmp_path / "t.csv").write_text("name,dx\nx,one\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path, **settings)


def test_a_folder_without_headers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(b"12")
    with pytest.raises(UserError, match=r"No WFDB record .*looked for \*\.hea"):
        read(tmp_path)


def test_labels_may_be_absent_where_that_is_said(tmp_path: Path) -> None:
    header(tmp_path / "x.hea")
    assert read(tmp_path, require_labels=False)["statements"].to_list() == [None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": 5}, "source.table=5 is not null or str"),
        ({"table_header": "no"}, "source.table_header=no is not bool"),
        ({"statement_columns": 3}, "must be a list of names"),
        ({"storage_options": "anon"}, "source.storage_options=anon must hold settings"),
        ({"root": 7}, "not a path or URL"),
        ({"root": "s3://nowhere/x", "storage_options": {"endpoint": 1}}, "storage_options"),
    ],
)
def test_settings_of_a_wrong_type_are_named(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    header(tmp_path / "one.hea", "#Dx: 1")
    with pytest.raises(UserError, match=message):
        open_source({"name": "wfdb_folder", "root": tmp_path, **settings}).read()


def test_headers_that_cannot_be_read_neither_hang_nor_get_lost(tmp_path: Path) -> None:
    header(tmp_path / "one.hea", "#Dx: 1")
    os.mkfifo(tmp_path / "pipe.hea")
    (tmp_path / "folder.hea").mkdir()
    (tmp_path / "absent.hea").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hea").touch()
    with open(os.fsencode(tmp_path) + b"/not-utf8-\xff.hea", "w"):
        pass
    table = open_source({"name": "wfdb_folder", "root": tmp_path}).read()
    paths = table.records.collect()["record_path"].to_list()
    assert paths == ["absent", "not-utf8-?", "one", "pipe"]
    assert table.counts["headers_that_cannot_be_opened"] == 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_source_config_opens_its_source(path: Path, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    needed = {"array": "x.npy", "table": "t.csv", "fs": 500, "unit": "mV", "leads": ["I"]}
    settings = needed if path.stem == "arrays" else {}
    source = open_source(configured(path.stem, root=str(tmp_path), **settings))
    assert Path(source.root) == tmp_path  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_reports_and_pseudonyms_call_a_data_set_by_its_own_name(path: Path) -> None:
    # Two data sets under one name would give "patient 1" of both the same key.
    assert configured(path.stem)["name"] == path.stem


def test_folder_of_ones_own_can_have_a_name(tmp_path: Path) -> None:
    header(tmp_path / "one.hea", "#Dx: 1")
    config = configured("wfdb_folder", root=str(tmp_path))
    assert open_source({**config, "name": "our-ward"}).read().records.collect().height == 1
    with pytest.raises(UserError, match=r"source\.name='a/b' must be letters"):
        open_source({**config, "name": "a/b"})
    with pytest.raises(
        UserError, match=r"source\.based_on=wfdb is not a source\. Did you mean 'wfdb_"
    ):
        open_source({**config, "based_on": "wfdb"})


def test_every_source_has_a_config() -> None:
    assert set(source_names()) <= {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "count", "vocabulary"),
    [
        ("cinc2017", "cinc2017", 600, Vocabulary.load("cinc2017")),
        ("cinc2021", "cinc2021", 81, Vocabulary.load("cinc2021")),
        ("ludb", "ludb", 40, Vocabulary.load("ecgfounder150", match="substring")),
        ("ptbxl_subset", "ptbxl500", 110, Vocabulary.load("ptbxl_all71")),
    ],
)
def test_open_data_sets_give_every_record_with_statements(
    real_data: Path, name: str, folder: str, count: int, vocabulary: Vocabulary
) -> None:
    settings: dict[str, Any] = {"root": str(real_data / folder)}
    if name == "ptbxl_subset":
        settings["table"] = str(real_data / "ptbxl100" / "ptbxl_database.csv")
    table = open_source(configured(name, **settings)).read()
    records = table.records.collect()
    assert records.height == count
    assert records["statements"].null_count() == 0
    assert records["fs"].null_count() == 0
    known = vocabulary.encode_many(records["statements"]).values.any(axis=1)
    assert known.mean() > 0.8
