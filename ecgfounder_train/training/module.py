"""The LightningModule: forward, masked loss, optimizer, and the metrics of validation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed
from torch import nn

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.logging import get_logger
from ecgfounder_train.loader.counter_rng import uniforms
from ecgfounder_train.loader.epoch_plan import Position
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.metrics import macro
from ecgfounder_train.metrics.histogram import HistogramAuroc
from ecgfounder_train.models import count_parameters
from ecgfounder_train.settings.training import FaultSettings, OptimizerSettings
from ecgfounder_train.training.ema import WeightAverage
from ecgfounder_train.training.faults import Float16Overflow, Suspects, is_bad
from ecgfounder_train.training.probe import COLUMNS as PROBE_COLUMNS
from ecgfounder_train.training.probe import ExternalProbe, Ranks
from ecgfounder_train.training.run_state import RunState
from ecgfounder_train.training.schedules import Progress, Schedule

log = get_logger(__name__)


def create_optimizer(
    settings: OptimizerSettings, model: nn.Module, fused: bool
) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if settings.decay_all or p.ndim > 1]
    exempt = [p for p in trainable if not settings.decay_all and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True if fused else None,
    )


def can_be_fused(device: torch.device, precision: str) -> bool:
    """Return whether the optimizer's step may be fused: on a GPU, but not with float16.

    There gradients are scaled, and a fused step takes the scale back only after they were clipped
    and their norm was noted.
    """
    return device.type == "cuda" and precision != "16-mixed"


class PretrainModule(L.LightningModule):
    """A network, its loss and its position in the data.

    Attributes:
        validation_columns: What validation measures, as columns of metrics.csv.
        headline: Which of them is shown during the run, and its name there.

    Args:
        model: The network, (B, num_leads, num_samples) to (B, num_labels).
        loss: Elementwise masked loss `loss(logits, targets, observed)`, zero where unobserved.
        transform: Device-side half of the preprocessing.
        optimizer: Optimizer settings.
        schedule: Learning-rate schedule.
        num_samples: Samples of the training split.
        total_samples: The run's budget in samples.
        global_batch_size: Samples per optimizer step over all ranks.
        seed: The run's seed; also keys dropout, step by step.
        average: Weight average that validation uses instead of the raw weights.
        monitored: Indices of the labels that validation's macro AUROC covers.
        faults: What happens to a step with a bad gradient; None: the default.
        probe: Another data set on which the features are tried at validations.
    """

    validation_columns: tuple[str, ...] = ("val/loss", "val/macro_auroc", "val/num_labels")
    headline: tuple[str, str] = ("val/macro_auroc", "AUROC")

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        transform: BatchTransform,
        optimizer: OptimizerSettings,
        schedule: Schedule,
        *,
        num_samples: int,
        total_samples: int,
        global_batch_size: int,
        num_labels: int,
        seed: int,
        average: WeightAverage | None,
        monitored: Sequence[int],
        faults: FaultSettings | None = None,
        probe: ExternalProbe | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.transform = transform
        self.optimizer_settings = optimizer.for_network(count_parameters(model).total)
        self.schedule = schedule
        self.num_samples = num_samples
        self.total_samples = total_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        # Kept out of the module tree: DDP must neither broadcast nor count the second copy.
        self._average = [average] if average else []
        self.state = RunState()
        self.grad_norm = torch.zeros(())
        self.diverged = torch.zeros((), dtype=torch.bool)
        self.faults = faults or FaultSettings()
        self.float16 = Float16Overflow()
        self.suspects = Suspects()
        self.step_was_bad = False
        self._auroc = HistogramAuroc(num_labels)
        self._monitored = list(monitored)
        self.probe = probe
        if probe:
            self.validation_columns = (*self.validation_columns, *PROBE_COLUMNS)
        self._val_loss = torch.zeros(2, dtype=torch.float64)
        self.validation: dict[str, float] = {}
        self.validation_is_cut = False

    @property
    def average(self) -> WeightAverage | None:
        """The weight average, if this run keeps one."""
        return self._average[0] if self._average else None

    @property
    def position(self) -> Position:
        """Epochs and slots consumed so far."""
        return self.state.position

    @property
    def samples_seen(self) -> int:
        """Samples trained on so far, padding not counted."""
        return self.position.samples_seen(self.num_samples)

    def progress(self) -> Progress:
        """Return what the learning rate depends on."""
        return Progress(
            self.samples_seen,
            self.total_samples,
            self.num_samples,
            self.state.scores,
            self.state.rate_factor,
        )

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Return logits (B, num_labels) of normalised signals (B, num_leads, num_samples)."""
        return self.model(signal)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused on a GPU."""
        fused = can_be_fused(self.device, self.trainer.precision)
        return create_optimizer(self.optimizer_settings, self.model, fused)

    def on_fit_start(self) -> None:
        """Move what is not in Lightning's module tree to the device."""
        if self.average:
            self.average.model.to(self.device)
        self.diverged = self.diverged.to(self.device)
        # Double precision does not exist on Apple's GPUs; nowhere else does the sum need less.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._val_loss = torch.zeros(2, dtype=dtype, device=self.device)

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Set the learning rate, and key dropout to this micro-batch."""
        progress = self.progress()
        for group in self.trainer.optimizers[0].param_groups:
            # Fine-tuning gives early layers a share of the rate.
            rate = self.optimizer_settings.lr * group.get("lr_scale", 1.0)
            group["lr"] = rate * self.schedule.factor(progress)
        # Global generators are seeded from the position, so there is no state to save: a resumed
        # run drops the same units as an undisturbed one.
        draw = uniforms(self.seed, batch["epoch"], batch["slots"][:1], "torch", 2)[0]
        torch.manual_seed(int(draw[0] * 2**24) << 24 | int(draw[1] * 2**24))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        """Return this rank's share of the global batch's mean loss."""
        signal, targets, observed = self.transform(batch, training=True)
        elements = self.loss(self.model(signal).float(), targets, observed)
        self.suspects.note(batch["rows"], elements)
        return elements.sum() / batch["loss_denominator"]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by total norm and remember the norm; keep a bad gradient from the weights."""
        limit = gradient_clip_val or float("inf")
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit).detach()
        # float16 skips such a step and halves its scale; elsewhere the weights would stay NaN.
        if self.trainer.precision == "16-mixed":
            self.float16.note(self.grad_norm)
            # The samples of such a step are never named; what was noted would fill the device.
            self.suspects = Suspects()
            return
        bad = is_bad(self.faults, self.grad_norm)
        self.suspects.settle(bad)
        if self.faults.on_bad_loss == "stop":
            self.diverged = self.diverged | bad
            return
        self.step_was_bad = bool(bad)
        if self.step_was_bad:
            for parameter in parameters:
                # The optimizer passes over what has no gradient: no decay, no change of moments.
                parameter.grad = None

    def finish_step(self) -> None:
        """Move on after an optimizer step."""
        self.state.position = self.position.advanced(self.global_batch_size, self.num_samples)
        self.state.optimizer_steps += 1
        if self.step_was_bad:
            self._count_skipped()
            return
        self.state.faults.skipped_in_a_row = 0
        if self.average:
            self.average.update(self.model, self.global_batch_size, self.samples_seen)

    def _count_skipped(self) -> None:
        counts = self.state.faults
        counts.skipped_steps += 1
        counts.skipped_in_a_row += 1
        if counts.skipped_in_a_row > self.faults.max_skipped:
            self.diverged = torch.ones_like(self.diverged)
            self.check_finite()
        records = self._suspected_records()
        if self.trainer.is_global_zero:
            log.warning(
                "skipped the step before %s samples: gradient norm %.4g.%s",
                f"{self.samples_seen:,}",
                float(self.grad_norm),
                records,
            )

    def _suspected_records(self) -> str:
        """Return a sentence that names the records with the largest losses of a bad step."""
        worst = self.suspects.worst()
        if not worst:
            return ""
        index = self.trainer.datamodule.shards.index  # type: ignore[attr-defined]
        keys = [f"{index[row]['record_key'].decode()} ({loss:.4g})" for row, loss in worst]
        return f" Largest losses: records {', '.join(keys)}."

    def check_finite(self) -> None:
        """Raise if a gradient was NaN, infinite or too large since the last check.

        Gradients are summed over ranks before they are looked at, so all ranks raise together.

        Raises:
            UserError: Training has diverged.
        """
        if self.float16.is_persistent:
            raise UserError(
                "The float16 gradient has been NaN or infinite in the last "
                f"{self.float16.in_a_row} steps before {self.samples_seen:,} samples, although the "
                "loss scale was halved each time: no step was taken. Use "
                "trainer.precision=bf16-mixed or 32 with resume.allow=[trainer.precision]; the run "
                "continues from its last checkpoint."
            )
        if self.diverged:
            raise UserError(
                f"The loss or its gradient is NaN, infinite or above faults.max_grad_norm before "
                f"{self.samples_seen:,} samples (no checkpoint was written since)."
                f"{self._suspected_records()} Skip such steps (faults.on_bad_loss=skip), or lower "
                "optimizer.lr, set gradient_clip_norm=1 or trainer.precision=32 and add "
                "resume.allow=[optimizer.lr] (or the key you changed); the run continues from the "
                "last good checkpoint."
            )

    def on_validation_epoch_start(self) -> None:
        """Start counting, unless training has diverged."""
        self.check_finite()
        self.validation_is_cut = False
        self._auroc.reset()
        self._val_loss.zero_()
        if self.trainer.world_size > 1:
            # BatchNorm's moments are each rank's own; checkpoints hold those of rank 0, and so a
            # validation must not depend on the others'.
            for buffer in self._validated.buffers():
                torch.distributed.broadcast(buffer, src=0)

    @property
    def _validated(self) -> nn.Module:
        """What validation measures: the averaged weights if there are any."""
        return self.average.model if self.average else self.model

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Count one batch, with the averaged weights if there are any."""
        signal, targets, observed = self.transform(batch, training=False)
        logits = self._validated(signal).float()
        elements = self.loss(logits, targets, observed)
        self._val_loss += torch.stack([elements.sum(), observed.sum()]).to(self._val_loss)
        self._auroc.update(logits, targets, observed)

    def on_validation_epoch_end(self) -> None:
        """Add up over ranks and compute the figures of `validation`."""
        if self.validation_is_cut:
            return
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._val_loss)
        auroc, num_positives = self._auroc.compute().numpy(), self._auroc.num_positives().numpy()
        mean = macro(auroc[self._monitored], num_positives[self._monitored])
        total, count = self._val_loss.tolist()
        if not math.isfinite(total):
            # The last step's gradient was finite, but the weights it led to are of no use.
            self.diverged = torch.ones_like(self.diverged)
        self.validation = {
            "val/loss": total / max(count, 1.0),
            "val/macro_auroc": mean.value,
            "val/num_labels": mean.num_labels,
        }
        # This validation's score is not among them yet.
        if self.probe and self.probe.is_due(len(self.state.scores) + 1) and math.isfinite(total):
            trainer = self.trainer
            self.validation |= self.probe.measure(
                self._validated.eval(),
                Ranks(trainer.global_rank, trainer.world_size, self.device),
                trainer.precision_plugin.forward_context(),
            )
