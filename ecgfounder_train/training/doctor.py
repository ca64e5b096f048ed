"""Pre-flight check of a run: ranks, shards, disk, speed, memory and hours, from a few real steps.

Trainer, network, loader and ranks are those of the run; the steps are taken in a temporary
directory, and every rank reports what it sees.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed

from ecgfounder_train.core.commands import command
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.ranks import is_rank_zero
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.loader import SampleReader
from ecgfounder_train.loader.cache import open_shards
from ecgfounder_train.loader.datamodule import PretrainDataModule
from ecgfounder_train.loader.files import BadSampleError
from ecgfounder_train.settings.training import DataSettings, TrainerSettings
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.build import DataOrder, create_datamodule, create_module
from ecgfounder_train.training.config import RunConfig
from ecgfounder_train.training.failures import FailureNote
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.training.pretrain import require_split
from ecgfounder_train.training.trainer import (
    create_trainer,
    hardware,
    versions,
)

FORMATS = ("table", "json")
_READ_SAMPLES = 512
_WARM_UP_STEPS = 1


@dataclass(frozen=True)
class Finding:
    """One line of the table: `ok`, `warn` or `fail`, what was found, and what to do."""

    check: str
    state: str
    found: str
    remedy: str = ""


def examine(config: Mapping[str, Any]) -> int:
    """Print what was found about the run that this config asks for; return 1 if any check fails.

    Args:
        config: The composed `configs/doctor.yaml`: that of pretraining, and how to print.

    Raises:
        UserError: The settings themselves are wrong, as pretraining would say.
    """
    if config["format"] not in FORMATS:
        raise UserError(f"format={config['format']!r} is not table or json.")
    parsed = RunConfig.from_config(config)
    settings, data, per_rank = parsed.trainer, parsed.data, parsed.batch_size_per_rank
    launch = parsed.require_launch()
    shards = open_shards(parsed.shards, data.cache_dir, data.cache_bytes)
    require_split(shards, parsed.expect_split)
    torch.manual_seed(parsed.numbers.seed)
    order = DataOrder.of(shards, data, parsed.numbers.seed)
    module, _ = create_module(parsed, shards, order)
    datamodule = create_datamodule(parsed, shards, order, module.total_samples)
    findings = [_amount(module, data, settings), _disk(parsed, module)]
    with tempfile.TemporaryDirectory() as folder:
        own = fingerprint([parsed.without_paths(), shards.manifest.fingerprint])
        visit = _Visit(
            {"versions": versions(), "hardware": hardware(settings), "config": own},
            shards,
            steps=int(config["steps"]),
        )
        trainer = create_trainer(
            settings,
            callbacks=[visit],
            accumulate=parsed.accumulate,
            gradient_clip_norm=parsed.numbers.gradient_clip_norm,
            launch=launch,
            note=FailureNote(RunDirectory(Path(folder))),
        )
        trainer.limit_val_batches = 0
        try:
            trainer.fit(module, datamodule=datamodule)
        except torch.OutOfMemoryError as error:
            where = f"batch_size_per_rank={per_rank}, precision {settings.precision}"
            text = f"out of memory at {where}: {str(error).splitlines()[0]}"
            remedy = f"data.batch_size_per_rank={max(1, per_rank // 2)}"
            visit.findings.append(Finding("dry run", "fail", text, remedy))
    if not is_rank_zero():
        return 0
    findings += visit.findings
    print(_shown(findings, str(config["format"])), flush=True)
    return int(any(finding.state == "fail" for finding in findings))


def _amount(module: PretrainModule, data: DataSettings, settings: TrainerSettings) -> Finding:
    steps = -(-module.total_samples // data.global_batch_size)
    per_rank = module.num_samples / settings.world_size
    text = (
        f"{module.num_samples:,} training samples, {per_rank:,.0f} per rank and epoch, "
        f"{steps:,} steps of {data.global_batch_size:,}"
    )
    if module.num_samples < data.global_batch_size:
        remedy = "a smaller data.global_batch_size: an epoch is less than one step"
        return Finding("samples", "fail" if steps < 2 else "warn", text, remedy)
    return Finding("samples", "ok", text)


def _disk(config: RunConfig, module: PretrainModule) -> Finding:
    parameters = sum(p.numel() for p in module.model.parameters())
    # Weights, two moments of Adam, and the weight average.
    copies = 3 + (module.average is not None)
    size = 4 * parameters * copies
    # One more is written before an old one goes, and the best may be none of the newest.
    need = size * (config.checkpoint.keep + 2)
    folder = config.run.path.parent.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{need / 1e9:.2f} GB of checkpoints ({size / 1e9:.2f} each), {free / 1e9:,.0f} GB free"
    if free < need:
        return Finding("disk", "fail", text, "free space, or paths.runs=DIR elsewhere")
    if free < 3 * need:
        return Finding("disk", "warn", text, "others may fill it during the run")
    return Finding("disk", "ok", text)


class _Visit(L.Callback):
    """Asks all ranks before the first step, and measures the steps."""

    def __init__(self, identity: Mapping[str, Any], shards: ShardSet, steps: int) -> None:
        self.identity = identity
        self.shards = shards
        self.steps = max(steps, 1)
        self.findings: list[Finding] = []
        self._reading = 0.0
        self._marks: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the ranks, and measure disk and network."""
        self._compare(trainer)
        self._read(trainer)
        if trainer.world_size > 1:
            self._reduce(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note when each step ends."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self._marks.append(time.monotonic())
        if len(self._marks) > self.steps + _WARM_UP_STEPS - 1:
            trainer.should_stop = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._marks.append(time.monotonic())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what the steps took, and how long the run will take."""
        assert isinstance(pl_module, PretrainModule)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, PretrainDataModule)
        taken = np.diff(self._marks)
        if len(taken) == 0:
            self.findings.append(Finding("dry run", "fail", "no step could be taken"))
            return
        # The first step also reads ahead, allocates and tries kernels out.
        step_s = float(np.median(taken[_WARM_UP_STEPS:] if len(taken) > _WARM_UP_STEPS else taken))
        batch = datamodule.global_batch_size
        peak = _peak_memory(trainer)
        finite = bool(torch.isfinite(pl_module.grad_norm))
        text = f"{len(taken)} steps, {step_s:.2f} s each, peak memory {peak / 1e9:.2f} GB on rank 0"
        self.findings.append(
            Finding(
                "dry run",
                "ok" if finite else "fail",
                text + ("" if finite else "; the gradient is not finite"),
                "" if finite else "a lower optimizer.lr, or trainer.precision=32",
            )
        )
        rate = batch / step_s
        share = self._reading * trainer.world_size / rate
        text = f"{self._reading:,.0f} ECG/s per rank read, {rate / trainer.world_size:,.0f} needed"
        slow = share < 1.5
        self.findings.append(
            Finding(
                "reading",
                "warn" if slow else "ok",
                text,
                "more data.num_workers, or data.cache_dir on a local disk" if slow else "",
            )
        )
        hours = pl_module.total_samples / rate / 3600
        text = f"{hours:,.1f} h for {pl_module.total_samples:,} samples at {rate:,.0f} ECG/s"
        self.findings.append(Finding("whole run", "ok", f"{text}, validations not counted"))

    def _compare(self, trainer: L.Trainer) -> None:
        reported: list[Any] = [None] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(reported, dict(self.identity))
        else:
            reported = [dict(self.identity)]
        different = [
            f"{key} of rank {rank}"
            for rank, other in enumerate(reported)
            for key in self.identity
            if other[key] != reported[0][key]
        ]
        if different:
            text = f"not as on rank 0: {', '.join(different[:6])}"
            remedy = "one environment and one command on all nodes"
            self.findings.append(Finding("ranks", "fail", text, remedy))
            return
        device, precision = (reported[0]["hardware"][key] for key in ("device", "precision"))
        version = reported[0]["versions"]["torch"]
        text = f"{len(reported)} x {device}, precision {precision}, torch {version}"
        self.findings.append(Finding("ranks", "ok", text))

    def _read(self, trainer: L.Trainer) -> None:
        """Every rank looks at every shard's size and reads samples drawn over all of them."""
        manifest = self.shards.manifest
        error = None
        wrong = [
            shard.name
            for number, shard in enumerate(manifest.shards)
            if not _has_size(self.shards.shard_path(number), shard.bytes)
        ]
        if wrong:
            error = f"{len(wrong)} of {len(manifest.shards)} absent or cut: {wrong[0]}"
        else:
            rng = np.random.default_rng(trainer.global_rank)
            size = min(_READ_SAMPLES, len(self.shards.index))
            rows = np.sort(rng.choice(len(self.shards.index), size, replace=False))
            start = time.monotonic()
            try:
                SampleReader(self.shards).read(rows.astype(np.int64))
            except (BadSampleError, UserError, OSError) as problem:
                error = str(problem)
            self._reading = size / max(time.monotonic() - start, 1e-9)
        errors: list[Any] = [error]
        if trainer.world_size > 1:
            errors = [None] * trainer.world_size
            torch.distributed.all_gather_object(errors, error)
        bad = [f"rank {rank}: {text}" for rank, text in enumerate(errors) if text]
        if bad:
            remedy = command("verify", {"shards": self.shards.folder})
            remedy += " on that node; is the folder mounted?"
            self.findings.append(Finding("shards", "fail", "; ".join(bad[:3]), remedy))
            return
        text = (
            f"{len(manifest.shards):,} of the right size, a sample of them whole, on "
            f"{len(errors)} rank(s)"
        )
        self.findings.append(Finding("shards", "ok", text))

    def _reduce(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure the sum over ranks that every step needs."""
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        device = trainer.strategy.root_device
        gradient = torch.zeros(size, device=device)
        times = []
        for _ in range(4):
            torch.distributed.barrier()
            start = time.monotonic()
            torch.distributed.all_reduce(gradient)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.monotonic() - start)
        taken = float(np.median(times[1:]))
        gigabytes = 4 * size / 1e9
        text = f"{gigabytes * 1000:,.1f} MB summed in {taken * 1000:,.1f} ms"
        self.findings.append(
            Finding("network", "ok", f"{text} ({gigabytes / taken:.2f} GB/s over all ranks)")
        )


def _has_size(path: Path | str, size: int) -> bool:
    try:
        return Path(path).stat().st_size == size
    except OSError:
        return False


def _peak_memory(trainer: L.Trainer) -> int:
    if trainer.strategy.root_device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _shown(findings: list[Finding], kind: str) -> str:
    if kind == "json":
        return json.dumps([asdict(finding) for finding in findings], indent=2)
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.check:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.remedy}")
    return "\n".join(lines)
