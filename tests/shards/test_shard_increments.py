"""A next release adds shards, keeps the old ones and everybody's part, and totals add up."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import shard_archive
from shard_archive import Archive

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import BuildOptions, Manifest, ShardSet, verify


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def more(**changes: Any) -> BuildOptions:
    return shard_archive.options(increment=True, **changes)


@pytest.fixture
def first(archive: Archive) -> pl.DataFrame:
    """The tables of the first release: without the last site and the last ten records."""
    return archive.catalog[:50].filter(pl.col("site") != "S1")


def build(archive: Archive, catalog: pl.DataFrame, folder: Path, options: BuildOptions) -> Manifest:
    manifest = shard_archive.build(catalog, archive.root, folder, options=options)
    report = verify(folder)
    assert report.ok, report
    return manifest


def test_next_release_and_new_site_add_shards_and_keep_the_old_ones(
    archive: Archive, first: pl.DataFrame, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    before = build(archive, first, folder, shard_archive.options())
    old = content(folder)
    part_of = dict(zip(*_patients(folder), strict=True))
    after = build(archive, archive.catalog, folder, more())
    now = content(folder)
    assert all(now[entry.name] == old[entry.name] for entry in before.shards)
    assert after.shards[: len(before.shards)] == before.shards
    assert len(after.shards) > len(before.shards)
    assert (before.sites, after.sites) == (("S0", "S2"), ("S0", "S2", "S1"))
    patients, parts = _patients(folder)
    assert len(patients) > len(part_of)
    assert all(part_of.get(key, part) == part for key, part in zip(patients, parts, strict=True))
    # Everything is there that one build of the new release would have, and adds up the same.
    whole = ShardSet.open(archive.shards)
    assert after.totals == whole.manifest.totals
    assert set(ShardSet.open(folder).index["record_key"]) == set(whole.index["record_key"])
    assert [entry.shards for entry in after.increments] == [
        len(before.shards),
        len(after.shards) - len(before.shards),
    ]
    assert sum(entry.written for entry in after.increments) == after.totals.written
    index = ShardSet.open(folder).index
    sites = [after.sites[site] for site in index["site"]]
    by_key = dict(archive.catalog.select("record_key", "site").iter_rows())
    assert sites == [by_key[key.decode()] for key in index["record_key"]]


def _patients(folder: Path) -> tuple[list[bytes], list[int]]:
    index = ShardSet.open(folder).index
    return list(index["patient_key"]), list(index["split"])


def test_increments_made_in_two_steps_and_resumed_are_stable(
    archive: Archive, first: pl.DataFrame, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    build(archive, first, folder, shard_archive.options())
    middle = archive.catalog[:50]
    build(archive, middle, folder, more())
    manifest = build(archive, archive.catalog, folder, more())
    assert len(manifest.increments) == 3
    done = content(folder)
    # The same release again needs no leave to increment, and changes nothing.
    build(archive, archive.catalog, folder, shard_archive.options())
    assert content(folder) == done
    (folder / manifest.shards[0].name).unlink()
    (folder / manifest.shards[-1].name).unlink()
    (folder / "manifest.json").unlink()
    build(archive, archive.catalog, folder, shard_archive.options())
    assert content(folder) == done


def test_new_records_need_leave(archive: Archive, first: pl.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    build(archive, first, folder, shard_archive.options())
    before = content(folder)
    with pytest.raises(UserError, match=r"another catalog.*records are new.*build\.increment=true"):
        shard_archive.build(archive.catalog, archive.root, folder)
    assert content(folder) == before
    build(archive, first, folder, shard_archive.options())


def test_records_removed_upstream_stay_and_are_reported(archive: Archive, shards: Path) -> None:
    before = {name: data for name, data in content(shards).items() if name.endswith(".tar")}
    lacking = archive.catalog.filter(~pl.col("record_key").is_in(_written(shards, 3)))
    manifest = build(archive, lacking, shards, more())
    assert manifest.gone_upstream == 3
    assert manifest.totals.found == len(archive.catalog)
    assert {n: d for n, d in content(shards).items() if n.endswith(".tar")} == before
    listed = pl.read_csv(f"{shards}.private/gone_upstream.csv")
    assert set(listed["record_key"]) == set(_written(shards, 3))
    # They come back.
    assert build(archive, archive.catalog, shards, shard_archive.options()).gone_upstream == 0


def _written(folder: Path, count: int) -> list[str]:
    keys = sorted(key.decode() for key in set(ShardSet.open(folder).index["record_key"]))
    return keys[:count]


def changed(catalog: pl.DataFrame, keys: list[str], **values: Any) -> pl.DataFrame:
    hit = pl.col("record_key").is_in(keys)
    return catalog.with_columns(
        pl.when(hit).then(pl.lit(value, catalog.schema[name])).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"labels": b"\x08"}, "2 that are in shards have another labels"),
        ({"sex": "M"}, "another sex"),
        ({"patient_key": "0" * 32}, "another patient_key"),
        ({"reject_reason": "excluded_by_list"}, "2 that are in shards are now rejected, excluded"),
        ({"observed": b"\x00"}, "now rejected, excluded or unlabelled"),
    ],
)
def test_changed_facts_are_refused_or_kept_or_rewritten(
    archive: Archive, shards: Path, values: dict[str, Any], named: str
) -> None:
    before = content(shards)
    keys = _written(shards, 2)
    tables = changed(archive.catalog, keys, **values)
    with pytest.raises(UserError, match=rf"{named}.*build\.changed_records=keep"):
        shard_archive.build(tables, archive.root, shards, options=more())
    assert content(shards) == before

    kept = build(archive, tables, shards, shard_archive.options(changed_records="keep"))
    assert {n: d for n, d in content(shards).items() if n != "manifest.json"} == {
        n: d for n, d in before.items() if n != "manifest.json"
    }
    assert kept.totals.found == len(archive.catalog)

    build(archive, tables, shards, shard_archive.options(changed_records="rewrite"))
    now = content(shards)
    altered = {name for name in before if name.endswith(".tar") and now[name] != before[name]}
    assert 0 < len(altered) <= 2
    index = ShardSet.open(shards).index
    there = {key.decode() for key in index["record_key"]} & set(keys)
    assert bool(there) == ("reject_reason" not in values and "observed" not in values)
    build(archive, tables, shards, shard_archive.options())


def test_merged_patient_who_changes_part_is_moved_only_by_rewriting(
    archive: Archive, shards: Path
) -> None:
    index = ShardSet.open(shards).index
    key = str(index["record_key"][index["split"] == 0][0].decode())
    tables = changed(archive.catalog, [key], split="test")
    for policy in ("refuse", "keep"):
        with pytest.raises(UserError, match="another split"):
            shard_archive.build(tables, archive.root, shards, options=more(changed_records=policy))
    manifest = build(archive, tables, shards, more(changed_records="rewrite"))
    assert manifest.totals.problem() is None
    index = ShardSet.open(shards).index
    assert set(index["split"][index["record_key"] == key.encode()]) == {2}


def test_merged_patient_with_a_gone_record_is_not_put_into_a_second_part(
    archive: Archive, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    usable = pl.col("reject_reason").is_null() & (pl.col("split") == "train")
    gone, moved = archive.catalog.filter(usable)["record_key"].to_list()[-2:]
    first = changed(archive.catalog, [gone, moved], patient_key="9" * 32)
    build(archive, first, folder, shard_archive.options())
    before = content(folder)
    tables = changed(archive.catalog, [moved], patient_key="3" * 32, split="test")
    tables = tables.filter(pl.col("record_key") != gone)
    with pytest.raises(UserError, match="1 patients whose records are in shards"):
        shard_archive.build(tables, archive.root, folder, options=more(changed_records="rewrite"))
    assert content(folder) == before
    # In the same part the former key does no harm.
    tables = changed(archive.catalog, [moved], patient_key="3" * 32)
    tables = tables.filter(pl.col("record_key") != gone)
    build(archive, tables, folder, more(changed_records="rewrite"))


def test_renamed_folders_of_a_next_release_change_no_byte(
    archive: Archive, shards: Path, tmp_path: Path
) -> None:
    before = content(shards)
    root = tmp_path / "release"
    root.mkdir()
    (root / "v6").symlink_to(archive.root)
    tables = archive.catalog.with_columns(record_path="v6/" + pl.col("record_path"))
    shard_archive.build(tables, root, shards)
    assert content(shards) == before
    (shards / "train-000000.tar").unlink()
    shard_archive.build(tables, root, shards)
    assert content(shards) == before


def test_lost_plan_of_an_incremented_folder_is_not_replanned(
    archive: Archive, first: pl.DataFrame, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    build(archive, first, folder, shard_archive.options())
    build(archive, archive.catalog, folder, more())
    before = content(folder)
    Path(f"{folder}.private/plan.parquet").unlink()
    with pytest.raises(UserError, match="2 increments"):
        shard_archive.build(archive.catalog, archive.root, folder)
    assert content(folder) == before


def test_damaged_plan_is_named(archive: Archive, shards: Path) -> None:
    path = Path(f"{shards}.private/plan.parquet")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"plan\.parquet is damaged"):
        shard_archive.build(archive.catalog, archive.root, shards)
