"""Fewer patients to learn from, each smaller set inside the larger ones."""

import hashlib

import numpy as np
import numpy.typing as npt

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.finetuning.task_shards import TaskShards


def with_fraction(shards: TaskShards, fraction: float, seed: int) -> TaskShards:
    """Return the shards with a share of the training patients; validation and test stay whole.

    Patients are put into an order by a hash of their key and the seed, and the first ones are
    taken: with one seed, the patients of a smaller share are among those of a larger one.

    Raises:
        UserError: The share is not above 0 and at most 1, or leaves no patient.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"label_fraction={fraction} must lie above 0, and at most at 1.")
    if fraction == 1:
        return shards
    rows = shards.rows("train")
    patients = shards.patients[rows]
    everyone = np.unique(patients)
    order = np.argsort([_draw(key, seed) for key in everyone], kind="stable")
    count = max(round(fraction * len(everyone)), 1)
    chosen = everyone[order[:count]]
    kept: npt.NDArray[np.int64] = rows[np.isin(patients, chosen)]
    return shards.with_training_rows(kept, f"{count} patients, seed {seed}")


def _draw(key: bytes, seed: int) -> int:
    digest = hashlib.sha256(seed.to_bytes(8, "big") + bytes(key)).digest()
    return int.from_bytes(digest[:7], "big")
