"""AUROC in constant memory, for validation during training and for sums over ranks.

The exact metric keeps 1.2 kB per ECG and 150 labels; the histogram keeps 10 MB however long the
validation set is, and two ranks' states add up to the state of both.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError

LINEAR_LOGIT = 0.25
LARGEST_LOGIT = 100.0
# asinh spacing: bins 0.001 wide around logit 0 (an untrained network answers within +-0.05) and
# 0.02 wide at -6, where a trained one puts the rare labels. Even spacing over +-100 would be 0.05.


class HistogramAuroc:
    """AUROC per label from counts in `num_bins` bins of the logit axis; within 1e-4 of the exact.

    Use: `update` per batch; `torch.distributed.all_reduce(metric.state)` where several ranks each
    saw a part; `compute`; `reset`.

    Attributes:
        state: int64 (2, K, num_bins + 1): counts of negatives and positives, the last bin for NaN
            logits, so that one tensor is all that ranks must add.
    """

    def __init__(
        self,
        num_labels: int,
        num_bins: int = 4096,
        device: torch.device | str | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        if num_labels < 1 or num_bins < 2:
            raise UserError(f"num_labels={num_labels}, num_bins={num_bins}: at least 1 and 2.")
        self.num_labels = num_labels
        self.num_bins = num_bins
        self.labels = labels
        shape = (2, num_labels, num_bins + 1)
        self.state: Tensor = torch.zeros(shape, dtype=torch.int64, device=device)

    def to(self, device: torch.device | str) -> "HistogramAuroc":
        """Move the counts and return self."""
        self.state = self.state.to(device)
        return self

    def reset(self) -> None:
        """Forget everything seen."""
        self.state.zero_()

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor, observed: Tensor | None = None) -> None:
        """Count one batch. Nothing waits for the device.

        Shape:
            logits, targets, observed: (B, K); targets 0 or 1, any value where not observed.
        """
        if logits.shape != targets.shape or logits.shape[-1] != self.num_labels:
            raise UserError(
                f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must both be "
                f"(B, {self.num_labels})."
            )
        span = math.asinh(LARGEST_LOGIT / LINEAR_LOGIT)
        # In float32 also under autocast: bfloat16 has 8 bits, a bin needs 12.
        position = torch.asinh(logits.float() / LINEAR_LOGIT) / span
        bins = ((position + 1) * (self.num_bins / 2)).clamp(0, self.num_bins - 1)
        bins = torch.where(bins.isnan(), self.num_bins, bins).long()
        label = torch.arange(self.num_labels, device=logits.device)
        counted = torch.ones_like(bins) if observed is None else (observed != 0).long()
        row = (targets > 0.5).long() * self.num_labels + label
        cell = row * (self.num_bins + 1) + bins
        self.state.view(-1).scatter_add_(0, cell.reshape(-1), counted.reshape(-1))

    def compute(self) -> Tensor:
        """Return the AUROC per label, float64 (K,) on the CPU; NaN where undefined.

        Raises:
            UserError: A counted logit was NaN.
        """
        counts = self.state.cpu()
        num_nan = counts[:, :, -1].sum(0)
        if num_nan.any():
            index = int(num_nan.argmax())
            name = repr(self.labels[index]) if self.labels is not None else f"number {index}"
            raise UserError(
                f"{int(num_nan.sum()):,} validation logits are NaN, most of them of label {name}. "
                "The training diverged: lower the learning rate or clip gradients, and resume from "
                "the last good checkpoint."
            )
        negatives, positives = counts[0, :, :-1], counts[1, :, :-1]
        num_negatives, num_positives = negatives.sum(1), positives.sum(1)
        below = negatives.cumsum(1) - negatives
        twice_wins = (positives * (2 * below + negatives)).sum(1)
        area = twice_wins.double() / (2 * num_negatives.double() * num_positives.double())
        defined = (num_negatives > 0) & (num_positives > 0)
        return torch.where(defined, area, torch.full_like(area, float("nan")))

    def num_positives(self) -> Tensor:
        """Return how many positives were counted per label, int64 (K,) on the CPU."""
        return self.state[1].sum(1).cpu()
