"""Preparing: our build of a shard against the plain way, on the same records in the page cache.

The plain way is `wfdb.rdsamp`, the published filters on SciPy, and npy members through webdataset's
TarWriter. It computes no checksum and syncs nothing; ours does both. Each side uses one thread.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import xxhash
import yaml
from numpy.typing import NDArray
from scipy import signal as sps

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.records import SignalProfile, filters, read_record
from ecgfounder_train.shards import (
    PlannedShard,
    RecordPlace,
    SampleLayout,
    build_shard,
)
from ecgfounder_train.shards.index import index_row
from ecgfounder_train.shards.sample import Sample

Ecg = NDArray[np.float64]

NUM_LABELS = 150
_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "signal"


@dataclass(frozen=True)
class Settings:
    """Which records, and how often both sides take them."""

    root: str | None = None
    num_records: int = 400
    reference_records: int = 200
    rounds: int = 7
    folder: str | None = None
    seed: int = 0


SMALL: dict[str, Any] = {"num_records": 60, "reference_records": 60, "rounds": 3}


def run(settings: Settings) -> Outcome:
    """Return times per record of both sides, by profile and by stage.

    Raises:
        UserError: webdataset is not installed, or `root` holds no usable record.
    """
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise UserError("The reference needs webdataset: pip install webdataset.") from error
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="bench-prepare-") as name:
        folder = Path(name)
        root = Path(settings.root) if settings.root else folder / "archive"
        if not settings.root:
            _simulate(root, settings)
        paths = _usable(root, settings.num_records)
        profiles = {kind: _profile(kind) for kind in _CHAINS}
        for profile in profiles.values():  # compiles, where nobody has yet
            profile.apply(read_record(paths[0]))
        few = paths[: settings.reference_records]
        wall: dict[str, tuple[list[float], list[float]]] = {}
        cpu: dict[str, tuple[list[float], list[float]]] = {}
        for kind, profile in profiles.items():
            wall[kind], cpu[kind] = ([], []), ([], [])
            for _ in range(settings.rounds):
                sides: list[tuple[Callable[[], None], int]] = [
                    (partial(_reference, few, kind, folder, TarWriter), len(few)),
                    (partial(_ours, paths, profile, folder), len(paths)),
                ]
                for side, (function, count) in enumerate(sides):
                    seconds, cpu_seconds = _timed(function)
                    wall[kind][side].append(1e3 * seconds / count)
                    cpu[kind][side].append(1e3 * cpu_seconds / count)
        stages = _stages(paths, profiles["official"], folder, settings.rounds)
        worst, share = _difference(few, profiles["official"])
    return _outcome(len(paths), wall, cpu, stages, worst, share)


def _simulate(root: Path, settings: Settings) -> None:
    from ecgfounder_train.simulate.archive import write_archive
    from ecgfounder_train.simulate.settings import DEFAULTS

    write_archive(
        {
            "out": str(root),
            "num_patients": max(settings.num_records // 3, 2),
            "seed": settings.seed,
            "fs_500_share": 1.0,
            "bad_records": dict.fromkeys(DEFAULTS["bad_records"], 0.0),
        }
    )


def _usable(root: Path, num_records: int) -> list[Path]:
    """Return records of twelve leads and 10 s at 500 Hz, now in the page cache."""
    paths = []
    for path in sorted(root.rglob("*.hea")):
        try:
            record = read_record(path)
            # Without gaps, which the published functions spread over the whole lead.
            gapless = not np.isnan(record.signal).any()
            if record.fs == 500 and record.signal.shape == (12, 5000) and gapless:
                _profile("official").apply(record)
                paths.append(path.with_suffix(""))
        except RejectedRecordError:
            continue
        if len(paths) == num_records:
            break
    if not paths:
        raise UserError(f"prepare.root={root} holds no record of 12 leads and 10 s at 500 Hz.")
    return paths


def _profile(kind: str) -> SignalProfile:
    return SignalProfile.from_config(
        yaml.safe_load((_CONFIGS / f"{kind}.yaml").read_text(encoding="utf-8"))
    )


def _timed(function: Callable[[], Any]) -> tuple[float, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - cpu_start


def _planned(paths: list[Path]) -> PlannedShard:
    labels = np.packbits(np.arange(NUM_LABELS) % 7 == 0).tobytes()
    rows = [
        {
            "record_path": str(path),
            "record_key": f"{number:032x}",
            "patient_key": f"{number:032x}",
            "site": "A",
            "age_years": 60.0,
            "sex": "F",
            "labels": labels,
            "observed": labels,
        }
        for number, path in enumerate(paths)
    ]
    return PlannedShard(0, "train-00000.tar", "train", pl.DataFrame(rows))


def _ours(paths: list[Path], profile: SignalProfile, folder: Path) -> None:
    built, _ = build_shard(
        _planned(paths), folder, RecordPlace(Path("/")), profile, NUM_LABELS, ("A",)
    )
    assert built.written == len(paths), built.rejects


def _reference(paths: list[Path], kind: str, folder: Path, tar_writer: Any) -> None:
    labels = np.zeros((2, NUM_LABELS), np.uint8)
    with tar_writer(str(folder / "reference.tar")) as sink:
        for number, ecg in enumerate(_reference_signals(paths, kind)):
            sink.write(
                {
                    "__key__": f"{number:032x}_w0",
                    "ecg.npy": np.rint(ecg * 1000).astype(np.int16),
                    "stats.npy": np.stack([ecg.mean(1), ecg.std(1)], 1).astype(np.float32),
                    "labels.npy": labels,
                    "json": {"native_fs": 500.0, "site": "A", "sex": "F", "age_years": 60.0},
                }
            )


def _reference_signals(paths: list[Path], kind: str) -> Iterator[Ecg]:
    import wfdb

    for path in paths:
        signal, _ = wfdb.rdsamp(str(path))
        yield np.stack([_CHAINS[kind](lead) for lead in signal.T])


def _official(lead: Ecg) -> Ecg:
    lead = sps.filtfilt(*sps.iirnotch(50, 30, 500), lead)
    lead = sps.filtfilt(*sps.butter(4, [0.67, 40], "bandpass", fs=500), lead)
    return np.asarray(lead - sps.medfilt(lead, 201))


def _paper(lead: Ecg) -> Ecg:
    lead = sps.filtfilt(*sps.iirnotch(60, 30, 500), lead)
    lead = sps.filtfilt(*sps.butter(2, 0.5, "highpass", fs=500), lead)
    return np.asarray(sps.filtfilt(*sps.butter(2, 50, "lowpass", fs=500), lead))


def _author(lead: Ecg) -> Ecg:
    lead = sps.filtfilt(*sps.iirnotch(60, 30, 500), lead)
    lead = sps.filtfilt(*sps.butter(2, 0.5, "highpass", fs=500), lead)
    reflected = np.pad(lead, 66, "reflect", reflect_type="odd")
    return np.asarray(np.convolve(reflected, sps.firwin(133, 56.25, fs=500), "valid"))


def _zscore(lead: Ecg) -> Ecg:
    return lead


# The published functions, one lead after the other, as their users run them.
_CHAINS: dict[str, Callable[[Ecg], Ecg]] = {
    "official": _official,
    "paper": _paper,
    "author": _author,
    "zscore": _zscore,
}


def _difference(paths: list[Path], profile: SignalProfile) -> tuple[int, float]:
    """Return the largest difference to SciPy in microvolts, and the share that differs at all."""
    worst, different, total = 0, 0, 0
    for path, ecg in zip(paths, _reference_signals(paths, "official"), strict=True):
        (window,) = profile.apply(read_record(path)).windows
        gap = np.abs(window.ecg.astype(int) - np.rint(1000 * ecg).astype(int))
        worst = max(worst, int(gap.max()))
        different += int(np.count_nonzero(gap))
        total += gap.size
    return worst, different / total


def _stages(
    paths: list[Path], profile: SignalProfile, folder: Path, rounds: int
) -> list[tuple[str, float]]:
    """Return milliseconds per record of every step of `signal=official`, and the floor's steps."""
    records = [read_record(path) for path in paths[:100]]
    few = paths[: len(records)]
    raw = [record.to_standard_leads().signal.astype(np.float64) for record in records]
    notched = [filters.notch(ecg, 500, 50, 30) for ecg in raw]
    passed = [filters.butterworth(ecg, 500, "bandpass", 4, 0.67, 40) for ecg in notched]
    windows = [profile.apply(record).windows[0] for record in records]
    layout = SampleLayout(12, 5000, NUM_LABELS)
    facts = {
        "valid_start": 0, "valid_num_samples": 5000, "leads_present": 4095, "leads_derived": 0,
        "native_fs": 500.0, "site": "A", "sex": "F", "age_years": 60.0, "patient_key": "0" * 32,
    }  # fmt: skip
    labels = np.zeros((2, NUM_LABELS), np.uint8)
    samples = [Sample("0" * 32, 0, w.ecg, w.stats, labels, facts) for w in windows]
    blocks = [layout.encode(sample) for sample in samples]
    files = [path.with_suffix(suffix) for path in few for suffix in (".hea", ".dat", ".mat")]
    files = [path for path in files if path.is_file()]

    def write() -> None:
        with open(folder / "floor.tar", "wb") as handle:
            for block in blocks:
                handle.write(block)
            handle.flush()
            os.fsync(handle.fileno())

    def band_pass(ecg: Ecg) -> Ecg:
        return filters.butterworth(ecg, 500, "bandpass", 4, 0.67, 40)

    steps: list[tuple[str, Callable[[], None]]] = [
        ("read and decode", partial(_each, read_record, few)),
        ("the whole profile", partial(_each, profile.apply, records)),
        ("  notch", partial(_each, lambda ecg: filters.notch(ecg, 500, 50, 30), raw)),
        ("  band-pass", partial(_each, band_pass, notched)),
        (
            "  running median",
            partial(_each, lambda ecg: filters.subtract_running_median(ecg, 500, 0.4), passed),
        ),
        ("tar block", partial(_each, layout.encode, samples)),
        (
            "index row",
            partial(_each, lambda sample: index_row(sample, 0, 0, "train", ("A",)), samples),
        ),
        ("floor: bytes in", partial(_each, Path.read_bytes, files)),
        ("floor: sha256", partial(_each, lambda block: hashlib.sha256(block).digest(), blocks)),
        ("floor: xxh3", partial(_each, xxhash.xxh3_64_intdigest, blocks)),
        ("floor: bytes out, synced", write),
    ]
    return [
        (name, median(1e3 * _timed(step)[0] / len(few) for _ in range(rounds)))
        for name, step in steps
    ]


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call and let go of the result, as the build does; kept results are fresh memory each."""
    for item in items:
        function(item)


def _outcome(
    num_records: int,
    wall: dict[str, tuple[list[float], list[float]]],
    cpu: dict[str, tuple[list[float], list[float]]],
    stages: list[tuple[str, float]],
    worst: int,
    share: float,
) -> Outcome:
    lines = [
        f"{num_records} recordings, 12 leads, 10 s at 500 Hz; milliseconds per recording",
        f"{'signal=':<12}{'plain':>9}{'ours':>9}{'ratio':>8}{'CPU ratio':>11}",
    ]
    record: dict[str, Any] = {}
    for kind in wall:
        plain, ours = (median(times) for times in wall[kind])
        ratio = median(a / b for a, b in zip(*wall[kind], strict=True))
        ratio_cpu = median(a / b for a, b in zip(*cpu[kind], strict=True))
        lines.append(f"{kind:<12}{plain:>9.2f}{ours:>9.2f}{ratio:>8.1f}{ratio_cpu:>11.1f}")
        record |= {
            f"{kind}_plain_ms": round(plain, 3),
            f"{kind}_ms": round(ours, 3),
            f"{kind}_ratio": round(ratio, 2),
            f"{kind}_ratio_cpu": round(ratio_cpu, 2),
        }
    lines.append("Steps of signal=official:")
    lines += [f"  {name:<28}{value:>8.3f}" for name, value in stages]
    floor = sum(value for name, value in stages if name.startswith("floor"))
    ours_ms = record["official_ms"]
    lines += [
        f"Floor (read, checksums, write, sync) {floor:.2f} ms; ours is {ours_ms / floor:.1f} times "
        "that.",
        f"Largest difference to SciPy {worst} microvolt, in {share:.1e} of the samples.",
    ]
    return Outcome(
        "\n".join(lines),
        {
            "ratio": record["official_ratio"],
            "ratio_cpu": record["official_ratio_cpu"],
            **record,
            **{f"step_{name.strip()}": round(value, 4) for name, value in stages},
            "floor_ms": round(floor, 3),
            "largest_difference_uv": worst,
            "share_that_differs": share,
            "num_records": num_records,
        },
    )
