"""Predict: files on disk to a table, against the time that the network alone needs.

The reference is the same network over the same windows, already in memory. What is above a ratio of
1 is the cost of reading, checking, filtering and writing that the network's time does not hide.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wfdb

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.predict import collate_windows, window_arrays
from ecgfounder_train.inference.command import predict_files
from ecgfounder_train.inference.find import find_records
from ecgfounder_train.inference.pipeline import PipelineSettings, prepare, prepare_ahead
from ecgfounder_train.metrics.kernels import num_cores
from ecgfounder_train.models import create_model
from ecgfounder_train.records import STANDARD_LEADS
from ecgfounder_train.weights.trained_model import TrainedModel

FS, DURATION_S = 500, 10


@dataclass(frozen=True)
class Settings:
    """A batch as a hospital would send it: WFDB files, 12 leads, 10 s at 500 Hz."""

    num_records: int = 1000
    model: str = "net1d_31m"
    batch_size: int = 32
    num_workers: int = 2
    seed: int = 0


SMALL: dict[str, Any] = {"num_records": 96, "model": "net1d_8m"}


def run(settings: Settings) -> Outcome:
    """Return the seconds of the network alone, of the preparation alone, and of the whole.

    Raises:
        UserError: There are fewer than two records.
    """
    if settings.num_records < 2:
        raise UserError(f"predict.num_records={settings.num_records} is too few to time.")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        checkpoint = _write_weights(root, settings)
        for number in range(settings.num_records):
            _write_record(root / "records", number, settings.seed)
        trained = TrainedModel.load(checkpoint)
        pipeline = PipelineSettings(settings.batch_size, num_workers=settings.num_workers)
        found = find_records(str(root / "records"))
        # Once through everything, so that neither compiling nor allocation is timed.
        prepare(found.records[0], trained.profile)
        network_s, network_cpu_s = _network(trained, found.records, settings)
        preparing_s, preparing_cpu_s = _timed(
            lambda: [None for _ in prepare_ahead(found.records, trained.profile, pipeline)]
        )
        config = {
            "input": str(root / "records"),
            "output": str(root / "table.parquet"),
            "batch_size": settings.batch_size,
            "num_workers": settings.num_workers,
        }
        whole_s, whole_cpu_s = _timed(lambda: predict_files(config, checkpoint, "cpu"))
        # Before and after: a machine that gets busier must not speak for either side.
        again_s, again_cpu_s = _network(trained, found.records, settings)
        network_s, network_cpu_s = (network_s + again_s) / 2, (network_cpu_s + again_cpu_s) / 2
    record = {
        "ratio": round(whole_s / network_s, 3),
        "ratio_cpu": round(whole_cpu_s / network_cpu_s, 3),
        "whole_s": round(whole_s, 2),
        "whole_cpu_s": round(whole_cpu_s, 2),
        "network_s": round(network_s, 2),
        "network_cpu_s": round(network_cpu_s, 2),
        "preparing_s": round(preparing_s, 2),
        "preparing_cpu_s": round(preparing_cpu_s, 2),
        "records_per_s": round(settings.num_records / whole_s, 2),
        "num_records": settings.num_records,
        "model": settings.model,
        "batch_size": settings.batch_size,
        "num_workers": settings.num_workers,
    }
    rows = [
        ("network alone, windows in memory", network_s, network_cpu_s),
        ("reading, checks and filters alone", preparing_s, preparing_cpu_s),
        ("the whole: files to table, weights loaded", whole_s, whole_cpu_s),
    ]
    lines = [
        f"{settings.num_records:,} WFDB records of 12 leads, {DURATION_S} s at {FS} Hz, "
        f"{settings.model}, {num_cores()} cores",
        f"{'':<44}{'wall s':>12}{'CPU s':>12}",
        *(f"{name:<44}{wall:>12.1f}{cpu:>12.1f}" for name, wall, cpu in rows),
        f"The whole takes {record['ratio']} times the network's time by the clock, "
        f"{record['ratio_cpu']} by CPU time; {record['records_per_s']:,} records/s.",
    ]
    return Outcome("\n".join(lines), record)


def _write_weights(root: Path, settings: Settings) -> Path:
    torch.manual_seed(settings.seed)
    path = root / "weights.pth"
    torch.save({"state_dict": create_model(settings.model, num_leads=12).state_dict()}, path)
    return path


def _write_record(folder: Path, number: int, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([seed, number])
    time_s = np.arange(FS * DURATION_S) / FS
    beats = np.exp(-((((time_s + rng.random()) % 0.8) - 0.4) ** 2) / 2e-4)
    noise = rng.normal(0, 0.02, (len(time_s), 12))
    signal = beats[:, None] * rng.uniform(-1, 1.5, 12) + noise
    wfdb.wrsamp(
        f"r{number:06d}",
        fs=FS,
        units=["mV"] * 12,
        sig_name=list(STANDARD_LEADS),
        p_signal=signal,
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(folder),
    )


@torch.inference_mode()
def _network(trained: TrainedModel, records: Any, settings: Settings) -> tuple[float, float]:
    """Time the network over windows that are in memory: one batch, as often as it takes."""
    size = min(settings.batch_size, settings.num_records)
    windows: list[dict[str, Any]] = []
    for reference in records[:size]:
        profiled = prepare(reference, trained.profile).profiled
        assert profiled is not None
        windows.extend(window_arrays(profiled))
    batch = collate_windows(windows)
    full, rest = divmod(settings.num_records, size)

    def forward(count: int) -> None:
        part = {key: value[:count] for key, value in batch.items()}
        trained.model(trained.transform(part, training=False)[0])

    forward(size)

    def every() -> None:
        for _ in range(full):
            forward(size)
        if rest:
            forward(rest)

    return _timed(every)


def _timed(action: Callable[[], object]) -> tuple[float, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - cpu_start
