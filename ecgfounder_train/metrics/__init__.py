"""Metrics per label with an observed mask: pure numpy and torch, NaN where undefined."""

from ecgfounder_train.metrics.curves import (
    CalibrationCurve,
    OperatingPoints,
    calibration_curve,
    operating_points,
)
from ecgfounder_train.metrics.histogram import HistogramAuroc
from ecgfounder_train.metrics.ranking import (
    Macro,
    RankingMetrics,
    auroc,
    average_precision,
    macro,
    ranking_metrics,
)

__all__ = [
    "CalibrationCurve",
    "HistogramAuroc",
    "Macro",
    "OperatingPoints",
    "RankingMetrics",
    "auroc",
    "average_precision",
    "calibration_curve",
    "macro",
    "operating_points",
    "ranking_metrics",
]
