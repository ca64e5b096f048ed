"""External evaluation: records read directly, statements of another data set mapped to labels."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.core.progress import track
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.core.untrusted import reject_unexpected
from ecgfounder_train.evaluation.predict import predict_windows
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.maps import LabelMap, StatementCoverage
from ecgfounder_train.loader.crops import check_crops
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.records import EcgRecord, ProfiledRecord, read_record
from ecgfounder_train.records.sources import Source
from ecgfounder_train.records.sources.table import STAND_IN_PATIENT
from ecgfounder_train.weights.trained_model import TrainedModel

_SHOWN_REASONS = 3


@dataclass(frozen=True)
class ExternalSet:
    """A source's records with their mapped answers, before any model has seen them.

    Attributes:
        name: Of the source; part of its keys.
        frame: One row per record: record_path, record_key, patient_key (null: unknown), site, sex,
            age_years, fs, split.
        targets, observed: (records, evaluated labels).
        label_map: Which labels of the model are evaluated, and how.
        read: Returns the recording at a record_path.
        secret: Fingerprint of the keys' secret.
        num_unanswered: Records left out because every answer is open.
        coverage: Which statements concern an evaluated label and which do not.
    """

    name: str
    frame: pl.DataFrame
    targets: NDArray[np.uint8]
    observed: NDArray[np.uint8]
    label_map: LabelMap
    read: Callable[[str], EcgRecord]
    secret: str
    coverage: StatementCoverage
    num_unanswered: int = 0


def open_external(
    source: Source, name: str, label_map: LabelMap, secret: Secret, split: str | None = None
) -> ExternalSet:
    """Return the records of a source (of one official split of it) with mapped answers.

    Records without an interpretation, or whose answers are all open, are left out.

    Raises:
        UserError: The source has no such part, or no answer is left.
    """
    table = source.read()
    frame = table.records.collect().filter(pl.col("reject_reason").is_null())
    if split is not None:
        parts = frame["split"].drop_nulls().unique().sort().to_list()
        frame = frame.filter(pl.col("split") == split)
        if frame.is_empty():
            raise UserError(
                f"The source {name} has no records of split={split} "
                f"(official parts: {', '.join(parts) or 'none; leave split= out'})."
            )
    places = (f"{table.root}/{path}" for path in frame["record_path"])
    sites = label_map.named_sites(frame["site"].to_list(), places)
    frame = frame.with_columns(pl.Series("site", sites, pl.String))
    statements = frame["statements"].to_list()
    targets, observed = label_map.targets(statements, sites)
    answered: NDArray[np.bool_] = np.asarray(observed.any(axis=1))
    if not answered.any():
        raise UserError(
            f"None of the {frame.height:,} records of {name} has an answer to any of the "
            f"{len(label_map.entries)} mapped labels: the map {label_map.name} does not belong to "
            "this source, or its tables hold no statements."
        )
    stand_in = pl.col("patient_id").is_null() | pl.col("patient_id").str.starts_with(
        STAND_IN_PATIENT
    )
    frame = frame.with_columns(
        pl.Series("record_key", [secret.record_key(name, i) for i in frame["record_id"]]),
        pl.Series("patient_key", [i and secret.patient_key(name, i) for i in frame["patient_id"]]),
    ).with_columns(pl.when(stand_in).then(None).otherwise("patient_key").alias("patient_key"))
    own = getattr(source, "read_ecg", None)
    root = table.root

    def read(record_path: str) -> EcgRecord:
        return own(record_path) if own else read_record(Path(root) / record_path)

    return ExternalSet(
        name,
        frame.filter(answered).drop("statements"),
        targets[answered],
        observed[answered],
        label_map,
        read,
        secret.fingerprint,
        label_map.coverage(statements),
        int((~answered).sum()),
    )


@dataclass(frozen=True)
class ExternalPredictions:
    """Predictions of an external set, one row per window, and what became of its records."""

    predictions: Predictions
    rows: NDArray[np.int64]
    """Row of the set's frame of each window."""
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Return how many records were used and rejected, by reason."""
        used = self.predictions.num_records
        total = sum(self.rejected.values())
        reasons = ", ".join(
            f"{count:,} {reason}" for reason, count in sorted(self.rejected.items())
        )
        return (
            f"{used + total:,} records with an answer = {used:,} evaluated + {total:,} rejected"
            + (f" ({reasons})" if reasons else "")
            + "."
        )


def predict_external(
    trained: TrainedModel,
    external: ExternalSet,
    device: torch.device,
    batch_size: int,
    run_name: str = "",
    crops: int = 1,
) -> ExternalPredictions:
    """Return the model's logits of the mapped labels for every window of every usable record.

    The model's own signal profile converts rate and leads; unusable records are counted. A model
    that has the data set's labels instead of the mapped ones is read through the map; its logits
    are NaN where it has no such output.

    Raises:
        UserError: Every record was rejected, or no output of the model is a label of the map.
    """
    check_crops(crops, trained.profile.num_samples)
    trained = trained.of_lead_i()
    in_map = _reader(trained, external.label_map)
    rejected: Counter[str] = Counter()
    details: dict[str, str] = {}
    rows: list[int] = []
    numbers: list[int] = []
    sites = external.frame["site"].to_list()

    def profiled() -> Iterator[ProfiledRecord]:
        paths = external.frame["record_path"].to_list()
        for row, path in enumerate(track(paths, f"evaluating {external.name}", len(paths))):
            try:
                with reject_unexpected():
                    record = trained.profile.apply(external.read(path), sites[row])
            except RejectedRecordError as error:
                rejected[error.reason.value] += 1
                details.setdefault(error.reason.value, error.detail)
                continue
            rows.extend([row] * len(record.windows))
            numbers.extend(window.number for window in record.windows)
            yield record

    logits = predict_windows(trained, profiled(), device, batch_size, crops)
    if not rows:
        why = "; ".join(
            f"{n:,} {r} ({details[r]})" for r, n in rejected.most_common(_SHOWN_REASONS)
        )
        leads = "a single-lead model for single-lead recordings: data.lead_choice=published"
        raise UserError(
            f"No record of {external.name} fits the model's signal profile "
            f"{trained.profile.name}: {why}. Take other recordings, or a model that fits them "
            f"({leads})."
        )
    chosen = np.array(rows)
    frame = external.frame[chosen]
    predictions = Predictions.create(
        external.label_map.evaluated,
        frame["record_key"].to_numpy(),
        in_map(logits),
        external.targets[chosen],
        external.observed[chosen],
        patient_key=frame["patient_key"].to_list(),
        window=np.array(numbers),
        split=frame["split"].to_list(),
        site=frame["site"].to_list(),
        sex=frame["sex"].to_list(),
        age_years=frame["age_years"].fill_null(np.nan).to_numpy(),
        native_fs=frame["fs"].fill_null(np.nan).to_numpy(),
        fingerprints={
            "label_map": external.label_map.fingerprint,
            "signal_profile": trained.profile.fingerprint,
            "secret": external.secret,
        },
        run_name=run_name,
    )
    return ExternalPredictions(predictions, chosen, dict(rejected))


def _reader(
    trained: TrainedModel, label_map: LabelMap
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    if set(label_map.evaluated) <= set(trained.labels):
        columns = [trained.labels.index(label) for label in label_map.evaluated]
        return lambda logits: logits[:, columns]
    vocabulary = Vocabulary.load(trained.vocabulary)
    _, absent = label_map.scores(np.zeros((0, len(trained.labels)), np.float32), vocabulary)
    if len(absent) == len(label_map.entries):
        raise UserError(
            f"No output of the model (vocabulary {trained.vocabulary}) is a label of the map "
            f"{label_map.name}, in the model's words or in the data set's."
        )
    return lambda logits: label_map.scores(logits, vocabulary)[0]


def signal_of(
    trained: TrainedModel, external: ExternalSet, row: int, window: int
) -> tuple[NDArray[Any], float, tuple[str, ...]]:
    """Return a window as the model's first half of preprocessing leaves it: mV, Hz, leads."""
    profile = trained.of_lead_i().profile
    path, site = external.frame["record_path"][row], external.frame["site"][row]
    record = profile.apply(external.read(path), site)
    found = next(item for item in record.windows if item.number == window)
    return found.ecg / 1000.0, profile.fs, profile.leads
