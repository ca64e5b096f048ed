"""Arrays beside a CSV: NumPy, HDF5 and Zarr give the same records as WFDB files would."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import EcgRecord, SignalProfile
from ecgfounder_train.records.sources import SourceTable, arrays, open_source
from ecgfounder_train.splits import PatientSplit

LEADS = ["II", "I", "V1"]
STORED = np.random.default_rng(3).integers(-900, 900, (5, 3, 1000)).astype(np.int16)
TABLE = "id,who,dx,age,sex,fold\n" + "".join(
    f"rec{n},p{n // 2},{'AFIB;SR' if n % 2 else 'NORM'},{50 + n},{'FM'[n % 2]},{n + 1}\n"
    for n in range(5)
)
FORMATS = ("npy", "h5", "zarr", "zarr group")


def write_array(root: Path, kind: str, values: np.ndarray) -> str:
    if kind == "npy":
        np.save(root / "x.npy", values)
        return "x.npy"
    if kind == "h5":
        with h5py.File(root / "x.h5", "w") as file:
            file.create_dataset("sets/ecg", data=values, compression="gzip")
            file["sets/beats"] = np.zeros(3)
        return "x.h5"
    zarr = pytest.importorskip("zarr")
    if kind == "zarr":
        zarr.save(str(root / "x.zarr"), values)
    else:
        group = zarr.open_group(str(root / "x.zarr"), mode="w")
        group["ecg"] = values
        group["other"] = np.zeros(4)
    return "x.zarr"


def read(root: Path, kind: str = "npy", values: np.ndarray = STORED, **changes: Any) -> SourceTable:
    if not (root / "t.csv").exists():
        (root / "t.csv").write_text(TABLE)
    settings = {
        "name": "mine", "based_on": "arrays", "root": root, "table": "t.csv", "fs": 100,
        "unit": "uV", "leads": LEADS, "record_column": "id", "patient_column": "who",
        "statement_columns": ["dx"], "statement_separator": ";", "age_column": "age",
        "sex_column": "sex", "split_column": "fold", "array": write_array(root, kind, values),
    }  # fmt: skip
    return open_source({**settings, **changes}).read()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", ["rls", "rsl", "srl"])
def test_every_format_and_order_of_axes_gives_the_same_records(
    tmp_path: Path, kind: str, order: str
) -> None:
    names = {"r": "records", "l": "leads", "s": "samples"}
    values = STORED.transpose(["rls".index(axis) for axis in order])
    table = read(tmp_path, kind, values, axes=[names[axis] for axis in order])
    records = table.records.collect()
    assert records["record_id"].to_list() == [f"rec{n}" for n in range(5)]
    assert records["statements"].to_list()[:2] == [["NORM"], ["AFIB", "SR"]]
    assert records["patient_id"].to_list() == ["p0", "p0", "p1", "p1", "p2"]
    assert records["age_years"].to_list() == [50, 51, 52, 53, 54]
    assert records["sex"].to_list() == ["F", "M", "F", "M", "F"]
    assert records["fold"].to_list() == [1, 2, 3, 4, 5]
    assert table.read_ecg is not None
    read_ecg = pickle.loads(pickle.dumps(table.read_ecg))  # as it goes to a worker
    record = read_ecg(records["record_path"][3])
    assert (record.lead_names, record.fs) == (tuple(LEADS), 100)
    np.testing.assert_allclose(record.signal, STORED[3] / 1000, rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("mV", 1), ("uV", 1e-3), ("V", 1e3), ("nV", 1e-6)])
def test_the_stated_unit_counts(tmp_path: Path, unit: str, factor: float) -> None:
    values = (STORED / 1000).astype(np.float64)
    values[1, 0, 5] = np.inf
    table = read(tmp_path, values=values, unit=unit)
    assert table.read_ecg is not None
    signal = table.read_ecg("1").signal
    assert np.isnan(signal[0, 5])
    np.testing.assert_allclose(signal[1:], values[1, 1:] * factor, rtol=1e-6)


def test_rows_in_another_order_name_their_place_and_several_belong_together(
    tmp_path: Path,
) -> None:
    (tmp_path / "t.csv").write_text("row,who,dx\n4,b,SR\n0.0,a,NORM\n4,b,AFIB\n")
    table = read(
        tmp_path, row_column="row", record_column=None, age_column=None, sex_column=None,
        split_column=None,
    )  # fmt: skip
    records = table.records.collect()
    assert records["record_path"].to_list() == ["4", "0"]
    assert records["statements"].to_list() == [["SR", "AFIB"], ["NORM"]]
    assert table.counts["records_without_table_row"] == 3


def test_columns_of_ones_and_zeros_are_statements_and_blanks_unobserved(tmp_path: Path) -> None:
    rows = ["AF,LBBB", "1,0", "0,0", "1.0,1", ",1", "false,True"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    settings = dict.fromkeys(
        ["record_column", "patient_column", "age_column", "sex_column", "split_column"]
    )
    table = read(tmp_path, flag_columns=["AF", "LBBB"], statement_columns=[], **settings)
    said = table.records.collect()["statements"].to_list()
    assert said == [["AF"], [], ["AF", "LBBB"], None, ["LBBB"]]


def test_padding_at_the_ends_is_left_out_where_asked(tmp_path: Path) -> None:
    values = STORED.astype(np.float32)
    values[:, :, :100] = 0
    values[:, :, 950:] = np.nan
    values[2] = 0
    table = read(tmp_path, values=values, trim_padding=True)
    assert table.read_ecg is not None
    assert table.read_ecg("0").signal.shape == (3, 850)
    with pytest.raises(RejectedRecordError, match="nothing but padding"):
        table.read_ecg("2")


@pytest.mark.parametrize("kind", FORMATS)
def test_long_records_of_an_array_are_read_piece_by_piece(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "LONG_VALUES", 2999)
    table = read(tmp_path, kind, STORED.transpose(1, 2, 0), axes=["leads", "samples", "records"])
    assert table.read_ecg is not None
    record = pickle.loads(pickle.dumps(table.read_ecg))("4")
    assert not isinstance(record, EcgRecord)
    assert (record.num_samples, record.fs) == (1000, 100)
    part = record.read(990, None).signal
    np.testing.assert_allclose(part, STORED[4, :, 990:] / 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leads": ["I", "II"]}, r"names 2 leads, but .* would hold 5 records, 3 leads, 1,000 sam"),
        ({"axes": ["records", "samples", "leads"]}, r"would hold 5 records, 3 samples, 1,000 lead"),
        ({"axes": ["records", "time", "leads"]}, "must be records, leads and samples"),
        ({"unit": "mmHg"}, r"source\.unit=mmHg is not a voltage"),
        ({"fs": 0}, r"source\.fs=0 is not a sampling rate"),
        ({"array": "absent.npy"}, r"absent\.npy does not exist"),
        ({"array": "t.csv"}, r"source\.array=\.csv must be one of \.npy"),
        ({"table": "absent.csv"}, r"absent\.csv does not exist"),
        ({"statement_columns": ["dxx"]}, "Did you mean 'dx'"),
        ({"flag_columns": ["age"], "statement_columns": []}, r"line 2: column 'age' holds '50'"),
        ({"row_column": "age"}, r"line 2: column 'age' must hold a place in the array, 0 to 4"),
        ({"statement_columns": []}, "None of the 5 rows of .* has a statement"),
        ({"leads": []}, "must name each stored lead once"),
        ({"fs": None}, r"source\.fs is missing"),
        ({"leads": None}, r"source\.leads is missing"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


def test_arrays_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE + "rec9,p9,NORM,1,F,1\n")
    with pytest.raises(UserError, match=r"has 6 rows and .* 5 records.*source\.row_column"):
        read(tmp_path)
    (tmp_path / "t.csv").unlink()
    with pytest.raises(UserError, match="three axes are needed"):
        read(tmp_path, values=STORED[0])
    with pytest.raises(UserError, match="not numbers"):
        read(tmp_path, values=STORED.astype("U5"))
    np.save(tmp_path / "o.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"o\.npy cannot be read"):
        read(tmp_path, array="o.npy")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = STORED, STORED
        layout = h5py.VirtualLayout(STORED.shape, "i2")
        layout[:] = h5py.VirtualSource(str(tmp_path / "x.h5"), "sets/ecg", STORED.shape)
        file.create_virtual_dataset("linked", layout)
    with pytest.raises(UserError, match=r"source\.dataset=None is not .*there: a, b, linked"):
        read(tmp_path, array="two.h5")
    assert read(tmp_path, array="two.h5", dataset="b").records.collect().height == 5
    with pytest.raises(UserError, match="refers to another file"):
        read(tmp_path, array="two.h5", dataset="linked")


@pytest.mark.parametrize("kind", ["npy", "h5", "zarr"])
def test_arrays_pass_catalog_profile_and_shards(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecgfounder_train.catalog import build_catalog
    from ecgfounder_train.shards import BuildOptions, ShardSet, build_shards, verify

    rng = np.random.default_rng(0)
    values = rng.normal(0, 300, (40, 3, 1200)).astype(np.float32)
    values[5, 1] = 0.0
    values[6, 2, 100] = 90_000.0
    rows = [f"rec{n},p{n},{'AFIB' if n % 2 else 'NORM'},60,F,1\n" for n in range(40)]
    (tmp_path / "t.csv").write_text("id,who,dx,age,sex,fold\n" + "".join(rows))
    table = read(tmp_path, kind, values)
    vocabulary, split = Vocabulary.load("ptbxl_all71"), PatientSplit()
    secret = Secret(bytes(range(32)))
    catalog = build_catalog(table, vocabulary, secret, split, source_name="mine")
    config = {"name": "t", "leads": ["I", "II", "V1"], "fs": 100, "filter_fs": 100,
              "stages": ["resample", "decimate", "window", "statistics"]}  # fmt: skip
    profile = SignalProfile.from_config(config)
    manifest = build_shards(
        catalog.frame, tmp_path / "shards", root=table.root, profile=profile,
        vocabulary=vocabulary, split=split, secret=secret, source_name="mine",
        options=BuildOptions(records_per_shard=20), read_ecg=table.read_ecg,
    )  # fmt: skip
    assert manifest.totals.rejected == {"amplitude_beyond_limit": 1, "constant_lead": 1}
    assert (manifest.totals.written, manifest.totals.windows) == (38, 38)
    assert not verify(tmp_path / "shards").findings
    assert len(ShardSet.open(tmp_path / "shards")) == 38
