"""The data report: totals add up, small counts stay hidden, nobody is named, bytes repeat."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny_set as tiny

from ecgfounder_train.catalog import Catalog, CatalogFacts
from ecgfounder_train.catalog.facts import (
    count_dimensions,
    count_prevalence,
    count_together,
)
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.data_report import (
    REPORT_NAME,
    STRIPS_NAME,
    ReportOptions,
    write_data_report,
)
from ecgfounder_train.data_report.counts import COLUMNS, count_records, label_systems
from ecgfounder_train.data_report.disclosure import CountSystem
from ecgfounder_train.data_report.reasons import EXPLANATIONS
from ecgfounder_train.data_report.strips import _readable
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import EcgRecord
from ecgfounder_train.records.sources import SourceTable
from ecgfounder_train.shards import BuildOptions, ShardSet

MIN_CELL = 10


def protected(cells: np.ndarray) -> CountSystem:
    system = CountSystem(MIN_CELL)
    for place, value in np.ndenumerate(cells):
        system.add(place, int(value))
    for row in range(cells.shape[0]):
        system.add(("row", row), int(cells[row].sum()))
        system.add_sum(("row", row), [(row, column) for column in range(cells.shape[1])])
    for column in range(cells.shape[1]):
        system.add(("column", column), int(cells[:, column].sum()))
        system.add_sum(("column", column), [(row, column) for row in range(cells.shape[0])])
    system.add("all", int(cells.sum()))
    system.add_sum("all", [("row", row) for row in range(cells.shape[0])])
    system.add_sum("all", [("column", column) for column in range(cells.shape[1])])
    system.protect()
    return system


@pytest.mark.parametrize("seed", range(25))
def test_no_small_count_follows_from_what_is_shown(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, 2))
    cells = rng.choice([0, 1, 2, 5, 9, 10, 11, 30, 400], shape)
    system = protected(cells)
    for name, value in system.values.items():
        if 0 < value < MIN_CELL:
            assert not system.is_open(name)
            least, most = system.range_of(name)
            assert least <= value <= most
            assert most - least >= 1, f"{name}={value} of\n{cells}"


def test_total_is_hidden_before_all_that_is_known_of_small_counts() -> None:
    # Eighty written and one rejected: without the total nothing can be told of the rejected one.
    system = CountSystem(MIN_CELL)
    for name, value in (("found", 81), ("written", 80), ("rejected", 1)):
        system.add(name, value)
    system.add_sum("found", ("written", "rejected"))
    system.kept, system.kept_longest = {"found", "written"}, {"found"}
    system.protect()
    assert system.is_open("found") and not system.is_open("written")
    assert system.range_of("rejected") == (1, 9)


def test_two_rejected_among_many_hide_their_own_rows_only() -> None:
    years = [str(year) for year in range(1990, 2010)]
    rejected = {"1994": 1, "2002": 1}
    system = CountSystem(MIN_CELL)
    for name, value in (("written", 20_000), ("rejected", 2), ("found", 20_002)):
        system.add(name, value)
    for name in years:
        few = rejected.get(name, 0)
        cells = [("written", 1000), ("rejected", few), ("found", 1000 + few)]
        names = [system.add((name, column), value) for column, value in cells]
        system.add_sum(names[2], names[:2])
    for column in ("written", "rejected", "found"):
        system.add_sum(column, [(name, column) for name in years])
    system.add_sum("found", ("written", "rejected"))
    system.kept, system.kept_longest = {"written", "rejected", "found"}, {"found"}
    system.protect()
    hidden = {name for name in system.values if not system.is_open(name)}
    beside = {(year, column) for year in rejected for column in ("written", "rejected")}
    assert hidden == {"written", "rejected", *beside}


def test_rare_label_in_one_part_leaves_its_sum_open() -> None:
    said = {
        "train": {"positive": [300], "observed": [1000]},
        "val": {"positive": [4], "observed": [100]},
        "test": {"positive": [40], "observed": [120]},
    }
    facts = facts_of(pl.DataFrame({"split": [], "labels": [], "observed": []}), ("AF",), said)
    system = label_systems(facts, "source", MIN_CELL)[0]
    assert system.is_open(("all", "positive")) and system.is_open(("all", "observed"))
    assert not system.is_open(("val", "positive")) and not system.is_open(("test", "positive"))
    assert system.is_open(("train", "positive"))


def test_one_small_count_in_a_row_takes_a_neighbour_with_it() -> None:
    system = protected(np.array([[3, 40, 50], [60, 70, 80]]))
    hidden = [name for name in system.values if not system.is_open(name)]
    assert (0, 0) in hidden and len(hidden) == 4
    assert system.is_open("all")


def facts_of(
    catalog: pl.DataFrame, labels: tuple[str, ...], said: dict[str, Any] | None = None
) -> CatalogFacts:
    """Return the facts of a catalog, with other prevalences if they are given."""
    if said is not None:
        return CatalogFacts({}, labels, "source", {"source": said}, {}, [[0]])
    numbers = {part: number for number, part in enumerate(SPLITS)}
    parts = catalog["split"].replace_strict(numbers, return_dtype=pl.UInt8).to_numpy()
    packed = [
        np.frombuffer(b"".join(catalog[name]), np.uint8).reshape(len(catalog), -1)
        for name in ("labels", "observed")
    ]
    return CatalogFacts(
        counts=count_dimensions(catalog, parts),
        labels=labels,
        label_source="source",
        prevalence={"source": count_prevalence(*packed, parts, labels)},
        agreement={},
        together=count_together(*packed, parts, len(labels)),
        summary={
            "with_label": len(catalog),
            "rejected": {},
            "splits": {part: {"patients": int((parts == n).sum())} for part, n in numbers.items()},
            "statements": dict.fromkeys(
                ("read", "in_no_label", "different", "different_in_no_label"), 0
            ),
        },
    )


@pytest.fixture
def prepared(tiny_set, tmp_path):  # type: ignore[no-untyped-def]
    """A writable copy of a small data set with its catalog."""
    import shutil

    source = tiny_set.shards.folder
    shards = tmp_path / "shards"
    shutil.copytree(source, shards)
    shutil.copytree(private_folder(source), private_folder(shards))
    frame = tiny_set.catalog.with_columns(
        pl.lit(2019, pl.Int32).alias("year"), pl.lit(None, pl.Float32).alias("fs")
    )
    labels = tiny_set.shards.manifest.labels
    catalog = Catalog(frame, labels, {}, {}, facts=facts_of(frame, labels))
    return shards, catalog, SourceTable(pl.LazyFrame(), tiny_set.root)


def built(
    catalog: pl.DataFrame, root: Path, folder: Path, **changes: Any
) -> tuple[Path, Catalog, SourceTable]:
    """Return what `report` takes, for shards made of a catalog."""
    frame = catalog.with_columns(
        pl.lit(2019, pl.Int32).alias("year"), pl.lit(None, pl.Float32).alias("fs")
    )
    labels = tiny.build(frame, root, folder, **changes).manifest.labels
    facts = facts_of(frame.filter(pl.col("reject_reason").is_null()), labels)
    return folder, Catalog(frame, labels, {}, {}, facts=facts), SourceTable(pl.LazyFrame(), root)


def report(prepared, **options: int) -> Path:  # type: ignore[no-untyped-def]
    shards, catalog, table = prepared
    path = write_data_report(
        shards, private_folder(shards), catalog, table, ReportOptions(**options)
    )
    assert path is not None
    return path


def test_every_dimension_adds_up_to_the_manifest(prepared) -> None:  # type: ignore[no-untyped-def]
    shards, catalog, _ = prepared
    opened = ShardSet.open(shards)
    rejects = pl.read_csv(private_folder(shards) / "rejects.csv")["record_key"].cast(pl.String)
    records = count_records(catalog.frame, rejects, opened)
    totals = opened.manifest.totals
    assert sum(records.totals[part] for part in SPLITS) == totals.written
    assert sum(records.totals.values()) == totals.found
    for rows in records.dimensions.values():
        for column in COLUMNS:
            assert sum(row[column] for row in rows.values()) == records.totals[column]


def test_page_names_no_record_patient_or_path(prepared) -> None:  # type: ignore[no-untyped-def]
    text = report(prepared, strips=0).read_text()
    frame = prepared[1].frame
    for column in ("record_path", "record_key", "patient_key"):
        assert not [value for value in frame[column] if value in text], column
    assert "4711" not in text and "20190317" not in text
    assert str(prepared[0]) not in text and str(prepared[2].root) not in text


def test_strips_lie_in_the_private_folder_only_and_can_be_switched_off(prepared) -> None:  # type: ignore[no-untyped-def]
    shards = prepared[0]
    report(prepared, strips=2)
    strips = private_folder(shards) / STRIPS_NAME
    assert "Stays on this machine" in strips.read_text()
    assert [path.name for path in shards.glob("*.html")] == [REPORT_NAME]
    report(prepared, strips=0)
    assert not strips.exists()


def test_strips_show_nobody_withdrawn_and_follow_no_path_out_of_the_root() -> None:
    reasons = [RejectReason.EXCLUDED, *[RejectReason.DUPLICATE_RECORD] * 4]
    paths = ["a/withdrawn", "/etc/one", "../two", "a/gone", "a/good"]
    rejects = pl.DataFrame(
        {
            "record_path": paths,
            "record_key": [str(number) for number in range(5)],
            "reason": [reason.value for reason in reasons],
            "detail": [""] * 5,
        }
    )
    asked = []

    def read(record_path: str) -> EcgRecord:
        asked.append(record_path)
        if record_path == "a/gone":
            raise RuntimeError("a storage client's own error")
        return EcgRecord(np.ones((1, 100), np.float32), ("I",), 500.0)

    assert [key for key, *_ in _readable(rejects, read, 10)] == ["4"]
    assert asked == ["a/gone", "a/good"]


def test_unchanged_page_is_left_alone_and_a_changed_one_made_again(prepared) -> None:  # type: ignore[no-untyped-def]
    page = report(prepared, strips=0)
    first, made = page.read_bytes(), page.stat().st_mtime_ns
    assert report(prepared, strips=0).stat().st_mtime_ns == made
    page.write_text("someone wrote here")
    assert report(prepared, strips=0).read_bytes() == first
    assert report(prepared, strips=0, min_cell=0).read_bytes() != first


def test_labels_that_never_come_together_give_a_page(prepared) -> None:  # type: ignore[no-untyped-def]
    shards, catalog, table = prepared
    facts = replace(catalog.facts, together=[[0] * 5] * 5)
    path = report((shards, replace(catalog, facts=facts), table), strips=0)
    assert "Prevalence" in path.read_text()


def test_page_needs_nothing_from_outside(prepared) -> None:  # type: ignore[no-untyped-def]
    text = re.sub(r"base64,[^\"]*", "", report(prepared, strips=0).read_text())
    assert "//" not in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)  # a drawing may point into itself
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert links and all(link.startswith(("#", "data:")) for link in links)


def test_one_site_without_ages_and_sexes_gives_sentences_instead_of_tables(
    tiny_set: Any, tmp_path: Path
) -> None:
    catalog = tiny_set.catalog.filter(pl.col("site") == "S0").with_columns(
        pl.lit(None, pl.Float32).alias("age_years"), pl.lit(None, pl.String).alias("sex")
    )
    text = report(built(catalog, tiny_set.root, tmp_path / "shards"), strips=2).read_text()
    assert "The same for all records: S0." in text
    assert text.count("Not known of any record.") == 2
    assert '<td data-sort="unknown"' not in text


def test_one_label_gives_a_page(tiny_set: Any, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("label,codes\nsine of 3 Hz,sine\n")
    one = pl.col("labels", "observed").map_elements(
        lambda packed: bytes([packed[0] & 128]), pl.Binary
    )
    prepared = built(
        tiny_set.catalog.with_columns(one),
        tiny_set.root,
        tmp_path / "shards",
        vocabulary=Vocabulary.load(tmp_path / "one.csv"),
    )
    text = report(prepared, strips=2).read_text()
    assert "1 labels" not in text and "sine of 3 Hz" in text
    assert "Which labels come together" not in text


def test_nearly_everything_rejected_gives_a_page_that_tells_no_small_count(
    tiny_set: Any, tmp_path: Path
) -> None:
    rejected = pl.lit("missing_header")
    catalog = tiny_set.catalog.with_columns(
        pl.when(pl.int_range(pl.len()) > 0).then(rejected).alias("reject_reason")
    )
    prepared = built(
        catalog,
        tiny_set.root,
        tmp_path / "shards",
        options=BuildOptions(max_reject_share=1.0),
    )
    text = report(prepared, strips=4).read_text()
    assert ShardSet.open(prepared[0]).manifest.totals.rejected == {"missing_header": 99}
    assert "<b>100</b><span>records found" in text
    assert "<b>99</b>" not in text and "<b>1</b>" not in text and ">99<" not in text


@pytest.mark.parametrize("kept", [0, 100])
def test_set_of_which_nothing_is_written_has_no_page(
    tiny_set: Any, tmp_path: Path, kept: int
) -> None:
    catalog = tiny_set.catalog.head(kept).with_columns(pl.lit("all_zero").alias("reject_reason"))
    with pytest.raises(UserError, match="Nothing to write"):
        tiny.build(
            catalog,
            tiny_set.root,
            tmp_path / "shards",
            options=BuildOptions(max_reject_share=1.0),
        )
    assert not (tmp_path / "shards" / REPORT_NAME).exists()


def test_quirk_that_is_rare_at_one_site_is_hidden_at_the_others(prepared) -> None:  # type: ignore[no-untyped-def]
    shards, catalog, table = prepared
    quirks = [
        {"site": site, "name": name, "found": found, "published": None}
        for site, name, found in [
            ("S0", "over_read_missing", 1201),
            ("S1", "over_read_missing", 2),
            ("S0", "age_capped", 4321),
            ("S1", "age_capped", 70),
        ]
    ]
    catalog = replace(catalog, facts=replace(catalog.facts, quirks=quirks))
    text = report((shards, catalog, table), strips=0).read_text()
    assert "1,201" not in text and "4,321" in text


def test_every_reject_reason_is_explained() -> None:
    assert set(EXPLANATIONS) == set(RejectReason)


@pytest.mark.parametrize("key", [{"min_cell": 1}, {"strips": -1}, {"min_cells": 5}])
def test_impossible_options_are_refused_by_name(key: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"report\.{next(iter(key))}"):
        ReportOptions.from_config(key)
