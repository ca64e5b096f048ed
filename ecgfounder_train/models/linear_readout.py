"""Linear readouts of frozen features, solved exactly: logistic and ridge regression with a mask."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

PENALTIES = tuple(10.0**power for power in (1, 0, -1, -2, -3, -4, -5))
"""Strengths to try, strongest first, so that each solution starts the next."""
_MOST_ITERATIONS = 300

Solution = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Readout:
    """A fitted linear head on features as they are: the standardisation is folded in.

    Shape:
        weight: (K, C); bias: (K,); penalties: (K,), the strengths chosen. All float64.
    """

    weight: Tensor
    bias: Tensor
    penalties: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the outputs (N, K) float64 of features (N, C)."""
        return features.double() @ self.weight.T + self.bias

    @torch.no_grad()
    def copy_to(self, head: nn.Linear) -> None:
        """Make it the head of a network."""
        head.weight.copy_(self.weight)
        head.bias.copy_(self.bias)


def fit_readout(
    features: Tensor,
    answers: Tensor,
    penalties: tuple[float, ...] = PENALTIES,
    held_out: tuple[Tensor, Tensor] | None = None,
    regression: bool = False,
) -> Readout:
    """Return the readout of standardised features, each output at the penalty of its own.

    Args:
        features: Of training.
        answers: Of training.
        penalties: Strengths to try; one alone needs no `held_out`.
        held_out: Features and answers of validation, which choose among the penalties.
        regression: Quantities and ridge regression instead of labels and logistic regression.

    Shape:
        features: (N, C). answers: (N, K) float64, NaN where not observed.
    """
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    x = (x - mean) / std
    solve = fit_ridge if regression else fit_logistic
    weights, biases = (
        torch.stack(part) for part in zip(*solve(x, answers, penalties), strict=True)
    )
    best = torch.zeros(answers.shape[1], dtype=torch.int64)
    if held_out is not None:
        outputs = ((held_out[0].double() - mean) / std) @ weights.mT + biases[:, None]
        loss = _squared if regression else _cross_entropy
        losses = torch.stack([loss(each, held_out[1]) for each in outputs])
        # A label that validation never observes takes what is best for the others.
        overall = int(losses.nanmean(1).nan_to_num(nan=torch.inf).argmin())
        own = losses.nan_to_num(nan=torch.inf).argmin(0)
        best = torch.where(losses.isnan().all(0), overall, own)
    columns = torch.arange(answers.shape[1])
    weight = weights[best, columns] / std
    bias = biases[best, columns] - weight @ mean
    return Readout(weight, bias, torch.tensor(penalties, dtype=torch.float64)[best])


def _cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    elements = binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
    return torch.where(truth.isnan(), torch.nan, elements).nanmean(0)


def _squared(outputs: Tensor, truth: Tensor) -> Tensor:
    return (outputs - truth).square().nanmean(0)


def fit_logistic(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> list[Solution]:
    """Return weight (K, C) and bias (K,) of L2-regularised logistic regressions, per penalty.

    Minimises per label the mean cross-entropy over observed records + penalty / 2 |w|^2; in
    scikit-learn's terms C = 1 / (penalty x observed records). A label with one value alone gets
    no weights and a bias of that value's frequency.

    Shape:
        x: (N, C) float64. y: (N, K), NaN where not observed.
    """
    observed = ~torch.isnan(y)
    target = y.nan_to_num()
    count = observed.sum(0).clamp(min=1)
    frequency = ((target * observed).sum(0) / count).clamp(1e-6, 1 - 1e-6)
    learnable = ((target * observed).sum(0) > 0) & (((1 - target) * observed).sum(0) > 0)
    prior = torch.logit(frequency).to(x.dtype)
    # Along the features' principal axes the curvature is nearly diagonal; stepping by its inverse
    # root takes some twenty iterations where the bare features take hundreds. A rotation leaves
    # |w|^2 as it is.
    spread, axes = torch.linalg.eigh(x.T @ x / len(x))
    x = x @ axes
    curvature = (frequency * (1 - frequency)).to(x.dtype)
    weight, bias = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype), prior
    solutions = []
    for penalty in penalties:
        scale = (curvature[:, None] * spread.clamp(min=0) + penalty).rsqrt()
        value = _objective(x, target, observed / count, penalty, scale, curvature.rsqrt())
        found = _lbfgs(weight / scale, bias / curvature.rsqrt(), value)
        weight = torch.where(learnable[:, None], found[0] * scale, 0.0)
        bias = torch.where(learnable, found[1] * curvature.rsqrt(), prior)
        solutions.append((weight @ axes.T, bias))
    return solutions


def _objective(
    x: Tensor, target: Tensor, share: Tensor, penalty: float, scale: Tensor, bias_scale: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    def value(scaled_weight: Tensor, scaled_bias: Tensor) -> Tensor:
        weight = scaled_weight * scale
        logits = x @ weight.T + scaled_bias * bias_scale
        elements = binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (elements * share).sum() + penalty / 2 * weight.square().sum()

    return value


def _lbfgs(
    weight: Tensor, bias: Tensor, objective: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    weight, bias = (value.detach().clone().requires_grad_(True) for value in (weight, bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MOST_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(weight, bias)
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def fit_ridge(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> list[Solution]:
    """Return weight and bias of ridge regressions in closed form, per penalty.

    Minimises per quantity the mean of squares over its observed records / 2 + penalty / 2 |w|^2;
    scikit-learn's alpha = penalty x observed records. Shapes as of `fit_logistic`.
    """
    num_features, num_outputs = x.shape[1], y.shape[1]
    weights = torch.zeros(len(penalties), num_outputs, num_features, dtype=x.dtype)
    biases = torch.zeros(len(penalties), num_outputs, dtype=x.dtype)
    factors: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}
    for column in range(num_outputs):
        seen = ~torch.isnan(y[:, column])
        if not bool(seen.any()):
            continue
        key = np.packbits(seen.numpy()).tobytes()
        part = x[seen]
        if key not in factors:  # quantities measured together share the expensive part
            centre = part.mean(0)
            values, vectors = torch.linalg.eigh((part - centre).T @ (part - centre) / len(part))
            factors[key] = values.clamp(min=0), vectors, centre
        values, vectors, centre = factors[key]
        target = y[seen, column]
        moment = vectors.T @ ((part - centre).T @ (target - target.mean()) / len(part))
        for number, penalty in enumerate(penalties):
            weight = vectors @ (moment / (values + penalty))
            weights[number, column] = weight
            biases[number, column] = target.mean() - weight @ centre
    return list(zip(weights, biases, strict=True))
