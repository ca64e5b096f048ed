"""The callback that keeps a run: counts steps, logs, saves, resumes, and stops when asked to."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed

from ecgfounder_train.core.checkout import git_state
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.fingerprints import machine_fingerprint
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.loader.epoch_plan import Position
from ecgfounder_train.settings.training import CheckpointSettings
from ecgfounder_train.training.background import CheckpointWriter
from ecgfounder_train.training.device_use import DeviceUse
from ecgfounder_train.training.faults import FaultCounts
from ecgfounder_train.training.metrics_log import MetricsLog
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.training.signals import SIGNALS, StopRequest
from ecgfounder_train.weights.checkpoint import (
    BEST,
    FORMAT_VERSION,
    damage,
    load_checkpoint,
    newest_whole,
)


@dataclass
class RunFacts:
    """What a checkpoint says about its run beside the weights."""

    spec: dict[str, Any]
    config: dict[str, Any]
    fingerprints: dict[str, str]
    versions: dict[str, str]
    hardware: dict[str, Any]


@dataclass
class _Window:
    """Sums since the last logged row; part of the checkpoint, so that rows survive a kill."""

    loss: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    batches: int = 0


@dataclass(frozen=True)
class Patience:
    """Early stopping.

    Args:
        validations: How many may bring nothing better; None: any number.
        every_samples: Distance of validations.
    """

    validations: int | None
    every_samples: int

    def is_exhausted(self, best: Mapping[str, Any], samples_seen: int) -> bool:
        """Tell whether a run has gone on for long enough without a better validation.

        A function of the position alone: a run that was stopped is known as such when it is started
        again, and nothing more has to be saved. Validations are counted by their due points,
        because the batch that reaches one overshoots it by more or less.
        """
        if self.validations is None or best["value"] is None:
            return False
        since = samples_seen // self.every_samples - best["samples_seen"] // self.every_samples
        return bool(since >= self.validations)


class RunKeeper(L.Callback):
    """Keeps one run's position, metrics and checkpoints.

    Args:
        run: The run's directory.
        resume: `auto`, `none` or a checkpoint's path.
        facts: What goes into checkpoints beside the state.
        settings: When to save.
        log_every_steps: Optimizer steps per row of metrics.csv.
        patience: Ends training when validations no longer improve.
        stop: Filled by signals.
        loggers: Lightning loggers.
        device_use: What share of the device is used.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        resume: str,
        facts: RunFacts,
        settings: CheckpointSettings,
        log_every_steps: int,
        patience: "Patience",
        stop: StopRequest,
        loggers: list[Any],
        device_use: DeviceUse,
    ) -> None:
        self.run = run
        self.resume = resume
        self.facts = facts
        self.settings = settings
        self.log_every_steps = log_every_steps
        self.patience = patience
        self.stop = stop
        self.loggers = loggers
        self.device_use = device_use
        self.writer = CheckpointWriter(run, settings.keep, settings.background)
        self._git = git_state()
        self.best: dict[str, Any] = {"value": None, "samples_seen": 0}
        self.stopped_early = False
        self._restored: dict[str, Any] | None = None
        self._window = _Window()
        self._last_save_s = time.monotonic()
        self._last_save_samples = 0
        self._wait_s = self._step_s = 0.0
        self._batch_end_s: float | None = None
        self._step_loss: torch.Tensor | None = None
        self._quarantined = 0
        self._error: str | None = None
        self._rate_start = (time.monotonic(), 0)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the checkpoint on rank 0, load weights and position on every rank."""
        module = _module(pl_module)
        path = self._choose() if trainer.is_global_zero else None
        path = trainer.strategy.broadcast(path)
        if path is None:
            return
        checkpoint = load_checkpoint(path)
        require_same(checkpoint, self.facts, path)
        module.model.load_state_dict(checkpoint["model"])
        if module.average:
            # An average that is switched on later starts from the weights as they are.
            module.average.model.load_state_dict(checkpoint["ema"] or checkpoint["model"])
        position = checkpoint["position"]
        module.position = Position(position["epoch"], position["slots"])
        module.optimizer_steps = position["global_step"]
        self.best = checkpoint["best"]
        # Checkpoints of earlier versions do not have them.
        module.scores = tuple(checkpoint.get("scores", ()))
        module.fault_counts = FaultCounts(**checkpoint.get("faults", {}))
        window, now = checkpoint["window"], trainer.accumulate_grad_batches
        # A step counts once, of however many micro-batches it was made.
        before = window.get("accumulate", now)
        self._window = _Window(
            # Exactly as it was where nothing changed.
            torch.tensor(window["loss"], dtype=torch.float64) * (now / before),
            window["batches"] * now // before,
        )
        self._restored = checkpoint
        if trainer.is_global_zero:
            self.writer.folder.delete_newer_than(module.optimizer_steps)
            self._mend_best(Path(path), module.samples_seen)
            print(
                f"Resuming run {self.run.name} from {Path(path).name}: "
                f"{module.samples_seen:,} of {module.total_samples:,} samples seen.",
                flush=True,
            )
        # Early stopping counts from it on every rank, and only rank 0 knows whether it was mended.
        self.best = trainer.strategy.broadcast(self.best)

    def _mend_best(self, path: Path, samples_seen: int) -> None:
        """Make `best.ckpt` and what the checkpoint says of it agree again."""
        if self.best["value"] is not None and self.best["samples_seen"] == samples_seen:
            # The run was perhaps killed after writing this checkpoint, before pointing to it.
            self.writer.folder.link_best(path)
        elif not self._is_here(self.best):
            # Another run's checkpoint, or one from before the best: the best one is not here.
            self.best = {"value": None, "samples_seen": 0}

    def _is_here(self, best: Mapping[str, Any]) -> bool:
        path = self.run.checkpoints / BEST
        if not path.is_file() or damage(path) is not None:
            return False
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return bool(found["best"] == best)

    def _choose(self) -> str | None:
        if self.resume == "none":
            return None
        if self.resume == "auto":
            newest = newest_whole(self.run)
            return str(newest) if newest else None
        return self.resume

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the optimizer, and open the log where the run stands."""
        module = _module(pl_module)
        if self._restored:
            optimizer = trainer.optimizers[0]
            # The moments are the checkpoint's; weight decay and betas are the command's, as every
            # other setting is. load_state_dict would bring the old ones back without a word.
            settings = [
                {key: value for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(self._restored["optimizer"])
            for group, wanted in zip(optimizer.param_groups, settings, strict=True):
                group.update(wanted)
            if self._restored["precision"]:
                trainer.precision_plugin.load_state_dict(self._restored["precision"])
            self._restored = None
        self._window.loss = self._window.loss.to(module.device)
        self._last_save_samples = module.samples_seen
        self._rate_start = (time.monotonic(), module.samples_seen)
        self.meter = ProgressMeter(
            self.run.name,
            module.total_samples,
            "ECG",
            done=module.samples_seen,
            enabled=trainer.is_global_zero,
        )
        self.meter.__enter__()
        if trainer.is_global_zero:
            self.log = MetricsLog(
                self.run.metrics_file,
                module.samples_seen,
                self.loggers,
                module.validation_columns,
            )
            self._write_state(module, "training")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning."""
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last batch ended as waiting for data."""
        now = time.monotonic()
        if self._batch_end_s is not None:
            self._wait_s += now - self._batch_end_s
        self._batch_start_s = now

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After an optimizer step: move on, log, save, stop."""
        module = _module(pl_module)
        loss = outputs["loss"].detach().to(self._window.loss) * trainer.accumulate_grad_batches
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        self._note_bad_samples(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            module.finish_step()
            if not module.step_was_bad:
                self._window.loss += self._step_loss
                self._window.batches += trainer.accumulate_grad_batches
            self._step_loss = None
            self._after_step(trainer, module)
        self._batch_end_s = time.monotonic()
        self._step_s += self._batch_end_s - self._batch_start_s

    def _after_step(self, trainer: L.Trainer, module: PretrainModule) -> None:
        self.meter.update(module.samples_seen)
        stop, due = self._agree(trainer, module)
        if module.optimizer_steps % self.log_every_steps == 0:
            module.check_finite()
            self._log_training(trainer, module)
        at_validation = module.samples_seen >= self._segment_end
        # At a validation the checkpoint comes after it: a run killed in between validates again.
        if at_validation:
            trainer.should_stop = trainer.should_stop or module.samples_seen >= module.total_samples
        elif stop or due:
            self._save(trainer, module, is_best=False)
        if stop:
            self.stopped_early = module.samples_seen < module.total_samples
            trainer.should_stop = True
            if not at_validation:
                # Lightning validates whenever it is asked to stop, which would put a row into
                # metrics.csv that an undisturbed run does not have.
                trainer.limit_val_batches = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where this stretch ends."""
        module = _module(pl_module)
        self._segment_end = trainer.datamodule.next_validation(module.position)  # type: ignore[attr-defined]
        self._batch_end_s = None

    def _agree(self, trainer: L.Trainer, module: PretrainModule) -> tuple[bool, bool]:
        """Return for all ranks alike: whether any was asked to stop, whether rank 0 wants to save.

        Clocks differ by moments, a signal may reach one rank only, and so may a damaged sample;
        ranks that disagreed would wait for each other for good. One small reduction per step
        answers all, and counts what was left out.

        Raises:
            UserError: A rank could not read its samples, or rank 0 not write its checkpoint.
        """
        due = self._is_due(module)
        if self.writer.error is not None:
            if trainer.world_size == 1:
                self.writer.wait()
            self._error = self._error or str(self.writer.error)
        quarantined, self._quarantined = self._quarantined, 0
        if trainer.world_size > 1:
            due = due and trainer.is_global_zero
            failed, bad = self._error is not None, module.step_was_bad
            asked = [self.stop.signal is number for number in SIGNALS]
            flags = torch.tensor([due, failed, bad, quarantined, *asked], dtype=torch.int64)
            flags = flags.to(trainer.strategy.root_device)
            torch.distributed.all_reduce(flags)
            saves, failures, bads, quarantined, *stops = flags.tolist()
            due = saves > 0
            if self.stop.signal is None:
                # All ranks end in the same way, whichever of them was asked to.
                self.stop.signal = next((n for n, k in zip(SIGNALS, stops, strict=True) if k), None)
            if failures:
                self._fail_together(trainer)
            assert bads in (0, trainer.world_size), "ranks disagree about a gradient they share"
        module.fault_counts.quarantined += quarantined
        return self.stop.signal is not None, due

    def _note_bad_samples(self, batch: Mapping[str, Any]) -> None:
        self._quarantined += len(batch.get("quarantined", ()))
        self._error = self._error or batch.get("error")

    def _fail_together(self, trainer: L.Trainer) -> None:
        """Raise on every rank what one or more of them met.

        A rank that ended alone would leave the others waiting for it in their next collective.
        """
        errors: list[str | None] = [None] * trainer.world_size
        torch.distributed.all_gather_object(errors, self._error)
        rank = next(rank for rank, error in enumerate(errors) if error)
        raise UserError(self._error or f"Rank {rank} cannot go on: {errors[rank]}")

    def _is_due(self, module: PretrainModule) -> bool:
        every = self.settings.every_samples
        due = time.monotonic() - self._last_save_s >= self.settings.every_s
        if every is not None:
            due = due or module.samples_seen // every > self._last_save_samples // every
        return due

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what could not be read."""
        self._note_bad_samples(batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the ranks add up their counts: stop together if one of them cannot go on."""
        quarantined, self._quarantined = self._quarantined, 0
        if trainer.world_size > 1:
            flags = torch.tensor([self._error is not None, quarantined], dtype=torch.int64)
            flags = flags.to(trainer.strategy.root_device)
            torch.distributed.all_reduce(flags)
            failures, quarantined = flags.tolist()
            if failures:
                self._fail_together(trainer)
        _module(pl_module).fault_counts.quarantined += quarantined

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the validation and save."""
        module = _module(pl_module)
        module.check_finite()
        value = module.validation[self.settings.monitor]
        best = self.best["value"]
        sign = 1 if self.settings.mode == "max" else -1
        is_best = value == value and (best is None or sign * value > sign * best)
        if is_best:
            self.best = {"value": value, "samples_seen": module.samples_seen}
        module.scores = (*module.scores, sign * value)
        if trainer.is_global_zero:
            self.log.write(self._row(module) | module.validation)
            column, shown = module.headline
            note = f"validation {shown} {module.validation[column]:.4f}"
            self.meter.update(module.samples_seen, note)
        self._save(trainer, module, is_best)
        if self.patience.is_exhausted(self.best, module.samples_seen):
            trainer.should_stop = True
        self._rate_start = (time.monotonic(), module.samples_seen)
        self._wait_s = self._step_s = 0.0

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the log and say in run.json how it ended."""
        self.writer.wait()
        self.meter.__exit__(None, None, None)
        if trainer.is_global_zero:
            self._write_state(_module(pl_module), "stopped" if self.stopped_early else "finished")
            self.log.close()
        # A launcher may end all ranks soon after the first has ended: none before rank 0 is done.
        trainer.strategy.barrier()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is printed."""
        if hasattr(self, "meter"):
            self.meter.__exit__(None, None, None)
        if not isinstance(exception, KeyboardInterrupt):
            # What is being saved is good, whatever happened since; of two errors the first counts.
            with suppress(Exception):
                self.writer.wait()

    def note_failure(self, module: PretrainModule) -> None:
        """Say in run.json that the run ended by an error; failure.json says by which."""
        # On a full disk the error that is under way says more than this one would.
        with suppress(UserError):
            self._write_state(module, "failed")

    def _log_training(self, trainer: L.Trainer, module: PretrainModule) -> None:
        loss = self._window.loss
        if trainer.world_size > 1:
            torch.distributed.all_reduce(loss)
        # Sums of single-precision losses are exact in double precision, whatever share of them a
        # checkpoint gave each rank; so the only division comes last. Of steps that were all skipped
        # there is no loss.
        loss = loss / (self._window.batches * trainer.world_size or float("nan"))
        now = time.monotonic()
        start_s, start_samples = self._rate_start
        if trainer.is_global_zero:
            rate = (module.samples_seen - start_samples) / max(now - start_s, 1e-9)
            self.log.write(
                self._row(module)
                | self.device_use.of(rate)
                | {
                    "train/loss": float(loss),
                    "train/grad_norm": float(module.grad_norm),
                    "lr": trainer.optimizers[0].param_groups[0]["lr"],
                    "ecg_per_s": round(rate, 1),
                    "data_wait_share": round(
                        self._wait_s / max(self._wait_s + self._step_s, 1e-9), 4
                    ),
                    "quarantined": module.fault_counts.quarantined,
                    "skipped_steps": module.fault_counts.skipped_steps,
                }
            )
        self._window = _Window(torch.zeros_like(self._window.loss))
        self._rate_start = (now, module.samples_seen)
        self._wait_s = self._step_s = 0.0

    def _row(self, module: PretrainModule) -> dict[str, float]:
        return {
            "samples_seen": module.samples_seen,
            "global_step": module.optimizer_steps,
            "epoch": round(module.samples_seen / module.num_samples, 4),
        }

    def _save(self, trainer: L.Trainer, module: PretrainModule, is_best: bool) -> None:
        module.check_finite()
        loss = self._window.loss.clone()
        if trainer.world_size > 1:
            # One checkpoint serves every rank, so it holds the mean of their windows.
            torch.distributed.all_reduce(loss)
            loss /= trainer.world_size
        if trainer.is_global_zero:
            checkpoint = self._checkpoint(trainer, module, float(loss))
            self.writer.save(checkpoint, is_best, self._state(module, "training"))
        self._last_save_s = time.monotonic()
        self._last_save_samples = module.samples_seen

    def _checkpoint(
        self, trainer: L.Trainer, module: PretrainModule, window_loss: float
    ) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "model": module.model.state_dict(),
            "ema": module.average.model.state_dict() if module.average else None,
            "optimizer": trainer.optimizers[0].state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
            "position": {
                "epoch": module.position.epoch,
                "slots": module.position.slots,
                "global_step": module.optimizer_steps,
                "samples_seen": module.samples_seen,
            },
            # Every draw is keyed by (seed, epoch, slot): the seed is the whole state.
            "rng": {"kind": "counter", "seed": module.seed},
            "best": self.best,
            "scores": list(module.scores),
            "faults": asdict(module.fault_counts),
            "window": {
                "loss": window_loss,
                "batches": self._window.batches,
                "accumulate": trainer.accumulate_grad_batches,
            },
            "spec": self.facts.spec,
            "config": self.facts.config,
            "fingerprints": self.facts.fingerprints,
            "versions": self.facts.versions,
            "hardware": self.facts.hardware,
        }

    def _write_state(self, module: PretrainModule, state: str) -> None:
        self.run.write_state(self._state(module, state))

    def _state(self, module: PretrainModule, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "samples_seen": module.samples_seen,
            "total_samples": module.total_samples,
            "global_step": module.optimizer_steps,
            "best": {"monitor": self.settings.monitor, **self.best},
            "faults": asdict(module.fault_counts),
            "spec": self.facts.spec,
            "fingerprints": self.facts.fingerprints,
            "versions": self.facts.versions,
            "hardware": self.facts.hardware,
            "machine": machine_fingerprint(),
            "git": self._git,
        }


_MEANING = {
    "vocabulary": "vocabulary or options of its labels",
    "signal_profile": "signal profile",
    "split": "split into train, val and test",
    "data": "set of shards",
    "model": "network",
    "patients": "share of the training patients",
    "order": "order of the data (data.order, data.block_shards, data.last_batch)",
}
_OF_SHARDS = ("vocabulary", "signal_profile", "split")
"""What is decided when shards are made, so that other shards follow from it."""
_SHOWN = 3


def require_same(checkpoint: Mapping[str, Any], facts: RunFacts, path: Path | str) -> None:
    """Raise if a checkpoint was made with other data, another order of it or another network.

    Raises:
        UserError: Names what differs, and how to go on.
    """
    found = checkpoint["fingerprints"]
    differing = [name for name in _MEANING if found.get(name) != facts.fingerprints.get(name)]
    of_shards = [name for name in _OF_SHARDS if name in differing]
    if of_shards:
        differing = [name for name in differing if name != "data"]
    other = [_MEANING[name] + _summary(name, checkpoint, facts) for name in differing]
    before, now = checkpoint["rng"]["seed"], facts.config["seed"]
    if before != now:
        other.append(f"seed ({before}, now {now})")
    # Moments belong to a place in a group, and the groups follow from it.
    before, now = (
        config.get("optimizer", {}).get("decay_all", True)
        for config in (checkpoint["config"], facts.config)
    )
    if before != now:
        other.append(f"choice of what decays (optimizer.decay_all={before}, now {now})")
    if other:
        what = " and another ".join(other)
        where = ", the shards= it was trained on among them" if of_shards else ""
        raise UserError(
            f"The checkpoint {Path(path).name} was made with another {what}. Give the settings it "
            f"was started with{where} (config.yaml of its run holds them), or start anew with "
            "another run=NAME."
        )


def _summary(name: str, checkpoint: Mapping[str, Any], facts: RunFacts) -> str:
    """Return what a checkpoint says of one thing and what is said now, where that is short."""
    part = {"vocabulary": "vocabulary", "signal_profile": "signal", "model": "model"}.get(name)
    if part is None:
        if name != "split":
            return ""
        return f" ({checkpoint['fingerprints'].get(name)}, now {facts.fingerprints.get(name)})"
    before, now = (_plain(spec.get(part) or {}) for spec in (checkpoint["spec"], facts.spec))
    pairs = [
        f"{key}={before.get(key)}, now {now.get(key)}"
        for key in sorted(before.keys() | now.keys(), key=lambda key: (key != "name", key))
        if before.get(key) != now.get(key) and not key.endswith("fingerprint")
    ]
    more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return f" ({'; '.join(pairs[:_SHOWN])}{more})" if pairs else ""


def _plain(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the settings of a nested section by their whole names; long lists are left out."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            plain |= _plain(value, f"{above}{key}.")
        elif not isinstance(value, list | tuple) or len(value) <= 12:
            plain[f"{above}{key}"] = value
    return plain


def _module(module: L.LightningModule) -> PretrainModule:
    assert isinstance(module, PretrainModule)
    return module
