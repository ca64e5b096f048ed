"""What a user leaves out is left out, all of it, and counted; the facts add up."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecgfounder_train.catalog import (
    Catalog,
    Selection,
    build_catalog,
    read_facts,
    write_catalog,
)
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary, unpack
from ecgfounder_train.records.sources import RECORD_COLUMNS, SourceTable, open_source
from ecgfounder_train.simulate import write_archive
from ecgfounder_train.splits import PatientSplit

SECRET = Secret(b"0" * 32)
VOCABULARY = Vocabulary.load("ecgfounder150")


def table(rows: list[tuple[str, str]], merges: list[tuple[str, str]] | None = None) -> SourceTable:
    """Return records (name, patient) that all show sinus rhythm."""
    whole = [
        {
            **dict.fromkeys(RECORD_COLUMNS),
            "record_path": f"a/{name}",
            "record_id": f"site/{name}",
            "patient_id": patient,
            "statements": ["22"],
        }
        for name, patient in rows
    ]
    pairs = None
    if merges is not None:
        pairs = pl.DataFrame(merges, schema={"from": pl.String, "to": pl.String}, orient="row")
    return SourceTable(pl.DataFrame(whole, schema=RECORD_COLUMNS).lazy(), Path(), pairs)


def build(source: SourceTable, selection: Selection | None = None) -> Catalog:
    return build_catalog(
        source, VOCABULARY, SECRET, PatientSplit(), source_name="test", selection=selection
    )


def selection(folder: Path, records: str = "", patients: str = "", **catalog: int) -> Selection:
    lists = {}
    for name, text in (("records", records), ("patients", patients)):
        if text:
            (folder / name).write_text(text)
            lists[name] = str(folder / name)
    return Selection.from_config(lists, catalog)


ROWS = [("r1", "1"), ("r2", "1"), ("r3", "2"), ("r4", "3"), ("r5", "4")]


def kept(catalog: Catalog) -> list[str]:
    frame = catalog.frame.filter(pl.col("reject_reason").is_null())
    return frame["record_path"].to_list()


def test_records_are_excluded_by_path_name_or_id_and_unknown_ones_counted(tmp_path: Path) -> None:
    listed = "# bad leads\na/r1\n./r3.hea\nsite/r4\nnobody\n"
    catalog = build(table(ROWS), selection(tmp_path, records=listed))
    assert kept(catalog) == ["a/r2", "a/r5"]
    assert catalog.summary["rejected"] == {"excluded_by_list": 3}
    assert catalog.summary["excluded"]["records_unknown"] == 1
    assert "1 of 4 entries of exclude.records" in " ".join(catalog.warnings)
    assert "nobody" not in str(catalog.warnings)


def test_records_are_excluded_as_the_tables_of_heedb_name_them(tmp_path: Path) -> None:
    write_archive({"out": tmp_path / "heedb", "num_patients": 12, "seed": 1})
    source = open_source({"name": "heedb", "root": tmp_path / "heedb"}).read()
    paths = source.records.collect()["record_path"].drop_nulls().sort()
    chosen = [paths[0], paths[-1]]  # one of each site
    listed = [f"./{path.split('/WFDB/')[1]}.hea" for path in chosen]
    catalog = build(source, selection(tmp_path, records="\n".join([*listed, "04/nobody"])))
    excluded = catalog.frame.filter(pl.col("reject_reason") == "excluded_by_list")
    assert set(excluded["record_path"]) == set(chosen)
    assert catalog.summary["excluded"]["records_unknown"] == 1


def test_a_path_that_fits_as_it_stands_excludes_no_longer_one(tmp_path: Path) -> None:
    catalog = build(table([("r1", "1"), ("a/r1", "2")]), selection(tmp_path, records="a/r1"))
    assert kept(catalog) == ["a/a/r1"]


def test_a_withdrawn_patient_is_left_out_under_every_merged_id(tmp_path: Path) -> None:
    source = table(ROWS, [("2", "4"), ("9", "4")])
    catalog = build(source, selection(tmp_path, patients="9\n77.0\n"))
    assert kept(catalog) == ["a/r1", "a/r2", "a/r4"]
    assert catalog.summary["excluded"] == {
        "records_listed": 0,
        "records_unknown": 0,
        "patients_listed": 2,
        "patients_unknown": 1,
    }


def test_lists_are_in_the_fingerprints_but_their_order_and_comments_are_not(tmp_path: Path) -> None:
    def exclusions(text: str) -> str:
        return build(table(ROWS), selection(tmp_path, patients=text)).fingerprints["exclusions"]

    assert exclusions("1\n2\n") == exclusions("# none\n2\n1\n") != exclusions("1\n")
    one = selection(tmp_path, patients="1\n").exclusions
    assert one.fingerprint(SECRET) != one.fingerprint(Secret(b"1" * 32))  # no plain hash of ids
    limited = build(table(ROWS), selection(tmp_path, max_records_per_patient=2))
    plain = build(table(ROWS))
    assert limited.fingerprints != plain.fingerprints


def test_a_limit_per_patient_keeps_the_same_records_in_any_order(tmp_path: Path) -> None:
    rows = [(f"r{i}", str(i % 3)) for i in range(30)]
    limit = selection(tmp_path, max_records_per_patient=4)
    catalog = build(table(rows), limit)
    assert catalog.summary["rejected"] == {"beyond_max_records_per_patient": 18}
    assert kept(build(table(rows[::-1]), limit)) == kept(catalog)
    # Another patient's records change nobody's choice.
    more = [*rows, *((f"x{i}", "9") for i in range(10))]
    assert set(kept(catalog)) <= set(kept(build(table(more), limit)))


def test_lists_that_cannot_be_read_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exclude\.records=.*cannot be read"):
        Selection.from_config({"records": str(tmp_path / "absent")}, None)
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no entry"):
        Selection.from_config({"patients": str(tmp_path / "empty")}, None)
    with pytest.raises(UserError, match=r"exclude=bad\.txt must be left out or hold settings"):
        Selection.from_config("bad.txt", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"exclude\.people is not a setting"):
        Selection.from_config({"people": "x"}, None)
    with pytest.raises(UserError, match="must be at least 1"):
        Selection.from_config(None, {"max_records_per_patient": 0})


def test_two_rows_of_one_record_never_share_a_key() -> None:
    catalog = build(table([("r1", "1"), ("r1", "1"), ("r1", "2"), ("r2", "1")]))
    assert catalog.frame["record_key"].n_unique() == 4
    assert catalog.summary["rejected"] == {"duplicate_record": 2}


@pytest.fixture(scope="module")
def heedb(tmp_path_factory: pytest.TempPathFactory) -> SourceTable:
    out = tmp_path_factory.mktemp("archive") / "heedb"
    write_archive({"out": out, "write_signals": False, "num_patients": 120, "seed": 5})
    return open_source({"name": "heedb", "root": out}).read()


def test_facts_count_every_record_in_every_dimension(heedb: SourceTable) -> None:
    catalog = build(heedb)
    facts, summary = catalog.facts, catalog.summary
    assert facts is not None
    for rows in facts.counts.values():
        assert sum(row["found"] for row in rows.values()) == summary["found"]
        assert sum(row["usable"] for row in rows.values()) == summary["with_label"]
        for part, size in summary["splits"].items():
            assert sum(row[part] for row in rows.values()) == size["records"]
    assert set(facts.counts["site"]) == {"I0001", "I0006"}


def test_prevalence_cooccurrence_and_kappa_equal_those_of_the_unpacked_labels(
    heedb: SourceTable,
) -> None:
    catalog = build(heedb)
    facts = catalog.facts
    assert facts is not None
    other = SourceTable(
        heedb.records,
        Path(),
        heedb.merges,
        heedb.counts,
        heedb.texts,
        label_source="software",
        readings=heedb.readings,
    )

    def labels(of: Catalog) -> dict[str, np.ndarray]:
        frame = of.frame.filter(pl.col("reject_reason").is_null())
        return {
            name: np.array([unpack(np.frombuffer(cell, np.uint8), 150) for cell in frame[name]])
            for name in ("labels", "observed")
        } | {"split": frame["split"].to_numpy()}

    ours, theirs = labels(catalog), labels(build(other))
    for name, said in (("physician", ours), ("software", theirs)):
        for part, counts in facts.prevalence[name].items():
            rows = said["split"] == part
            assert counts["positive"] == said["labels"][rows].sum(axis=0).tolist()
            assert counts["observed"] == said["observed"][rows].sum(axis=0).tolist()
    positive = ours["labels"].astype(np.int64)
    np.testing.assert_array_equal(facts.together, positive.T @ positive)
    agreement = facts.agreement["physician|software"]
    seen = ours["observed"] & theirs["observed"]
    assert agreement["both"] == (ours["labels"] & theirs["labels"] & seen).sum(axis=0).tolist()
    assert agreement["first"] == (ours["labels"] & ~theirs["labels"] & seen).sum(axis=0).tolist()
    rows = seen.all(axis=1)
    a, b = ours["labels"][rows, 0], theirs["labels"][rows, 0]
    agree, chance = (a == b).mean(), a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    assert agreement["kappa"][0] == pytest.approx((agree - chance) / (1 - chance))
    assert None in agreement["kappa"]  # nobody ever said it: undefined, not zero


def test_facts_lie_beside_the_catalog_and_name_nobody(heedb: SourceTable, tmp_path: Path) -> None:
    catalog = build(heedb)
    write_catalog(tmp_path / "catalog.parquet", catalog)
    assert read_facts(tmp_path) == catalog.facts
    text = (tmp_path / "catalog_facts.json").read_text()
    assert not any(patient in text for patient in heedb.records.collect()["patient_id"].head(50))
    assert (tmp_path / "unknown_statements.csv").read_text().startswith("statement,count\n")
    (tmp_path / "catalog_facts.json").write_text("{")
    with pytest.raises(UserError, match="missing or damaged"):
        read_facts(tmp_path)
    assert "published 10,608,417" in catalog.description
