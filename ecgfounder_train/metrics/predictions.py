"""The prediction file: what a model said of each record, so that metrics never need it again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.ages import whole_years_array
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file

FORMAT_VERSION = 1
_METADATA_KEY = b"ecgfounder_train.predictions"
_ROW_GROUP = 65_536

# Column -> (arrow type, what stands for "unknown" in numpy). Strings know no answer as None.
_TEXT = {"record_key": False, "patient_key": True, "split": True, "site": True, "sex": True}
_NUMBERS = {"window": np.uint16, "age_years": np.float32, "native_fs": np.float32}


@dataclass(frozen=True)
class Predictions:
    """Logits of N windows for K labels, with the truth where it is known and who they are.

    Shape:
        record_key, patient_key, split, site, sex: (N,) objects, str or None (record_key: str).
        window: (N,) uint16; a record longer than the model's window has several rows.
        age_years, native_fs: (N,) float32, NaN where unknown; years and Hz.
        logits: (N, K) float32. targets, observed: (N, K) uint8; a target counts where observed.

    Make one with `Predictions.create`, which fills in what is unknown.
    """

    labels: tuple[str, ...]
    record_key: NDArray[np.object_]
    patient_key: NDArray[np.object_]
    window: NDArray[np.uint16]
    split: NDArray[np.object_]
    site: NDArray[np.object_]
    sex: NDArray[np.object_]
    age_years: NDArray[np.float32]
    native_fs: NDArray[np.float32]
    logits: NDArray[np.float32]
    targets: NDArray[np.uint8]
    observed: NDArray[np.uint8]
    fingerprints: dict[str, str] = field(default_factory=dict)
    run_name: str = ""
    provenance: dict[str, str] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        labels: Sequence[str],
        record_key: Sequence[str] | NDArray[Any],
        logits: ArrayLike,
        targets: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        *,
        patient_key: Sequence[str | None] | NDArray[Any] | None = None,
        window: ArrayLike | None = None,
        split: str | Sequence[str | None] | NDArray[Any] | None = None,
        site: Sequence[str | None] | NDArray[Any] | None = None,
        sex: Sequence[str | None] | NDArray[Any] | None = None,
        age_years: ArrayLike | None = None,
        native_fs: ArrayLike | None = None,
        fingerprints: Mapping[str, str] | None = None,
        run_name: str = "",
        provenance: Mapping[str, str] | None = None,
    ) -> "Predictions":
        """Return checked predictions; what is not given is unknown.

        Without `targets` nothing is observed; with targets and without `observed`, all are.

        Args:
            labels: Names in the order of the columns.
            record_key: Pseudonym per row; never a file name of a hospital's archive.
            logits: Before the sigmoid.
            targets: 0 or 1.
            observed: Which targets are known.
            patient_key: Pseudonym of the patient.
            window: Number of the window within its record.
            split: One name for all rows, or one per row.
            site: Where it was recorded.
            sex: "F" or "M".
            age_years: Kept as whole years, capped at 90.
            native_fs: Sampling rate of the recording in Hz.
            fingerprints: By what: vocabulary, signal_profile, split, ...
            run_name: The run that made the model.
            provenance: More rows for a report's provenance table (checkpoint, versions, ...).

        Raises:
            UserError: Something has the wrong shape or value, or rows repeat.
        """
        scores = np.ascontiguousarray(logits, dtype=np.float32)
        if scores.ndim != 2 or scores.shape[1] != len(labels):
            raise UserError(
                f"logits have shape {scores.shape}; (num_records, {len(labels)}) is expected for "
                f"{len(labels)} labels."
            )
        num_rows = len(scores)
        truth = np.zeros(scores.shape, np.uint8) if targets is None else _binary("targets", targets)
        if observed is not None:
            known = _binary("observed", observed)
        else:
            known = np.full(scores.shape, targets is not None, np.uint8)
        predictions = cls(
            labels=tuple(labels),
            record_key=_texts("record_key", record_key, num_rows),
            patient_key=_texts("patient_key", patient_key, num_rows),
            window=_numbers("window", 0 if window is None else window, num_rows, np.uint16),
            split=_texts("split", split, num_rows),
            site=_texts("site", site, num_rows),
            sex=_texts("sex", sex, num_rows),
            age_years=whole_years_array(
                _numbers(
                    "age_years", np.nan if age_years is None else age_years, num_rows, np.float32
                )
            ),
            native_fs=_numbers(
                "native_fs", np.nan if native_fs is None else native_fs, num_rows, np.float32
            ),
            logits=scores,
            targets=truth,
            observed=known,
            fingerprints=dict(fingerprints or {}),
            run_name=run_name,
            provenance=dict(provenance or {}),
        )
        predictions._check()
        return predictions

    def __len__(self) -> int:
        return len(self.record_key)

    @property
    def num_labels(self) -> int:
        """Number of columns of the logits."""
        return len(self.labels)

    @property
    def num_records(self) -> int:
        """Number of recordings; windows of one count once."""
        return len(set(self.record_key.tolist()))

    @property
    def num_patients(self) -> int | None:
        """Number of patients, or None where any record's patient is unknown."""
        patients = set(self.patient_key.tolist())
        return None if None in patients or not patients else len(patients)

    def of_labels(self, chosen: NDArray[np.bool_]) -> "Predictions":
        """Return the same rows with the chosen columns alone.

        Shape:
            chosen: (K,).
        """
        return replace(
            self,
            labels=tuple(name for name, kept in zip(self.labels, chosen, strict=True) if kept),
            logits=self.logits[:, chosen],
            targets=self.targets[:, chosen],
            observed=self.observed[:, chosen],
        )

    def _check(self) -> None:
        duplicates = [label for label in set(self.labels) if self.labels.count(label) > 1]
        if duplicates:
            raise UserError(f"Labels repeat: {', '.join(sorted(duplicates))}.")
        for name in ("targets", "observed"):
            shape = getattr(self, name).shape
            if shape != self.logits.shape:
                raise UserError(f"{name} have shape {shape}, but logits {self.logits.shape}.")
        if None in self.record_key.tolist():
            raise UserError("Every row of predictions needs a record_key.")
        rows = set(zip(self.record_key.tolist(), self.window.tolist(), strict=True))
        if len(rows) != len(self):
            raise UserError(
                f"{len(self) - len(rows):,} of {len(self):,} rows repeat a record_key and window, "
                "so metrics would count them twice. A sampler that pads its last batch does "
                "this; drop the padding."
            )


def _binary(name: str, values: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(values)
    if not np.isin(array, (0, 1)).all():
        raise UserError(
            f"{name} must be 0 or 1; mark a missing answer in `observed`, not by another value."
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def _texts(name: str, values: Any, num_rows: int) -> NDArray[np.object_]:
    if values is None or isinstance(values, str):
        column = np.full(num_rows, values, dtype=object)
    else:
        column = np.empty(len(values), dtype=object)
        column[:] = [None if value is None else str(value) for value in values]
    return _of_length(name, column, num_rows)


def _numbers(name: str, values: ArrayLike, num_rows: int, dtype: Any) -> NDArray[Any]:
    column = np.asarray(values)
    if column.ndim == 0:
        column = np.full(num_rows, column[()])
    return _of_length(name, column.astype(dtype), num_rows)


def _of_length(name: str, column: NDArray[Any], num_rows: int) -> NDArray[Any]:
    if column.shape != (num_rows,):
        raise UserError(f"{name} has shape {column.shape}; {num_rows} rows of logits were given.")
    return column


def write_predictions(path: Path | str, predictions: Predictions) -> Path:
    """Write a parquet file (zstd; whole or absent) and return its path.

    Targets and observed are packed (`numpy.packbits` along the labels, bit order big); labels,
    fingerprints, run name and provenance are JSON in the file's metadata.

    Raises:
        UserError: The folder cannot be written.
    """
    path = Path(path)
    columns: dict[str, pa.Array] = {}
    for name in _TEXT:
        columns[name] = pa.array(getattr(predictions, name).tolist(), pa.string())
    for name in _NUMBERS:
        values = getattr(predictions, name)
        columns[name] = pa.array(values, mask=_is_nan(values))
    columns["logits"] = pa.FixedSizeListArray.from_arrays(
        pa.array(predictions.logits.reshape(-1)), predictions.num_labels
    )
    for name in ("targets", "observed"):
        packed = np.packbits(getattr(predictions, name), axis=-1)
        columns[name] = pa.Array.from_buffers(
            pa.binary(packed.shape[1]), len(predictions), [None, pa.py_buffer(packed)]
        )
    metadata = {
        "format_version": FORMAT_VERSION,
        "labels": list(predictions.labels),
        "fingerprints": predictions.fingerprints,
        "run_name": predictions.run_name,
        "provenance": predictions.provenance,
    }
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
    with atomic_file(path) as handle:
        pq.write_table(
            table,
            handle,
            compression="zstd",
            row_group_size=_ROW_GROUP,
            use_dictionary=["patient_key", "split", "site", "sex", "window", "native_fs"],
        )
    return path


def _is_nan(values: NDArray[Any]) -> NDArray[np.bool_] | None:
    return np.isnan(values) if np.issubdtype(values.dtype, np.floating) else None


def read_predictions(path: Path | str) -> Predictions:
    """Return what `write_predictions` wrote.

    Raises:
        UserError: The file is missing, cut, of another format version or of foreign origin.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"No prediction file at {path}. Make it with scripts/evaluate.py or scripts/predict.py."
        )
    try:
        with pq.ParquetFile(path) as file:
            raw = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
            if raw is None:
                raise UserError(
                    f"{path} is parquet but not a prediction file of this project. Build "
                    "metrics.predictions.Predictions from its columns and write that."
                )
            metadata = json.loads(raw)
            if metadata["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} has prediction format {metadata['format_version']}; this version "
                    f"reads {FORMAT_VERSION}. Run scripts/evaluate.py again."
                )
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read as parquet and may have been cut: predict again. ({error})"
        ) from error
    labels = metadata["labels"]
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    arguments: dict[str, Any] = {name: columns[name].to_pylist() for name in _TEXT}
    arguments |= {name: columns[name].to_numpy(zero_copy_only=False) for name in _NUMBERS}
    arguments["logits"] = columns["logits"].flatten().to_numpy().reshape(-1, len(labels))
    for name in ("targets", "observed"):
        arguments[name] = _unpack(columns[name], len(labels))
    return Predictions.create(
        labels,
        **arguments,
        fingerprints=metadata["fingerprints"],
        run_name=metadata["run_name"],
        provenance=metadata["provenance"],
    )


def _unpack(column: pa.Array, num_labels: int) -> NDArray[np.uint8]:
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1], np.uint8)
    first = column.offset * width
    packed = flat[first : first + len(column) * width].reshape(-1, width)
    return np.unpackbits(packed, axis=-1, count=num_labels)
