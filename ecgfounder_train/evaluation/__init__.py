"""From logits to something one can publish: prediction files, tables per label, reports."""

from ecgfounder_train.evaluation.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)
from ecgfounder_train.evaluation.report import Strip, write_report, write_strips_page
from ecgfounder_train.evaluation.tables import (
    MIN_POSITIVES,
    Summary,
    label_notes,
    label_table,
    summarise,
    write_label_csv,
)

__all__ = [
    "MIN_POSITIVES",
    "Predictions",
    "Strip",
    "Summary",
    "label_notes",
    "label_table",
    "read_predictions",
    "summarise",
    "write_label_csv",
    "write_predictions",
    "write_report",
    "write_strips_page",
]
