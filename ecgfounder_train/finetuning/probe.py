"""A linear head on frozen features: computed once, solved exactly, regularised by validation."""

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
from ecgfounder_train.finetuning.task_shards import TaskShards
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.loader.crops import all_crops
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.linear_readout import fit_logistic, fit_ridge

PENALTIES = tuple(10.0**power for power in (1, 0, -1, -2, -3, -4, -5))
"""Strengths tried, strongest first, so that each solution starts the next."""


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


def _cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    elements = binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
    return torch.where(truth.isnan(), torch.nan, elements).nanmean(0)


def _squared(outputs: Tensor, truth: Tensor) -> Tensor:
    return (outputs - truth).square().nanmean(0)
