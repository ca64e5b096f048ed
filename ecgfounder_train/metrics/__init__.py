"""Metrics per label with an observed mask: pure numpy and torch, NaN where undefined."""

from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, clusters_from_keys
from ecgfounder_train.metrics.curves import (
    CalibrationCurve,
    OperatingPoints,
    calibration_curve,
    operating_points,
)
from ecgfounder_train.metrics.estimates import Estimates, MacroEstimate
from ecgfounder_train.metrics.histogram import HistogramAuroc
from ecgfounder_train.metrics.intervals import RankingIntervals, ranking_intervals
from ecgfounder_train.metrics.ranking import (
    Macro,
    RankingMetrics,
    auroc,
    average_precision,
    macro,
    ranking_metrics,
)

__all__ = [
    "MIN_PATIENTS",
    "CalibrationCurve",
    "Clusters",
    "Estimates",
    "HistogramAuroc",
    "Macro",
    "MacroEstimate",
    "OperatingPoints",
    "RankingIntervals",
    "RankingMetrics",
    "auroc",
    "average_precision",
    "calibration_curve",
    "clusters_from_keys",
    "macro",
    "operating_points",
    "ranking_intervals",
    "ranking_metrics",
]
