"""Damaged and hostile tars, manifests, indexes and plans: named, never a crash, never a hang.

A few hundred mutations by default, at least 5,000 with ECG_TEST_TIER=all.
"""

import io
import json
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shard_archive
from shard_archive import Archive

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet, rebuild, verify
from ecgfounder_train.shards.increments import read_plan
from ecgfounder_train.shards.sample import BadTarError, parse_tar_header

ALL = os.environ.get("ECG_TEST_TIER") == "all"
MUTATIONS = 1500 if ALL else 80
"""Of each of four kinds of file."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to four changes of the kinds that happen to files."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        position = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(8):
            case 0:
                changed[position : position + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[position : position + rng.choice((1, 7, 512, 5000))]
            case 2:
                changed[position:position] = rng.randbytes(rng.choice((1, 9, 512)))
            case 3:
                del changed[position:]
            case 4:
                length = rng.choice((4, 512, 3000))
                changed[position : position + length] = bytes(min(length, len(changed) - position))
            case 5:
                source = rng.randrange(len(changed)) if changed else 0
                changed[position : position + 512] = changed[source : source + 512]
            case 6:
                for text in (b"-1", b"1e400", b"null", b"[]", b"../../x", b"\xff\xfe", b"9" * 30):
                    if rng.random() < 0.3:
                        changed[position : position + len(text)] = text
            case 7:
                # Tar headers: the first 512 bytes of a block.
                block = position // 512 * 512 + rng.choice((0, 100, 124, 148, 156, 157, 257, 345))
                changed[block : block + 1] = bytes([rng.choice((0x30, 0x32, 0x35, 0x78, 0xFF, 0))])
    return bytes(changed)


def look(folder: Path) -> bool:
    """Do all that reads a folder of shards; return whether anything was found wrong.

    Any error but a UserError fails the test.
    """
    report = verify(folder)
    found = not report.ok
    assert all(file and message for file, message in report.findings)
    try:
        shards = ShardSet.open(folder)
        for row in range(len(shards)):
            shards.read_sample(row)
    except UserError as error:
        assert str(error)
        return True
    return found


@pytest.fixture
def small(archive: Archive, tmp_path: Path) -> Path:
    """A folder of one shard per part, quick to read."""
    folder = tmp_path / "small"
    shard_archive.build(
        archive.catalog[8:16],
        archive.root,
        folder,
        options=shard_archive.options(records_per_shard=8, max_reject_share=1.0),
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train-000000.tar", "manifest.json", "index.npy"])
def test_mutated_files_are_named_and_nothing_crashes(small: Path, name: str) -> None:
    path = small / name
    whole = path.read_bytes()
    unnoticed = 0
    for seed in range(MUTATIONS):
        data = mutated(whole, random.Random(f"{name}{seed}"))
        path.write_bytes(data)
        if not look(small):
            unnoticed += data != whole
    # A manifest may change in places that say nothing about the samples; sums guard the others.
    assert unnoticed == 0 or (name == "manifest.json" and unnoticed < MUTATIONS / 4)


def test_mutated_plans_and_units_cost_a_rebuild_at_most(archive: Archive, small: Path) -> None:
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    private = Path(f"{small}.private")
    files = [private / "plan.parquet", *sorted((private / "units").iterdir())]
    kept = {path: path.read_bytes() for path in files}
    chosen = shard_archive.options(records_per_shard=8, max_reject_share=1.0)
    for seed in range(MUTATIONS // 4):
        rng = random.Random(seed)
        path = rng.choice(files)
        path.write_bytes(mutated(kept[path], rng))
        try:
            shard_archive.build(archive.catalog[8:16], archive.root, small, options=chosen)
        except UserError as error:
            assert path.name == "plan.parquet"
            assert "plan" in str(error) or "catalog" in str(error), error
            path.write_bytes(kept[path])
        assert {path.name: path.read_bytes() for path in small.iterdir()} == before, seed


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "value", [None, -1, 1e308, True, "x" * 1000, [], {}, "../../etc", [[[]]], "\u0000"]
)
def test_every_value_of_a_manifest_may_be_nonsense(small: Path, value: Any) -> None:
    path = small / "manifest.json"
    whole = path.read_text()
    content = json.loads(whole)
    places: list[tuple[Any, ...]] = [(key,) for key in content]
    places += [(key, inner) for key in content for inner in _keys(content[key])]
    places += [("shards", 0, key) for key in content["shards"][0]]
    places += [("increments", 0, key) for key in content["increments"][0]]
    for place in places:

        def change(target: Any, place: tuple[Any, ...] = place) -> None:
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = value

        path.write_text(whole)
        change_json(path, change)
        found = look(small)
        # What describes the bytes of a shard cannot be nonsense unnoticed.
        assert found or place[:2] != ("shards", 0), (place, value)


def _keys(value: Any) -> list[Any]:
    return (
        list(value)
        if isinstance(value, dict)
        else list(range(min(len(value), 1)))
        if isinstance(value, list)
        else []
    )


HOSTILE = {
    "absolute path": lambda info: setattr(info, "name", "/etc/cron.d/x.ecg.npy"),
    "parent path": lambda info: setattr(info, "name", "../../x.ecg.npy"),
    "inner parent path": lambda info: setattr(info, "name", "a/../../x.ecg.npy"),
    "symbolic link": lambda info: (
        setattr(info, "type", tarfile.SYMTYPE),
        setattr(info, "linkname", "/etc/passwd"),
    ),
    "hard link": lambda info: (
        setattr(info, "type", tarfile.LNKTYPE),
        setattr(info, "linkname", "/etc/passwd"),
    ),
    "device": lambda info: setattr(info, "type", tarfile.CHRTYPE),
    "pipe": lambda info: setattr(info, "type", tarfile.FIFOTYPE),
    "folder": lambda info: setattr(info, "type", tarfile.DIRTYPE),
    "pickle": lambda info: setattr(info, "name", "a" * 32 + "_w0.pickle"),
    "pickled decoder": lambda info: setattr(info, "name", "a" * 32 + "_w0.pyd"),
    "huge": lambda info: setattr(info, "size", 1 << 32),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tar_members_are_refused(small: Path, kind: str) -> None:
    path = small / "train-000000.tar"
    info = tarfile.TarInfo("a" * 32 + "_w0.ecg.npy")
    HOSTILE[kind](info)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(header + path.read_bytes()[512:])
    report = verify(small)
    assert any(
        name == path.name and message.startswith("sample 0:") for name, message in report.findings
    )
    with pytest.raises(UserError, match="damaged at byte 0"):
        ShardSet.open(small).read_sample(0)
    assert rebuild(small, "damaged") == (path.name,)
    assert verify(small).ok


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_pickles_are_never_opened(small: Path, tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    bomb = Bomb(mark)
    np.save(small / "index.npy", np.array([bomb], dtype=object), allow_pickle=True)
    assert look(small)
    shutil.copy(small / "index.npy", Path(f"{small}.private/units/train-000000.index.npy"))
    payload = io.BytesIO()
    np.save(payload, np.array([bomb], dtype=object), allow_pickle=True)
    path = small / "train-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:512] + payload.getvalue() + data[512 + len(payload.getvalue()) :])
    assert look(small)
    path.write_bytes(pickle.dumps(bomb))
    assert look(small)
    assert not mark.exists()


def test_any_512_bytes_are_a_header_or_an_error() -> None:
    whole = tarfile.TarInfo("x.ecg.npy").tobuf(tarfile.USTAR_FORMAT)
    for seed in range(50 * MUTATIONS):
        data = mutated(whole, random.Random(seed))[:512]
        try:
            name, size = parse_tar_header(data)
        except BadTarError:
            continue
        assert size >= 0
        assert not name.startswith("/") and ".." not in name.split("/")


def test_damaged_plan_gives_an_error_with_a_remedy(small: Path) -> None:
    path = Path(f"{small}.private/plan.parquet")
    whole = path.read_bytes()
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(whole, random.Random(seed)))
        try:
            read_plan(path.parent)
        except UserError as error:
            assert "Restore it" in str(error)
