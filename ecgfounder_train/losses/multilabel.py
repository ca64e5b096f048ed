"""Losses over independent sigmoid outputs with unobserved labels."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgfounder_train.core.errors import UserError, did_you_mean


def _mask(loss: Tensor, observed: Tensor) -> Tensor:
    # where, not a product: an infinite loss of an unobserved label times 0 would be NaN.
    return torch.where(observed.bool(), loss, torch.zeros_like(loss))


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each label, computed in float32.

    Args:
        pos_weight: factor on the positive term, one number or one per label.
        label_smoothing: targets move by half of this towards 0.5.
    """

    pos_weight: Tensor | None

    def __init__(
        self, pos_weight: float | Sequence[float] | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise UserError(f"loss.label_smoothing={label_smoothing} must lie in [0, 1).")
        self.label_smoothing = label_smoothing
        weight = None if pos_weight is None else torch.as_tensor(pos_weight, dtype=torch.float32)
        if weight is not None and not bool((weight > 0).all()):
            raise UserError(f"loss.pos_weight={pos_weight} must be positive.")
        # Not in the state dict: it is a setting, not something learned.
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Return the loss of each output.

        Targets may lie between 0 and 1 (mixed records).

        Shape: (B, K), (B, K), (B, K) -> (B, K) float32.
        """
        targets = targets.float()
        if self.label_smoothing:
            targets = targets + self.label_smoothing * (0.5 - targets)
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), targets, pos_weight=self.pos_weight, reduction="none"
        )
        return _mask(loss, observed)


class PositiveUnlabelledHill(nn.Module):
    """The positive-unlabelled style loss of ECGFounder as far as it is known.

    A negative costs (margin - p) p^2: the gradient vanishes as p -> 1, so that a confident
    "negative", probably a missed positive, stops pushing. A positive costs -log p.

    Args:
        margin: lambda of the Hill loss; at least 1.5, as otherwise p near 1 is rewarded.

    Source: Zhang et al. 2021 (arXiv 2112.07368), equation of the Hill loss; the ECGFounder paper
        quotes only the negative branch with 1.5, the positive term is the plainest choice.
    """

    def __init__(self, margin: float = 1.5) -> None:
        super().__init__()
        if margin < 1.5:
            raise UserError(f"loss.margin={margin} must be at least 1.5.")
        self.margin = margin

    def forward(self, logits: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Return the loss of each output; shapes as in `BinaryCrossEntropy`."""
        logits, targets = logits.float(), targets.float()
        p = torch.sigmoid(logits)
        negative = (self.margin - p) * p.square()
        loss = targets * -F.logsigmoid(logits) + (1.0 - targets) * negative
        return _mask(loss, observed)


class Focal(nn.Module):
    """Cross-entropy that fades where the network is right already: -(1 - p_t)^gamma log p_t.

    Args:
        gamma: how fast easy labels fade; 0 is plain cross-entropy.
        alpha: weight of positives, 1 - alpha that of negatives; None: both count 1.

    Source: Lin et al. 2017 (arXiv 1708.02002), equations 4 and 5.
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        _require_not_negative("gamma", gamma)
        if alpha is not None and not 0.0 < alpha < 1.0:
            raise UserError(f"loss.alpha={alpha} must lie between 0 and 1, or be null.")
        self.gamma = gamma
        self.positive, self.negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)

    def forward(self, logits: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Return the loss of each output; shapes as in `BinaryCrossEntropy`."""
        logits, targets = logits.float(), targets.float()
        positive = self.positive * _faded(logits, self.gamma)
        negative = self.negative * _faded(-logits, self.gamma)
        return _mask(targets * positive + (1.0 - targets) * negative, observed)


class Asymmetric(nn.Module):
    """Focal loss with its own fading for negatives, whose easiest are left out altogether.

    A positive costs -(1 - p)^gamma_positive log p. A negative costs -q^gamma_negative log(1 - q)
    with q = max(p - margin, 0): below the margin a negative is not looked at.

    Args:
        gamma_positive: fading of positives.
        gamma_negative: fading of negatives.
        margin: probability below which a negative costs nothing.

    Source: Ridnik et al. 2021 (arXiv 2009.14119), equations 4 to 7 and their defaults.
    """

    def __init__(
        self, gamma_positive: float = 0.0, gamma_negative: float = 4.0, margin: float = 0.05
    ) -> None:
        super().__init__()
        _require_not_negative("gamma_positive", gamma_positive)
        _require_not_negative("gamma_negative", gamma_negative)
        if not 0.0 <= margin < 1.0:
            raise UserError(f"loss.margin={margin} must lie in [0, 1).")
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.margin = margin

    def forward(self, logits: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Return the loss of each output; shapes as in `BinaryCrossEntropy`."""
        logits, targets = logits.float(), targets.float()
        positive = _faded(logits, self.gamma_positive)
        if self.margin:
            shifted = (torch.sigmoid(logits) - self.margin).clamp(min=0.0)
            # Finite without a safeguard: q is at most 1 - margin.
            negative = -torch.log1p(-shifted) * _power(shifted, self.gamma_negative)
        else:
            negative = _faded(-logits, self.gamma_negative)
        return _mask(targets * positive + (1.0 - targets) * negative, observed)


def _faded(logits: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p of p = sigmoid(logits)."""
    # The power as an exponential: where 1 - p rounds to 0 its own derivative would be infinite.
    return -F.logsigmoid(logits) * torch.exp(gamma * F.logsigmoid(-logits))


def _power(base: Tensor, gamma: float) -> Tensor:
    # The derivative of 0^gamma is infinite for gamma below 1.
    return base.clamp(min=1e-12).pow(gamma) if gamma else torch.ones_like(base)


def _require_not_negative(key: str, value: float) -> None:
    if value < 0.0:
        raise UserError(f"loss.{key}={value} must not be negative.")


LOSSES: dict[str, type[nn.Module]] = {
    "bce": BinaryCrossEntropy,
    "pu_hill": PositiveUnlabelledHill,
    "focal": Focal,
    "asymmetric": Asymmetric,
}


def create_loss(name: str, **params: Any) -> nn.Module:
    """Return a loss ``(logits, targets, observed) -> (B, K)``, unreduced, 0 where unobserved.

    Raises:
        UserError: an unknown name or parameter (the nearest valid ones are named).
    """
    if name not in LOSSES:
        raise UserError(f"loss={name!r} is unknown.{did_you_mean(name, LOSSES)}")
    known = list(inspect.signature(LOSSES[name]).parameters)
    for key in params:
        if key not in known:
            raise UserError(f"loss.{key} is no setting of {name}.{did_you_mean(key, known)}")
    return LOSSES[name](**params)
