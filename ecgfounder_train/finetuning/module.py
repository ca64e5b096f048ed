"""Lightning module of fine-tuning: pretraining's with crops, regression and layer-wise rates."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from ecgfounder_train.finetuning.layers import layer_groups
from ecgfounder_train.finetuning.starting_point import HEAD_PREFIXES
from ecgfounder_train.loader.counter_rng import uniforms
from ecgfounder_train.loader.crops import all_crops, mean_over_crops, random_crop
from ecgfounder_train.models import Net1D
from ecgfounder_train.training.module import PretrainModule, can_be_fused


class FinetuneModule(PretrainModule):
    """A pretrained network that learns a task.

    Args:
        model, loss, transform, optimizer, schedule: As of `PretrainModule`.
        crops: Pieces of a window: one random one trains, the mean over all answers.
        frozen: Train the head alone; the rest stays as it is, BatchNorm's statistics included.
        layer_decay: Factor on the learning rate per stage away from the head.
        standardised: Quantities by index row; None for yes/no tasks.

    Shape:
        standardised: (rows of the index, K), NaN where not measured.
    """

    def __init__(
        self,
        *arguments: Any,
        crops: int,
        frozen: bool,
        layer_decay: float,
        standardised: Tensor | None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.crops = crops
        self.frozen = frozen
        self.layer_decay = layer_decay
        # Kept out of the module tree: it belongs to the data.
        self._standardised = [standardised] if standardised is not None else []
        if frozen:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name.startswith(HEAD_PREFIXES))
        # Without attention the head is `dense` alone; groups are made here to fail early.
        assert isinstance(self.model, Net1D)
        layer_groups(self.model, self.optimizer_settings, layer_decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with a rate per stage."""
        assert isinstance(self.model, Net1D)
        settings = self.optimizer_settings
        return torch.optim.AdamW(
            layer_groups(self.model, settings, self.layer_decay),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=can_be_fused(self.device, self.trainer.precision) or None,
        )

    def with_answers(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with the quantities of its rows as targets; 0 where not measured."""
        if not self._standardised:
            return dict(batch)
        rows = batch["rows"].cpu().clamp(min=0)
        values = self._standardised[0][rows].nan_to_num().to(batch["ecg"].device)
        return {**batch, "targets": values}

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return this rank's share of the global batch's mean loss."""
        if self.frozen:
            self.model.eval()
        batch = self.with_answers(batch)
        signal, targets, observed = self.transform(batch, training=True)
        signal = self._random_crop(signal, batch)
        elements = self.loss(self.model(signal).float(), targets, observed)
        self.suspects.note(batch["rows"], elements)
        share: Tensor = elements.sum() / batch["loss_denominator"]
        return share

    def _random_crop(self, signal: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return one crop of each signal, drawn by (seed, epoch, slot)."""
        if self.crops == 1:
            return signal
        drawn = uniforms(self.seed, batch["epoch"], batch["slots"], "crop", 1)[:, 0]
        valid = batch["valid_start"], batch["valid_num_samples"]
        length = signal.shape[-1] // self.crops
        place = torch.as_tensor(drawn, device=signal.device)
        return random_crop(signal, length, *valid, place)[0]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Count one batch, with the averaged weights if there are any."""
        batch = self.with_answers(batch)
        signal, targets, observed = self.transform(batch, training=False)
        model = self.average.model if self.average else self.model
        outputs = mean_over_crops(model(all_crops(signal, self.crops)), self.crops)
        self.count_validation(outputs, targets, observed)

    def count_validation(self, outputs: Tensor, targets: Tensor, observed: Tensor) -> None:
        """Add one batch's answers to the sums of this validation."""
        elements = self.loss(outputs, targets, observed)
        self._val_loss += torch.stack([elements.sum(), observed.sum()]).to(self._val_loss)
        self._auroc.update(outputs, targets, observed)


class RegressionModule(FinetuneModule):
    """The same for quantities: validation measures R2 and the mean absolute error."""

    validation_columns = ("val/loss", "val/r2", "val/mae")
    headline = ("val/r2", "R2")

    def on_fit_start(self) -> None:
        """Start the sums on the device."""
        super().on_fit_start()
        assert isinstance(self.model, Net1D)
        self._sums = self._val_loss.new_zeros((5, self.model.num_labels))

    def on_validation_epoch_start(self) -> None:
        """Start counting, if there is anything left to count."""
        super().on_validation_epoch_start()
        self._sums.zero_()

    def count_validation(self, outputs: Tensor, targets: Tensor, observed: Tensor) -> None:
        """Add one batch's answers to the sums of this validation."""
        elements = self.loss(outputs, targets, observed)
        self._val_loss += torch.stack([elements.sum(), observed.sum()]).to(self._val_loss)
        error = (outputs - targets) * observed
        true = targets * observed
        parts = (observed, error.abs(), error.square(), true, true.square())
        self._sums += torch.stack([part.to(self._sums).sum(0) for part in parts])

    def on_validation_epoch_end(self) -> None:
        """Add up over ranks and compute the figures of `validation`, in standard deviations."""
        if self.validation_is_cut:
            return
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._sums)
            torch.distributed.all_reduce(self._val_loss)
        count, absolute, square, true, true_square = self._sums.cpu()
        spread = true_square - true.square() / count.clamp(min=1)
        seen = (count > 1) & (spread > 0)
        total, number = self._val_loss.tolist()
        if not math.isfinite(total):
            self.diverged = torch.ones_like(self.diverged)
        self.validation = {
            "val/loss": total / max(number, 1.0),
            "val/r2": float((1 - square / spread)[seen].mean()),
            "val/mae": float((absolute / count)[seen].mean()),
        }
