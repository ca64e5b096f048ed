"""From logits to something one can publish: prediction files, tables per label, reports."""

from ecgfounder_train.evaluation.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)

__all__ = ["Predictions", "read_predictions", "write_predictions"]
