"""What happens to a batch on the device: cast, choose leads, add noise, normalise, augment.

The load-time half of the signal profile plus augmentation. Random choices are drawn per sample by
`counter_rng`, keyed by (seed, epoch, slot), and only applied on the device: a sample's augmentation
depends neither on the rank and batch it falls into nor on what was drawn before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import special

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.counter_rng import row_keys, uniforms
from ecgfounder_train.loader.crops import random_crop
from ecgfounder_train.loader.noise import noise_mv
from ecgfounder_train.records import LoadNormalisation
from ecgfounder_train.settings.training import LEAD_CHOICES, Augmentation

MICROVOLT_PER_MILLIVOLT = 1000.0

# Frontal-plane leads as signed stored leads: the axis of lead I turned by at most 90 degrees.
_FRONTAL = (("aVL", 1), ("aVR", -1), ("II", 1), ("III", -1), ("aVF", 1), ("aVF", -1))


@dataclass(frozen=True)
class BatchTransform:
    """Turns a batch of the loader into network input, targets and mask.

    Args:
        leads: Lead names in stored order.
        normalisation: The profile's load half.
        lead_choice: `all` stored leads; `lead_I` only; `published`: lead I, replaced with
            probability 0.5 by one of aVL, -aVR, II, -III, aVF, -aVF (ECGFounder, reported);
            `uniform` over the seven (the first author's later code). Evaluation takes lead I
            wherever one lead is chosen.
        augmentation: Strengths.
        seed: The run's seed.
        fs: Rate of the stored signal in Hz; only noise needs it.
    """

    leads: tuple[str, ...]
    normalisation: LoadNormalisation
    lead_choice: str = "all"
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    fs: float | None = None

    def __post_init__(self) -> None:
        if self.augmentation.adds_noise:
            assert self.fs is not None, "noise has frequencies"
            if self.augmentation.mains_noise and 2 * self.augmentation.mains_hz >= self.fs:
                raise UserError(
                    f"augmentation.mains_noise: a hum at {self.augmentation.mains_hz:g} Hz cannot "
                    f"occur in shards of {self.fs:g} Hz. Set augmentation.mains_noise=0."
                )
        if self.lead_choice not in LEAD_CHOICES:
            raise UserError(
                f"lead_choice={self.lead_choice!r} is unknown. Valid: {', '.join(LEAD_CHOICES)}."
            )
        needed = {"I"} if self.lead_choice == "lead_I" else set()
        if self.lead_choice in ("published", "uniform"):
            needed = {"I", *(name for name, _ in _FRONTAL)}
        if missing := sorted(needed - set(self.leads)):
            raise UserError(
                f"lead_choice={self.lead_choice} needs leads that these shards do not hold: "
                f"{', '.join(missing)}. Use lead_choice=all or shards with all 12 leads."
            )

    @property
    def num_leads(self) -> int:
        """Leads the network sees."""
        return len(self.leads) if self.lead_choice == "all" else 1

    def __call__(
        self, batch: Mapping[str, Any], training: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return input, targets and mask on the batch's device.

        Shape:
            input: (B, num_leads, num_samples) float32, normalised; 0 outside the valid part. With
                `augmentation.crop` the training input has `training_samples` of them.
            targets, mask: (B, num_labels) float32.
        """
        signal, stats = batch["ecg"], batch["stats"]
        start, count = batch["valid_start"], batch["valid_num_samples"]
        sign = None
        if self.lead_choice != "all":
            # Before the cast: eleven of twelve leads need no room as floats.
            signal, stats, sign = self._one_lead(signal, stats, batch, training)
        if training and self.augmentation.crop:
            length = self.training_samples(signal.shape[-1])
            drawn = torch.as_tensor(self._draw(batch, "crop", 1)[:, 0], device=signal.device)
            signal, begin = random_crop(signal, length, start, count, drawn)
            start = start - begin
        signal = signal.float() / MICROVOLT_PER_MILLIVOLT
        if sign is not None:
            signal = signal * sign
        if training and self.augmentation.adds_noise:
            signal = signal + self._noise(signal, batch)
        time = torch.arange(signal.shape[-1], device=signal.device)
        valid = (time >= start[:, None]) & (time < (start + count)[:, None])
        signal = normalise_on_device(signal, stats, valid, self.normalisation)
        targets, mask = batch["targets"].float(), batch["observed"].float()
        if training:
            return self._augment(signal, targets, mask, batch)
        return signal, targets, mask

    def training_samples(self, num_samples: int) -> int:
        """Return how many of a window's `num_samples` the network sees in training."""
        share = self.augmentation.crop
        return max(round(share * num_samples), 1) if share else num_samples

    def _draw(self, batch: Mapping[str, Any], stream: str, count: int) -> npt.NDArray[np.float32]:
        return uniforms(self.seed, batch["epoch"], batch["slots"], stream, count)

    def _noise(self, signal: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        assert self.fs is not None
        return noise_mv(
            signal,
            self.augmentation,
            self.fs,
            lambda stream, count: self._draw(batch, stream, count),
            lambda stream: row_keys(self.seed, batch["epoch"], batch["slots"], stream),
        )

    def _one_lead(
        self, signal: torch.Tensor, stats: torch.Tensor, batch: Mapping[str, Any], training: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        axes: Sequence[tuple[str, int]] = (("I", 1), *_FRONTAL)
        choice = np.zeros(len(signal), np.int64)
        if training and self.lead_choice == "published":
            replace, which = self._draw(batch, "lead", 2).T
            choice = np.where(replace < 0.5, 1 + (which * len(_FRONTAL)).astype(np.int64), 0)
        elif training and self.lead_choice == "uniform":
            choice = (self._draw(batch, "lead", 1)[:, 0] * len(axes)).astype(np.int64)
        lead = torch.tensor(
            [self.leads.index(axes[c][0]) for c in choice.tolist()], device=signal.device
        )
        sign = torch.tensor([float(axes[c][1]) for c in choice.tolist()], device=signal.device)
        sample = torch.arange(len(signal), device=signal.device)
        chosen = stats[sample, lead]
        turned = torch.stack([chosen[:, 0] * sign, chosen[:, 1]], dim=-1)
        return signal[sample, lead][:, None], turned[:, None], sign[:, None, None]

    def _augment(
        self,
        signal: torch.Tensor,
        targets: torch.Tensor,
        mask: torch.Tensor,
        batch: Mapping[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        strength = self.augmentation
        num_leads, length = signal.shape[1:]

        def on_device(values: npt.NDArray[Any]) -> torch.Tensor:
            return torch.as_tensor(values, dtype=signal.dtype, device=signal.device)

        if strength.circular_shift:
            drawn = self._draw(batch, "shift", 1)[:, 0] * strength.circular_shift * length
            shifts = torch.as_tensor(drawn.astype(np.int64), device=signal.device)
            time = (torch.arange(length, device=signal.device) + shifts[:, None]) % length
            signal = signal.gather(2, time[:, None, :].expand_as(signal))
        log_gain = np.zeros((len(signal), num_leads), np.float32)
        if strength.lead_gain:
            log_gain += strength.lead_gain * _normal(self._draw(batch, "lead_gain", num_leads))
        if strength.amplitude_gain:
            log_gain += strength.amplitude_gain * _normal(self._draw(batch, "gain", 1))
        gain = np.exp(log_gain)
        if strength.lead_dropout:
            gain *= self._draw(batch, "lead_dropout", num_leads) >= strength.lead_dropout
        if (gain != 1).any():
            signal = signal * on_device(gain)[:, :, None]
        if strength.mixup:
            weight = on_device(
                special.betaincinv(strength.mixup, strength.mixup, self._draw(batch, "mixup", 1))
            )
            partner, is_here = _partners(batch["slots"])
            other = torch.as_tensor(partner, device=signal.device)
            # A padding row has nothing to give: its neighbour keeps itself.
            gives = batch["present"][other] & torch.as_tensor(is_here, device=signal.device)
            weight = torch.where(gives[:, None], weight, 1.0)
            signal = torch.lerp(signal[other], signal, weight[:, :, None])
            targets = torch.lerp(targets[other], targets, weight)
            # A mixed label is known only where both are; a full weight needs no partner.
            mask = torch.where(weight < 1, mask * mask[other], mask)
        return signal, targets, mask


def _partners(
    slots: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the row of each row's partner (slots 2i and 2i + 1), and whether it is in the batch.

    Pairs of the epoch's order, not of the batch: however an epoch is divided over ranks and
    micro-batches of even size, the same samples are mixed.
    """
    row = (slots ^ 1) - slots[0]
    is_here = (row >= 0) & (row < len(slots))
    return np.where(is_here, row, 0), is_here


def _normal(uniform: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.asarray(special.ndtri(uniform.astype(np.float64) + 2.0**-25))


def normalise_on_device(
    signal: torch.Tensor, stats: torch.Tensor, valid: torch.Tensor, how: LoadNormalisation
) -> torch.Tensor:
    """Return the normalised signal, 0 where not valid; the torch form of `records.normalise`.

    Shape:
        signal: (B, L, T) mV; stats: (B, L, 2) mV; valid: (B, T) bool; result: (B, L, T).
    """
    if how.kind == "fixed":
        signal = signal / how.scale_mv
    if how.uses_statistics:
        mean, std = stats[..., 0], stats[..., 1]
        if how.kind == "joint":
            joint = mean.mean(1, keepdim=True)
            # Pooled moments: variance within leads plus variance of the leads' means.
            std = (std.square() + (mean - joint).square()).mean(1, keepdim=True).sqrt()
            mean = joint
        centred = signal - mean[..., None] if how.centre else signal
        signal = centred / (std[..., None] + how.eps)
    if how.clip is not None:
        signal = signal.clamp(-how.clip, how.clip)
    return signal * valid[:, None]
