"""Masked multi-label losses: one value per record and label, 0 where a label was not observed.

The caller reduces, usually by the sum over the number of observed labels.
"""

from ecgfounder_train.losses.multilabel import (
    LOSSES,
    Asymmetric,
    BinaryCrossEntropy,
    Focal,
    PositiveUnlabelledHill,
    create_loss,
)
from ecgfounder_train.losses.regression import MaskedRegression

__all__ = [
    "LOSSES",
    "Asymmetric",
    "BinaryCrossEntropy",
    "Focal",
    "MaskedRegression",
    "PositiveUnlabelledHill",
    "create_loss",
]
