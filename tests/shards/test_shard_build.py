"""Building shards: totals add up, kills change nothing, nothing private gets out."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import shard_archive
import webdataset
from shard_archive import Archive

from ecgfounder_train.app import compose_config
from ecgfounder_train.catalog import build_catalog
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import EcgRecord, read_record
from ecgfounder_train.records.sources import open_source
from ecgfounder_train.shards import BuildOptions, ShardSet, plan_shards, sort_catalog, verify
from ecgfounder_train.shards.writer import header_facts
from ecgfounder_train.splits import PatientSplit

DRIVER = [sys.executable, str(Path(shard_archive.__file__))]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_totals_add_up_with_rejects_of_several_kinds(archive: Archive) -> None:
    totals = ShardSet.open(archive.shards).manifest.totals
    assert totals.rejected == {
        "blank_patient_id": 3,
        "constant_lead": 3,
        "in_no_part_of_split": 3,
        "missing_header": 3,
        "too_short": 3,
    }
    assert totals.unlabelled == 6
    assert totals.written == 60 - 15 - 6
    assert totals.windows == totals.written + 6  # six records of 25 s give a second window
    assert totals.problem() is None
    with open(f"{archive.shards}.private/rejects.csv", newline="") as handle:
        ledger = list(csv.DictReader(handle))
    assert Counter(row["reason"] for row in ledger) == totals.rejected
    assert all(row["record_path"] and row["record_key"] and row["detail"] for row in ledger)


def test_plain_webdataset_and_index_agree_with_the_records(archive: Archive) -> None:
    shards = ShardSet.open(archive.shards)
    urls = [str(shards.shard_path(i)) for i in range(len(shards.manifest.shards))]
    read = {}
    for item in webdataset.WebDataset(urls, shardshuffle=False).decode():
        read[item["__key__"]] = item
    assert len(read) == len(shards)
    by_key = {row["record_key"]: row for row in archive.catalog.iter_rows(named=True)}
    layout, num_checked = shards.layout, 0
    for row in shards.index:
        key = row["record_key"].decode()
        source = by_key[key]
        item = read[f"{key}_w{row['window']}"]
        record = read_record(archive.root / source["record_path"])
        windows = shard_archive.profile().apply(record, source["site"]).windows
        window = windows[int(row["window"])]
        np.testing.assert_array_equal(item["ecg.npy"], window.ecg)
        np.testing.assert_array_equal(item["stats.npy"], window.stats)
        packed = [np.packbits(bits).tobytes() for bits in item["labels.npy"]]
        assert packed == [source["labels"], source["observed"]]
        assert packed == [row["labels"].tobytes(), row["observed"].tobytes()]
        # A blank in the tables is filled from the header's comments, a value is kept.
        assert (item["json"]["age_years"], item["json"]["sex"]) == (
            (57.0, "F") if source["sex"] is None else (90.0, "M")
        )
        assert item["json"]["leads_present"] == row["leads_present"] == 0xFFF
        assert shards.manifest.sites[row["site"]] == source["site"] == item["json"]["site"]
        with open(shards.shard_path(row["shard"]), "rb") as handle:
            handle.seek(int(row["offset"]) + layout.ecg.offset)
            assert handle.read(layout.ecg.num_bytes) == window.ecg.tobytes()
        num_checked += 1
    assert num_checked == len(read)


@pytest.mark.parametrize(
    ("comment", "age"),
    [
        (" Age: 63", 63.0),
        ("Age - 63", 63.0),
        ("age: 104", 104.0),
        ("Age: -1", None),
        ("age:-63", None),
    ],
)
def test_a_negative_age_in_a_header_is_unknown(comment: str, age: float | None) -> None:
    assert header_facts([comment]) == (age, None)


def test_ages_outside_the_private_folder_are_whole_years_capped_at_90(
    archive: Archive, tmp_path: Path
) -> None:
    ages = pl.Series("age_years", [71.53, 89.2, 0.7, None], pl.Float32)
    rows = archive.catalog.with_columns(ages.gather(np.arange(len(archive.catalog)) % 4))
    shard_archive.build(rows, archive.root, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    known = [age for age in shards.index["age_years"].tolist() if age == age]
    assert set(known) == {71.0, 90.0, 0.0, 57.0}
    for row in range(len(shards)):
        age = shards.read_sample(row).facts["age_years"]
        assert age == shards.index["age_years"][row]


def test_shards_of_the_former_format_load_with_a_remark(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(archive.shards, tmp_path / "former")
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 1}))
    for _ in range(2):
        assert len(ShardSet.open(folder)) == content["totals"]["windows"]
    assert [record.message.count("Do not share it") for record in caplog.records] == [1]


def test_index_offsets_give_the_bytes_tarfile_gives(archive: Archive) -> None:
    shards = ShardSet.open(archive.shards)
    for number in range(len(shards.manifest.shards)):
        path = shards.shard_path(number)
        rows = shards.index[shards.index["shard"] == number]
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert len(members) == 4 * len(rows)
            for place, row in enumerate(rows):
                for part, member in zip(shards.layout.parts, members[4 * place :], strict=False):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    data = path.read_bytes()[int(row["offset"]) + part.offset :][: part.num_bytes]
                    assert handle.read()[-part.num_bytes :] == data


def test_a_shard_has_one_split_and_its_records_in_path_order(archive: Archive) -> None:
    shards = ShardSet.open(archive.shards)
    by_key = {row["record_key"]: row for row in archive.catalog.iter_rows(named=True)}
    sources = [by_key[key.decode()] for key in shards.index["record_key"]]
    for number, entry in enumerate(shards.manifest.shards):
        rows = np.flatnonzero(shards.index["shard"] == number)
        assert {sources[row]["split"] for row in rows} <= {entry.split}
        assert entry.name.startswith(entry.split)
        paths = [sources[row]["record_path"] for row in rows]
        assert paths == sorted(paths)
        places = [(sources[row]["record_path"], shards.index["window"][row]) for row in rows]
        assert places == sorted(places), "windows of one record stand together, in order"
    for split in ("train", "val", "test"):
        rows = shards.rows(split)
        assert {sources[row]["split"] for row in rows} == {split}
    assert sum(len(shards.rows(split)) for split in ("train", "val", "test")) == len(shards)


def test_no_path_or_native_id_in_any_byte_of_the_shards(archive: Archive) -> None:
    for name, data in content(archive.shards).items():
        assert b"47110" not in data, name  # the start of every native patient id
        assert b"2019031" not in data, name
        assert str(archive.root).encode() not in data, name
    private = Path(f"{archive.shards}.private")
    assert b"47110" in (private / "rejects.csv").read_bytes()


def test_plan_does_not_depend_on_the_order_of_the_catalog(archive: Archive) -> None:
    piles = sort_catalog(archive.catalog)
    plan = plan_shards(piles.writable, seed=3, records_per_shard=6, shards_per_pool=256)
    shuffled = sort_catalog(archive.catalog.sample(fraction=1.0, shuffle=True, seed=1))
    again = plan_shards(shuffled.writable, seed=3, records_per_shard=6, shards_per_pool=256)
    assert [shard.digest for shard in plan] == [shard.digest for shard in again]
    assert shuffled.rejects.equals(piles.rejects)
    other = plan_shards(piles.writable, seed=4, records_per_shard=6, shards_per_pool=256)
    assert [shard.digest for shard in plan] != [shard.digest for shard in other]
    keys = pl.concat([shard.records for shard in plan])["record_key"]
    assert sorted(keys) == sorted(piles.writable["record_key"])
    for split in ("train", "val", "test"):
        sizes = {len(shard.records) for shard in plan if shard.split == split}
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 6


def test_pools_keep_the_reading_to_a_few_folders_and_every_record_once(
    archive: Archive, tmp_path: Path
) -> None:
    def folders_read(folder: Path, shards_per_pool: int) -> list[str]:
        read: list[str] = []

        def noting_read(path: str) -> EcgRecord:
            read.append(path.split("/")[0])
            return read_record(archive.root / path)

        chosen = shard_archive.options(shards_per_pool=shards_per_pool)
        shard_archive.build(
            archive.catalog, archive.root, folder, options=chosen, read_ecg=noting_read
        )
        return [name for name, _ in groupby(read)]

    throughout = folders_read(tmp_path / "throughout", 256)
    pooled = folders_read(tmp_path / "pooled", 2)
    assert content(tmp_path / "throughout") == content(archive.shards)
    assert len(pooled) < 0.6 * len(throughout)
    assert verify(tmp_path / "pooled").ok
    keys = []
    for name in ("throughout", "pooled"):
        shards = ShardSet.open(tmp_path / name)
        keys.append(
            sorted(
                (sample.record_key, sample.window, sample.ecg.tobytes())
                for sample in map(shards.read_sample, range(len(shards)))
            )
        )
    assert keys[0] == keys[1]


def test_second_build_makes_only_what_is_missing(archive: Archive, shards: Path) -> None:
    before = content(shards)
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    victim = shards / "train-000002.tar"
    victim.unlink()
    (shards / "train-000001.tar.partial-99").write_bytes(b"left by a killed writer")
    (shards / "manifest.json").unlink()
    read: list[str] = []

    def counting_read(path: str) -> Any:
        read.append(path)
        return read_record(archive.root / path)

    shard_archive.build(archive.catalog, archive.root, shards, read_ecg=counting_read)
    assert content(shards) == before
    assert 0 < len(read) <= 6
    for name, mtime in kept.items():
        assert (shards / name).stat().st_mtime_ns == mtime or name == victim.name


@pytest.mark.parametrize(
    ("check_sha256", "repaired"), [(True, True), (False, False)], ids=["sha256", "size only"]
)
def test_changed_shard_is_rebuilt_when_sha256_is_asked_for(
    archive: Archive, shards: Path, check_sha256: bool, repaired: bool
) -> None:
    before = content(shards)
    path = shards / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    chosen = shard_archive.options(check_sha256=check_sha256)
    shard_archive.build(archive.catalog, archive.root, shards, options=chosen)
    assert (content(shards) == before) is repaired


def test_killed_build_resumes_to_identical_bytes(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    units = Path(f"{folder}.private") / "units"
    moments = random.Random(11)
    kills = 0
    while kills < 3:
        already = len(list(units.glob("*.json"))) if units.exists() else 0
        process = subprocess.Popen([*DRIVER, str(archive.root), str(folder)])
        # Wait until it is building, then strike at a moment that is not of our choosing.
        while process.poll() is None and not any(folder.glob("*partial*")):
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # a busy machine: it was done before the blow fell
            for path in folder.glob("train-*"):
                path.unlink()
            (folder / "manifest.json").unlink()
            continue
        assert process.returncode == -signal.SIGKILL
        assert len(list(units.glob("*.json"))) >= already, "a kill loses no finished shard"
        if not (folder / "manifest.json").exists():
            with pytest.raises(UserError, match="build was not finished"):
                ShardSet.open(folder)
        kills += 1
    subprocess.run([*DRIVER, str(archive.root), str(folder)], check=True)
    assert content(folder) == content(archive.shards)
    assert Path(f"{folder}.private/rejects.csv").read_bytes() == (
        Path(f"{archive.shards}.private/rejects.csv").read_bytes()
    )


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    process = subprocess.Popen(
        [*DRIVER, str(archive.root), str(folder)], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not any(folder.glob("*.tar")):
        time.sleep(0.0005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    assert not list(folder.glob("*partial*"))
    shard_archive.build(archive.catalog, archive.root, folder)
    assert content(folder) == content(archive.shards)


def test_full_disk_leaves_nothing_half_written_and_says_so(
    archive: Archive, tmp_path: Path
) -> None:
    folder = tmp_path / "shards"
    result = subprocess.run(
        [*DRIVER, str(archive.root), str(folder), '{"max_file_bytes": 100000}'],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Cannot write" in result.stderr
    assert "Free space" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(folder.iterdir())
    shard_archive.build(archive.catalog, archive.root, folder)
    assert content(folder) == content(archive.shards)


def test_truncated_or_damaged_files_are_rebuilt(archive: Archive, shards: Path) -> None:
    before = content(shards)
    for name in before:
        path = shards / name
        path.write_bytes(path.read_bytes()[:-700])
        shard_archive.build(archive.catalog, archive.root, shards)
        assert content(shards) == before, name


@pytest.mark.parametrize("kind", ["*.json", "*.index.npy"])
def test_damaged_unit_records_are_not_trusted(archive: Archive, shards: Path, kind: str) -> None:
    before = content(shards)
    for path in Path(f"{shards}.private/units").glob(kind):
        path.write_bytes(path.read_bytes()[:-9])
    shard_archive.build(archive.catalog, archive.root, shards)
    assert content(shards) == before


def test_two_builds_at_once_are_refused(archive: Archive, shards: Path) -> None:
    def build_again(path: str) -> Any:
        with pytest.raises(UserError, match="Another process is building"):
            shard_archive.build(archive.catalog, archive.root, shards)
        return read_record(archive.root / path)

    (shards / "val-000000.tar").unlink()
    shard_archive.build(archive.catalog, archive.root, shards, read_ecg=build_again)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"profile": shard_archive.profile(lead_aliases={})}, "signal_build"),
        ({"vocabulary": Vocabulary.load("ptbxl_all71")}, "vocabulary"),
        ({"split": PatientSplit(seed=9)}, "split"),
        ({"secret": Secret(bytes(32))}, "secret"),
        ({"source_name": "other"}, "source"),
        ({"options": shard_archive.options(seed=8)}, "build.seed"),
        ({"options": shard_archive.options(records_per_shard=7)}, "build.records_per_shard"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("lost", ["nothing", "manifest", "private"])
def test_shards_of_other_settings_are_never_mixed(
    archive: Archive, shards: Path, change: dict[str, Any], named: str, lost: str
) -> None:
    if lost == "manifest":
        (shards / "manifest.json").unlink()
    if lost == "private":
        shutil.rmtree(f"{shards}.private")
    before = content(shards)
    with pytest.raises(UserError, match=f"built with another .*{named}"):
        shard_archive.build(archive.catalog, archive.root, shards, **change)
    assert content(shards) == before


def test_another_catalog_is_not_mixed_in(archive: Archive, shards: Path) -> None:
    with pytest.raises(UserError, match="another catalog"):
        shard_archive.build(archive.catalog[:-3], archive.root, shards)


def test_tars_of_unknown_origin_are_not_overwritten(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-000000.tar").write_bytes(b"somebody else's")
    with pytest.raises(UserError, match="has no record"):
        shard_archive.build(archive.catalog, archive.root, tmp_path / "shards")
    assert (tmp_path / "shards" / "train-000000.tar").read_bytes() == b"somebody else's"


def test_too_many_rejects_of_one_reason_stop_the_build(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    strict = shard_archive.options(min_rejects=2, max_reject_share_by_reason={"too_short": 0.03})
    with pytest.raises(UserError, match=r"rejected as too_short.*max_reject_share_by_reason"):
        shard_archive.build(archive.catalog, archive.root, folder, options=strict)
    assert not (folder / "manifest.json").exists()
    assert "too_short" in Path(f"{folder}.private/rejects.csv").read_text()
    shard_archive.build(archive.catalog, archive.root, folder)
    assert content(folder) == content(archive.shards)


def test_mended_records_are_written_when_rejects_are_retried(
    archive: Archive, tmp_path: Path
) -> None:
    root, folder = tmp_path / "archive", tmp_path / "shards"
    shutil.copytree(archive.root, root)
    victim = root / f"{archive.catalog['record_path'][15]}.hea"
    text = victim.read_bytes()
    victim.unlink()
    chosen = shard_archive.options(retry_rejected=True)
    before = shard_archive.build(archive.catalog, root, folder)
    assert before.totals.rejected["missing_header"] == 4
    victim.write_bytes(text)
    shard_archive.build(archive.catalog, root, folder, options=chosen)
    assert content(folder) == content(archive.shards)


def test_vanished_archive_is_not_put_on_record_as_rejects(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not mounted"):
        shard_archive.build(archive.catalog, tmp_path / "nowhere", tmp_path / "shards")
    assert not any(Path(f"{tmp_path / 'shards'}.private/units").iterdir())


def test_nothing_to_write_says_why(archive: Archive, tmp_path: Path) -> None:
    kinds = pl.int_range(pl.len()) % 20
    useless = archive.catalog.filter(kinds.is_in([2, 3, 6]))
    with pytest.raises(UserError, match=r"Nothing to write: of 9 .* 3 have no .* 6 are rejected"):
        shard_archive.build(useless, archive.root, tmp_path / "shards")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"record_per_shard": 5}, "records_per_shard"),
        ({"records_per_shard": 0}, "at least 1"),
        ({"max_reject_share": 20.0}, "at least 0 and at most 1"),
        ({"max_reject_share_by_reason": {"to_short": 0.1}}, "too_short"),
        ({"max_reject_share_by_reason": {"too_short": "all"}}, "between 0 and 1"),
        ({"max_reject_share_by_reason": 0.1}, "max_reject_share_by_reason=0.1"),
        ({"shards_per_pool": 0}, "at least 1"),
    ],
)
def test_wrong_options_name_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BuildOptions.from_config(config)


def test_default_config_is_valid_and_complete() -> None:
    config = compose_config("prepare", ["shards=x", "source.root=x"])["build"]
    options = BuildOptions.from_config(config)
    assert set(config) == set(BuildOptions.__dataclass_fields__)
    assert set(options.max_reject_share_by_reason) <= set(RejectReason)


@pytest.mark.real_data
def test_real_records_are_all_written_or_explained(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "cinc2021"
    config = {"name": "wfdb_folder", "root": str(root), "site_from_folder": True}
    vocabulary = Vocabulary.load("cinc2021")
    catalog = build_catalog(
        open_source(config).read(),
        vocabulary,
        shard_archive.SECRET,
        shard_archive.SPLIT,
        source_name="cinc2021",
    )
    folder = tmp_path / "shards"
    manifest = shard_archive.build(
        catalog.frame, root, folder, vocabulary=vocabulary, options=BuildOptions()
    )
    totals = manifest.totals
    assert totals.found == len(list(root.rglob("*.hea")))
    assert totals.written >= 0.95 * totals.found, totals
    assert totals.windows > totals.written  # some last longer than 10 s
    report = verify(folder)
    assert report.ok, report
