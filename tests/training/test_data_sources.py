"""Whole runs on shards that are far away, streamed, dropped or damaged."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import fsspec
import numpy as np
import pytest
import run_tools
import tiny_set
from moto.server import ThreadedMotoServer
from run_tools import Child

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.checkpoint import step_name

Pretrain = Callable[..., RunDirectory]


def s3_environment(server: ThreadedMotoServer) -> dict[str, str]:
    host, port = server.get_host_and_port()
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def on_s3(tiny_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shards in a bucket of a real S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    environment = s3_environment(server)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # What such servers keep belongs to the process, earlier tests' buckets included.
    reset = Request(f"{environment['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
    urlopen(reset).close()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store = fsspec.filesystem("s3")
    store.mkdir("bucket")
    store.put(f"{tiny_shards.folder}/", "bucket/tiny/", recursive=True)
    yield "s3://bucket/tiny"
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def resumed(pretrain: Pretrain) -> Pretrain:
    """Train a run that loses what it did from its sixth step on, and goes on from there."""

    def start(*overrides: str, run: str = "run") -> RunDirectory:
        settings = (*overrides, "checkpoint.every_samples=16", "checkpoint.keep=20")
        directory = pretrain(*settings, run=run)
        later = [p for p in directory.checkpoints.glob("step-*") if p.name > step_name(5)]
        assert later
        for path in later:
            path.unlink()
        return pretrain(*settings, run=run)

    return start


def test_run_on_s3_is_the_run_on_the_disk_and_resumes(
    pretrain: Pretrain, resumed: Pretrain, on_s3: str, tmp_path: Path
) -> None:
    local = pretrain(run="local")
    remote = (f"shards={on_s3}", f"data.cache_dir={tmp_path / 'cache'}")
    run = resumed(*remote, run="remote")
    run_tools.assert_same_run(local, run)
    # What is kept of the run does not tell where the shards were or are.
    for path in (run.state_file, run.checkpoints / "best.ckpt"):
        assert b"s3://" not in path.read_bytes() and b"cache/" not in path.read_bytes()


def test_run_through_a_cache_that_does_not_hold_the_set_resumes_to_the_last_bit(
    tiny_shards: ShardSet, pretrain: Pretrain, resumed: Pretrain, tmp_path: Path
) -> None:
    room = 6 * max(entry.bytes for entry in tiny_shards.manifest.shards)
    # A block of one shard has at least 11 samples.
    cached = (
        f"data.cache_dir={tmp_path / 'cache'}",
        f"data.cache_bytes={room}",
        "data.global_batch_size=8",
    )
    whole = pretrain(*cached, run="whole")
    run = resumed(*cached)
    run_tools.assert_same_run(whole, run)
    copies = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.tar"))
    assert 0 < copies <= room
    order = run_tools.last_checkpoint(run)["fingerprints"]["order"]
    assert order.startswith("blocks of")
    # Another order of the samples is another run.
    with pytest.raises(UserError, match=r"another order of the data \(data\.order"):
        pretrain("budget.max_epochs=3")


@pytest.mark.parametrize("stream", [None, "pipe:cat {folder}/{{name}}"])
def test_streamed_run_resumes_to_the_last_bit(
    tiny_shards: ShardSet, pretrain: Pretrain, resumed: Pretrain, stream: str | None
) -> None:
    settings = ["data.reader=webdataset"]
    if stream is not None:
        settings.append(f"data.stream='{stream.format(folder=tiny_shards.folder)}'")
    whole = pretrain(*settings, run="whole")
    run = resumed(*settings)
    run_tools.assert_same_run(whole, run)
    assert [row["samples_seen"] for row in run_tools.rows(run)][-1] == "126"


def test_run_without_the_last_batch_uses_whole_ones_only_and_resumes(
    pretrain: Pretrain, resumed: Pretrain
) -> None:
    settings = ("data.last_batch=drop", "budget.max_epochs=3")
    whole = pretrain(*settings, run="whole")
    # Of 63 samples three batches of 16.
    seen = [int(row["samples_seen"]) for row in run_tools.rows(whole) if row["train/loss"]]
    assert seen == [16 * step for step in range(1, 10)]
    run_tools.assert_same_run(whole, resumed(*settings))
    with pytest.raises(UserError, match=r"another order of the data .*data\.last_batch"):
        pretrain("budget.max_epochs=3")


def damaged_copy(shards: ShardSet, folder: Path) -> tuple[ShardSet, str, int]:
    """Copy the shards, flip a bit in one and delete another.

    Returns:
        The copy, the name of the shard that is gone, and how many samples cannot be read.
    """
    shutil.copytree(shards.folder, folder)
    copied = ShardSet.open(folder)
    numbers = np.unique(copied.index[copied.rows("train")]["shard"]).tolist()
    row = int(np.flatnonzero(np.asarray(copied.index["shard"]) == numbers[0])[0])
    with copied.shard_path(numbers[0]).open("r+b") as handle:
        handle.seek(int(copied.index[row]["offset"]) + copied.layout.ecg.offset + 40)
        handle.write(b"\xaa\x55\xaa\x55")
    gone = copied.manifest.shards[numbers[1]]
    copied.shard_path(numbers[1]).unlink()
    return copied, gone.name, 1 + gone.num_samples


def two_ranks(
    shards: ShardSet, runs: Path, *more: str, environment: Mapping[str, str] | None = None
) -> list[Child]:
    arguments = tiny_set.tiny_overrides(shards, runs, "run", "trainer=ddp_cpu", *more)
    return [
        Child(arguments, runs / f"rank{rank}.txt", environment={**own, **(environment or {})})
        for rank, own in enumerate(run_tools.ranks(2))
    ]


@pytest.mark.multiprocess
def test_damaged_and_vanished_shards_are_quarantined_by_two_ranks_in_every_start(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shards, _, bad = damaged_copy(tiny_shards, tmp_path / "shards")
    for epochs in (1, 2):
        ranks = two_ranks(
            shards, tmp_path, "data.on_bad_sample=quarantine", f"budget.max_epochs={epochs}"
        )
        assert [rank.wait() for rank in ranks] == [0, 0], [rank.text() for rank in ranks]
        run = RunDirectory(tmp_path / "run")
        assert run_tools.last_checkpoint(run)["faults"]["quarantined"] == epochs * bad
        assert f"{epochs * bad} unreadable samples were left out" in ranks[0].text()
    # Each slot was taken by its sample or stayed empty.
    assert run_tools.last_checkpoint(run)["position"]["samples_seen"] == 2 * 63


@pytest.mark.multiprocess
def test_vanished_shard_ends_both_ranks_with_its_name(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shards, name, _ = damaged_copy(tiny_shards, tmp_path / "shards")
    ranks = two_ranks(shards, tmp_path)
    assert [rank.wait() for rank in ranks] == [1, 1]
    for rank in ranks:
        assert f"{name} is missing" in rank.text() and "Traceback" not in rank.text()
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.multiprocess
def test_shard_that_vanishes_under_way_is_quarantined_after_a_kill(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    arguments = ("data.on_bad_sample=quarantine", "budget.max_epochs=20")
    arguments = (*arguments, "checkpoint.every_samples=16")
    settings = tiny_set.tiny_overrides(shards, tmp_path, "run", *arguments)
    run = RunDirectory(tmp_path / "run")
    child = Child(settings, tmp_path / "output.txt")
    run_tools.wait_for_step(run, 3, child.alive)
    entry = next(entry for entry in shards.manifest.shards if entry.split == "train")
    os.truncate(shards.folder / entry.name, 3000)
    child.signal(run_tools.signal.SIGKILL)
    child.wait()
    (shards.folder / entry.name).unlink()
    again = Child(settings, tmp_path / "output.txt")
    assert again.wait() == 0, again.text()
    rows = [int(row["quarantined"]) for row in run_tools.rows(run) if row["train/loss"]]
    # Of the last ten epochs, four steps each, every one lost that shard's samples.
    assert rows[-1] - rows[-41] == 10 * entry.num_samples


@dataclass(frozen=True)
class Store:
    """A copy of the tiny shards, in a folder or behind a server, which can be spoilt.

    `files` is the folder where they can be written; None for S3.
    """

    location: str
    files: Path | None
    environment: dict[str, str]
    overrides: tuple[str, ...]

    def write(self, name: str, content: bytes | None) -> None:
        """Replace a shard, or delete it."""
        if self.files is None:
            bucket, path = fsspec.filesystem("s3"), f"bucket/tiny/{name}"
            bucket.rm(path) if content is None else bucket.pipe(path, content)
        elif content is None:
            (self.files / name).unlink()
        else:
            (self.files / name).write_bytes(content)


@pytest.fixture(params=["folder", "http", "s3"])
def store(request: pytest.FixtureRequest, tiny_shards: ShardSet, tmp_path: Path) -> Iterator[Store]:
    overrides = (f"data.cache_dir={tmp_path / 'cache'}",)
    if request.param == "s3":
        on_s3 = request.getfixturevalue("on_s3")
        names = [name for name in os.environ if name.startswith("AWS_")]
        yield Store(on_s3, None, {name: os.environ[name] for name in names}, overrides)
        return
    files = tmp_path / "shards"
    shutil.copytree(tiny_shards.folder, files)
    if request.param == "folder":
        yield Store(str(files), files, {}, ())
        return
    handler = partial(SimpleHTTPRequestHandler, directory=str(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Store(f"http://127.0.0.1:{server.server_port}", files, {}, overrides)
        server.shutdown()


def train_shards(shards: ShardSet) -> list[tuple[str, int, bytes]]:
    """Return name, number of samples and content of the shards that are trained on."""
    return [
        (entry.name, entry.num_samples, (shards.folder / entry.name).read_bytes())
        for entry in shards.manifest.shards
        if entry.split == "train"
    ]


def spoilt(shards: ShardSet, content: bytes) -> bytes:
    """Return a shard with another sample in one byte of its first signal."""
    place = shards.layout.ecg.offset + 40
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["vanished", "corrupt"])
def test_bad_shard_ends_both_ranks_with_its_name_and_the_mended_one_is_trained_on_to_the_last_bit(
    tiny_shards: ShardSet, tmp_path: Path, store: Store, kind: str
) -> None:
    name, _, content = train_shards(tiny_shards)[0]
    store.write(name, None if kind == "vanished" else spoilt(tiny_shards, content))

    def start() -> list[Child]:
        more = (f"shards={store.location}", *store.overrides, "checkpoint.every_samples=16")
        return two_ranks(tiny_shards, tmp_path, *more, environment=store.environment)

    ranks = start()
    assert [rank.wait() for rank in ranks] == [1, 1], [rank.text() for rank in ranks]
    for rank in ranks:
        assert name in rank.text() and "Traceback" not in rank.text(), rank.text()
        assert "verify" in rank.text() or "prepare again" in rank.text(), rank.text()
    store.write(name, content)
    ranks = start()
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.text() for rank in ranks]
    (tmp_path / "whole").mkdir()
    ranks = two_ranks(tiny_shards, tmp_path / "whole")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.text() for rank in ranks]
    run_tools.assert_same_run(RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole/run"))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_bad_shards_of_any_store_are_quarantined_by_two_ranks_in_every_start(
    tiny_shards: ShardSet, tmp_path: Path, store: Store
) -> None:
    (gone, num_gone, _), (cut, num_cut, content) = train_shards(tiny_shards)[:2]
    store.write(gone, None)
    store.write(cut, spoilt(tiny_shards, content))
    # Of a folder single samples are read; a copy that is not the manifest's shard is never used.
    bad = num_gone + (num_cut if store.overrides else 1)
    for epochs in (1, 2):
        ranks = two_ranks(
            tiny_shards,
            tmp_path,
            f"shards={store.location}",
            *store.overrides,
            "data.on_bad_sample=quarantine",
            f"budget.max_epochs={epochs}",
            environment=store.environment,
        )
        assert [rank.wait() for rank in ranks] == [0, 0], [rank.text() for rank in ranks]
        last = run_tools.last_checkpoint(RunDirectory(tmp_path / "run"))
        assert last["faults"]["quarantined"] == epochs * bad
        assert last["position"]["samples_seen"] == epochs * 63
        assert f"{epochs * bad} unreadable samples were left out" in ranks[0].text()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_shard_that_is_cut_under_way_ends_both_ranks_and_the_mended_run_is_the_undisturbed_one(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    settings = ("budget.max_epochs=30", "checkpoint.every_samples=16")
    ranks = two_ranks(shards, tmp_path, *settings)
    run_tools.wait_for_step(RunDirectory(tmp_path / "run"), 6, ranks[0].alive)
    name, _, content = train_shards(tiny_shards)[0]
    os.truncate(shards.folder / name, 3000)
    assert [rank.wait() for rank in ranks] == [1, 1], [rank.text() for rank in ranks]
    for rank in ranks:
        assert name in rank.text() and "Traceback" not in rank.text(), rank.text()
    (shards.folder / name).write_bytes(content)
    (tmp_path / "whole").mkdir()
    for runs in (tmp_path, tmp_path / "whole"):
        ranks = two_ranks(shards, runs, *settings)
        assert [rank.wait() for rank in ranks] == [0, 0], [rank.text() for rank in ranks]
    run_tools.assert_same_run(RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole/run"))
