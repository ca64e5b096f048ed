"""Logits of a trained network: for a split of a shard set, or for windows of records."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape, to_device
from ecgfounder_train.loader.crops import all_crops, check_crops, mean_over_crops
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.models import Net1D
from ecgfounder_train.records import ProfiledRecord, Window
from ecgfounder_train.shards import SEXES, ShardSet
from ecgfounder_train.weights.trained_model import TrainedModel


def predict_split(
    trained: TrainedModel,
    shards: ShardSet,
    split: str,
    device: torch.device,
    batch_size: int,
    run_name: str = "",
    crops: int = 1,
    features: npt.NDArray[np.float32] | None = None,
) -> Predictions:
    """Return the predictions of every window of a split, with its truth.

    Args:
        trained: The model.
        shards: Made with its labels and its signal profile.
        split: train, val or test.
        device: Where the network runs.
        batch_size: Windows per forward pass.
        run_name: Stands in the prediction file.
        crops: Pieces each window is cut into; their logits are averaged.
        features: What this network's head takes, where that is known already: of shape (rows of the
            index, crops, C). Only the head is computed then.

    Raises:
        UserError: The shards have other labels or another signal profile than the model, the
            split is empty, or a window does not divide into `crops`.
    """
    _check_batch_size(batch_size)
    check_crops(crops, trained.profile.num_samples)
    require_same_data(trained, shards)
    rows = shards.rows(split)
    if not len(rows):
        raise UserError(
            f"The shards in {shards.folder} hold no {split} samples. Choose another split= "
            f"({', '.join(SPLITS)}), or prepare shards whose split has such a part."
        )
    batches = EvaluationBatches(SampleReader(shards), rows, RankShape(batch_size))
    logits, targets, observed = [], [], []
    with ProgressMeter(f"evaluating {split}", len(rows), "ECG") as meter:
        for batch in batches:
            present = batch["present"].numpy()
            found = (
                _forward(trained, batch, device, crops)
                if features is None
                else _head(trained, features[batch["rows"].numpy()], device)
            )
            logits.append(found[present])
            targets.append(batch["targets"].numpy()[present])
            observed.append(batch["observed"].numpy()[present])
            meter.update(meter.done + int(present.sum()))
    entries = shards.index[rows]
    sites = np.array([*shards.manifest.sites, ""], dtype=object)
    return Predictions.create(
        trained.labels,
        entries["record_key"].astype(str),
        np.concatenate(logits),
        np.concatenate(targets),
        np.concatenate(observed),
        patient_key=entries["patient_key"].astype(str),
        window=entries["window"],
        split=split,
        site=sites[entries["site"]],
        sex=np.array([SEXES[code] or None for code in entries["sex"]], dtype=object),
        age_years=entries["age_years"],
        native_fs=entries["native_fs"],
        fingerprints=shards.manifest.fingerprints,
        run_name=run_name,
    )


def require_same_data(trained: TrainedModel, shards: ShardSet) -> None:
    """Raise unless the shards carry the model's labels and were made with its signal profile.

    Raises:
        UserError: Names which differs and what to do.
    """
    manifest = shards.manifest
    if tuple(manifest.labels) != trained.labels:
        raise UserError(
            f"The model has {len(trained.labels)} labels (vocabulary {trained.vocabulary}), the "
            f"shards in {shards.folder} have {len(manifest.labels)} ({manifest.vocabulary['name']})"
            ". Prepare shards with the model's labels=."
        )
    if manifest.fingerprints["signal_profile"] != trained.profile.fingerprint:
        raise UserError(
            f"The shards in {shards.folder} were made with another signal profile than the model "
            f"was trained with ({trained.profile.name}, {trained.profile.fs:g} Hz). Prepare shards "
            "with the model's signal=."
        )


def predict_windows(
    trained: TrainedModel,
    records: Iterable[ProfiledRecord],
    device: torch.device,
    batch_size: int,
    crops: int = 1,
) -> npt.NDArray[np.float32]:
    """Return the logits of all windows of the records, in their order.

    Shape: (number of windows, num_labels).
    """
    windows: list[dict[str, npt.NDArray[Any]]] = []
    logits: list[npt.NDArray[np.float32]] = []

    def flush(least: int) -> None:
        while len(windows) >= max(least, 1):
            part = windows[:batch_size]
            del windows[:batch_size]
            logits.append(_forward(trained, collate_windows(part), device, crops))

    for record in records:
        windows.extend(window_arrays(record))
        flush(batch_size)
    flush(1)
    return np.concatenate(logits) if logits else np.zeros((0, len(trained.labels)), np.float32)


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size={batch_size!r} is not a whole number above 0.")


def window_arrays(profiled: ProfiledRecord) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield what `collate_windows` needs of each window of a record."""
    return map(window_array, profiled.windows)


def window_array(window: Window) -> dict[str, npt.NDArray[Any]]:
    """Return what `collate_windows` needs of a window."""
    return {
        "ecg": window.ecg,
        "stats": window.stats,
        "valid_start": np.asarray(window.valid_start),
        "valid_num_samples": np.asarray(window.valid_num_samples),
    }


def collate_windows(windows: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, torch.Tensor]:
    """Return the batch that the model's transform takes, without any label."""
    batch = {key: torch.from_numpy(np.stack([w[key] for w in windows])) for key in windows[0]}
    # The transform takes labels; a record from outside has none.
    nothing = torch.zeros(len(windows), 0)
    return batch | {"targets": nothing, "observed": nothing}


@torch.inference_mode()
def _head(
    trained: TrainedModel, features: npt.NDArray[np.float32], device: torch.device
) -> npt.NDArray[np.float32]:
    assert isinstance(trained.model, Net1D)
    output = trained.model.dense(torch.from_numpy(features).to(device)).float().mean(1)
    logits: npt.NDArray[np.float32] = output.cpu().numpy()
    return logits


@torch.inference_mode()
def _forward(
    trained: TrainedModel, batch: dict[str, Any], device: torch.device, crops: int = 1
) -> npt.NDArray[np.float32]:
    signal, _, _ = trained.transform(to_device(batch, device), training=False)
    output = mean_over_crops(trained.model(all_crops(signal, crops)), crops)
    logits: npt.NDArray[np.float32] = output.cpu().numpy()
    return logits
