"""A model for Python: `load_model(path)`, then `predict` and `embed` of anything that is an ECG."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.inference.find import RecordReference, find_records
from ecgfounder_train.inference.inputs import InputOptions
from ecgfounder_train.inference.inputs.reading import from_array
from ecgfounder_train.inference.pipeline import (
    OK,
    PipelineSettings,
    RecordResult,
    prepare_ahead,
    run_network,
)
from ecgfounder_train.inference.table import OutputTable, Tally
from ecgfounder_train.records import EcgRecord, SignalProfile
from ecgfounder_train.weights.decisions import Decisions
from ecgfounder_train.weights.trained_model import TrainedModel, choose_device

Records = str | Path | EcgRecord | NDArray[Any]


@dataclass(frozen=True)
class RecordPredictions:
    """Results of recordings in the order given, the rejected ones with their reason.

    Shape:
        logits, probabilities: (len, num_outputs), NaN in the rows of rejected recordings.
    """

    results: tuple[RecordResult, ...]
    table: OutputTable

    def __len__(self) -> int:
        return len(self.results)

    @property
    def records(self) -> list[str]:
        """What each recording is called."""
        return [result.name for result in self.results]

    @property
    def num_windows(self) -> list[int]:
        """Windows the network saw of each."""
        return [result.num_windows for result in self.results]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self.table.trained.labels

    @property
    def logits(self) -> NDArray[np.float32]:
        """What the network gave, pooled over the windows of a recording."""
        rows = np.full((len(self.results), len(self.labels)), np.nan, np.float32)
        for number, result in enumerate(self.results):
            if result.logits is not None:
                rows[number] = result.logits
        return rows

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated where the model has a calibration; quantities in their own unit."""
        return self.table.values(self.logits)

    @property
    def warnings(self) -> list[tuple[str, ...]]:
        """Codes of the warnings on each recording."""
        return [tuple(r.code.value for r in item.prepared.remarks) for item in self.results]

    @property
    def rejected(self) -> list[tuple[str, str, str]]:
        """Name, reason and detail of those without a result."""
        return [
            (result.name, result.prepared.status, result.prepared.detail)
            for result in self.results
            if result.prepared.status != OK
        ]

    def summary(self) -> str:
        """Return how many were found, predicted, rejected by reason, and warned about."""
        tally = Tally()
        tally.add(self.to_frame())
        return tally.summary()

    def to_frame(self) -> pl.DataFrame:
        """Return a row per recording, as the file of scripts/predict.py has it."""
        return self.table.frame(self.results)


class EcgModel:
    """A trained network with its preprocessing, names, thresholds and calibration.

    Args:
        trained: The weights and all that their input and output mean.
        device: Where the network runs.
    """

    def __init__(self, trained: TrainedModel, device: torch.device) -> None:
        # A single-lead model also takes recordings that have no lead but I.
        self.trained = trained.of_lead_i()
        self.device = device

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs in order."""
        return self.trained.labels

    @property
    def profile(self) -> SignalProfile:
        """What is done to a signal before the network sees it."""
        return self.trained.profile

    @property
    def decisions(self) -> Decisions | None:
        """Thresholds and calibration, None where none were kept beside the weights."""
        return self.trained.decisions

    def with_windows(
        self, policy: str | None = None, min_duration_s: float | None = None
    ) -> "EcgModel":
        """Return the same model that cuts long recordings otherwise, or takes shorter ones.

        Raises:
            UserError: The policy is unknown (consecutive, centre, first).
        """
        config = self.profile.to_dict()
        windows = dict(config["windows"])
        if policy is not None:
            windows["policy"] = policy
        if min_duration_s is not None:
            windows["min_duration_s"] = float(min_duration_s)
        profile = SignalProfile.from_config({**config, "windows": windows})
        return EcgModel(replace(self.trained, profile=profile), self.device)

    def predict(
        self,
        records: Records | Iterable[Records],
        *,
        fs: float | None = None,
        unit: str | None = None,
        leads: Sequence[str] | None = None,
        threshold: str | None = "youden",
        settings: PipelineSettings | None = None,
        progress: bool = False,
    ) -> RecordPredictions:
        """Return the results of recordings; an unusable one is a named rejection.

        Args:
            records: A path (file, folder, glob, list of files), an `EcgRecord`, an array (leads,
                time) or (records, leads, time), or several of these.
            fs: Sampling rate in Hz, for arrays and files that state none.
            unit: Of the numbers (mV, uV, V), overrides files; mV for arrays.
            leads: Names of the leads in stored order, for arrays and files that state none.
            threshold: Rule of yes and no.
            settings: Batch size, pooling, threads, precision.
            progress: Show a bar.

        Raises:
            UserError: An element of `records` is not a recording.
        """
        settings = settings or PipelineSettings()
        references = as_references(records, fs=fs, unit=unit, leads=leads)
        results = self.stream(references, settings, progress)
        table = OutputTable(self.trained, "probabilities", threshold, settings.pool)
        return RecordPredictions(tuple(results), table)

    def embed(
        self,
        records: Records | Iterable[Records],
        *,
        fs: float | None = None,
        unit: str | None = None,
        leads: Sequence[str] | None = None,
        settings: PipelineSettings | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return the features before the last layer, the mean over a recording's windows.

        Rejected recordings are rows of NaN, and a warning counts them.

        Shape: (number of recordings, num_features).
        """
        settings = replace(settings or PipelineSettings(), with_features=True)
        references = as_references(records, fs=fs, unit=unit, leads=leads)
        results = list(self.stream(references, settings, progress))
        network: Any = self.trained.model
        rows = np.full((len(results), network.num_features), np.nan, np.float32)
        for number, result in enumerate(results):
            if result.features is not None:
                rows[number] = result.features
        if bad := [result.prepared for result in results if result.features is None]:
            first = f"{bad[0].status}: {bad[0].detail}"
            warnings.warn(
                f"{len(bad)} of {len(results)} recordings have no embedding (NaN); first {first}",
                stacklevel=2,
            )
        return rows

    def stream(
        self,
        references: Sequence[RecordReference],
        settings: PipelineSettings | None = None,
        progress: bool = False,
    ) -> Iterator[RecordResult]:
        """Yield the result of each reference in order, with a bar if wanted."""
        settings = settings or PipelineSettings()
        prepared = prepare_ahead(references, self.profile, settings)
        meter = ProgressMeter("predicting", len(references), "records", enabled=progress)
        with meter:
            for result in run_network(self.trained, prepared, self.device, settings):
                meter.update(meter.done + 1)
                yield result


def load_model(path: Path | str, device: str = "auto") -> EcgModel:
    """Return the model in a file or folder of weights.

    Args:
        path: A run's checkpoint, the official file (`.pth`), or an export.
        device: auto, cpu or cuda.

    Raises:
        UserError: The file is absent, damaged or foreign, or the device does not exist.
    """
    chosen = choose_device(device)
    return EcgModel(TrainedModel.load(path, chosen), chosen)


def as_references(
    records: Records | Iterable[Records],
    *,
    fs: float | None = None,
    unit: str | None = None,
    leads: Sequence[str] | None = None,
) -> list[RecordReference]:
    """Return references to what `EcgModel.predict` takes.

    Raises:
        UserError: An element is not a recording, or an array has no rate.
    """
    options = InputOptions(fs, unit, tuple(leads) if leads is not None else None)
    if isinstance(records, str | Path | EcgRecord | np.ndarray):
        records = [records]
    found: list[RecordReference] = []
    for number, item in enumerate(records):
        if isinstance(item, RecordReference):
            found.append(item)
        elif isinstance(item, str | Path):
            found.extend(find_records(str(item), options).records)
        elif isinstance(item, EcgRecord):
            found.append(RecordReference.of_record(item, f"record {number}"))
        elif isinstance(item, np.ndarray):
            found.extend(_of_array(item, number, options))
        else:
            raise UserError(
                f"Item {number} is a {type(item).__name__}; records are paths, EcgRecords or "
                "arrays (leads, time)."
            )
    return found


def _of_array(
    values: NDArray[Any], number: int, options: InputOptions
) -> Iterator[RecordReference]:
    each = values if values.ndim == 3 else values[None]
    for place, one in enumerate(each):
        name = f"array {number}" if values.ndim != 3 else f"array {number}::{place}"
        try:
            # An array in memory is in mV unless the caller states another unit: no warning.
            source = from_array(one, options, unit=options.unit or "mV")
        except RejectedRecordError as error:
            raise UserError(f"{name}: {error.detail.replace('input_', '')}.") from error
        yield RecordReference(name, None, source=source)
