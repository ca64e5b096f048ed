"""The sample's bytes: ordinary tar members for everybody, known offsets for us."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards.sample import (
    TAR_END,
    BadTarError,
    Sample,
    SampleLayout,
    npy_header,
    signal_checksum,
    tar_header,
)

LAYOUTS = [SampleLayout(12, 5000, 150), SampleLayout(12, 1000, 71), SampleLayout(1, 7, 5)]


def make_sample(layout: SampleLayout, seed: int, window: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    return Sample(
        record_key=rng.bytes(16).hex(),
        window=window,
        ecg=rng.integers(-32768, 32768, (layout.num_leads, layout.num_samples)).astype(np.int16),
        stats=rng.normal(size=(layout.num_leads, 2)).astype(np.float32),
        labels=rng.integers(0, 2, (2, layout.num_labels)).astype(np.uint8),
        facts={"valid_start": 0, "site": "Köln", "age_years": 63.5, "sex": None},
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_webdataset_reads_what_was_written(layout: SampleLayout, tmp_path: Path) -> None:
    samples = [make_sample(layout, seed, window=seed * 7) for seed in range(5)]
    path = tmp_path / "train-000000.tar"
    path.write_bytes(b"".join(map(layout.encode, samples)) + TAR_END)
    assert path.stat().st_size == layout.shard_bytes(5)
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [item["__key__"] for item in read] == [sample.name for sample in samples]
    for item, sample in zip(read, samples, strict=True):
        np.testing.assert_array_equal(item["ecg.npy"], sample.ecg)
        np.testing.assert_array_equal(item["stats.npy"], sample.stats)
        np.testing.assert_array_equal(item["labels.npy"], sample.labels)
        assert item["ecg.npy"].dtype == np.int16
        assert item["json"] == sample.facts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_offsets_give_the_bytes_tarfile_gives(layout: SampleLayout) -> None:
    block = layout.encode(make_sample(layout, 3, window=12))
    with tarfile.open(fileobj=io.BytesIO(block + TAR_END)) as archive:
        members = archive.getmembers()
        assert [member.name.split(".", 1)[1] for member in members] == [
            part.suffix[1:] for part in layout.parts
        ]
        for member, part in zip(members, layout.parts, strict=True):
            handle = archive.extractfile(member)
            assert handle is not None
            data = handle.read()
            assert data.endswith(block[part.offset : part.offset + part.num_bytes])
            assert member.offset == part.header_offset
            assert member.offset_data + member.size == part.offset + part.num_bytes
            assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o644)
    assert layout.ecg.offset + layout.ecg.num_bytes + layout.gap_bytes == layout.stats.offset
    assert len(block) == layout.block_bytes


def test_one_preadv_takes_signal_and_statistics(tmp_path: Path) -> None:
    layout = LAYOUTS[0]
    samples = [make_sample(layout, seed) for seed in range(3)]
    path = tmp_path / "shard.tar"
    path.write_bytes(b"".join(map(layout.encode, samples)) + TAR_END)
    ecg, stats = np.empty_like(samples[0].ecg), np.empty_like(samples[0].stats)
    with open(path, "rb") as handle:
        buffers = [ecg, bytearray(layout.gap_bytes), stats]
        offset = 2 * layout.block_bytes + layout.ecg.offset
        assert os.preadv(handle.fileno(), buffers, offset) == sum(map(memoryview_bytes, buffers))
    assert signal_checksum(ecg, stats) == samples[2].xxh3


def memoryview_bytes(buffer: object) -> int:
    return memoryview(buffer).nbytes


def test_headers_equal_those_of_tarfile_and_numpy() -> None:
    info = tarfile.TarInfo("a" * 32 + "_w0.ecg.npy")
    info.size = 120128
    ours = tar_header(info.name, info.size)
    theirs = info.tobuf(tarfile.USTAR_FORMAT)
    # Python before 3.12 writes octal zeros for the device numbers of regular files.
    assert ours[:148] == theirs[:148]
    assert tarfile.TarInfo.frombuf(ours, "utf-8", "strict").name == info.name
    for dtype, shape in (("<i2", (12, 5000)), ("<f4", (1, 2)), ("|u1", (2, 150))):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, dtype))
        assert npy_header(dtype, shape) == buffer.getvalue()[:128]


def test_same_sample_gives_same_bytes_and_decodes_back() -> None:
    layout = LAYOUTS[1]
    block = layout.encode(make_sample(layout, 1))
    assert block == layout.encode(make_sample(layout, 1))
    back = layout.decode(block)
    assert back.xxh3 == make_sample(layout, 1).xxh3
    assert layout.encode(back) == block


def test_every_changed_byte_outside_the_data_is_noticed() -> None:
    layout = SampleLayout(1, 7, 5)
    sample = make_sample(layout, 2)
    block = layout.encode(sample)
    data = set()
    for part in layout.parts:
        data |= set(range(part.offset, part.offset + part.num_bytes))
    for position in set(range(len(block))) - data:
        damaged = bytearray(block)
        damaged[position] ^= 1
        with pytest.raises(BadTarError):
            layout.decode(bytes(damaged))
    flipped = bytearray(block)
    flipped[layout.stats.offset] ^= 1
    assert layout.decode(bytes(flipped)).xxh3 != sample.xxh3


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (tarfile.SYMTYPE, "a.ecg.npy", "symbolic link"),
        (tarfile.LNKTYPE, "a.ecg.npy", "hard link"),
        (tarfile.DIRTYPE, "folder", "folder"),
        (tarfile.REGTYPE, "/etc/passwd", "outside"),
        (tarfile.REGTYPE, "../../x.ecg.npy", "outside"),
        (tarfile.REGTYPE, "a.pkl", r"where '...\.ecg\.npy' is due"),
    ],
)
def test_links_paths_and_strangers_in_a_tar_are_refused(
    kind: bytes, name: str, message: str
) -> None:
    layout = SampleLayout(1, 7, 5)
    info = tarfile.TarInfo(name)
    info.type = kind
    block = layout.encode(make_sample(layout, 2))
    with pytest.raises(BadTarError, match=message):
        layout.decode(info.tobuf(tarfile.USTAR_FORMAT) + block[512:])


def test_facts_that_do_not_fit_name_the_site() -> None:
    layout = SampleLayout(1, 7, 5)
    sample = make_sample(layout, 2)
    long = Sample(**{**sample.__dict__, "facts": {"site": "x" * 600}})
    with pytest.raises(UserError, match="shorten the site name"):
        layout.encode(long)
    assert json.loads(layout.encode(sample)[layout.json.offset :][:512]) == sample.facts
