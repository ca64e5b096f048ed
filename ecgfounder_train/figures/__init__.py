"""Figures and the page they stand on: used by every report, knowing nothing of models."""

from ecgfounder_train.figures.curves import (
    CalibrationPoints,
    Curve,
    auroc_by_prevalence_figure,
    calibration_figure,
    precision_recall_figure,
    prevalence_figure,
    roc_figure,
)
from ecgfounder_train.figures.ecg_strip import strip_figure
from ecgfounder_train.figures.html import Cell, Column, HtmlPage, Undefined, WithNote
from ecgfounder_train.figures.style import figure_png, figure_svg
from ecgfounder_train.figures.training import training_figure

__all__ = [
    "CalibrationPoints",
    "Cell",
    "Column",
    "Curve",
    "HtmlPage",
    "Undefined",
    "WithNote",
    "auroc_by_prevalence_figure",
    "calibration_figure",
    "figure_png",
    "figure_svg",
    "precision_recall_figure",
    "prevalence_figure",
    "roc_figure",
    "strip_figure",
    "training_figure",
]
