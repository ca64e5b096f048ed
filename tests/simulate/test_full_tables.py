"""Tables without signals at any row count: the same ones again, with the published shares."""

from pathlib import Path

import polars as pl
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources import open_source
from ecgfounder_train.records.sources.heedb_published import PUBLISHED
from ecgfounder_train.simulate import write_full_tables

ROWS = {"I0001": 3000, "I0006": 400}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, int]]]:
    root = tmp_path_factory.mktemp("full") / "heedb"
    return root, write_full_tables(root, ROWS, seed=5, pool_patients=60)


def test_the_same_seed_writes_the_same_bytes(
    tables: tuple[Path, dict[str, dict[str, int]]], tmp_path: Path
) -> None:
    root, written = tables
    again = tmp_path / "again"
    assert write_full_tables(again, ROWS, seed=5, pool_patients=60) == written
    files = sorted(path.relative_to(root) for path in root.rglob("*.csv"))
    assert len(files) == 9
    assert files == sorted(path.relative_to(again) for path in again.rglob("*.csv"))
    for file in files:
        assert (root / file).read_bytes() == (again / file).read_bytes(), file


def test_what_is_missing_has_the_published_share(
    tables: tuple[Path, dict[str, dict[str, int]]],
) -> None:
    for site, counts in tables[1].items():
        published = PUBLISHED[site]
        share = ROWS[site] / published["rows"]
        assert counts["rows"] == ROWS[site]
        assert counts["acquisition_rows"] == ROWS[site] - round(
            (published["rows"] - published["acquisition_rows"]) * share
        )
        assert counts["over_read_missing"] == round(published["over_read_missing"] * share)
        assert counts["v24_rows_empty"] == round(published["v24_rows_empty"] * share)


def test_the_source_counts_what_was_written(
    tables: tuple[Path, dict[str, dict[str, int]]],
) -> None:
    root, written = tables
    table = open_source({"name": "heedb", "root": root}).read()
    found = {(quirk.site, quirk.name): quirk.found for quirk in table.quirks}
    for site, counts in written.items():
        for name, count in counts.items():
            if name in ("merged_patient_pairs", "over_read_missing", "patients"):
                continue  # counted over both sites, with the empty cells, and by the id as written
            assert found[site, name] == count, (site, name)
    assert table.counts["merged_patient_pairs"] == sum(
        counts["merged_patient_pairs"] for counts in written.values()
    )


def test_no_two_records_share_a_file_name(
    tables: tuple[Path, dict[str, dict[str, int]]],
) -> None:
    for site in ROWS:
        names = pl.read_csv(
            tables[0] / "ECG" / site / "metadata" / "metadata.csv", infer_schema=False
        )["FileName"]
        assert names.n_unique() == ROWS[site]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not empty"):
        write_full_tables(tmp_path, ROWS)
    with pytest.raises(UserError, match="at least 100"):
        write_full_tables(tmp_path / "new", {"I0001": 5})
