"""Pooling of windows: one row of predictions per record."""

from dataclasses import replace
from typing import Any

import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.predictions import Predictions

POOLS = ("mean", "max", "none")


def pool_windows(predictions: Predictions, how: str = "mean") -> Predictions:
    """Return predictions with one row per record, in order of first appearance.

    Args:
        predictions: One row per window.
        how: `mean` of the logits; `max`, for what shows anywhere in the recording; or `none`.

    Raises:
        UserError: `how` is unknown.
    """
    if how not in POOLS:
        raise UserError(f"pool={how!r} is unknown. Valid: {', '.join(POOLS)}.")
    if how == "none" or predictions.num_records == len(predictions):
        return predictions
    numbers: dict[Any, int] = {}
    group = np.array([numbers.setdefault(key, len(numbers)) for key in predictions.record_key])
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(len(numbers)))
    windows = predictions.logits[order]
    if how == "max":
        logits = np.maximum.reduceat(windows, first)
    else:
        total = np.add.reduceat(windows.astype(np.float64), first)
        logits = (total / np.bincount(group)[:, None]).astype(np.float32)
    rows = order[first]
    chosen = {
        name: getattr(predictions, name)[rows]
        for name in ("record_key", "patient_key", "window", "split", "site", "sex", "age_years",
                     "native_fs", "targets", "observed")
    }  # fmt: skip
    return replace(predictions, logits=logits, **chosen)
