"""The whole way of an ECG into a training step: shards on disk, loader, device, network.

Measured on this device: the first step, which chooses or compiles kernels and finds memory; the
step on a batch that is already there (the reference: what the network could do) by batch size, as
it is and with `trainer.recompute`; each stage alone; and the steps fed from shards. Calculated from
that: one node of eight GPUs and eight such nodes, whose gradients travel over links of a given
speed.
"""

import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.benchmarks.loader import synthetic_shards
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import RankShape, ReadAhead, TrainingBatches, to_device
from ecgfounder_train.loader.epoch_plan import EpochPlan, Position
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.loader.rows import SplitRows
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import MODEL_TABLE, count_parameters, create_model
from ecgfounder_train.records import LoadNormalisation
from ecgfounder_train.shards import ShardSet

GPUS_PER_NODE = 8
NODES = 8


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Args:
        model: Name in the model table.
        batch_sizes: ECGs per step; a step of each is timed, the largest is fed from shards.
        num_samples: Length of a signal.
        num_ecgs: ECGs in the shards, which are made up.
        steps: Timed steps of each measurement, after `warmup` others.
        warmup: Steps before the clock starts: kernels are chosen, memory is found.
        device: auto, cpu or cuda.
        num_workers: Threads that read ahead.
        node_gb_s: Link of a GPU to the others of its node, GB/s in each direction (NVLink 4: 450).
        network_gb_s: Link of a GPU to other nodes, GB/s in each direction (400 Gb/s: 50).
        folder: Where the shards are made and deleted; None: the system's temporary folder.
        seed: Of signals and weights.
    """

    model: str = "net1d_31m"
    batch_sizes: tuple[int, ...] = (8, 16, 32)
    num_samples: int = 5000
    num_ecgs: int = 1000
    steps: int = 5
    warmup: int = 2
    device: str = "auto"
    num_workers: int = 1
    node_gb_s: float = 450.0
    network_gb_s: float = 50.0
    folder: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_sizes", tuple(self.batch_sizes))
        if self.model not in MODEL_TABLE:
            raise UserError(f"pipeline.model={self.model!r} is not in the table of models.")
        if min(self.batch_sizes, default=0) < 1 or self.steps < 1 or self.warmup < 1:
            raise UserError("pipeline.batch_sizes, steps and warmup start at 1.")
        if self.num_ecgs < max(self.batch_sizes):
            raise UserError("pipeline.num_ecgs must fill a batch.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"pipeline.device={self.device!r} is none of auto, cpu, cuda.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("pipeline.device=cuda, but this torch sees no GPU.")
        if self.node_gb_s <= 0 or self.network_gb_s <= 0:
            raise UserError("pipeline.node_gb_s and network_gb_s must be above 0.")


SMALL: dict[str, Any] = {
    "model": "net1d_1m",
    "batch_sizes": (8, 16),
    "num_samples": 1000,
    "num_ecgs": 256,
}


class _Training:
    """A network, its optimizer and the device half of the preprocessing."""

    def __init__(self, settings: Settings, device: torch.device, leads: tuple[str, ...]) -> None:
        torch.manual_seed(settings.seed)
        self.device = device
        self.model = create_model(settings.model, len(leads)).to(device)
        self.transform = BatchTransform(leads, LoadNormalisation(kind="joint"))
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        fused = True if device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(trainable, 1e-6, fused=fused)

    def move(self, batch: dict[str, Any]) -> dict[str, Any]:
        return to_device(batch, self.device, non_blocking=True)

    def step(self, batch: dict[str, Any]) -> None:
        signal, targets, mask = self.transform(batch, training=True)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(signal)
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets, mask)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


@dataclass(frozen=True)
class _Step:
    """A step on a batch that is on the device."""

    batch_size: int
    recompute: bool
    seconds: float
    peak_mib: float


def run(settings: Settings) -> Outcome:
    """Return where the time goes; `ratio` is the speed from shards over that on a resident batch.

    Raises:
        UserError: A setting is wrong.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        num_leads = MODEL_TABLE[settings.model].num_leads
        shape = (settings.num_ecgs, num_leads, settings.num_samples)
        shards = synthetic_shards(Path(folder) / "shards", *shape, 500.0, settings.seed)
        training = _Training(settings, device, shards.manifest.leads)
        first = training.move(next(_batches(shards, min(settings.batch_sizes), settings)))
        start = time.perf_counter()
        training.step(first)
        _synchronize(device)
        first_s = time.perf_counter() - start
        sizes = []
        for recompute in (True, False):  # by rising memory: what was freed may stay resident
            training.model.recompute = recompute
            sizes += [_resident_step(training, shards, n, settings) for n in settings.batch_sizes]
        stages = _stages(training, shards, settings)
    return _outcome(settings, training, first_s, sizes, stages)


def _batches(shards: ShardSet, batch_size: int, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield full batches without end."""
    epoch = 0
    while True:
        plan = EpochPlan(settings.num_ecgs, settings.seed + epoch, "bench")
        batches = TrainingBatches(
            SampleReader(shards),
            SplitRows([range(settings.num_ecgs)]),
            plan,
            RankShape(batch_size),
            Position(),
            settings.num_ecgs // batch_size * batch_size,
            ReadAhead(settings.num_workers, pin_memory=torch.cuda.is_available()),
        )
        yield from batches
        epoch += 1


def _resident_step(
    training: _Training, shards: ShardSet, batch_size: int, settings: Settings
) -> _Step:
    batch = training.move(next(_batches(shards, batch_size, settings)))
    _reset_peak(training.device)
    seconds = _median_s(lambda: training.step(batch), training.device, settings)
    peak = _peak_mib(training.device)
    return _Step(batch_size, training.model.recompute, seconds, peak)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass  # no Linux, or no glibc


def _peak_mib(device: torch.device) -> float:
    """Return the most memory since `_reset_peak`: allocated on a GPU, else the resident process.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if "VmHWM" in line), 0.0)


def _stages(training: _Training, shards: ShardSet, settings: Settings) -> dict[str, float]:
    """Return seconds per batch of the largest size: each stage alone, and all together."""
    size = max(settings.batch_sizes)
    source = _batches(shards, size, settings)
    held = training.move(next(source))
    host = next(source)
    seconds = {
        "read and collate": _median_s(lambda: next(source), training.device, settings),
        "copy to the device": _median_s(lambda: training.move(host), training.device, settings),
        "normalise": _median_s(
            lambda: training.transform(held, training=True), training.device, settings
        ),
        "step on a resident batch": _median_s(
            lambda: training.step(held), training.device, settings
        ),
    }
    fed = islice(source, settings.warmup + settings.steps)
    for batch in islice(fed, settings.warmup):
        training.step(training.move(batch))
    _synchronize(training.device)
    start = time.perf_counter()
    for batch in fed:
        training.step(training.move(batch))
    _synchronize(training.device)
    seconds["step fed from shards"] = (time.perf_counter() - start) / settings.steps
    return seconds


def scaling(
    parameters: int, step_s: float, settings: Settings
) -> list[tuple[str, int, float, float, float]]:
    """Return name, GPUs, bytes sent per GPU, and efficiency without and with overlap of layouts.

    A ring all-reduce sends 2 (n - 1) / n of the float32 gradients per GPU. Overlapped, it hides
    behind the backward pass, two thirds of a step; what is longer adds to the step.
    """
    rows = []
    for name, gpus, speed in (
        ("1 node of 8", GPUS_PER_NODE, settings.node_gb_s),
        ("8 nodes of 8", GPUS_PER_NODE * NODES, min(settings.network_gb_s, settings.node_gb_s)),
    ):
        sent = 2 * (gpus - 1) / gpus * 4 * parameters
        all_reduce_s = sent / (speed * 1e9)
        alone = step_s / (step_s + all_reduce_s)
        overlapped = step_s / (step_s + max(all_reduce_s - 2 / 3 * step_s, 0.0))
        rows.append((name, gpus, sent, alone, overlapped))
    return rows


def _outcome(
    settings: Settings,
    training: _Training,
    first_s: float,
    sizes: list[_Step],
    stages: dict[str, float],
) -> Outcome:
    size = max(settings.batch_sizes)
    resident_s, fed_s = stages["step on a resident batch"], stages["step fed from shards"]
    lines = [
        f"{settings.model} on {training.device.type}, {settings.num_samples} samples, bf16; "
        f"{settings.warmup} steps of warm-up, {settings.steps} timed; the first step of all took "
        f"{first_s:.1f} s (kernels are chosen or compiled, memory is found)",
        "",
        f"  {'batch':>6}{'step':>12}{'ECG/s':>10}{'peak memory':>14}  trainer.recompute",
    ]
    for step in sorted(sizes, key=lambda step: (step.batch_size, step.recompute)):
        shown = f"{step.peak_mib:,.0f} MiB" if step.peak_mib else "-"
        lines.append(
            f"  {step.batch_size:>6}{step.seconds * 1e3:>9,.1f} ms"
            f"{step.batch_size / step.seconds:>10,.1f}{shown:>14}  {str(step.recompute).lower()}"
        )
    if training.device.type != "cuda":
        lines.append("  (peak memory: of the whole process, resident)")
    lines += ["", f"Where the time goes at batch {size}:"]
    for name, seconds in stages.items():
        lines.append(f"  {name:<26}{seconds * 1e3:>9,.2f} ms {size / seconds:>12,.1f} ECG/s")
    lines += ["", "Calculated, not measured (ring all-reduce of float32 gradients):"]
    parameters = count_parameters(training.model).trainable
    record: dict[str, Any] = {}
    for name, gpus, sent, alone, overlapped in scaling(parameters, fed_s, settings):
        most = gpus * size / fed_s
        lines.append(
            f"  {name:<13}{sent / 2**20:>8,.0f} MiB per GPU and step;{most * alone:>10,.0f} to"
            f"{most * overlapped:>10,.0f} ECG/s ({alone:.0%} to {overlapped:.0%})"
        )
        record[f"efficiency_{gpus}_gpus"] = [round(alone, 4), round(overlapped, 4)]
    ratio = resident_s / fed_s
    lines += [
        "",
        f"Fed from shards the network runs at {ratio:.1%} of its speed on a resident batch.",
    ]
    record |= {
        "ratio": round(ratio, 3),
        "device": training.device.type,
        "model": settings.model,
        "batch_size": size,
        "first_step_s": round(first_s, 2),
        "warmup_steps": settings.warmup,
        **_by_batch_size([step for step in sizes if not step.recompute], ""),
        **_by_batch_size([step for step in sizes if step.recompute], "_recompute"),
        "ecg_per_s_fed": round(size / fed_s, 2),
        "stages_ms": {key: round(value * 1e3, 3) for key, value in stages.items()},
    }
    return Outcome("\n".join(lines), record)


def _by_batch_size(steps: list[_Step], suffix: str) -> dict[str, dict[str, float]]:
    speeds = {str(step.batch_size): round(step.batch_size / step.seconds, 2) for step in steps}
    peaks = {str(step.batch_size): round(step.peak_mib, 1) for step in steps}
    return {f"ecg_per_s{suffix}": speeds, f"peak_mib{suffix}": peaks}


def _median_s(work: Callable[[], Any], device: torch.device, settings: Settings) -> float:
    for _ in range(settings.warmup):
        work()
    taken = []
    for _ in range(settings.steps):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
