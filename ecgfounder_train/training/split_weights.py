"""The loss of a run, with what it takes from the training split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.losses import create_loss
from ecgfounder_train.shards import ShardSet

LARGEST_POS_WEIGHT = 100.0
"""A label with one positive in a million would otherwise drown all others."""
_ROWS_AT_ONCE = 1 << 16


def create_split_loss(
    config: Mapping[str, Any], shards: ShardSet, rows: npt.NDArray[np.int64] | None = None
) -> nn.Module:
    """Return the loss of a config's `loss` section; `pos_weight=split` is filled in from the data.

    Args:
        config: The section.
        shards: The shard set.
        rows: Index rows that are trained on; None for the whole training split.

    Raises:
        UserError: An unknown name, key or value.
    """
    settings = dict(config)
    name = str(settings.pop("name"))
    weight = settings.get("pos_weight")
    if isinstance(weight, str):
        if weight != "split":
            raise UserError(
                f"loss.pos_weight={weight!r} is none of: a number, a list of numbers, split, null."
            )
        settings["pos_weight"] = split_pos_weight(shards, rows).tolist()
    elif isinstance(weight, list | tuple) and len(weight) != len(shards.manifest.labels):
        raise UserError(
            f"loss.pos_weight has {len(weight)} numbers for {len(shards.manifest.labels)} labels."
        )
    return create_loss(name, **settings)


def split_pos_weight(
    shards: ShardSet, rows: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """Return the observed negatives per positive of each label in the training split, or in `rows`.

    At most `LARGEST_POS_WEIGHT`; 1 where a label has no positive or no negative, so that nothing
    is learned from a weight that means nothing.

    Shape: (num_labels,).
    """
    num_labels = len(shards.manifest.labels)
    positives = np.zeros(num_labels, np.int64)
    observed = np.zeros(num_labels, np.int64)
    rows = shards.rows("train") if rows is None else rows
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        entries = shards.index[rows[start : start + _ROWS_AT_ONCE]]
        seen = np.unpackbits(entries["observed"], axis=1, count=num_labels)
        values = np.unpackbits(entries["labels"], axis=1, count=num_labels)
        observed += seen.sum(0, dtype=np.int64)
        positives += (values & seen).sum(0, dtype=np.int64)
    negatives = observed - positives
    defined = (positives > 0) & (negatives > 0)
    ratio = negatives / np.maximum(positives, 1)
    return np.where(defined, np.minimum(ratio, LARGEST_POS_WEIGHT), 1.0)
