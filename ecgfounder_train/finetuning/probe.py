"""A linear head on frozen features: computed once, solved exactly, regularised by validation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.finetuning.crops import all_crops
from ecgfounder_train.finetuning.task_shards import TaskShards
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import Net1D

PENALTIES = tuple(10.0**power for power in (1, 0, -1, -2, -3, -4, -5))
"""Strengths tried, strongest first, so that each solution starts the next."""
_MOST_ITERATIONS = 300


@dataclass(frozen=True)
class Head:
    """A fitted linear head, standardisation folded in.

    Shape:
        weight: (K, C) float32; bias: (K,) float32; penalties: (K,), the strengths chosen.
    """

    weight: Tensor
    bias: Tensor
    penalties: Tensor

    @torch.no_grad()
    def put_into(self, model: Net1D) -> None:
        """Make it the network's own."""
        model.dense.weight.copy_(self.weight)
        model.dense.bias.copy_(self.bias)


def embeddings(
    model: Net1D,
    shards: TaskShards,
    transform: BatchTransform,
    crops: int,
    device: torch.device,
    batch_size: int,
    cache: Path | str | None,
    identity: str,
) -> npt.NDArray[np.float32]:
    """Return the pooled features of every index row that a part uses, one per crop.

    Shape: (rows of the index, crops, C); NaN in rows that nobody used yet.

    Args:
        model: The network, frozen.
        shards: Which records.
        transform: Load half of the preprocessing, without augmentation.
        crops: Pieces of each window.
        device: Where the network runs.
        batch_size: Windows per forward pass.
        cache: Folder that keeps them from task to task; None keeps nothing.
        identity: Of the weights.
    """
    rows = np.sort(np.concatenate([shards.rows(part) for part in ("train", "val", "test")]))
    key = fingerprint([shards.embedding_key, identity, crops, model.num_features])
    path = Path(cache) / f"embeddings-{key}.npy" if cache else None
    features = np.full((len(shards), crops, model.num_features), np.nan, np.float32)
    if path and path.is_file():
        features = np.load(path, allow_pickle=False)
    # Other tasks and shares used other rows; only what none of them used is computed.
    rows = rows[np.isnan(features[rows, 0, 0])]
    if not len(rows):
        return features
    model = model.to(device).eval()
    with (
        torch.inference_mode(),
        ProgressMeter("embedding", len(rows), "ECG") as meter,
    ):
        for batch in EvaluationBatches(SampleReader(shards), rows, RankShape(batch_size)):
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            signal, _, _ = transform(moved, training=False)
            pooled = model.forward_features(all_crops(signal, crops))[1].float().cpu()
            present = batch["present"].numpy()
            pooled_rows = pooled.reshape(len(present), crops, -1).numpy()[present]
            features[batch["rows"].numpy()[present]] = pooled_rows
            meter.update(meter.done + int(present.sum()))
    if path:
        with atomic_file(path) as handle:
            np.save(handle, features)
    return features


def fit_head(
    features: npt.NDArray[np.float32],
    shards: TaskShards,
    answers: npt.NDArray[np.float32],
    regression: bool,
) -> Head:
    """Return the head that fits the training part best at the penalty validation likes best.

    Each label or quantity has its own penalty. A crop is a sample of its own in training; in
    validation a record's answer is the mean over its crops, as everywhere else.

    Shape:
        features: (rows, crops, C). answers: (rows, K), NaN where not observed; standardised.

    Raises:
        UserError: Nothing is observed in training.
    """
    crops = features.shape[1]
    train, val = shards.rows("train"), shards.rows("val")
    x = torch.from_numpy(np.ascontiguousarray(features[train])).double().flatten(0, 1)
    y = torch.from_numpy(answers[train]).double().repeat_interleave(crops, 0)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - mean) / std
    held_out = torch.from_numpy(np.ascontiguousarray(features[val])).double()
    held_out = ((held_out - mean) / std).mean(1)  # linear: the mean of outputs is that of inputs
    truth = torch.from_numpy(answers[val]).double()
    if bool(torch.isnan(y).all()):
        raise UserError("No answer is observed in the training part.")
    solutions = fit_ridge(x, y, PENALTIES) if regression else fit_logistic(x, y, PENALTIES)
    loss = _squared if regression else _cross_entropy
    losses = torch.stack([loss(held_out @ w.T + b, truth) for w, b in solutions])
    # A label that validation never observes takes what is best for the others.
    everywhere = losses.nan_to_num(nan=torch.inf)
    overall = int(losses.nanmean(1).nan_to_num(nan=torch.inf).argmin())
    best = torch.where(losses.isnan().all(0), overall, everywhere.argmin(0))
    columns = torch.arange(y.shape[1])
    weight = torch.stack([w for w, _ in solutions])[best, columns]
    bias = torch.stack([b for _, b in solutions])[best, columns]
    scaled = weight / std
    return Head(
        scaled.float(),
        (bias - scaled @ mean).float(),
        torch.tensor(PENALTIES, dtype=torch.float64)[best],
    )


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


def _cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    elements = binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
    return torch.where(truth.isnan(), torch.nan, elements).nanmean(0)


def _squared(outputs: Tensor, truth: Tensor) -> Tensor:
    return (outputs - truth).square().nanmean(0)
