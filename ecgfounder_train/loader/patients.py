"""Nested subsets of the training patients: a smaller share is contained in every larger one."""

import hashlib

import numpy as np
import numpy.typing as npt

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.counter_rng import mix64
from ecgfounder_train.shards import ShardSet

IntArray = npt.NDArray[np.int64]


def patient_rows(
    shards: ShardSet, fraction: float, seed: int, key: str = "data.patient_fraction"
) -> IntArray:
    """Return the index rows of the training samples of a share of the patients, in file order.

    A patient is in if a number drawn from the patient's key and the seed is below the fraction.
    So all recordings of a patient are in or out together, adding records moves no patient, and the
    share of 0.25 is contained in that of 0.5 of the same seed.

    Args:
        shards: The shard set.
        fraction: Share of the patients, above 0 and at most 1.
        seed: Another seed draws other patients.
        key: Config key that an error names.

    Raises:
        UserError: No training patient is in so small a share.
    """
    rows = shards.rows("train")
    keys, places = np.unique(shards.index["patient_key"][rows], return_inverse=True)
    # HMACs differ in every digit, but shards of other tools need not hold HMACs.
    digests = [hashlib.sha256(key).digest() for key in keys.tolist()]
    numbers = np.array([int.from_bytes(digest[:8]) for digest in digests], np.uint64)
    draws = mix64(numbers ^ mix64(np.array([seed], np.uint64)))
    chosen = (draws >> np.uint64(11)).astype(np.float64) / 2.0**53 < fraction
    if len(rows) and not chosen.any():
        raise UserError(f"{key}={fraction} leaves none of the {len(keys):,} training patients.")
    return rows[chosen[places]]
