"""Ordered vocabularies: values and observed flags of labels from a record's statements."""

from ecgfounder_train.labels.packing import pack, unpack
from ecgfounder_train.labels.vocabulary import (
    EncodedLabels,
    Vocabulary,
    label_names,
    vocabulary_names,
)

__all__ = ["EncodedLabels", "Vocabulary", "label_names", "pack", "unpack", "vocabulary_names"]
