"""Linear readouts of frozen features, solved exactly: logistic and ridge regression with a mask."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_MOST_ITERATIONS = 300

Solution = tuple[Tensor, Tensor]


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
