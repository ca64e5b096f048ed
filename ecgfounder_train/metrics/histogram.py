"""AUROC per label in constant memory: a torchmetrics metric for validation during training.

The exact metric keeps 0.6 kB per ECG of 150 labels on every rank. This one keeps 10 MB of counts
however long the validation set is, and the counts of several ranks add up. Half of a label's bins
have their edges at quantiles of the first records, so that scores that differ by 1e-6 are ordered
as well as those that differ by 100; the other half covers the whole axis, for labels or sites that
the first records do not show. Not torchmetrics' own `MultilabelAUROC`: its binned form has one
fixed grid on probabilities (all rare labels are in the first bin) and B x K x bins temporaries.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ecgfounder_train.core.errors import UserError

LINEAR_LOGIT = 0.25
LARGEST_LOGIT = 100.0
# asinh spacing of the fixed edges: 0.001 wide around logit 0 (an untrained network answers within
# +-0.05) and 0.02 wide at -6, where a trained one puts the rare labels.

ROWS_FOR_EDGES = 4096
"""Records per rank that decide on a label's bins; until then they wait as they are."""


class HistogramAuroc(Metric):
    """AUROC per label from counts of positives and negatives in bins of the logit axis.

    Within 1e-4 of the exact value where the first 4,096 records of a rank have the scores' range;
    exact up to 4,096 records in all. `compute` adds up over ranks by itself.

    Attributes:
        counts: int32 (2, K, num_bins + 1), negatives and positives; the last bin is for NaN logits.
        edges: Empty, or one float32 (K, num_bins - 1): ascending, a bin begins at its edge.
        waiting: Records that came before there were edges: (3, K, B), logit, target, observed.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = True

    counts: Tensor
    edges: list[Tensor]
    waiting: list[Tensor]

    def __init__(
        self,
        num_labels: int,
        num_bins: int = 8192,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dist_sync_fn=_sum_of_counts, **options)
        if num_labels < 1 or num_bins < 4:
            raise UserError(f"num_labels={num_labels}, num_bins={num_bins}: at least 1 and 4.")
        self.num_labels = num_labels
        self.num_bins = num_bins
        self.labels = labels
        shape = (2, num_labels, num_bins + 1)
        self.add_state("counts", torch.zeros(shape, dtype=torch.int32), dist_reduce_fx="sum")
        self.add_state("edges", [], dist_reduce_fx=None)
        self.add_state("waiting", [], dist_reduce_fx=None)

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
        seen = torch.ones_like(targets) if observed is None else observed != 0
        # In float32 also under autocast: bfloat16 has 8 bits, a bin needs 13.
        rows = torch.stack([logits.float().T, (targets > 0.5).float().T, seen.float().T])
        if self.edges:
            self._count(rows)
            return
        self.waiting.append(rows)
        if self._num_waiting >= ROWS_FOR_EDGES:
            self._count_waiting(self._edges_of_waiting())

    def compute(self) -> Tensor:
        """Return the AUROC per label, float64 (K,) on the CPU; NaN where undefined.

        Raises:
            UserError: A counted logit was NaN.
        """
        self._count_waiting()
        counts = self.counts.cpu().long()
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
        """Return how many positives all ranks counted per label, int64 (K,) on the CPU."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            self._count_waiting()
            return self.counts[1].sum(1).cpu()

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Add up the counts of all ranks, after they have agreed on the edges."""
        available = distributed_available or self.distributed_available_fn
        if should_sync and not self._is_synced and available is not None and available():
            self._agree_on_edges(process_group or self.process_group)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def merge_state(self, incoming_state: "dict[str, Any] | Metric") -> None:
        """Add the counts of another metric of the same labels.

        Raises:
            UserError: It is not a metric of this class with as many labels and bins.
        """
        other = incoming_state
        if not isinstance(other, HistogramAuroc) or other.counts.shape != self.counts.shape:
            raise UserError(
                f"Only another HistogramAuroc({self.num_labels}, num_bins={self.num_bins}) can be "
                "merged: its bins are needed beside its counts."
            )
        own, others = self._own_edges(), other._own_edges()
        common = torch.cat([own[:, ::2], others[:, 1::2]], 1).sort(1).values.contiguous()
        self._rebin(common)
        counts = self.counts.clone()
        self.edges, self.waiting = other.edges, list(other.waiting)
        self.counts = other.counts.clone()
        self._rebin(common)
        self.counts += counts
        self._computed = None
        self._update_count += other._update_count

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Keep the shape (K,) of a single label, which torchmetrics would squeeze away."""
        wrapped = super()._wrap_compute(compute)
        return lambda: wrapped().reshape(self.num_labels)

    @property
    def _num_waiting(self) -> int:
        return sum(rows.shape[2] for rows in self.waiting)

    def _own_edges(self) -> Tensor:
        return self.edges[0] if self.edges else self._edges_of_waiting()

    def _edges_of_waiting(self) -> Tensor:
        """Return edges: half of them on the fixed grid, half at quantiles of what waits."""
        num_quantiles = self.num_bins // 2
        span = math.asinh(LARGEST_LOGIT / LINEAR_LOGIT)
        grid = torch.linspace(-span, span, self.num_bins - 1 - num_quantiles, device=self.device)
        grid = (grid.sinh() * LINEAR_LOGIT).expand(self.num_labels, -1)
        if not self._num_waiting:
            quantiles = grid.new_full((self.num_labels, num_quantiles), torch.inf)
        else:
            scores, _, seen = torch.cat(self.waiting, 2)
            known = (seen > 0) & ~scores.isnan()
            ordered = torch.where(known, scores, torch.inf).sort(1).values
            share = torch.linspace(0, 1, num_quantiles, device=self.device)
            place = (share * (known.sum(1, keepdim=True) - 1).clamp(min=0)).round().long()
            quantiles = ordered.gather(1, place)
        return torch.cat([grid, quantiles], 1).sort(1).values.contiguous()

    def _count_waiting(self, edges: Tensor | None = None) -> None:
        if not self.edges:
            self.edges = [self._edges_of_waiting() if edges is None else edges]
        for rows in self.waiting:
            self._count(rows)
        self.waiting = []

    def _count(self, rows: Tensor) -> None:
        scores, positive, seen = rows
        bins = torch.searchsorted(self.edges[0], scores.contiguous(), right=True)
        bins = torch.where(scores.isnan(), self.num_bins, bins)
        label = torch.arange(self.num_labels, device=bins.device)[:, None]
        row = positive.long() * self.num_labels + label
        cell = row * (self.num_bins + 1) + bins
        self.counts.view(-1).scatter_add_(0, cell.reshape(-1), seen.int().reshape(-1))

    def _rebin(self, edges: Tensor) -> None:
        """Count what waits in the bins of `edges`, or move what was counted into them."""
        if self.edges:
            # A bin's scores are at its lower edge or above: there they go.
            first = self.edges[0].new_full((self.num_labels, 1), -torch.inf)
            bins = torch.searchsorted(edges, torch.cat([first, self.edges[0]], 1), right=True)
            moved = torch.zeros_like(self.counts)
            moved[:, :, -1] = self.counts[:, :, -1]
            for old, new in zip(self.counts, moved, strict=True):
                new.scatter_add_(1, bins, old[:, :-1].contiguous())
            self.counts = moved
            self.edges = [edges]
        self._count_waiting(edges)

    def _agree_on_edges(self, group: Any) -> None:
        """Give every rank the same edges: an even choice from the edges of all."""
        world = torch.distributed.get_world_size(group)
        if world == 1:
            return
        own = self._own_edges()
        share = own[:, torch.distributed.get_rank(group) % world :: world]
        width = -(-own.shape[1] // world)
        share = torch.nn.functional.pad(share, (0, width - share.shape[1]), value=torch.inf)
        gathered = [torch.empty_like(share) for _ in range(world)]
        torch.distributed.all_gather(gathered, share.contiguous(), group=group)
        edges = torch.cat(gathered, 1).sort(1).values[:, : own.shape[1]]
        self._rebin(edges.contiguous())


def _sum_of_counts(value: Tensor, group: Any = None) -> list[Tensor]:
    """Return the sum over ranks of counts; edges are the same on every rank.

    torchmetrics gathers first and adds then, which takes one state per rank: 640 MB on 64 ranks.
    """
    if not value.is_floating_point():
        value = value.clone()
        torch.distributed.all_reduce(value, group=group)
    return [value]
