"""What a model must beat: the same network untrained, with a linear probe on its features."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.models import Net1D
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.trained_model import TrainedModel

WEIGHT_DECAYS = (1e-4, 1e-2, 1.0)
MAX_RECORDS = 20_000
_ITERATIONS = 60


@torch.no_grad()
def untrained_probe(
    trained: TrainedModel,
    training: ShardSet,
    device: torch.device,
    batch_size: int,
    seed: int = 0,
    max_records: int = MAX_RECORDS,
) -> TrainedModel:
    """Return the model's network with fresh weights and a linear head fitted on its features.

    The head is fitted on the run's own training part (at most `max_records`, drawn by seed), its
    weight decay chosen on the validation part. Random convolutions tell rate and amplitude apart
    already: what the trained network adds is the difference.

    Raises:
        UserError: The shards have other labels than the model, or no training or validation part.
    """
    if tuple(training.manifest.labels) != trained.labels:
        raise UserError(f"The shards in {training.folder} have other labels than the model.")
    assert isinstance(trained.model, Net1D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Net1D(trained.model.config)
    network = network.to(device).eval().requires_grad_(False)
    control = replace(trained, model=network, decisions=None)
    data = [
        _features(control, training, split, device, batch_size, seed, max_records)
        for split in ("train", "val")
    ]
    (features, targets, mask), validation = data
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    best: tuple[float, Tensor, Tensor] | None = None
    for decay in WEIGHT_DECAYS:
        weight, bias = _fit((features - mean) / std, targets, mask, decay)
        logits = ((validation[0] - mean) / std) @ weight.T + bias
        loss = float(_loss(logits, validation[1], validation[2]))
        if best is None or loss < best[0]:
            best = loss, weight, bias
    assert best is not None
    _, weight, bias = best
    # The standardisation goes into the head, so that the network stays a plain one.
    network.dense.weight.copy_(weight / std)
    network.dense.bias.copy_(bias - weight @ (mean / std))
    return control


def _features(
    control: TrainedModel,
    shards: ShardSet,
    split: str,
    device: torch.device,
    batch_size: int,
    seed: int,
    max_records: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rows: NDArray[Any] = shards.rows(split)
    if not len(rows):
        raise UserError(f"The shards in {shards.folder} hold no {split} samples for the probe.")
    if len(rows) > max_records:
        chosen = np.random.default_rng(seed).choice(len(rows), max_records, replace=False)
        rows = rows[np.sort(chosen)]
    parts: list[Sequence[Tensor]] = []
    for batch in EvaluationBatches(SampleReader(shards), rows, RankShape(batch_size)):
        present = batch["present"]
        moved = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        signal, targets, mask = control.transform(moved, training=False)
        assert isinstance(control.model, Net1D)
        pooled = control.model.forward_features(signal)[1].float()
        parts.append([tensor[present].to(device) for tensor in (pooled, targets, mask)])
    features, targets, mask = (torch.cat([part[i] for part in parts]) for i in range(3))
    return features, targets, mask


def _loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    elements = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (elements * mask).sum() / mask.sum().clamp(min=1)


@torch.enable_grad()
def _fit(features: Tensor, targets: Tensor, mask: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(targets.shape[1], features.shape[1], device=features.device)
    # Starting at the prevalence spares the optimizer most of its way.
    prevalence = ((targets * mask).sum(0) / mask.sum(0).clamp(min=1)).clamp(1e-4, 1 - 1e-4)
    bias = torch.logit(prevalence)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(features @ weight.T + bias, targets, mask)
        loss = loss + decay * weight.square().sum(1).mean() / features.shape[1]
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
