"""Figures and self-contained HTML pages, used by every report."""

from ecgfounder_train.figures.ablation import (
    SizePoint,
    curves_figure,
    rate_figure,
    size_figure,
)
from ecgfounder_train.figures.comparison import (
    DecisionCurve,
    ForestSeries,
    confusion_figure,
    forest_figure,
    label_figure,
)
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
from ecgfounder_train.figures.finetuning import (
    EfficiencyCurve,
    agreement_figure,
    efficiency_figure,
)
from ecgfounder_train.figures.html import (
    Cell,
    Column,
    HtmlPage,
    Undefined,
    Withheld,
    WithInterval,
    WithNote,
)
from ecgfounder_train.figures.style import figure_png, figure_svg
from ecgfounder_train.figures.training import training_figure

__all__ = [
    "CalibrationPoints",
    "Cell",
    "Column",
    "Curve",
    "DecisionCurve",
    "EfficiencyCurve",
    "ForestSeries",
    "HtmlPage",
    "SizePoint",
    "Undefined",
    "WithInterval",
    "WithNote",
    "Withheld",
    "agreement_figure",
    "auroc_by_prevalence_figure",
    "calibration_figure",
    "confusion_figure",
    "curves_figure",
    "efficiency_figure",
    "figure_png",
    "figure_svg",
    "forest_figure",
    "label_figure",
    "precision_recall_figure",
    "prevalence_figure",
    "rate_figure",
    "roc_figure",
    "size_figure",
    "strip_figure",
    "training_figure",
]
