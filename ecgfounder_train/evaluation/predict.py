"""Logits of a trained network: for a split of a shard set, or for anyone's WFDB records."""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.core.progress import ProgressMeter, track
from ecgfounder_train.evaluation.predictions import Predictions
from ecgfounder_train.evaluation.trained import TrainedModel
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape
from ecgfounder_train.records import ProfiledRecord, read_record
from ecgfounder_train.shards import SEXES, SPLITS, ShardSet

POOLS = ("mean", "max")
WFDB_SUFFIXES = (".hea", ".dat", ".mat")


def predict_split(
    trained: TrainedModel,
    shards: ShardSet,
    split: str,
    device: torch.device,
    batch_size: int,
    run_name: str = "",
    crops: int = 1,
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

    Raises:
        UserError: The shards have other labels or another signal profile than the model, the
            split is empty, or a window does not divide into `crops`.
    """
    _check_batch_size(batch_size)
    check_crops(trained, crops)
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
            logits.append(_forward(trained, batch, device, crops)[present])
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
        UserError: Says which differs and how to go on.
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


@dataclass(frozen=True)
class RecordPredictions:
    """Predictions of files: one row per readable file, and the rejected ones with their reason.

    Shape:
        logits: (len(records), num_labels) float32, pooled over the windows of a record.
    """

    records: list[str]
    num_windows: list[int]
    logits: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    rejected: list[tuple[str, str, str]]

    def in_words(self) -> str:
        """Return how many records were found, predicted and rejected, by reason."""
        reasons = Counter(reason for _, reason, _ in self.rejected)
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        found = len(self.records) + len(self.rejected)
        return (
            f"{found} records found = {len(self.records)} predicted + {len(self.rejected)} rejected"
            + (f" ({listed})." if listed else ".")
        )

    def to_frame(self) -> pl.DataFrame:
        """Return record, status, number of windows, reject reason, and a probability per label."""
        with np.errstate(over="ignore"):
            probability = 1 / (1 + np.exp(-self.logits))
        schema = {
            "record": pl.String,
            "status": pl.String,
            "detail": pl.String,
            "num_windows": pl.Int64,
        }
        good = pl.DataFrame(
            [(name, "ok", "", n) for name, n in zip(self.records, self.num_windows, strict=True)],
            schema=schema,
            orient="row",
        ).hstack(pl.DataFrame(probability, schema=list(self.labels)))
        bad = pl.DataFrame(
            [(name, reason, detail, 0) for name, reason, detail in self.rejected],
            schema=schema,
            orient="row",
        )
        return pl.concat([good, bad], how="diagonal").sort("record")


def find_records(pattern: str) -> list[Path]:
    """Return the WFDB records a glob, a folder or a record's name means, without extension.

    Raises:
        UserError: There are none.
    """
    path = Path(pattern)
    if path.is_dir():
        found = {item.with_suffix("") for item in path.rglob("*.hea")}
    elif any(mark in pattern for mark in "*?["):
        # Path.glob takes no absolute pattern.
        found = {Path(item) for item in glob.glob(pattern, recursive=True)}  # noqa: PTH207
        # All files of a folder match `*`; a record is what has a header, or claims to be one.
        found = {p.with_suffix("") for p in found if p.suffix in WFDB_SUFFIXES}
    else:
        record = path.with_suffix("") if path.suffix in WFDB_SUFFIXES else path
        if not record.with_name(record.name + ".hea").is_file():
            raise UserError(f"There is no WFDB record {pattern} (no .hea file).")
        found = {record}
    if not found:
        raise UserError(
            f"input={pattern!r} finds no WFDB record (*.hea). Quote a glob for the shell and for "
            "Hydra: input='\"folder/**/*.hea\"'."
        )
    return sorted(found)


def predict_records(
    trained: TrainedModel,
    paths: Sequence[Path],
    device: torch.device,
    batch_size: int,
    pool: str = "mean",
) -> RecordPredictions:
    """Return the predictions for WFDB records; an unusable one is named, and the rest goes on.

    Args:
        trained: The model; its own signal profile is applied.
        paths: Records, with or without extension.
        device: Where the network runs.
        batch_size: Windows per forward pass.
        pool: How the logits of several windows of a record become one: `mean` or `max`.

    Raises:
        UserError: `pool` is unknown, or `batch_size` is no number of windows.
    """
    _check_batch_size(batch_size)
    if pool not in POOLS:
        raise UserError(f"pool={pool!r} is unknown. Valid: {', '.join(POOLS)}.")
    rejected: list[tuple[str, str, str]] = []
    records: list[str] = []
    num_windows: list[int] = []

    def profiled() -> Iterator[ProfiledRecord]:
        for path in track(paths, "predicting", len(paths)):
            try:
                record = trained.profile.apply(read_record(path))
            except RejectedRecordError as error:
                rejected.append((str(path), error.reason.value, error.detail))
                continue
            records.append(str(path))
            num_windows.append(len(record.windows))
            yield record

    every = predict_windows(trained, profiled(), device, batch_size)
    pooled = np.zeros((len(records), len(trained.labels)), np.float32)
    start = 0
    for row, count in enumerate(num_windows):
        part = every[start : start + count]
        pooled[row] = part.mean(0) if pool == "mean" else part.max(0)
        start += count
    return RecordPredictions(records, num_windows, pooled, trained.labels, rejected)


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
            logits.append(_forward(trained, _collate(part), device, crops))

    for record in records:
        windows.extend(_window_arrays(record))
        flush(batch_size)
    flush(1)
    return np.concatenate(logits) if logits else np.zeros((0, len(trained.labels)), np.float32)


def check_crops(trained: TrainedModel, crops: int) -> None:
    """Raise unless the model's windows divide into that many pieces.

    Raises:
        UserError: They do not.
    """
    if not isinstance(crops, int) or crops < 1 or trained.profile.num_samples % crops:
        raise UserError(
            f"crops={crops!r} does not divide a window of {trained.profile.num_samples} samples. "
            "Use 1 for whole windows, 4 for 2.5 s pieces of 10 s."
        )


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size={batch_size!r} is not a whole number above 0.")


def _window_arrays(profiled: ProfiledRecord) -> Iterator[dict[str, npt.NDArray[Any]]]:
    for window in profiled.windows:
        yield {
            "ecg": window.ecg,
            "stats": window.stats,
            "valid_start": np.asarray(window.valid_start),
            "valid_num_samples": np.asarray(window.valid_num_samples),
        }


def _collate(windows: Sequence[dict[str, npt.NDArray[Any]]]) -> dict[str, torch.Tensor]:
    batch = {key: torch.from_numpy(np.stack([w[key] for w in windows])) for key in windows[0]}
    # The transform wants labels; of a stranger's record none is known.
    nothing = torch.zeros(len(windows), 0)
    return batch | {"targets": nothing, "observed": nothing}


@torch.inference_mode()
def _forward(
    trained: TrainedModel, batch: dict[str, Any], device: torch.device, crops: int = 1
) -> npt.NDArray[np.float32]:
    moved = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    signal, _, _ = trained.transform(moved, training=False)
    num_windows, num_leads, _ = signal.shape
    pieces = signal.reshape(num_windows, num_leads, crops, -1).movedim(2, 1).flatten(0, 1)
    output = trained.model(pieces).float().reshape(num_windows, crops, -1).mean(1)
    logits: npt.NDArray[np.float32] = output.cpu().numpy()
    return logits
