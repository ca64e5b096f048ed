"""The callback of a run: drives logging, checkpoints, resume and stopping from Lightning's hooks.

The state is `run_state`, what ranks decide together `rank_consensus`, how a start begins `starts`,
the table of numbers `metrics_log`.
"""

import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed

from ecgfounder_train.core.checkout import git_state
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.fingerprints import machine_fingerprint
from ecgfounder_train.core.logging import get_logger
from ecgfounder_train.core.progress import ProgressMeter, format_duration
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.settings.training import MONITORS, CheckpointSettings
from ecgfounder_train.training.background import CheckpointWriter
from ecgfounder_train.training.compatibility import require_compatible
from ecgfounder_train.training.device_use import DeviceUse
from ecgfounder_train.training.metrics_log import MetricsLog
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.training.rank_consensus import RankConsensus
from ecgfounder_train.training.run_state import (
    Best,
    Measure,
    RunMetadata,
    RunState,
    Window,
    checkpoint_content,
)
from ecgfounder_train.training.schedules import Plateau
from ecgfounder_train.training.signals import StopRequest
from ecgfounder_train.training.starts import Start
from ecgfounder_train.weights.checkpoint import BEST, damage, load_checkpoint

log = get_logger(__name__)


VALIDATION_AGREEMENT = 16
"""Validation batches on a GPU between two agreements of the ranks."""


class Speed:
    """Wall time of a stretch of training: samples per second, and the share spent on waiting."""

    def __init__(self) -> None:
        self._wait_s = self._step_s = 0.0
        self._batch_start_s = 0.0
        self._batch_end_s: float | None = None
        self._start = (time.monotonic(), 0)

    def restart(self, samples_seen: int) -> None:
        """Begin a stretch."""
        self._start = (time.monotonic(), samples_seen)
        self._wait_s = self._step_s = 0.0

    def pause(self) -> None:
        """Do not count the time until the next batch as waiting for data."""
        self._batch_end_s = None

    def batch_starts(self) -> None:
        """Count the time since the last batch ended as waiting for data."""
        now = self._batch_start_s = time.monotonic()
        if self._batch_end_s is not None:
            self._wait_s += now - self._batch_end_s

    def batch_ends(self) -> None:
        """Count the time since the batch started as computing."""
        self._batch_end_s = time.monotonic()
        self._step_s += self._batch_end_s - self._batch_start_s

    def columns(self, samples_seen: int) -> dict[str, float]:
        """Return the columns of metrics.csv for the stretch so far."""
        start_s, start_samples = self._start
        rate = (samples_seen - start_samples) / max(time.monotonic() - start_s, 1e-9)
        share = self._wait_s / max(self._wait_s + self._step_s, 1e-9)
        return {"ecg_per_s": round(rate, 1), "data_wait_share": round(share, 4)}


class RunCallback(L.Callback):
    """Keeps one run's state, metrics and checkpoints.

    Args:
        run: The run's directory.
        start: How this start begins; on ranks other than 0 it is replaced by that of rank 0.
        metadata: What goes into checkpoints beside the state.
        measure: What validations of this start measure.
        settings: When to save.
        log_every_steps: Optimizer steps per row of metrics.csv.
        patience: Validations without improvement that end training; None: any number.
        stop: Filled by signals.
        loggers: Lightning loggers.
        device_use: What share of the device is used.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        start: Start,
        metadata: RunMetadata,
        measure: Measure,
        settings: CheckpointSettings,
        log_every_steps: int,
        patience: int | None,
        stop: StopRequest,
        loggers: list[Any],
        device_use: DeviceUse,
    ) -> None:
        self.run = run
        self.start = start
        self.metadata = metadata
        self.measure = measure
        self.settings = settings
        self.log_every_steps = log_every_steps
        self.patience = patience
        self.consensus = RankConsensus(stop)
        self.loggers = loggers
        self.device_use = device_use
        self.writer = CheckpointWriter(run, settings.keep, settings.background)
        self.stopped_early = False
        self._stop_after_validation = False
        self._git = git_state()
        self._speed = Speed()
        self._began_s = time.monotonic()
        self._is_first_step = True
        self._last_save_s = time.monotonic()
        self._last_save_samples = 0
        self._step_loss: torch.Tensor | None = None
        self._cut_validation = False
        self._note = self._shown_validation = ""
        self._restored: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load weights and state on every rank from the checkpoint that rank 0 has chosen."""
        module = _module(pl_module)
        path, is_own = trainer.strategy.broadcast(
            (str(self.start.checkpoint) if self.start.checkpoint else None, self.start.is_own)
        )
        if path is None:
            module.state.measure = self.measure
            return
        checkpoint = self.start.content
        if checkpoint is None or str(self.start.checkpoint) != path:
            checkpoint = load_checkpoint(path)
            # This rank's node may see other shards.
            require_compatible(checkpoint, self.metadata, path)
        module.model.load_state_dict(checkpoint["model"])
        if module.average:
            # An average that is switched on later starts from the weights as they are.
            module.average.model.load_state_dict(checkpoint["ema"] or checkpoint["model"])
        module.state = RunState.restored(checkpoint, trainer.accumulate_grad_batches)
        self._restored = checkpoint
        # Freed when the optimizer has been restored: it is as large as the run's own state.
        self.start = replace(self.start, content=None)
        self._last_save_samples = module.samples_seen
        if trainer.is_global_zero:
            for name in self.writer.folder.set_aside_newer_than(module.state.optimizer_steps):
                log.warning("Checkpoint %s is damaged; renamed to %s.damaged.", name, name)
            self._repair_best(Path(path), module)
            log.info(
                "%s run %s from %s: %s of %s samples seen.",
                "Resuming" if is_own else "Starting",
                self.run.name,
                Path(path).name,
                f"{module.samples_seen:,}",
                f"{module.total_samples:,}",
            )
        # Early stopping counts from it on every rank, and only rank 0 sees whether it was reset.
        module.state.best = trainer.strategy.broadcast(module.state.best)
        self._compare_measures(trainer, module)

    def _repair_best(self, path: Path, module: PretrainModule) -> None:
        """Make `best.ckpt` and the best of the state agree again."""
        best = module.state.best
        if best.value is not None and best.samples_seen == module.samples_seen:
            # The run was perhaps killed after writing this checkpoint, before pointing to it.
            self.writer.folder.link_best(path)
        elif not self._is_here(best):
            # Another run's checkpoint: its best one is not in this folder.
            module.state.best = Best()

    def _is_here(self, best: Best) -> bool:
        path = self.run.checkpoints / BEST
        if not path.is_file() or damage(path) is not None:
            return False
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["best"]
        return bool(found["value"] == best.value and found["samples_seen"] == best.samples_seen)

    def _compare_measures(self, trainer: L.Trainer, module: PretrainModule) -> None:
        """Begin best, patience and plateau from scratch where validations measure another thing."""
        state = module.state
        before, state.measure = state.measure, self.measure
        if before in (None, self.measure) or (not state.scores and state.best.value is None):
            return
        factor = state.rate_factor
        if isinstance(module.schedule, Plateau):
            factor = module.schedule.factor(module.progress())
        if trainer.is_global_zero:
            kept = f"best-before-start-{self.start.number}.ckpt"
            self.writer.folder.keep_best_as(kept)
            log.info(
                "Validations now measure something else (%s): best, patience and plateau begin "
                "from scratch; the best checkpoint so far stays as %s.",
                self.measure.difference(before) if before else "",
                kept,
            )
        state.restart_scores(self.measure, factor)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the optimizer, and open the log at the run's position."""
        module = _module(pl_module)
        if (checkpoint := self._restored) is not None:
            optimizer = trainer.optimizers[0]
            # The moments are the checkpoint's; weight decay and betas are the command's, as every
            # other setting is. load_state_dict would silently bring the old ones back.
            settings = [
                # The rate is set at every batch, by the schedule.
                {key: value for key, value in group.items() if key not in ("params", "lr")}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(checkpoint["optimizer"])
            for group, wanted in zip(optimizer.param_groups, settings, strict=True):
                group.update(wanted)
            if checkpoint["precision"]:
                trainer.precision_plugin.load_state_dict(checkpoint["precision"])
            self._restored = None
        window = module.state.window
        window.loss = window.loss.to(module.device)
        self._last_save_samples = module.samples_seen
        self._speed.restart(module.samples_seen)
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
                self.start.number,
            )
            self.run.write_state(self._state(module, "training"))

        if module.state.validation_pending:
            self._validate_now(trainer, module)

    def _validate_now(self, trainer: L.Trainer, module: PretrainModule) -> None:
        """Take the validation that a signal has stopped, before any training.

        Not later than here: at the end of the budget there is no batch left to train on, and
        Lightning's loop ends without a hook.
        """
        module.on_fit_start()  # Lightning calls it after this hook; twice does no harm
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        module.train()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning."""
        self.consensus.stop.listen()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last batch ended as waiting for data."""
        self._speed.batch_starts()

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
        window = module.state.window
        loss = outputs["loss"].detach().to(window.loss) * trainer.accumulate_grad_batches
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        self.consensus.note_batch(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            module.finish_step()
            if not module.step_was_bad:
                window.loss += self._step_loss
                window.batches += trainer.accumulate_grad_batches
            self._step_loss = None
            self._after_step(trainer, module)
        self._speed.batch_ends()

    def _after_step(self, trainer: L.Trainer, module: PretrainModule) -> None:
        if self._is_first_step:
            self._is_first_step = False
            log.info("First step after %s.", format_duration(time.monotonic() - self._began_s))
        self.meter.update(module.samples_seen, self._note)
        if self.writer.error is not None:
            if trainer.world_size == 1:
                self.writer.wait()
            self.consensus.note_error(self.writer.error)
        agreed = self.consensus.agree(trainer, self._is_due(module), module.step_was_bad)
        module.state.faults.quarantined += agreed.quarantined
        if module.state.optimizer_steps % self.log_every_steps == 0:
            module.check_finite()
            self._log_training(trainer, module)
        at_validation = module.samples_seen >= self._segment_end
        # At a validation the checkpoint comes after it: a run killed in between validates again.
        if at_validation:
            trainer.should_stop = trainer.should_stop or module.samples_seen >= module.total_samples
        elif agreed.stop or agreed.save:
            self._save(trainer, module, is_best=False)
        if agreed.stop and not at_validation:
            self.stopped_early = module.samples_seen < module.total_samples
            trainer.should_stop = True
            # Lightning validates whenever it is asked to stop, which would put a row into
            # metrics.csv that an undisturbed run does not have.
            trainer.limit_val_batches = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where this stretch ends."""
        module = _module(pl_module)
        self._segment_end = trainer.datamodule.next_validation(module.position)  # type: ignore[attr-defined]
        self._speed.pause()

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
        """Note what could not be read; end the validation where the run is asked to stop.

        A validation may take an hour, and the time between a batch system's signal and its kill is
        minutes. The checkpoint then says that the validation is still to be done.
        """
        self.consensus.note_batch(batch)
        batches: Any = trainer.val_dataloaders
        is_last = batch_idx + 1 >= len(batches)
        # On a GPU an agreement waits for the device.
        every = VALIDATION_AGREEMENT if trainer.strategy.root_device.type == "cuda" else 1
        if (batch_idx + 1) % every and not is_last:
            return
        agreed = self.consensus.agree(trainer)
        _module(pl_module).state.faults.quarantined += agreed.quarantined
        self._stop_after_validation = agreed.stop
        if agreed.stop and not is_last:
            self._cut_validation = _module(pl_module).validation_is_cut = True
            # What Lightning's evaluation loop takes for the end of the data.
            raise StopIteration

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the validation and save."""
        module = _module(pl_module)
        state = module.state
        if self._cut_validation:
            self._cut_validation = False
            state.validation_pending = self.stopped_early = True
            self._save(trainer, module, is_best=False)
            trainer.should_stop = True
            return
        state.validation_pending = False
        module.check_finite()
        value = module.validation[self.settings.monitor]
        sign = 1 if MONITORS[self.settings.monitor] == "max" else -1
        is_best = state.score(value, module.samples_seen, sign)
        if trainer.is_global_zero:
            self.log.write(self._row(module) | module.validation)
            column, shown = module.headline
            self._shown_validation = f"{shown} {module.validation[column]:.4f}"
            log.info(
                "Validation at %s samples: %s, loss %.4f%s",
                f"{module.samples_seen:,}",
                self._shown_validation,
                module.validation["val/loss"],
                ", the best so far" if is_best else "",
            )
        self._save(trainer, module, is_best)
        if self.patience is not None and state.validations_since_best >= self.patience:
            trainer.should_stop = True
        # What the ranks agreed on at the last batch; a later signal counts at the next step.
        if self._stop_after_validation and module.samples_seen < module.total_samples:
            self.stopped_early = trainer.should_stop = True
        self._speed.restart(module.samples_seen)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the log and say in run.json how the run ended."""
        self.writer.wait()
        self.meter.__exit__(None, None, None)
        if trainer.is_global_zero:
            state = "stopped" if self.stopped_early else "finished"
            self.run.write_state(self._state(_module(pl_module), state))
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
        """Set the state in run.json to failed; failure.json holds the reason.

        Its samples are those of the last checkpoint: what came after has to be trained again.
        """
        # On a full disk the error that is being raised says more than this one would.
        with suppress(UserError):
            saved = {"samples_seen": self._last_save_samples}
            self.run.write_state(self._state(module, "failed") | saved)

    def _log_training(self, trainer: L.Trainer, module: PretrainModule) -> None:
        window = module.state.window
        loss = window.loss
        if trainer.world_size > 1:
            torch.distributed.all_reduce(loss)
        # Sums of single-precision losses are exact in double precision, whatever share of them a
        # checkpoint gave each rank; so the only division comes last. Of steps that were all skipped
        # there is no loss.
        loss = loss / (window.batches * trainer.world_size or float("nan"))
        if trainer.is_global_zero:
            speed = self._speed.columns(module.samples_seen)
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._note = f"loss {float(loss):.4f}, lr {rate:.2g}"
            if self._shown_validation:
                self._note += f", validation {self._shown_validation}"
            self.log.write(
                self._row(module)
                | self.device_use.of(speed["ecg_per_s"])
                | {
                    "train/loss": float(loss),
                    "train/grad_norm": float(module.grad_norm),
                    "lr": rate,
                    **speed,
                    "quarantined": module.state.faults.quarantined,
                    "skipped_steps": module.state.faults.skipped_steps,
                }
            )
        module.state.window = Window(torch.zeros_like(window.loss))
        self._speed.restart(module.samples_seen)

    def _row(self, module: PretrainModule) -> dict[str, float]:
        return {
            "samples_seen": module.samples_seen,
            "global_step": module.state.optimizer_steps,
            "epoch": round(module.samples_seen / module.num_samples, 4),
        }

    def _save(self, trainer: L.Trainer, module: PretrainModule, is_best: bool) -> None:
        module.check_finite()
        loss = module.state.window.loss.clone()
        if trainer.world_size > 1:
            # One checkpoint serves every rank, so it holds the mean of their windows.
            torch.distributed.all_reduce(loss)
            loss /= trainer.world_size
        if trainer.is_global_zero:
            checkpoint = checkpoint_content(
                module.state.to_checkpoint(
                    module.samples_seen, trainer.accumulate_grad_batches, float(loss)
                ),
                self.metadata,
                model=module.model.state_dict(),
                ema=module.average.model.state_dict() if module.average else None,
                optimizer=trainer.optimizers[0].state_dict(),
                precision=trainer.precision_plugin.state_dict(),
                seed=module.seed,
            )
            self.writer.save(checkpoint, is_best, self._state(module, "training"))
        self._last_save_s = time.monotonic()
        self._last_save_samples = module.samples_seen

    def _state(self, module: PretrainModule, state: str) -> dict[str, Any]:
        return {
            "state": state,
            "samples_seen": module.samples_seen,
            "total_samples": module.total_samples,
            "global_step": module.state.optimizer_steps,
            "best": {"monitor": self.settings.monitor, **module.state.best_as_dict()},
            "faults": asdict(module.state.faults),
            "spec": self.metadata.spec,
            "fingerprints": self.metadata.fingerprints,
            "versions": self.metadata.versions,
            "hardware": self.metadata.hardware,
            "machine": machine_fingerprint(),
            "git": self._git,
        }


def _module(module: L.LightningModule) -> PretrainModule:
    assert isinstance(module, PretrainModule)
    return module
