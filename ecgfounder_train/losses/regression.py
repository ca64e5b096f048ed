"""Regression losses of standardised quantities, masked where not measured."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgfounder_train.core.errors import UserError, did_you_mean

KINDS = ("mse", "huber")


class MaskedRegression(nn.Module):
    """Squared or Huber loss of each quantity, 0 where it was not measured.

    Args:
        kind: `mse`, or `huber`: linear beyond `delta`, so that a wrong laboratory value pulls with
            a limited force.
        delta: In standard deviations.
    """

    def __init__(self, kind: str = "mse", delta: float = 1.0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"regression_loss={kind!r} is unknown.{did_you_mean(kind, KINDS)}")
        self.kind = kind
        self.delta = delta

    def forward(self, outputs: Tensor, targets: Tensor, observed: Tensor) -> Tensor:
        """Return the loss of each output; a target may be NaN where it is not observed.

        Shape: (B, K), (B, K), (B, K) -> (B, K) float32.
        """
        seen = observed.bool()
        # Before the loss, not after it: the gradient of a masked NaN is NaN.
        targets = torch.where(seen, targets.float(), torch.zeros_like(targets, dtype=torch.float32))
        outputs = outputs.float()
        if self.kind == "huber":
            loss = F.huber_loss(outputs, targets, reduction="none", delta=self.delta)
        else:
            loss = F.mse_loss(outputs, targets, reduction="none")
        return torch.where(seen, loss, torch.zeros_like(loss))
