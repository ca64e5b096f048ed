"""Patient-level train, validation and test splits."""

from ecgfounder_train.splits.patient_split import (
    Assignment,
    PatientSplit,
)

__all__ = ["Assignment", "PatientSplit"]
