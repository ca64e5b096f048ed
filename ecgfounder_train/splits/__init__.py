"""Which patients train, which select, which are held out."""

from ecgfounder_train.splits.patient_split import (
    PARTS,
    Assignment,
    PatientSplit,
)

__all__ = ["PARTS", "Assignment", "PatientSplit"]
