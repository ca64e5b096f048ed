"""Which records belong together: the patient, or the record itself where the patient is unknown."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError

MIN_PATIENTS = 10
"""Below this many patients (positive ones, for most metrics) no interval is given: the normal
approximation fails, and so does every resampling of fewer than ten."""


@dataclass(frozen=True)
class Clusters:
    """The cluster of each record, numbered from 0.

    Shape:
        codes: (B,) int32.

    Attributes:
        num_clusters: How many there are.
        by: "patient", "record" (no patient is known) or "mixed".
        num_unknown: Records whose patient is unknown; each such record is its own cluster.
    """

    codes: NDArray[np.int32]
    num_clusters: int
    by: str = "patient"
    num_unknown: int = 0

    @cached_property
    def num_records(self) -> NDArray[np.int64]:
        """How many records each cluster has, shape (num_clusters,)."""
        counts: NDArray[np.int64] = np.bincount(self.codes, minlength=self.num_clusters)
        return counts

    @property
    def note(self) -> str:
        """One sentence on the clustering, for reports."""
        if self.by == "patient":
            return f"Intervals are clustered by patient ({self.num_clusters:,} patients)."
        if self.by == "record":
            return (
                f"Patients are unknown: intervals are clustered by record ({self.num_clusters:,}), "
                "too narrow if patients recur."
            )
        return (
            f"Intervals are clustered by patient where known; {self.num_unknown:,} of "
            f"{len(self.codes):,} rows have no patient and are clustered by record."
        )


def clusters_from_keys(
    patient_keys: Sequence[str | None] | NDArray[Any],
    record_keys: Sequence[str] | NDArray[Any] | None = None,
) -> Clusters:
    """Return the clusters of records by patient key; by record where the key is None or empty.

    Args:
        patient_keys: One per row.
        record_keys: One per row; rows of one record (its windows) then stay together where the
            patient is unknown. Without them every such row stands alone.

    Raises:
        UserError: The two have different lengths.
    """
    if record_keys is not None and len(record_keys) != len(patient_keys):
        raise UserError(f"{len(patient_keys)} patient keys but {len(record_keys)} record keys.")
    numbers: dict[tuple[str, Any], int] = {}
    codes = np.empty(len(patient_keys), np.int32)
    num_unknown = 0
    for row, patient in enumerate(patient_keys):
        if patient is None or patient == "":
            num_unknown += 1
            key = ("record", row if record_keys is None else record_keys[row])
        else:
            key = ("patient", patient)
        codes[row] = numbers.setdefault(key, len(numbers))
    by = "patient" if not num_unknown else "record" if num_unknown == len(codes) else "mixed"
    return Clusters(codes, len(numbers), by, num_unknown)


def as_clusters(patients: Clusters | ArrayLike, num_records: int) -> Clusters:
    """Return `patients` as clusters, an array of any integer or text keys numbered anew.

    Raises:
        UserError: There is not one patient per record.
    """
    if isinstance(patients, Clusters):
        clusters = patients
    else:
        keys = np.asarray(patients)
        if keys.dtype == np.object_:
            clusters = clusters_from_keys(keys)
        else:
            unique, codes = np.unique(keys, return_inverse=True)
            clusters = Clusters(codes.astype(np.int32), len(unique))
    if clusters.codes.shape != (num_records,):
        raise UserError(
            f"patients have shape {clusters.codes.shape} but there are {num_records} records; "
            "give one patient per record."
        )
    return clusters
