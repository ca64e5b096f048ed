"""Losses over independent sigmoid outputs with unobserved labels.

x is a logit, p = sigmoid(x), y the target, m whether it was observed. Every loss is

    m [y' L+(x) + (1 - y') L-(x)]    with    y' = y + s (1/2 - y),

s the label smoothing. Targets may be between 0 and 1 (mixed records). At least float32 throughout.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.settings.losses import (
    LOSS_SETTINGS,
    AsymmetricSettings,
    BceSettings,
    FocalSettings,
    HillSettings,
    LossSettings,
)


class MultiLabelLoss(nn.Module):
    """A loss of each output from its positive and its negative term."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.label_smoothing = settings.label_smoothing

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return L+ and L- of each output."""
        raise NotImplementedError

    def elements(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each output, observed or not."""
        positive, negative = self.terms(logits)
        return targets * positive + (1.0 - targets) * negative

    def forward(self, logits: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Return the loss of each output, 0 where it was not observed.

        Shape: (B, K), (B, K), (B, K) -> (B, K) float32 (float64 of float64 logits).
        """
        if logits.dtype != torch.float64:
            logits = logits.float()
        targets = targets.to(logits.dtype)
        if self.label_smoothing:
            targets = targets + self.label_smoothing * (0.5 - targets)
        loss = self.elements(logits, targets)
        # where, not a product: an infinite loss of an unobserved label times 0 would be NaN.
        return torch.where(observed.bool(), loss, torch.zeros_like(loss))


class BinaryCrossEntropy(MultiLabelLoss):
    """Cross-entropy: L+ = -w log p, L- = -log(1 - p), where w is `pos_weight`."""

    pos_weight: Tensor | None

    def __init__(self, settings: BceSettings) -> None:
        super().__init__(settings)
        given = settings.pos_weight
        weight = None if given is None else torch.as_tensor(given, dtype=torch.float32)
        # Not in the state dict: it is a setting, not something learned.
        self.register_buffer("pos_weight", weight, persistent=False)

    def elements(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each output, observed or not; both terms in one pass."""
        return F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight, reduction="none"
        )


class PositiveUnlabelledHill(MultiLabelLoss):
    """The positive-unlabelled style loss of ECGFounder as far as it is known.

    L- = (margin - p) p^2: its gradient vanishes as p -> 1, so that a confident "negative", probably
    a missed positive, stops pushing. L+ is not stated in the paper; two forms may be chosen:

    * `positive=log`: -log p, the plainest.
    * `positive=focal_margin`: -(1 - q)^gamma log q with q = sigmoid(x - positive_margin), the
      positive term that comes with the Hill loss.

    The margin is at least 1.5: below, p near 1 is rewarded.

    Source: Zhang et al. 2021 (arXiv 2112.07368), the Hill loss and the focal margin loss with their
        defaults 1.5, 1 and 2. The ECGFounder paper quotes the negative branch with 1.5 alone.
    """

    def __init__(self, settings: HillSettings) -> None:
        super().__init__(settings)
        self.margin = settings.margin
        is_plain = settings.positive == "log"
        self.shift = 0.0 if is_plain else settings.positive_margin
        self.gamma = 0.0 if is_plain else settings.gamma

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return L+ and L- of each output."""
        p = torch.sigmoid(logits)
        return _faded(logits - self.shift, self.gamma), (self.margin - p) * p.square()


class Focal(MultiLabelLoss):
    """Cross-entropy that fades where the network is right already.

    L+ = -alpha (1 - p)^gamma log p, L- = -(1 - alpha) p^gamma log(1 - p).

    Source: Lin et al. 2017 (arXiv 1708.02002), equations 4 and 5.
    """

    def __init__(self, settings: FocalSettings) -> None:
        super().__init__(settings)
        alpha = settings.alpha
        self.gamma = settings.gamma
        self.positive, self.negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return L+ and L- of each output."""
        return (
            self.positive * _faded(logits, self.gamma),
            self.negative * _faded(-logits, self.gamma),
        )


class Asymmetric(MultiLabelLoss):
    """Focal loss with its own fading for negatives, whose easiest are left out altogether.

    L+ = -(1 - p)^gamma_positive log p, L- = -q^gamma_negative log(1 - q) with
    q = max(p - margin, 0): below the margin a negative is not looked at.

    Source: Ridnik et al. 2021 (arXiv 2009.14119), equations 4 to 7 and their defaults.
    """

    def __init__(self, settings: AsymmetricSettings) -> None:
        super().__init__(settings)
        self.gamma_positive = settings.gamma_positive
        self.gamma_negative = settings.gamma_negative
        self.margin = settings.margin

    def terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return L+ and L- of each output."""
        positive = _faded(logits, self.gamma_positive)
        if not self.margin:
            return positive, _faded(-logits, self.gamma_negative)
        shifted = (torch.sigmoid(logits) - self.margin).clamp(min=0.0)
        # Finite without a safeguard: q is at most 1 - margin.
        return positive, -torch.log1p(-shifted) * _power(shifted, self.gamma_negative)


def _faded(logits: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p of p = sigmoid(logits)."""
    if not gamma:
        return -F.logsigmoid(logits)
    # The power as an exponential: where 1 - p rounds to 0 its own derivative would be infinite.
    return -F.logsigmoid(logits) * torch.exp(gamma * F.logsigmoid(-logits))


def _power(base: Tensor, gamma: float) -> Tensor:
    # The derivative of 0^gamma is infinite for gamma below 1.
    return base.clamp(min=1e-12).pow(gamma) if gamma else torch.ones_like(base)


LOSSES: dict[str, Callable[[Any], MultiLabelLoss]] = {
    "bce": BinaryCrossEntropy,
    "pu_hill": PositiveUnlabelledHill,
    "focal": Focal,
    "asymmetric": Asymmetric,
}


def create_loss(name: str, **params: Any) -> MultiLabelLoss:
    """Return a loss ``(logits, targets, observed) -> (B, K)``, unreduced, 0 where unobserved.

    Raises:
        UserError: An unknown name or parameter, or an invalid value.
    """
    if name not in LOSSES:
        raise UserError(f"loss={name!r} is unknown.{did_you_mean(name, LOSSES)}")
    return LOSSES[name](LOSS_SETTINGS[name].from_config({"name": name, **params}))
