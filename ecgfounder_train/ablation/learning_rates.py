"""How the best learning rate changes with the size: the rule of `optimizer.lr_rule=power`, fitted.

Around its best rate a network's AUROC is a parabola in log(rate). One curvature for all sizes and a
best rate that is a power of the parameters make an ordinary linear regression; the exponent is the
ratio of two of its coefficients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ecgfounder_train.core.errors import UserError


@dataclass(frozen=True)
class RatePoint:
    """The result of one network at one rate."""

    parameters: float
    rate: float
    auroc: float


@dataclass(frozen=True)
class RateRule:
    """best rate = `reference_rate` * (parameters / `reference`) ** `exponent`.

    Attributes:
        lower, upper: 95 % interval of the exponent (delta method, Student's t).
        levels: AUROC at the best rate by number of parameters.
        curvature: AUROC lost per squared log of the ratio to the best rate.
    """

    reference: float
    reference_rate: float
    exponent: float
    lower: float
    upper: float
    curvature: float
    levels: dict[float, float]

    def best_rate(self, parameters: float) -> float:
        """Return the best rate of a network by the rule."""
        return float(self.reference_rate * (parameters / self.reference) ** self.exponent)

    def auroc(self, parameters: float, rate: float) -> float:
        """Return the fitted AUROC of a network at a rate."""
        away = math.log(rate / self.best_rate(parameters))
        return self.levels[parameters] - self.curvature * away**2


def fit_rate_rule(points: Sequence[RatePoint]) -> RateRule:
    """Return the rule that the points follow best.

    Raises:
        UserError: Too few sizes or rates, or no best rate within the range of any.
    """
    sizes = sorted({point.parameters for point in points})
    rates = {point.rate for point in points}
    if len(rates) < 3:
        raise UserError("A rule for the learning rate needs at least three rates of each size.")
    if len(sizes) < 2:
        raise UserError("A rule for the learning rate needs at least two sizes.")
    reference = math.exp(sum(map(math.log, sizes)) / len(sizes))
    middle = sum(map(math.log, rates)) / len(rates)
    x = np.array([math.log(point.rate) - middle for point in points])
    p = np.array([math.log(point.parameters / reference) for point in points])
    y = np.array([point.auroc for point in points])
    own = np.array([[point.parameters == size for size in sizes] for point in points], float)
    design = np.column_stack([x**2, x, x * p, own])
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    square, slope, cross = solution[:3]
    if rank < design.shape[1] or square >= 0:
        raise UserError(
            "The AUROC has no maximum within these learning rates: widen the range of optimizer.lr."
        )
    exponent = cross / (-2 * square)
    degrees = len(y) - design.shape[1]
    half = math.inf
    if degrees > 0:
        variance = float(((y - design @ solution) ** 2).sum()) / degrees
        covariance = variance * np.linalg.inv(design.T @ design)
        gradient = np.zeros(design.shape[1])
        gradient[0], gradient[2] = cross / (2 * square**2), -1 / (2 * square)
        error = math.sqrt(float(gradient @ covariance @ gradient))
        half = float(stats.t.ppf(0.975, degrees)) * error
    centre = slope / (-2 * square)
    # At the best rate the parabola lies above the regression's value at x = 0 by this much.
    levels = {
        size: float(level - square * (centre + exponent * math.log(size / reference)) ** 2)
        for size, level in zip(sizes, solution[3:], strict=True)
    }
    return RateRule(
        reference,
        math.exp(middle + centre),
        float(exponent),
        float(exponent - half),
        float(exponent + half),
        float(-square),
        levels,
    )
