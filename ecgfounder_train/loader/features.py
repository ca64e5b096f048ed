"""Frozen features of windows: what a network's head would see, batch by batch."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ecgfounder_train.loader.batches import Batch, labels_of, to_device
from ecgfounder_train.loader.epoch_plan import PADDING
from ecgfounder_train.loader.rows import IntArray
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.shards import ShardSet


@torch.no_grad()
def frozen_features(
    batches: Iterable[Batch],
    transform: BatchTransform,
    features_of: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield index rows and features of each batch, both on the device.

    Args:
        batches: From `EvaluationBatches`; every rank has the same number of them.
        transform: Load half of the preprocessing; no augmentation is applied.
        features_of: Network without its head, in evaluation mode.
        device: Where the network runs.

    Shape:
        rows: (B,), `PADDING` for a window that is absent. features: (B, ...) float32.
    """
    for batch in batches:
        moved = to_device(batch, device)
        signal, _, _ = transform(moved, training=False)
        yield torch.where(moved["present"], moved["rows"], PADDING), features_of(signal).float()


def answers_of(shards: ShardSet, rows: IntArray) -> Tensor:
    """Return the labels of index rows as a readout is fitted on them.

    Shape: (n, num_labels) float64, NaN where not observed.
    """
    present = np.ones(len(rows), np.bool_)
    targets, observed = labels_of(shards.index[rows], present, shards.layout.num_labels)
    return torch.from_numpy(np.where(observed != 0, targets, np.nan).astype(np.float64))


def at_most(rows: IntArray, count: int, seed: int = 0) -> IntArray:
    """Return at most `count` of the rows, drawn by seed, ascending."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
