"""Ensemble of networks: the mean of their logits, record by record."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics.predictions import Predictions


def averaged(members: Sequence[Predictions]) -> Predictions:
    """Return the first member's rows with the mean of all members' logits.

    Logits, not probabilities: a network that is confident of a record counts for more.

    Raises:
        UserError: The members have other rows or other labels; names the run.
    """
    first = members[0]
    for other in members[1:]:
        same_rows = np.array_equal(other.record_key, first.record_key) and np.array_equal(
            other.window, first.window
        )
        if other.labels != first.labels or not same_rows:
            what = "records" if other.labels == first.labels else "labels"
            raise UserError(
                f"The predictions of {other.run_name} cover other {what} than those of "
                f"{first.run_name}. Average runs that were trained on the same shards."
            )
    logits = np.stack([member.logits for member in members]).mean(0, dtype=np.float64)
    names = " + ".join(member.run_name for member in members)
    return replace(first, logits=np.asarray(logits, np.float32), run_name=names)
