"""Metrics per label with an observed mask: intervals by patient, NaN with its reason."""

from ecgfounder_train.metrics.agreement import (
    AGREEMENT,
    agreement_intervals,
    label_agreement,
    net_benefit,
    net_benefit_interval,
)
from ecgfounder_train.metrics.bootstrap import bootstrap
from ecgfounder_train.metrics.calibration import Calibration, fit_calibration
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, clusters_from_keys
from ecgfounder_train.metrics.comparison import (
    Comparison,
    MacroDifference,
    RunScores,
    compare_runs,
    holm,
)
from ecgfounder_train.metrics.curves import (
    CalibrationCurve,
    OperatingPoints,
    calibration_curve,
    operating_points,
)
from ecgfounder_train.metrics.decisions import (
    decision_intervals,
    decision_table,
    f1,
    npv,
    ppv,
    sensitivity,
    specificity,
)
from ecgfounder_train.metrics.estimates import Estimates, MacroEstimate
from ecgfounder_train.metrics.intervals import RankingIntervals, ranking_intervals
from ecgfounder_train.metrics.probabilities import (
    brier,
    calibration_error,
    probability_intervals,
)
from ecgfounder_train.metrics.ranking import (
    Macro,
    RankingMetrics,
    auroc,
    average_precision,
    macro,
    ranking_metrics,
)
from ecgfounder_train.metrics.regression import RegressionEstimates, regression_intervals
from ecgfounder_train.metrics.subgroups import (
    Subgroup,
    age_bands,
    rate_names,
    subgroup_intervals,
)
from ecgfounder_train.metrics.thresholds import Thresholds, fit_thresholds

__all__ = [
    "AGREEMENT",
    "MIN_PATIENTS",
    "Calibration",
    "CalibrationCurve",
    "Clusters",
    "Comparison",
    "Estimates",
    "Macro",
    "MacroDifference",
    "MacroEstimate",
    "OperatingPoints",
    "RankingIntervals",
    "RankingMetrics",
    "RegressionEstimates",
    "RunScores",
    "Subgroup",
    "Thresholds",
    "age_bands",
    "agreement_intervals",
    "auroc",
    "average_precision",
    "bootstrap",
    "brier",
    "calibration_curve",
    "calibration_error",
    "clusters_from_keys",
    "compare_runs",
    "decision_intervals",
    "decision_table",
    "f1",
    "fit_calibration",
    "fit_thresholds",
    "holm",
    "label_agreement",
    "macro",
    "net_benefit",
    "net_benefit_interval",
    "npv",
    "operating_points",
    "ppv",
    "probability_intervals",
    "ranking_intervals",
    "ranking_metrics",
    "rate_names",
    "regression_intervals",
    "sensitivity",
    "specificity",
    "subgroup_intervals",
]
