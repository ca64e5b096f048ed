"""Loader: our indexed reader against plain WebDataset decoding and collation, on one core.

Both sides read the same shards from the page cache into batches ready for a network's device
half, in one process that is held on one core. Medians of several rounds, taken in turns. Rates are
given by the clock and by CPU time: on a machine that does other work only the latter means much.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import RankShape, ReadAhead, TrainingBatches
from ecgfounder_train.loader.epoch_plan import EpochPlan, Position
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import SplitRows
from ecgfounder_train.records import STANDARD_LEADS
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.shards.index import INDEX_NAME, index_dtype, index_row, write_index
from ecgfounder_train.shards.manifest import IndexEntry, Manifest, ShardEntry, Totals
from ecgfounder_train.shards.sample import TAR_END, Sample, SampleLayout

SHAPES = {"12x5000": (12, 5000, 500.0), "12x1000": (12, 1000, 100.0), "1x5000": (1, 5000, 500.0)}
NUM_LABELS = 150
SAMPLES_PER_SHARD = 1000
GOAL_ECG_PER_S = 25_000
GOAL_RATIO = 6.0
GOAL_RESTART = 1.1
"""First batch at 90 % of an epoch, as a multiple of the one at its beginning."""


@dataclass(frozen=True)
class Settings:
    """How much is read, and how often.

    Args:
        num_samples: Samples in the shards of each shape.
        index_rows: Rows of the large index, whose samples are those of the first shape.
        batch_size: Samples per batch.
        rounds: Measurements of each; the median counts.
        folder: Where the shards are made (about 125 kB per sample) and deleted; None: the system's
            folder for temporary files.
        seed: Of the made-up signals.
    """

    num_samples: int = 6000
    index_rows: int = 10_000_000
    batch_size: int = 64
    rounds: int = 7
    folder: str | None = None
    seed: int = 0


SMALL: dict[str, Any] = {"num_samples": 2000, "index_rows": 1_000_000, "rounds": 3}


@dataclass
class _Rate:
    """ECG per second of several rounds."""

    wall: list[float]
    cpu: list[float]

    @property
    def by_clock(self) -> float:
        return statistics.median(self.wall)

    @property
    def by_cpu(self) -> float:
        return statistics.median(self.cpu)


def run(settings: Settings) -> Outcome:
    """Return the rates of both sides for each shape, and what a restart and memory come to."""
    with tempfile.TemporaryDirectory(dir=settings.folder) as name, _one_core():
        folder = Path(name)
        sets = {
            shape: synthetic_shards(folder / shape, settings.num_samples, *what, settings.seed)
            for shape, what in SHAPES.items()
        }
        rates = _rates(sets, settings)
        floor = {shape: _floor(shards, settings) for shape, shards in sets.items()}
        large = tiled_index(sets["12x5000"], folder / "large.npy", settings.index_rows)
        restart = _restart(large, settings)
        resident = {
            "small": _resident_growth(sets["12x5000"], settings.num_samples, settings),
            "large": _resident_growth(large, settings.index_rows, settings),
        }
    return _outcome(settings, rates, floor, restart, resident)


def _rates(sets: dict[str, ShardSet], settings: Settings) -> dict[tuple[str, str], _Rate]:
    def ours(shards: ShardSet, checksum: bool, num_workers: int) -> Callable[[], int]:
        batches = _batches(shards, settings.num_samples, settings, checksum, num_workers)
        return lambda: _consume(batches)

    tasks: dict[tuple[str, str], Callable[[], int]] = {}
    for shape, shards in sets.items():
        tasks[shape, "webdataset"] = _webdataset(shards, settings)
        for num_workers in (0, 1, 2):
            tasks[shape, f"{num_workers} workers"] = ours(shards, True, num_workers)
        tasks[shape, "no checksum"] = ours(shards, False, 1)
    rates = {key: _Rate([], []) for key in tasks}
    for round_number in range(settings.rounds + 1):
        for key, task in tasks.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            count = task()
            cpu, wall = time.process_time() - cpu_start, time.perf_counter() - start
            # The first round fills caches of every kind.
            if round_number:
                rates[key].wall.append(count / wall)
                rates[key].cpu.append(count / cpu)
    return rates


def _batches(
    shards: ShardSet,
    num_samples: int,
    settings: Settings,
    checksum: bool = True,
    num_workers: int = 0,
    start: Position | None = None,
) -> TrainingBatches:
    return TrainingBatches(
        SampleReader(shards, checksum),
        SplitRows([range(num_samples)]),
        EpochPlan(num_samples, settings.seed, "bench"),
        RankShape(settings.batch_size),
        start or Position(),
        num_samples,
        ReadAhead(num_workers),
    )


def _consume(batches: TrainingBatches) -> int:
    return sum(int(batch["present"].sum()) for batch in batches)


def _webdataset(shards: ShardSet, settings: Settings) -> Callable[[], int]:
    try:
        import webdataset
    except ImportError as error:
        raise UserError("The reference needs webdataset: pip install webdataset.") from error
    names = [str(shards.shard_path(n)) for n in range(len(shards.manifest.shards))]
    parts = ("ecg.npy", "stats.npy", "labels.npy", "json")

    def read() -> int:
        pipeline = webdataset.WebDataset(names, shardshuffle=False, empty_check=False)
        batches = pipeline.decode().to_tuple(*parts).batched(settings.batch_size)
        return sum(len(ecg) for ecg, *_ in batches)

    return read


def _floor(shards: ShardSet, settings: Settings) -> tuple[float, float]:
    """Return ECG per CPU second of bare memory copies and of bare positioned reads."""
    size = shards.layout.ecg.num_bytes
    order = np.random.default_rng(settings.seed).permutation(settings.num_samples)
    entries = shards.index[order]
    files = [os.open(shards.shard_path(n), os.O_RDONLY) for n in range(len(shards.manifest.shards))]
    places = list(zip(entries["shard"].tolist(), (entries["offset"] + 640).tolist(), strict=True))
    ring = np.zeros((4 * settings.batch_size, size), np.uint8)
    lines = [line.data for line in ring]
    source = np.ones((settings.num_samples, size), np.uint8)
    copies, reads = [], []
    for _ in range(settings.rounds):
        start = time.process_time()
        for number, place in enumerate(order.tolist()):
            ring[number % len(ring)] = source[place]
        copies.append(time.process_time() - start)
        start = time.process_time()
        for number, (shard, offset) in enumerate(places):
            os.preadv(files[shard], [lines[number % len(ring)]], offset)
        reads.append(time.process_time() - start)
    for descriptor in files:
        os.close(descriptor)
    count = settings.num_samples
    return count / statistics.median(copies), count / statistics.median(reads)


def _restart(shards: ShardSet, settings: Settings) -> tuple[float, float]:
    """Return seconds to the first batch at an epoch's start and at 90 % of it, everything new."""
    count = settings.index_rows
    places = (Position(), Position(0, int(0.9 * count)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(3 * settings.rounds + 1):
        for position, taken in zip(places, seconds, strict=True):
            start = time.process_time()
            batches = _batches(shards, count, settings, start=position)
            next(islice(iter(batches), 1))
            taken.append(time.process_time() - start)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def _resident_growth(shards: ShardSet, num_samples: int, settings: Settings) -> int:
    """Return by how many bytes this process grew while it read as many batches as there are."""
    num_batches = settings.num_samples // settings.batch_size
    before, most = _resident_bytes(), 0
    for batch in islice(iter(_batches(shards, num_samples, settings)), num_batches):
        del batch
        most = max(most, _resident_bytes())
    return most - before


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _one_core() -> Iterator[None]:
    """Hold this process and its threads on one core, and torch on one thread."""
    import torch

    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(allowed)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def synthetic_shards(
    folder: Path, num_samples: int, num_leads: int, length: int, fs: float, seed: int
) -> ShardSet:
    """Write shards of made-up samples, laid out as those of a real data set, and open them."""
    layout = SampleLayout(num_leads, length, NUM_LABELS)
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    entries: list[ShardEntry] = []
    pieces = []
    for first in range(0, num_samples, SAMPLES_PER_SHARD):
        count, number = min(SAMPLES_PER_SHARD, num_samples - first), len(entries)
        name = f"train-{number:06d}.tar"
        rows = []
        with (folder / name).open("wb") as handle:
            for place in range(count):
                sample = _sample(first + place, layout, rng)
                handle.write(layout.encode(sample))
                offset = place * layout.block_bytes
                rows.append(index_row(sample, number, offset, "train", ["S0"]))
            handle.write(TAR_END)
        entries.append(ShardEntry(name, "train", count, layout.shard_bytes(count), ""))
        pieces.append(np.concatenate(rows))
    write_index(folder / INDEX_NAME, NUM_LABELS, pieces, num_samples)
    manifest = Manifest(
        source="synthetic",
        fingerprints={},
        vocabulary={"labels": [f"label {number}" for number in range(NUM_LABELS)]},
        plan={},
        signal={},
        split={},
        leads=STANDARD_LEADS[:num_leads],
        fs=fs,
        num_samples=length,
        sites=("S0",),
        shards=tuple(entries),
        index=IndexEntry(INDEX_NAME, num_samples, 0, "", ""),
        totals=Totals(num_samples, num_samples, 0, {}, num_samples),
    )
    index = np.load(folder / INDEX_NAME, mmap_mode="r")
    return ShardSet(folder, manifest, index)


def _sample(number: int, layout: SampleLayout, rng: np.random.Generator) -> Sample:
    ecg = rng.integers(-2000, 2000, (layout.num_leads, layout.num_samples), np.int16)
    stats = np.stack([ecg.mean(1) / 1000, ecg.std(1) / 1000], axis=1).astype(np.float32)
    facts = {
        "valid_start": 0,
        "valid_num_samples": layout.num_samples,
        "leads_present": 2**layout.num_leads - 1,
        "native_fs": 500.0,
        "site": "S0",
        "sex": None,
        "age_years": 50.0,
        "patient_key": f"{number:032x}",
    }
    labels = rng.integers(0, 2, (2, layout.num_labels)).astype(np.uint8)
    return Sample(f"{number:032x}", 0, ecg, stats, labels, facts)


def tiled_index(shards: ShardSet, path: Path, num_rows: int) -> ShardSet:
    """Return the shards under an index of `num_rows` rows, in which their samples come again."""
    small: NDArray[np.void] = np.array(shards.index)
    pieces = [small] * (num_rows // len(small)) + [small[: num_rows % len(small)]]
    assert small.dtype == index_dtype(NUM_LABELS)
    write_index(path, NUM_LABELS, pieces, num_rows)
    return ShardSet(shards.folder, shards.manifest, np.load(path, mmap_mode="r"))


def _outcome(
    settings: Settings,
    rates: dict[tuple[str, str], _Rate],
    floor: dict[str, tuple[float, float]],
    restart: tuple[float, float],
    resident: dict[str, int],
) -> Outcome:
    columns = ("webdataset", "0 workers", "1 workers", "2 workers", "no checksum")
    lines = [
        f"ECG/s on one core, page cache to batches of {settings.batch_size}, median of "
        f"{settings.rounds}: by CPU time (by the clock)",
        f"{'':<9}{'memory copy':>12}{'bare preadv':>12}"
        + "".join(f"{name:>19}" for name in columns)
        + f"{'ratio':>8}",
    ]
    record: dict[str, Any] = {}
    for shape in SHAPES:
        reference, ours = rates[shape, "webdataset"], rates[shape, "1 workers"]
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(ours.cpu, reference.cpu, strict=True)
        )
        cells = [
            f"{rates[shape, name].by_cpu:,.0f} ({rates[shape, name].by_clock:,.0f})"
            for name in columns
        ]
        copies, reads = floor[shape]
        lines.append(
            f"{shape:<9}{copies:>12,.0f}{reads:>12,.0f}"
            + "".join(f"{cell:>19}" for cell in cells)
            + f"{ratio:>8.1f}"
        )
        record[shape] = {
            "ratio_cpu": round(ratio, 2),
            "ratio_clock": round(ours.by_clock / reference.by_clock, 2),
            "memory_copy_per_s": round(copies),
            "preadv_per_s": round(reads),
            "cpu_per_s": {name: round(rates[shape, name].by_cpu) for name in columns},
            "clock_per_s": {name: round(rates[shape, name].by_clock) for name in columns},
        }
    first = next(iter(SHAPES))
    fresh, later = restart
    lines += [
        f"First batch of an epoch of {settings.index_rows:,}: {fresh * 1e3:.2f} ms; at 90 % of it "
        f"{later * 1e3:.2f} ms ({later / fresh:.2f} times).",
        f"Growth of resident memory while reading {settings.num_samples:,} samples: "
        f"{resident['small'] / 1e6:.0f} MB with {settings.num_samples:,} index rows, "
        f"{resident['large'] / 1e6:.0f} MB with {settings.index_rows:,}.",
    ]
    rate, ratio = record[first]["cpu_per_s"]["1 workers"], record[first]["ratio_cpu"]
    goals = {
        f"{rate:,} ECG/s per core of {first}, goal {GOAL_ECG_PER_S:,}": rate >= GOAL_ECG_PER_S,
        f"{ratio:.1f} times plain WebDataset, goal {GOAL_RATIO:g}": ratio >= GOAL_RATIO,
        f"restart at 90 % takes {later / fresh:.2f} times a fresh start, goal {GOAL_RESTART}": (
            later / fresh <= GOAL_RESTART
        ),
    }
    lines += [f"{'met' if met else 'MISSED':<7}{goal}" for goal, met in goals.items()]
    return Outcome(
        "\n".join(lines),
        {
            "ratio": ratio,
            "goals_met": all(goals.values()),
            "ecg_per_cpu_s": rate,
            "restart_ratio": round(later / fresh, 3),
            "restart_s": later,
            "resident_growth_bytes": resident["large"],
            "resident_growth_bytes_small_index": resident["small"],
            "shapes": record,
            "num_samples": settings.num_samples,
            "index_rows": settings.index_rows,
            "batch_size": settings.batch_size,
        },
    )
