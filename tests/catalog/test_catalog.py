"""The catalog: every record in it, totals that add up, patients merged, nothing half-written."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfounder_train.catalog import (
    Catalog,
    build_catalog,
    canonical_patients,
    read_catalog,
    write_catalog,
)
from ecgfounder_train.catalog.patients import patient_hashes
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary, unpack
from ecgfounder_train.records.sources import RECORD_COLUMNS, SourceTable, open_source
from ecgfounder_train.simulate import write_archive
from ecgfounder_train.splits import PatientSplit

SECRET = Secret(b"0" * 32)
VOCABULARY = Vocabulary.load("ecgfounder150")


def source_table(
    rows: list[dict[str, object]], merges: list[tuple[str, str]] | None = None
) -> SourceTable:
    complete = [{**dict.fromkeys(RECORD_COLUMNS), **row} for row in rows]
    pairs = None
    if merges is not None:
        pairs = pl.DataFrame(merges, schema={"from": pl.String, "to": pl.String}, orient="row")
    records = pl.DataFrame(complete, schema=RECORD_COLUMNS).lazy()
    return SourceTable(records, Path(), pairs, {"rows": len(rows)})


def record(
    name: str, patient: str | None = "1", statements: list[str] | None = None, **more: object
) -> dict[str, object]:
    return {
        "record_path": f"a/{name}",
        "record_id": name,
        "patient_id": patient,
        "statements": statements,
        **more,
    }


def build(
    table: SourceTable, split: PatientSplit | None = None, secret: Secret = SECRET
) -> Catalog:
    return build_catalog(table, VOCABULARY, secret, split or PatientSplit(), source_name="test")


def hashed(ids: list[str]) -> pl.DataFrame:
    hashes = patient_hashes(ids)
    return pl.DataFrame({"patient_hash": hashes, "canonical_hash": hashes})


def adds_up(catalog: Catalog) -> bool:
    total = catalog.summary
    rejected = sum(total["rejected"].values())
    return bool(
        total["found"] == catalog.frame.height
        and total["found"] == total["with_label"] + total["unlabelled"] + rejected
        and total["with_label"] == sum(part["records"] for part in total["splits"].values())
    )


@pytest.fixture(scope="module")
def heedb(tmp_path_factory: pytest.TempPathFactory) -> SourceTable:
    out = tmp_path_factory.mktemp("archive") / "heedb"
    quirks = {"missing_metadata": 0.0, "merged_patients": 0.2, "seed": 3, "num_patients": 150}
    write_archive({"out": out, "write_signals": False, **quirks})
    return open_source({"name": "heedb", "root": out}).read()


def test_every_record_of_an_archive_is_in_the_catalog_and_totals_add_up(
    heedb: SourceTable,
) -> None:
    catalog = build(heedb)
    assert catalog.summary["found"] == heedb.counts["rows"] > 300
    assert catalog.summary["rejected"] == {"blank_patient_id": 1}
    # The one record whose patient is blank may itself be read or unread.
    unread = heedb.counts["without_statement"]
    assert catalog.summary["unlabelled"] in (unread, unread - 1)
    assert adds_up(catalog)


def test_labels_equal_those_of_the_statements_one_by_one(heedb: SourceTable) -> None:
    catalog = build(heedb)
    records = heedb.records.collect()
    by_key = {row["record_key"]: row for row in catalog.frame.iter_rows(named=True)}
    for name, statements in records.select("record_id", "statements").head(100).iter_rows():
        row = by_key[SECRET.record_key("test", name)]
        values, observed = VOCABULARY.encode(statements)
        for column, expected in (("labels", values), ("observed", observed)):
            packed = np.frombuffer(row[column], np.uint8)
            np.testing.assert_array_equal(unpack(packed, 150), expected)


def test_no_patient_of_an_archive_with_merges_is_in_two_splits(heedb: SourceTable) -> None:
    catalog = build(heedb)
    assert heedb.merges is not None
    assert heedb.merges.height > 5
    parts = catalog.frame.drop_nulls("patient_key").group_by("patient_key")
    assert parts.agg(pl.col("split").n_unique())["split"].max() == 1
    key = {
        patient: SECRET.patient_key("test", canonical)
        for patient, canonical in canonical_patients(heedb.merges).items()
    }
    for first, second in heedb.merges.iter_rows():
        assert key[first] == key[second] in set(catalog.frame["patient_key"])


def test_the_order_of_the_tables_does_not_change_the_catalog(heedb: SourceTable) -> None:
    records = heedb.records.collect()
    shuffled = records.sample(fraction=1.0, shuffle=True, seed=5).lazy()
    again = SourceTable(shuffled, heedb.root, heedb.merges, heedb.counts, heedb.texts)
    assert build(again).frame.equals(build(heedb).frame)


def test_adding_a_site_moves_nobody_and_keeps_every_key(heedb: SourceTable) -> None:
    one_site = heedb.records.filter(pl.col("site") == "I0001")
    part = build(SourceTable(one_site, heedb.root, heedb.merges, heedb.counts)).frame
    whole = build(heedb).frame.filter(pl.col("site") == "I0001")
    assert part.equals(whole)


def test_blank_patients_duplicates_and_records_without_a_part_are_rejected_not_dropped() -> None:
    table = source_table(
        [
            record("a", "1", ["22"], split="train"),
            record("b", None, ["22"], split="train"),
            record("a", "1", ["161"], split="train"),
            record("c", "2", ["22"], split=None),
            record("d", "3", None, split="val"),
            record("e", "4", ["22"], split="test", reject_reason="excluded_by_list"),
            {**record("f", "5", ["22"], split="val"), "record_path": "../../etc/passwd"},
            {**record("g", "6", ["22"], split="val"), "record_path": None},
        ]
    )
    catalog = build(table, PatientSplit(kind="official"))
    assert catalog.summary["rejected"] == {
        "blank_patient_id": 1,
        "duplicate_record": 1,
        "excluded_by_list": 1,
        "in_no_part_of_split": 1,
        "missing_header": 2,
    }
    assert (catalog.summary["found"], catalog.summary["unlabelled"]) == (8, 1)
    kept = catalog.frame.filter(pl.col("reject_reason").is_null())
    assert kept["record_path"].to_list() == ["a/a", "a/d"]
    assert adds_up(catalog)


def test_of_a_duplicate_the_first_row_counts() -> None:
    catalog = build(source_table([record("a", "1", ["22"]), record("a", "1", ["161"])]))
    kept = catalog.frame.filter(pl.col("reject_reason").is_null())
    expected, _ = VOCABULARY.encode(["22"])
    np.testing.assert_array_equal(unpack(np.frombuffer(kept["labels"][0], np.uint8), 150), expected)


def test_ages_above_89_are_shown_as_90() -> None:
    ages = [0.5, 89.0, 89.1, 300.0, None]
    rows = [record(f"r{i}", "1", ["22"], age_years=age) for i, age in enumerate(ages)]
    assert build(source_table(rows)).frame["age_years"].to_list() == [0.5, 89.0, 90.0, 90.0, None]


def test_no_id_is_in_the_catalog_except_in_the_path() -> None:
    catalog = build(source_table([record("stem", "123456789", ["22"])]))
    shown = catalog.frame.drop("record_path", "labels", "observed").rows()
    assert "123456789" not in str(shown)
    assert "stem" not in str(shown)
    assert catalog.frame["record_key"].str.len_chars().to_list() == [32]


def test_another_secret_gives_other_keys_and_the_same_split() -> None:
    rows = [record(f"r{i}", str(i), ["22"]) for i in range(50)]
    one, other = (build(source_table(rows), secret=Secret(bytes([i] * 32))) for i in (1, 2))
    assert not set(one.frame["record_key"]) & set(other.frame["record_key"])
    split = [dict(c.frame.select("record_path", "split").iter_rows()) for c in (one, other)]
    assert split[0] == split[1]
    assert one.fingerprints["secret"] != other.fingerprints["secret"]


def test_statements_no_label_knows_are_counted_by_name() -> None:
    catalog = build(source_table([record("a", "1", ["22", "x"]), record("b", "1", ["x", "y"])]))
    assert catalog.unknown_statements is not None
    assert catalog.unknown_statements.rows() == [("x", 2), ("y", 1)]
    assert catalog.summary["statements"] == {
        "read": 4,
        "in_no_label": 3,
        "different": 3,
        "different_in_no_label": 2,
    }


def test_a_vocabulary_of_another_source_is_refused() -> None:
    with pytest.raises(UserError, match="None of the 2 different statements"):
        build(source_table([record("a", "1", ["NORM", "SR"])]))


def test_a_source_that_leaves_nothing_to_write_is_refused() -> None:
    with pytest.raises(UserError, match="1 are unlabelled and 1 rejected"):
        build(source_table([record("a", "1", None), record("b", None, ["22"])]))
    with pytest.raises(UserError, match="lists no recordings"):
        build(source_table([]))


def test_empty_parts_and_unknown_patients_are_warned_of() -> None:
    table = source_table([record("a", "1", ["22"], split="train")])
    counted = SourceTable(table.records, table.root, None, {"patient_unknown_record_stands_in": 1})
    warnings = " ".join(build(counted, PatientSplit(kind="official")).warnings)
    assert "no record for val" in warnings
    assert "no record for test" in warnings
    assert "1 records is unknown" in warnings


def test_a_written_catalog_reads_back_equal(tmp_path: Path, heedb: SourceTable) -> None:
    catalog = build(heedb)
    back = read_catalog(write_catalog(tmp_path / "private" / "catalog.parquet", catalog))
    assert back.frame.equals(catalog.frame)
    assert back.frame.schema == catalog.frame.schema
    assert back.labels == VOCABULARY.labels
    assert back.summary == catalog.summary
    assert back.warnings == catalog.warnings
    assert back.fingerprints == {
        "vocabulary": VOCABULARY.fingerprint,
        "split": PatientSplit().fingerprint,
        "secret": SECRET.fingerprint,
        **{
            name: catalog.fingerprints[name]
            for name in ("statement_texts", "exclusions", "max_records_per_patient")
        },
    }


def test_patients_joined_over_splits_are_listed_beside_the_catalog(tmp_path: Path) -> None:
    ids = [str(number) for number in range(40)]
    merges = list(pairwise(ids[:12]))  # a chain of a dozen ids
    catalog = build(source_table([record(f"r{i}", i, ["22"]) for i in ids], merges))
    write_catalog(tmp_path / "catalog.parquet", catalog)
    listed = pl.read_csv(tmp_path / "joined_patients.csv")
    assert listed.columns == ["patient_key", "splits", "split"]
    assert listed.height == catalog.summary["patients_joined_across_parts"] == 1
    key, splits, split = listed.row(0)
    assert key == SECRET.patient_key("test", "0")
    own = set(PatientSplit().assign(hashed(ids[:12])).parts.cast(pl.String))
    assert set(splits.split("+")) == own and len(own) > 1
    assert catalog.frame.filter(patient_key=key)["split"].unique().to_list() == [split]


def test_missing_cut_and_foreign_catalog_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.parquet"
    with pytest.raises(UserError, match="No catalog at"):
        read_catalog(path)
    write_catalog(path, build(source_table([record("a", "1", ["22"])])))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        read_catalog(path)
    pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(UserError, match="not a catalog of format"):
        read_catalog(path)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=40), st.integers())
@settings(deadline=None)
def test_the_canonical_patient_is_the_smallest_of_its_group_in_any_order(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    def canonical(of: list[tuple[int, int]]) -> dict[str, str]:
        texts = [(str(a), str(b)) for a, b in of]
        schema = {"from": pl.String, "to": pl.String}
        return canonical_patients(pl.DataFrame(texts, schema=schema, orient="row"))

    found = canonical(pairs)
    groups: list[set[int]] = []
    for pair in pairs:
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)]
        groups.append(set(pair).union(*joined))
    assert found == {str(i): str(min(group)) for group in groups for i in group}
    shuffled = [pair[::-1] for pair in pairs]
    random.Random(seed).shuffle(shuffled)
    assert canonical(shuffled) == found


@pytest.mark.real_data
def test_ptbxl_superclass_counts_equal_the_benchmark(real_data: Path, tmp_path: Path) -> None:
    # Strodthoff et al. keep 17,084 records of folds 1-8 and 2,146 of fold 9 for this task.
    (tmp_path / "records100").mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (tmp_path / name).write_bytes((real_data / "ptbxl100" / name).read_bytes())
    catalog = build_catalog(
        open_source({"name": "ptbxl", "root": tmp_path}).read(),
        Vocabulary.load("ptbxl_super5"),
        SECRET,
        PatientSplit(kind="official"),
        source_name="ptbxl",
    )
    parts = catalog.summary["splits"]
    assert {name: part["records"] for name, part in parts.items()} == {"train": 17084, "val": 2146}
    assert catalog.summary["unlabelled"] == 371
    assert adds_up(catalog)
