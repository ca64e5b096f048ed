"""Control of an evaluation: the same network untrained, with a linear probe on its features."""

from dataclasses import replace

import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.loader.epoch_plan import PADDING
from ecgfounder_train.loader.features import answers_of, at_most, frozen_features
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.linear_readout import fit_readout
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.trained_model import TrainedModel

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
MAX_RECORDS = 20_000


def untrained_probe(
    trained: TrainedModel,
    training: ShardSet,
    device: torch.device,
    batch_size: int,
    seed: int = 0,
    max_records: int = MAX_RECORDS,
) -> TrainedModel:
    """Return the model's network with fresh weights and a linear head fitted on its features.

    The head is fitted on the run's own training split (at most `max_records`, drawn by seed), its
    penalties chosen on the validation split. Random convolutions already
    separate rates and amplitudes: what the trained network adds is the difference.

    Raises:
        UserError: The shards have other labels than the model, or no training or validation split.
    """
    if tuple(training.manifest.labels) != trained.labels:
        raise UserError(f"The shards in {training.folder} have other labels than the model.")
    assert isinstance(trained.model, Net1D)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Net1D(trained.model.config)
    network = network.to(device).eval().requires_grad_(False)
    control = replace(trained, model=network, decisions=None)
    found = {
        split: _features(control, training, split, device, batch_size, seed, max_records)
        for split in ("train", "val")
    }
    fit_readout(*found["train"], PENALTIES, found["val"]).copy_to(network.dense)
    return control


def _features(
    control: TrainedModel,
    shards: ShardSet,
    split: str,
    device: torch.device,
    batch_size: int,
    seed: int,
    max_records: int,
) -> tuple[Tensor, Tensor]:
    """Return features (n, C) and labels (n, K), NaN where not observed."""
    rows = at_most(shards.rows(split), max_records, seed)
    if not len(rows):
        raise UserError(f"The shards in {shards.folder} hold no {split} samples for the probe.")
    network = control.model
    assert isinstance(network, Net1D)
    batches = EvaluationBatches(SampleReader(shards), rows, RankShape(batch_size))
    parts = [
        features[(row_of != PADDING)].cpu()
        for row_of, features in frozen_features(
            batches, control.transform, lambda x: network.forward_features(x)[1], device
        )
    ]
    return torch.cat(parts), answers_of(shards, rows)
