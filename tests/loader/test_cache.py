"""Shards behind S3, HTTP or a slow file system: whole copies, checked, within a bound, shared."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import cache as cache_module
from ecgfounder_train.loader.batches import EvaluationBatches, RankShape, TrainingBatches
from ecgfounder_train.loader.cache import CachedShardSet, ShardCache, _locked, open_shards
from ecgfounder_train.loader.epoch_plan import BlockPlan, EpochPlan, Position
from ecgfounder_train.loader.order import create_plan, look_ahead, look_ahead_in_order
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import SplitRows
from ecgfounder_train.shards import BuildOptions, ShardSet


class _Quiet(SimpleHTTPRequestHandler):
    """A server without ranges, as python -m http.server is."""

    def log_message(self, *arguments: object) -> None:
        pass


class _Ranged(_Quiet):
    """A server that answers ranges and asks for a whole file in pieces of unknown number."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if asked := self.headers.get("Range"):
            first, last = (int(part or -1) for part in asked.removeprefix("bytes=").split("-"))
            piece = content[first : last + 1 if last >= 0 else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(piece)))
            self.end_headers()
            self.wfile.write(piece)
            return
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(content), 100_000):
            piece = content[start : start + 100_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


class _Failing(_Quiet):
    """A server whose answers to requests for shards are, in this order, those of `faults`."""

    faults: ClassVar[list[str]] = []
    requests: ClassVar[list[str]] = []

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = bytearray(source.read())
        if self.path.endswith(".tar"):
            self.requests.append(self.path)
            fault = self.faults.pop(0) if self.faults else ""
            if fault == "flip":
                content[len(content) // 2] ^= 1
            elif fault == "cut":
                del content[len(content) // 2 :]  # the connection closes too early
        outputfile.write(content)

    def do_GET(self) -> None:
        if self.path.endswith(".tar") and self.faults and self.faults[0].isdigit():
            self.requests.append(self.path)
            self.send_error(int(self.faults.pop(0)))
            return
        super().do_GET()


@contextmanager
def served(folder: Path, handler: type[_Quiet] = _Quiet) -> Iterator[str]:
    """Serve a folder over HTTP on this machine; yields its URL."""
    handle = partial(handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handle) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def many_shards(tiny_set: Any, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The tiny set in thirty shards instead of ten."""
    import tiny_set as tiny

    folder = tmp_path_factory.mktemp("many") / "shards"
    options = BuildOptions(records_per_shard=4, seed=3)
    return tiny.build(tiny_set.catalog, tiny_set.root, folder, options=options)


@pytest.fixture
def http_url(tiny_shards: ShardSet) -> Iterator[str]:
    with served(tiny_shards.folder) as url:
        yield url


@pytest.fixture
def ranged_url(tiny_shards: ShardSet) -> Iterator[str]:
    with served(tiny_shards.folder, _Ranged) as url:
        yield url


@pytest.fixture
def failing_url(tiny_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    _Failing.faults.clear()
    _Failing.requests.clear()
    from ecgfounder_train.loader import cache

    monkeypatch.setattr(cache.time, "sleep", lambda seconds: None)
    with served(tiny_shards.folder, _Failing) as url:
        yield url


@pytest.fixture
def s3_url(tiny_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store = fsspec.filesystem("s3")
    store.mkdir("shards")
    store.put(f"{tiny_shards.folder}/", "shards/tiny/", recursive=True)
    yield "s3://shards/tiny"
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def largest(shards: ShardSet) -> int:
    return max(entry.bytes for entry in shards.manifest.shards)


def opened(location: Path | str, cache: Path, num_bytes: float = 1e9) -> CachedShardSet:
    shards = open_shards(location, cache, num_bytes)
    assert isinstance(shards, CachedShardSet)
    return shards


def copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*.tar*"))


@pytest.mark.parametrize("kind", ["http_url", "ranged_url", "s3_url", "folder"])
def test_samples_from_afar_are_those_of_the_shards(
    kind: str, tiny_shards: ShardSet, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    location = tiny_shards.folder if kind == "folder" else request.getfixturevalue(kind)
    shards = opened(location, tmp_path)
    assert shards.manifest == tiny_shards.manifest
    assert shards.index.tobytes() == tiny_shards.index.tobytes()
    rows = np.random.default_rng(0).permutation(len(shards))
    mine, theirs = SampleReader(shards).read(rows), SampleReader(tiny_shards).read(rows)
    assert (mine.ecg == theirs.ecg).all() and (mine.stats == theirs.stats).all()
    assert shards.cache.num_fetched == len(shards.manifest.shards)
    assert copies(tmp_path) == sorted(entry.name for entry in shards.manifest.shards)
    # Once more, in another process of the node or after a restart: nothing is fetched again.
    again = opened(location, tmp_path)
    SampleReader(again).read(rows[:50])
    assert again.cache.num_fetched == 0
    assert shards.read_sample(3).xxh3 == tiny_shards.read_sample(3).xxh3


def test_url_without_a_cache_says_what_to_set(http_url: str) -> None:
    with pytest.raises(UserError, match=r"Set data\.cache_dir"):
        open_shards(http_url)


def test_wrong_url_is_named(http_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*elsewhere/manifest\.json"):
        open_shards(f"{http_url}/elsewhere", tmp_path)


def test_shard_that_is_not_the_manifests_is_never_used(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards.folder, tmp_path / "far")
    for number, damage in enumerate(("flip", "cut", "gone")):
        path = tmp_path / "far" / tiny_shards.manifest.shards[number].name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        if damage != "gone":
            path.write_bytes(content if damage == "flip" else content[:-512])
    shards = opened(tmp_path / "far", tmp_path / "near")
    shards.cache.attempts = 1
    starts = np.cumsum([0, *(entry.num_samples for entry in shards.manifest.shards)])
    for number, reason in enumerate(("SHA-256", "bytes where the manifest", "no such file")):
        with pytest.raises(UserError, match=rf"{shards.manifest.shards[number].name}.*{reason}"):
            SampleReader(shards).read(starts[number : number + 1])
    assert copies(tmp_path / "near") == []
    read = SampleReader(shards, on_bad_sample="quarantine").read(starts[:5])
    assert read.bad == [0, 1, 2] and read.ecg[3].any()


@pytest.mark.parametrize("fault", ["flip", "cut", "503", "429"])
def test_shard_that_comes_damaged_or_not_at_all_is_fetched_again(
    fault: str, failing_url: str, tmp_path: Path
) -> None:
    _Failing.faults.append(fault)
    shards = opened(failing_url, tmp_path)
    assert SampleReader(shards).read(np.array([0])).ecg.any()
    assert len(_Failing.requests) == 2 and shards.cache.num_fetched == 1


def test_shard_that_always_comes_damaged_is_named_after_three_tries(
    failing_url: str, tmp_path: Path
) -> None:
    _Failing.faults += ["flip"] * 9
    shards = opened(failing_url, tmp_path)
    name = shards.manifest.shards[0].name
    for _ in range(2):  # once lost, nobody asks again
        with pytest.raises(UserError, match=rf"{name}: its SHA-256 is not the manifest's"):
            SampleReader(shards).read(np.array([0]))
    assert len(_Failing.requests) == 3 and copies(tmp_path) == []


def test_shard_that_is_refused_is_not_asked_for_again(failing_url: str, tmp_path: Path) -> None:
    _Failing.faults += ["403"] * 9
    with pytest.raises(UserError, match=r"403.*Check the store"):
        SampleReader(opened(failing_url, tmp_path)).read(np.array([0]))
    assert len(_Failing.requests) == 1


def test_store_out_of_reach_is_given_up_at_last(
    failing_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecgfounder_train.loader import cache

    _Failing.faults += ["503"] * 9
    monkeypatch.setattr(cache, "_OUTAGE_S", 0.0)
    with pytest.raises(UserError, match=r"Cannot fetch shard .*503"):
        SampleReader(opened(failing_url, tmp_path)).read(np.array([0]))


def test_transient_failure_is_tried_again(
    tiny_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = opened(tiny_shards.folder, tmp_path)
    from ecgfounder_train.loader import cache

    original, failures = cache._open_remote, iter([TimeoutError("slow"), OSError("reset")])

    def flaky(url: str) -> object:
        for error in failures:
            raise error
        return original(url)

    monkeypatch.setattr(cache, "_open_remote", flaky)
    monkeypatch.setattr(cache.time, "sleep", lambda seconds: None)
    assert SampleReader(shards).read(np.array([0])).ecg.any()


def test_cache_stays_within_its_bound_and_keeps_what_was_used_last(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shards = opened(tiny_shards.folder, tmp_path, 3 * largest(tiny_shards))
    for number in range(len(shards.manifest.shards)):
        os.close(shards.cache.open(0))  # used again and again
        os.utime(shards.cache.path(0))
        os.close(shards.cache.open(number))
        used = bytes_in(tmp_path)
        assert used <= shards.cache.max_bytes
    assert shards.manifest.shards[0].name in copies(tmp_path)
    assert shards.cache.num_fetched == len(shards.manifest.shards)


def test_copy_in_use_is_never_evicted(tiny_shards: ShardSet, tmp_path: Path) -> None:
    bound = 2 * largest(tiny_shards)
    shards = opened(tiny_shards.folder, tmp_path, bound)
    other = opened(tiny_shards.folder, tmp_path, bound)
    held = other.cache.open(0)
    for number in range(1, len(shards.manifest.shards)):
        os.close(shards.cache.open(number))
    assert shards.manifest.shards[0].name in copies(tmp_path)
    second = other.cache.open(1)
    # Both places are taken now; no bound is broken and nothing is torn away.
    assert shards.cache._try_open(2) is None
    os.close(held)
    third = shards.cache._try_open(2)
    assert third is not None and shards.manifest.shards[0].name not in copies(tmp_path)
    os.close(second)
    os.close(third)


def test_leftover_of_a_killed_fetch_is_fetched_again(tiny_shards: ShardSet, tmp_path: Path) -> None:
    shards = opened(tiny_shards.folder, tmp_path)
    path = shards.cache.path(0)
    path.with_name(path.name + ".partial").write_bytes(b"x" * 10_000_000)
    assert SampleReader(shards).read(np.array([0])).ecg.any()
    assert copies(tmp_path) == [path.name]


def test_cache_smaller_than_a_shard_is_refused(tiny_shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold one shard"):
        opened(tiny_shards.folder, tmp_path, 10)


def test_cache_that_cannot_be_a_folder_is_named(tiny_shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir=.*file cannot be written: "):
        opened(tiny_shards.folder, tmp_path / "file")


def _read_all(location: str, cache: str, seed: int, results: "multiprocessing.Queue[int]") -> None:
    shards = open_shards(location, cache)
    assert isinstance(shards, CachedShardSet)
    rows = np.random.default_rng(seed).permutation(len(shards))
    assert not SampleReader(shards).read(rows).bad
    results.put(shards.cache.num_fetched)


@pytest.mark.multiprocess
def test_ranks_of_a_node_fetch_each_shard_once(tiny_shards: ShardSet, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    ranks = [
        context.Process(
            target=_read_all, args=(str(tiny_shards.folder), str(tmp_path), seed, results)
        )
        for seed in range(3)
    ]
    for rank in ranks:
        rank.start()
    fetched = sum(results.get(timeout=120) for _ in ranks)
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert fetched == len(list(tmp_path.glob("*/*.tar")))


def bytes_in(cache: Path) -> int:
    """Size of all copies, those under way included, while nobody makes room for one."""
    total = 0
    with _locked(cache / ".lock"):
        for path in cache.glob("*/*.tar*"):
            with suppress(FileNotFoundError):  # one for which there was no room
                total += path.stat().st_size
    return total


def block_batches(
    shards: ShardSet, rank: int = 0, world_size: int = 1
) -> tuple[BlockPlan, TrainingBatches]:
    rows = SplitRows.of(shards, "train")
    plan = create_plan(shards, rows, 0, global_batch_size=6)
    assert isinstance(plan, BlockPlan)
    assert isinstance(shards, CachedShardSet)
    return plan, TrainingBatches(
        SampleReader(shards),
        rows,
        plan,
        RankShape(6 // world_size, 1, rank, world_size),
        Position(),
        3 * plan.num_samples,
        on_slot=look_ahead(shards, plan, rows, 6),
    )


def test_small_cache_takes_block_order_and_fetches_a_shard_once_per_epoch(
    many_shards: ShardSet, tmp_path: Path
) -> None:
    bound = 10 * largest(many_shards)
    shards = opened(many_shards.folder, tmp_path, bound)
    plan, batches = block_batches(shards)
    assert plan.block_shards == 2 and len(plan.shard_sizes) > 12
    most = 0
    seen: dict[int, list[int]] = {}
    for batch in batches:
        rows = batch["rows"][batch["present"]]
        assert torch.equal(
            batch["ecg"][batch["present"]],
            torch.from_numpy(SampleReader(many_shards).read(rows.numpy()).ecg),
        )
        seen.setdefault(batch["epoch"], []).extend(rows.tolist())
        most = max(most, bytes_in(tmp_path))
    assert most <= bound
    for rows_of_epoch in seen.values():
        assert sorted(rows_of_epoch) == many_shards.rows("train").tolist()
    assert list(seen) == [0, 1, 2]
    # Three epochs, and the first block of the fourth, to which one looks ahead. Fewer where an
    # epoch begins with what the one before ended with.
    num_train = len(plan.shard_sizes)
    assert 2 * num_train < shards.cache.num_fetched <= 3 * num_train + 2
    shards.cache.close()


def _train_through(
    url: str, cache: str, num_bytes: int, rank: int, results: "multiprocessing.Queue[Any]"
) -> None:
    shards = open_shards(url, cache, num_bytes)
    assert isinstance(shards, CachedShardSet)
    seen: list[tuple[int, int]] = []
    most = 0
    for batch in block_batches(shards, rank, 2)[1]:
        seen += [(batch["epoch"], row) for row in batch["rows"][batch["present"]].tolist()]
        most = max(most, bytes_in(Path(cache)))
    shards.cache.close()
    results.put((seen, shards.cache.num_fetched, most))


@pytest.mark.multiprocess
def test_two_ranks_share_a_cache_smaller_than_the_set(
    many_shards: ShardSet, tmp_path: Path
) -> None:
    bound = 10 * largest(many_shards)
    assert bound < sum(entry.bytes for entry in many_shards.manifest.shards) / 2
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[Any] = context.Queue()
    with served(many_shards.folder) as url:
        ranks = [
            context.Process(target=_train_through, args=(url, str(tmp_path), bound, rank, results))
            for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        parts = [results.get(timeout=240) for _ in ranks]
        for rank in ranks:
            rank.join(60)
            assert rank.exitcode == 0
    rows = many_shards.rows("train").tolist()
    assert sorted(parts[0][0] + parts[1][0]) == [(epoch, row) for epoch in range(3) for row in rows]
    assert max(most for _, _, most in parts) <= bound
    # Each shard about once per epoch for both; a rank far ahead of the other may fetch some again.
    num_train = len([entry for entry in many_shards.manifest.shards if entry.split == "train"])
    assert sum(fetched for _, fetched, _ in parts) <= 2 * 3 * num_train


def test_order_is_global_where_the_cache_holds_all(tiny_shards: ShardSet, tmp_path: Path) -> None:
    rows = SplitRows.of(tiny_shards, "train")
    plain = create_plan(tiny_shards, rows, 0, global_batch_size=8)
    assert plain.name == "global"
    large = opened(tiny_shards.folder, tmp_path / "large")
    assert create_plan(large, rows, 0, global_batch_size=8) == plain
    small = opened(tiny_shards.folder, tmp_path / "small", 6 * largest(tiny_shards))
    with pytest.raises(UserError, match=r"data.order=global needs .* data.cache_bytes"):
        create_plan(small, rows, 0, order="global", global_batch_size=8)
    with pytest.raises(UserError, match=r"lower data\.block_shards"):
        create_plan(small, rows, 0, order="shard_blocks", block_shards=3, global_batch_size=8)
    with pytest.raises(UserError, match=r"fewer than data\.global_batch_size=64"):
        create_plan(small, rows, 0, global_batch_size=64)


def test_evaluation_through_a_small_cache_covers_the_split(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shards = opened(tiny_shards.folder, tmp_path, 3 * largest(tiny_shards))
    rows = SplitRows.of(shards, "val")
    seen = [
        row
        for batch in EvaluationBatches(
            SampleReader(shards),
            rows,
            RankShape(4),
            on_slot=look_ahead_in_order(shards, "val", 4),
        )
        for row in batch["rows"][batch["present"]].tolist()
    ]
    assert seen == tiny_shards.rows("val").tolist()
    shards.cache.close()


def test_closed_cache_lets_go_of_its_files(tiny_shards: ShardSet, tmp_path: Path) -> None:
    shards = opened(tiny_shards.folder, tmp_path)
    shards.cache.want("train", [0, 1, 2])
    wait_for(lambda: len(shards.cache._held) == 3)
    shards.cache.want("train", [2])
    assert list(shards.cache._held) == [2]
    assert shards.cache.is_wanted(2) and not shards.cache.is_wanted(0)
    shards.cache.close()
    assert not shards.cache._held and isinstance(shards.cache, ShardCache)


class _Compared(int):
    """A number that counts how often such numbers are compared."""

    count: ClassVar[int] = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        type(self).count += 1
        return int(self) == other


def test_asking_for_every_open_file_is_not_quadratic_in_the_shards(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    cache = opened(tiny_shards.folder, tmp_path).cache
    cache._thread = threading.Thread()  # nobody fetches them
    cache.want("train", [_Compared(number) for number in range(1000)])
    assert all(cache.is_wanted(number) for number in range(1000))
    assert not cache.is_wanted(1000)
    assert _Compared.count <= 5000


def wait_for(condition: object) -> None:
    import time

    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _altered_store(shards: ShardSet, tmp_path: Path, changes: dict[str, Any], body: bytes) -> Path:
    """Return a folder whose manifest is altered and whose files of other names hold `body`."""
    folder = tmp_path / "store"
    folder.mkdir()
    content = json.loads((shards.folder / "manifest.json").read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (folder / "manifest.json").write_text(json.dumps(content))
    (folder / "index.npy").write_bytes(body)
    return folder


@pytest.mark.parametrize("name", ["/{victim}", "../../{victim}", "manifest.json", ".lock", "a/b"])
@pytest.mark.parametrize("right_digest", [True, False])
def test_store_cannot_name_another_file_as_its_index(
    tiny_shards: ShardSet, tmp_path: Path, name: str, right_digest: bool
) -> None:
    victim, body = tmp_path / "victim", b"rm -rf ~\n"
    victim.write_text("mine")
    named = name.format(victim=str(victim).lstrip("/") if name.startswith("/") else "victim")
    digest = hashlib.sha256(body).hexdigest() if right_digest else "0" * 64
    entry = {"name": named, "bytes": len(body), "sha256": digest}
    folder = _altered_store(tiny_shards, tmp_path, {"index": entry}, body)
    with (
        served(folder, _Quiet) as url,
        pytest.raises(UserError, match="index name"),
    ):
        opened(url, tmp_path / "cache" / "deep")
    assert victim.read_text() == "mine"


def test_index_of_a_wrong_digest_never_takes_the_name(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    body = bytes(tiny_shards.manifest.index.bytes)
    folder = _altered_store(tiny_shards, tmp_path, {}, body)
    with pytest.raises(UserError, match="not the index that the manifest states"):
        opened(folder, tmp_path / "cache")
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(left) == [".lock", "manifest.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": {"bytes": 10**15}}, "the shards' .* samples take"),
        ({"num_samples": 10**9}, "no shape"),
        ({"num_samples": 10**4}, "samples take"),
        ({"leads": ["I"] * 17}, "17 leads"),
        ({"sites": [1]}, "not all text"),
        ({"fs": "fast"}, "fs is"),
        ({"vocabulary": {"labels": ["a"] * 10_001}}, "10,001 labels"),
        ({"totals": {"found": -1}}, "found is -1"),
        ({"shards": 7}, "not iterable"),
        ({"sites": None}, "not iterable"),
    ],
)
def test_sizes_of_a_store_are_compared_before_anything_is_fetched(
    tiny_shards: ShardSet, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = _altered_store(tiny_shards, tmp_path, changes, b"")
    with pytest.raises(UserError, match=message):
        opened(folder, tmp_path / "cache")


def test_endless_manifest_is_not_read_to_its_end(
    tiny_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfounder_train.loader.cache.MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(UserError, match="larger than 1,000 bytes"):
        opened(tiny_shards.folder, tmp_path / "cache")


def test_two_shards_of_one_name_are_refused(tiny_shards: ShardSet, tmp_path: Path) -> None:
    entries = [dict(vars(entry)) for entry in tiny_shards.manifest.shards]
    entries[1] = entries[0]
    folder = _altered_store(tiny_shards, tmp_path, {"shards": entries}, b"")
    with pytest.raises(UserError, match="two shards have the same name"):
        opened(folder, tmp_path / "cache")


def test_full_cache_disk_is_named_and_no_shard_counts_as_lost(
    tiny_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = opened(tiny_shards.folder, tmp_path / "cache")

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    reader = SampleReader(shards, on_bad_sample="quarantine")
    for _ in range(2):
        with pytest.raises(UserError, match=r"data\.cache_dir=.*No space left on device"):
            reader.read(shards.rows("train")[:1])
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_cache_of_exactly_the_needed_size_serves_a_validation_batch_of_many_shards(
    many_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 10.0)
    num_val = len(many_shards.rows("val"))
    options: dict[str, Any] = {"order": "shard_blocks", "block_shards": 2}
    options["global_batch_size"] = 6

    def plan_of(shards: CachedShardSet) -> EpochPlan:
        return create_plan(shards, SplitRows.of(shards, "train"), 0, **options)

    small = opened(many_shards.folder, tmp_path / "small", 2 * largest(many_shards))
    with pytest.raises(UserError, match=r"needs a cache of [\d,]+ bytes") as refused:
        plan_of(small)
    needed = int(
        str(refused.value).split("needs a cache of ")[1].split(" bytes")[0].replace(",", "")
    )
    shards = opened(many_shards.folder, tmp_path / "exact", needed)
    plan = plan_of(shards)
    tell = look_ahead(shards, plan, SplitRows.of(shards, "train"), options["global_batch_size"])
    for slot in range(0, plan.num_slots, 5):
        tell(0, slot)  # training holds its blocks while validation reads
        batches = EvaluationBatches(
            SampleReader(shards),
            SplitRows.of(shards, "val"),
            RankShape(options["global_batch_size"]),
            on_slot=look_ahead_in_order(shards, "val", options["global_batch_size"]),
        )
        assert sum(int(batch["present"].sum()) for batch in batches) == num_val
    shards.cache.close()
