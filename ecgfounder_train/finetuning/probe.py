"""Linear probe: a head on cached frozen features, its penalties chosen by validation."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.finetuning.task_shards import TaskShards
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.loader.crops import all_crops
from ecgfounder_train.loader.epoch_plan import PADDING
from ecgfounder_train.loader.features import frozen_features
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.linear_readout import Readout, fit_readout


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

    Shape: (rows of the index, crops, C); NaN in rows that no task used yet.

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
    batches = EvaluationBatches(SampleReader(shards), rows, RankShape(batch_size))

    def features_of(signal: Tensor) -> Tensor:
        pooled = model.forward_features(all_crops(signal, crops))[1]
        return pooled.reshape(len(signal), crops, -1)

    with ProgressMeter("embedding", len(rows), "ECG") as meter:
        for found, values in frozen_features(batches, transform, features_of, device):
            present = (found != PADDING).cpu().numpy()
            features[found.cpu().numpy()[present]] = values.cpu().numpy()[present]
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
) -> Readout:
    """Return the linear head that fits the training split best, its penalties chosen by validation.

    Each label or quantity has its own penalty. A crop is a sample of its own in training; in
    validation a record's answer is the mean over its crops, as everywhere else.

    Shape:
        features: (rows, crops, C). answers: (rows, K), NaN where not observed; standardised.

    Raises:
        UserError: Nothing is observed in training.
    """
    train, val = shards.rows("train"), shards.rows("val")
    x = torch.from_numpy(np.ascontiguousarray(features[train])).flatten(0, 1)
    y = torch.from_numpy(answers[train]).double().repeat_interleave(features.shape[1], 0)
    if bool(torch.isnan(y).all()):
        raise UserError("No answer is observed in the training split.")
    # Linear: the mean of outputs is that of inputs.
    held_out = torch.from_numpy(features[val].mean(1, dtype=np.float64))
    truth = torch.from_numpy(answers[val]).double()
    return fit_readout(x, y, held_out=(held_out, truth), regression=regression)
