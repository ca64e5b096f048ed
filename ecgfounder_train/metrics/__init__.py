"""Metrics per label with an observed mask: pure numpy and torch, NaN where undefined."""

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
    "HistogramAuroc",
    "Macro",
    "RankingMetrics",
    "auroc",
    "average_precision",
    "macro",
    "ranking_metrics",
]
