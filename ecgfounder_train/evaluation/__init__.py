"""Evaluation: predictions, tables per label, reports and comparisons."""

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
    "Strip",
    "Summary",
    "label_notes",
    "label_table",
    "summarise",
    "write_label_csv",
    "write_report",
    "write_strips_page",
]
