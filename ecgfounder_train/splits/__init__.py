"""Which patients train, which select, which are held out."""

from ecgfounder_train.splits.patient_split import (
    Assignment,
    PatientSplit,
)

__all__ = ["Assignment", "PatientSplit"]
