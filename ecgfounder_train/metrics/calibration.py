"""Probabilities from logits, fitted on the validation split only and applied unchanged elsewhere.

Platt's two numbers from ten positive patients on, isotonic regression from a hundred: the latter
bends to any shape, and with few positives to noise.

Source:
    Platt 1999 (with its smoothed targets); Zadrozny and Elkan 2002, doi:10.1145/775047.775151.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import Clusters, as_clusters
from ecgfounder_train.metrics.intervals import undefined_reason
from ecgfounder_train.metrics.thresholds import (
    check_fitting_split,
    few_patients,
    label_places,
    patient_counts,
    shareable,
)

Float = NDArray[np.float64]

METHODS = ("isotonic", "platt", "none")
MIN_ISOTONIC = 100
"""Positive and negative patients from which isotonic regression is fitted."""
_MAX_STEPS = 100


@dataclass(frozen=True)
class CalibrationCurveFit:
    """How one label's logits become probabilities.

    Attributes:
        method: One of `METHODS`; "none" is the plain sigmoid.
        slope, intercept: Of "platt": sigmoid(slope * logit + intercept).
        logits, probabilities: Of "isotonic": points joined by straight lines, flat outside.
        reason: Why it is not the method asked for; None where it is.
        num_patients: With a positive and with a negative record in what it was fitted on, 0 for
            fewer than 10; None where a file of an earlier version does not say.
    """

    method: str
    slope: float = 1.0
    intercept: float = 0.0
    logits: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    reason: str | None = None
    num_patients: tuple[int, int] | None = None

    def apply(self, scores: Float) -> Float:
        """Return the probabilities of logits, of the same shape."""
        if self.method == "isotonic":
            return np.interp(scores, self.logits, self.probabilities)
        chance: Float = expit(self.slope * scores + self.intercept)
        return chance


@dataclass(frozen=True)
class Calibration:
    """The curve of every label of a vocabulary."""

    labels: tuple[str, ...]
    curves: tuple[CalibrationCurveFit, ...]

    @property
    def reasons(self) -> tuple[str | None, ...]:
        """Why a label has not the method asked for; None where it has."""
        return tuple(curve.reason for curve in self.curves)

    @property
    def num_calibrated(self) -> int:
        """How many labels have a fitted curve; the others have the plain sigmoid."""
        return sum(curve.method != "none" for curve in self.curves)

    @property
    def summary(self) -> str:
        """How many labels are calibrated and how, for reports: "3 of 150 (2 isotonic, 1 Platt)"."""
        counts = [
            (sum(curve.method == method for curve in self.curves), name)
            for method, name in (("isotonic", "isotonic"), ("platt", "Platt"))
        ]
        methods = ", ".join(f"{count} {name}" for count, name in counts if count)
        return f"{self.num_calibrated} of {len(self.labels)}" + (f" ({methods})" if methods else "")

    def apply(self, logits: ArrayLike) -> Float:
        """Return calibrated probabilities.

        Shape:
            logits, result: (B, K).

        Raises:
            UserError: The number of columns is another.
        """
        scores = np.asarray(logits)
        self.check_labels(scores.shape[-1], None)
        columns = [
            curve.apply(scores[:, index].astype(np.float64))
            for index, curve in enumerate(self.curves)
        ]
        return np.stack(columns, axis=1)

    def check_labels(self, num_labels: int, labels: Sequence[str] | None) -> None:
        """Raise where these are not the labels it was fitted for, in their order.

        Raises:
            UserError: They are not.
        """
        if num_labels != len(self.labels) or (labels is not None and tuple(labels) != self.labels):
            raise UserError(
                "The calibration is of other labels, or in another order. "
                "Align it: calibration.for_labels(labels)."
            )

    def for_labels(self, labels: Sequence[str]) -> "Calibration":
        """Return the curves of these labels in this order.

        Raises:
            UserError: A label has none.
        """
        places = label_places(self.labels, labels, "calibration curves")
        return Calibration(tuple(labels), tuple(self.curves[place] for place in places))

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, which JSON and `weights_only` loading take."""
        return {
            "labels": list(self.labels),
            "curves": [
                {
                    "method": curve.method,
                    "slope": curve.slope,
                    "intercept": curve.intercept,
                    "logits": list(curve.logits),
                    "probabilities": list(curve.probabilities),
                    "reason": curve.reason,
                    "num_patients": curve.num_patients and list(curve.num_patients),
                }
                for curve in self.curves
            ],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """Return what `to_dict` was made from."""
        curves = [
            CalibrationCurveFit(
                str(curve["method"]),
                float(curve["slope"]),
                float(curve["intercept"]),
                tuple(curve["logits"]),
                tuple(curve["probabilities"]),
                curve["reason"],
                tuple(curve["num_patients"]) if curve.get("num_patients") else None,
            )
            for curve in plain["curves"]
        ]
        return cls(tuple(plain["labels"]), tuple(curves))


def fit_calibration(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    split: str,
    labels: Sequence[str],
    patients: Clusters | ArrayLike | None = None,
    method: str = "isotonic",
) -> Calibration:
    """Return one curve per label.

    isotonic: from 100 positive and 100 negative patients, else Platt. platt: from 10 of each, else
    the plain sigmoid. What a label got instead of the method asked for has its reason.

    Args:
        split: What the records are of; only "val" is accepted.
        patients: Which patient each record is of; None: every record counts as a patient.

    Shape:
        logits, targets, observed: (B, K).

    Raises:
        UserError: The split is not "val", the method is unknown, or the arrays are invalid.
    """
    check_fitting_split(split, "Calibrations")
    if method not in METHODS:
        raise UserError(f"There is no calibration {method!r}." + did_you_mean(method, METHODS))
    num_records = len(checked_arrays(logits, targets, observed)[0])
    codes = as_clusters(np.arange(num_records) if patients is None else patients, num_records).codes
    curves = []
    for scores, positive, chosen in masked_columns(logits, targets, observed, labels):
        counts = patient_counts(positive, codes if chosen is None else codes[chosen])
        curve = _fit(scores.astype(np.float64), positive, method, counts)
        curves.append(replace(curve, num_patients=shareable(counts)))
    return Calibration(tuple(labels), tuple(curves))


def _fit(
    scores: Float, positive: NDArray[np.bool_], method: str, counts: tuple[int, int]
) -> CalibrationCurveFit:
    if method == "none":
        return CalibrationCurveFit("none")
    reason = undefined_reason(int(positive.sum()), len(scores)) or few_patients(counts)
    if reason is not None:
        return CalibrationCurveFit("none", reason=reason)
    if not np.isfinite(scores).all():
        return CalibrationCurveFit("none", reason="a logit is infinite")
    if method == "isotonic":
        reason = few_patients(counts, MIN_ISOTONIC)
        if reason is None:
            return _isotonic(scores, positive)
    fitted = platt(scores, positive)
    if fitted is None:
        return CalibrationCurveFit("none", reason="the scores do not rise with the label")
    return CalibrationCurveFit("platt", *fitted, reason=reason)


def _isotonic(scores: Float, positive: NDArray[np.bool_]) -> CalibrationCurveFit:
    """Return the isotonic fit as the two ends of each of its flat pieces.

    Probabilities of exactly 0 and 1 come out where an end holds one class only. They are kept half
    a record away from it: a later record there would otherwise be infinitely surprising.
    """
    # Training imports this package and fits nothing: spare it 0.3 s.
    from scipy.optimize import isotonic_regression

    distinct, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(place)
    means = np.bincount(place, weights=positive) / counts
    fit = isotonic_regression(means, weights=counts)
    ends = np.unique(np.concatenate([fit.blocks[:-1], fit.blocks[1:] - 1]))
    margin = 0.5 / (len(scores) + 1)
    if len(fit.blocks) == 2:
        return CalibrationCurveFit("none", reason="the scores do not rise with the label")
    levels = np.clip(fit.x[ends], margin, 1 - margin)
    return CalibrationCurveFit(
        "isotonic", logits=tuple(distinct[ends].tolist()), probabilities=tuple(levels.tolist())
    )


def platt(scores: Float, positive: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return Platt's slope and intercept; None where the slope would not be positive.

    Newton's method on the log loss with the smoothed targets (n+ + 1)/(n+ + 2) and 1/(n- + 2),
    which keep the slope finite where the classes are separated. Scores are standardised first, or
    a network's scale would decide on the convergence.
    """
    centre, spread = scores.mean(), scores.std()
    if spread == 0:
        return None
    x = (scores - centre) / spread
    num_positives = int(positive.sum())
    goal = np.where(
        positive, (num_positives + 1) / (num_positives + 2), 1 / (len(x) - num_positives + 2)
    )
    rate = goal.mean()
    parameters = np.array([0.0, np.log(rate / (1 - rate))])
    loss = _log_loss(parameters, x, goal)
    for _ in range(_MAX_STEPS):
        chance = expit(parameters[0] * x + parameters[1])
        error, weight = chance - goal, chance * (1 - chance)
        gradient = np.array([error @ x, error.sum()])
        off = weight @ x
        hessian = np.array([[weight @ (x * x), off], [off, weight.sum()]])
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        size = 1.0
        while (trial := _log_loss(parameters - size * step, x, goal)) > loss and size > 1e-10:
            size /= 2
        parameters, loss = parameters - size * step, min(trial, loss)
        if np.abs(size * step).max() < 1e-10:
            break
    slope = parameters[0] / spread
    if slope <= 0:
        return None
    return float(slope), float(parameters[1] - slope * centre)


def _log_loss(parameters: Float, x: Float, goal: Float) -> float:
    z = parameters[0] * x + parameters[1]
    return float((np.logaddexp(0, z) - goal * z).sum())
