"""Arrays of (records, leads, samples) in NumPy, HDF5 or Zarr files, beside a CSV of the records.

An array states neither rate nor unit nor leads: they are settings, and nothing is guessed. Rows of
the CSV are in the array's order, or name their row in `row_column`. Everything behind is as for any
other source: limits, filters, windows, labels, split.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError, did_you_mean
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.untrusted import hdf5_datasets
from ecgfounder_train.records.header import MAX_FS, MILLIVOLTS_PER_UNIT
from ecgfounder_train.records.reader import LONG_VALUES
from ecgfounder_train.records.record import EcgRecord, StoredRecording
from ecgfounder_train.records.sources.label_table import label_columns, require_utf8
from ecgfounder_train.records.sources.rows import gather_rows
from ecgfounder_train.records.sources.table import (
    STAND_IN_PATIENT,
    SourceTable,
    check_choice,
    clean_id,
    collect,
    complete,
    find_column,
    scan_strings,
)

_HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
_AXES = ("records", "leads", "samples")
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


@dataclass(frozen=True)
class ArraysSource:
    """One array and one table; relative paths begin at the root."""

    root: Path
    array: str
    """A file .npy, .h5, .hdf5, or a folder .zarr."""
    table: str
    fs: float
    """Hz."""
    unit: str
    """mV, uV, nV or V."""
    leads: Sequence[str]
    """In stored order."""
    dataset: str | None = None
    """Name within an HDF5 file or a Zarr group; None: its only array of three axes."""
    axes: Sequence[str] = _AXES
    trim_padding: bool = False
    """Leave out zeros or NaN in all leads at both ends. (Of long recordings such windows are left
    out and counted.)"""
    row_column: str | None = None
    """Place in the array, from 0; None: rows of the table are in its order."""
    record_column: str | None = None
    """None: the place in the array."""
    table_separator: str = ","
    patient_column: str | None = None
    statement_columns: Sequence[str] = field(default_factory=tuple)
    statement_separator: str = ","
    statement_pattern: str | None = None
    flag_columns: Sequence[str] = field(default_factory=tuple)
    """Columns of 1 and 0, each named as its statement; a blank leaves the record unobserved."""
    age_column: str | None = None
    sex_column: str | None = None
    site_column: str | None = None
    split_column: str | None = None
    require_labels: bool = True

    def read(self) -> SourceTable:
        """Return one row per record of the table; `record_path` is its place in the array.

        Raises:
            UserError: A file or column is missing, or settings, array and table do not fit.
        """
        self._check_settings()
        data = self._data()
        number = data.shape[list(self.axes).index("records")]
        table, counts = self._rows(number)
        unknown = pl.col("patient_id").is_null()
        counts["patient_unknown_record_stands_in"] = table.filter(unknown).height
        counts["without_statement"] = table["statements"].null_count()
        if self.require_labels and counts["without_statement"] == table.height:
            raise UserError(
                f"None of the {table.height:,} rows of {self._path(self.table)} has a statement. "
                "Name its columns with source.statement_columns (codes or texts) or "
                "source.flag_columns (1 and 0), or set source.require_labels=false."
            )
        records = table.with_columns(
            pl.when(unknown)
            .then(pl.lit(STAND_IN_PATIENT) + pl.col("record_id"))
            .otherwise("patient_id")
            .alias("patient_id"),
            pl.lit(self.fs).alias("fs"),
        )
        return SourceTable(
            complete(records.lazy()), self.root, None, dict(counts), read_ecg=self.read_ecg
        )

    def _check_settings(self) -> None:
        if not 0 < self.fs <= MAX_FS:
            raise UserError(f"source.fs={self.fs} is not a sampling rate in Hz.")
        if self.unit.lower() not in MILLIVOLTS_PER_UNIT:
            raise UserError(f"source.unit={self.unit} is not a voltage. Valid: mV, uV, nV, V.")
        if sorted(self.axes) != sorted(_AXES):
            raise UserError(
                f"source.axes=[{', '.join(self.axes)}] must be records, leads and samples in the "
                "order in which the array has them."
            )
        names = self.lead_names
        if len(set(names)) < len(names) or not names:
            raise UserError(
                f"source.leads=[{', '.join(names)}] must name each stored lead once, in order."
            )

    def _path(self, name: str) -> Path:
        return self.root / Path(name).expanduser()

    def _data(self) -> Any:
        data = self.opened()
        shape = dict(zip(self.axes, data.shape, strict=True))
        leads = self.lead_names
        if shape["leads"] != len(leads):
            stated = ", ".join(f"{shape[axis]:,} {axis}" for axis in self.axes)
            raise UserError(
                f"source.leads names {len(leads)} leads, but {self._path(self.array)} of shape "
                f"{tuple(data.shape)} would hold {stated}. Correct source.leads, or the order in "
                "source.axes=[records,samples,leads]."
            )
        if np.dtype(data.dtype).kind not in "iuf":
            raise UserError(
                f"{self._path(self.array)} holds values of type {data.dtype}, not numbers."
            )
        return data

    def _rows(self, number: int) -> tuple[pl.DataFrame, Counter[str]]:
        """Return one row per record, and what was counted."""
        path = self._path(self.table)
        if not path.is_file():
            raise UserError(f"source.table={self.table}: {path} does not exist.")
        frame, columns = scan_strings(path, separator=self.table_separator)
        chosen = label_columns(self, columns, path)
        flags = [self.flag_columns] if isinstance(self.flag_columns, str) else self.flag_columns
        for name in flags:
            column = clean_id(find_column(columns, [name], path)).str.to_lowercase()
            chosen.append(column.alias(f"flag {name}"))
        for alias, column_name in (("record_id", self.record_column), ("place", self.row_column)):
            if column_name is not None:
                chosen.append(clean_id(find_column(columns, [column_name], path)).alias(alias))
        table = collect(frame.select(*chosen), path)
        require_utf8(table, path)
        counts = Counter({"rows": table.height})
        if self.row_column is None and table.height != number:
            raise UserError(
                f"{path} has {table.height:,} rows and {self._path(self.array)} {number:,} "
                "records. Name the column that holds a row's place in the array (from 0) with "
                "source.row_column."
            )
        if self.row_column is None:
            table = table.with_row_index("place")
        place = table["place"].cast(pl.Int64, strict=False)
        wrong = (place.is_null() | (place < 0) | (place >= number)).to_numpy()
        if wrong.any():
            line = int(np.flatnonzero(wrong)[0]) + 2
            raise UserError(
                f"{path} line {line}: column {self.row_column!r} must hold a place in the array, "
                f"0 to {number - 1:,} ({int(wrong.sum()):,} rows do not)."
            )
        table = table.with_columns(place.cast(pl.String).alias("record_path")).drop("place")
        if self.record_column is None:
            table = table.with_columns(pl.col("record_path").alias("record_id"))
        if "site" in table.columns and table["site"].null_count() == table.height:
            table = table.with_columns(pl.lit(self.root.name).alias("site"))
        table = _with_flags(table, tuple(flags), path)
        table = gather_rows(table, "record_path", counts)
        counts["records_without_table_row"] = number - table.height
        return table, counts

    def read_ecg(self, record_path: str) -> EcgRecord | StoredRecording:
        """Return one record in mV; one of more than `LONG_VALUES` values is opened, not read.

        Raises:
            RejectedRecordError: It cannot be read, or is nothing but padding.
        """
        recording = ArrayRecording(self, int(record_path))
        if recording.num_samples * len(self.lead_names) > LONG_VALUES:
            return recording
        record = recording.read()
        return replace(record, signal=_trimmed(record.signal)) if self.trim_padding else record

    @property
    def lead_names(self) -> tuple[str, ...]:
        """Names of the stored leads."""
        return (self.leads,) if isinstance(self.leads, str) else tuple(self.leads)

    def opened(self) -> Any:
        """Return the array, of which only what is asked for is read."""
        return _open(str(self._path(self.array)), self.dataset)


@dataclass(frozen=True)
class ArrayRecording:
    """One record of an array, of which any range of samples is read."""

    source: ArraysSource
    place: int
    comments: tuple[str, ...] = ()

    @property
    def fs(self) -> float:
        """Sampling rate, Hz."""
        return float(self.source.fs)

    @property
    def num_samples(self) -> int:
        """Length of a record."""
        return int(self.source.opened().shape[list(self.source.axes).index("samples")])

    def read(self, start: int = 0, stop: int | None = None) -> EcgRecord:
        """Return the samples from `start` to `stop` in mV, NaN where a value is not finite.

        Raises:
            RejectedRecordError: The file is damaged.
        """
        axes = list(self.source.axes)
        index: list[Any] = [slice(None)] * 3
        index[axes.index("records")] = self.place
        index[axes.index("samples")] = slice(start, stop)
        try:
            stored = np.asarray(self.source.opened()[tuple(index)], np.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL, f"cannot be read: {type(error).__name__}"
            ) from None
        if axes.index("leads") > axes.index("samples"):
            stored = stored.T
        signal = stored * np.float32(MILLIVOLTS_PER_UNIT[self.source.unit.lower()])
        signal[~np.isfinite(signal)] = np.nan
        return EcgRecord(np.ascontiguousarray(signal), self.source.lead_names, self.fs)


def _trimmed(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    filled = np.flatnonzero(np.nan_to_num(signal).any(axis=0))
    if not len(filled):
        raise RejectedRecordError(RejectReason.ALL_ZERO, "nothing but padding")
    return signal[:, filled[0] : filled[-1] + 1]


def _with_flags(table: pl.DataFrame, names: Sequence[str], path: Path) -> pl.DataFrame:
    """Return the table with the statements that its columns of 1 and 0 give added."""
    if not names:
        return table
    for name in names:
        cells = table[f"flag {name}"]
        wrong = cells.is_not_null() & ~cells.is_in([*_YES, *_NO])
        if wrong.any():
            line = int(wrong.arg_true()[0]) + 2
            raise UserError(
                f"{path} line {line}: column {name!r} holds {cells[line - 2]!r}; a column of "
                "source.flag_columns must hold 1, 0 or nothing."
            )
    columns = [pl.col(f"flag {name}") for name in names]
    flagged = pl.concat_list(
        pl.when(column.is_in(_YES)).then(pl.lit(name))
        for name, column in zip(names, columns, strict=True)
    ).list.drop_nulls()
    # Where an answer is missing, the label is not known: unobserved, not negative.
    answered = pl.all_horizontal(column.is_not_null() for column in columns)
    spoken = pl.col("statements")
    both = pl.concat_list(spoken.fill_null([]), flagged)
    return table.with_columns(
        pl.when(answered).then(both).otherwise(spoken).alias("statements")
    ).drop([f"flag {name}" for name in names])


def _open(path: str, dataset: str | None) -> Any:
    """Return the array at a path, opened once per process while it does not change.

    Raises:
        UserError: It is absent, not of these formats, or not of three axes.
    """
    if not Path(path).exists():
        raise UserError(f"source.array: {path} does not exist.")
    return _opened(path, dataset, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: str, dataset: str | None, modified_ns: int) -> Any:
    """Return an array of three axes, of which only what is asked for is read.

    Raises:
        UserError: It is not of these formats, or not of three axes.
    """
    suffix = Path(path).suffix.lower()
    place = f"source.array: {path}"
    try:
        if suffix == ".npy":
            data: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif suffix in _HDF5:
            data = _hdf5(path, dataset)
        elif suffix == ".zarr":
            data = _zarr(path, dataset)
        else:
            check_choice("array", suffix, (".npy", *_HDF5, ".zarr"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place} cannot be read ({type(error).__name__}: {error}).") from error
    if len(data.shape) != 3:
        raise UserError(
            f"{place} has the shape {tuple(data.shape)}; three axes are needed (records, leads, "
            "samples), of which that of a single lead has the length 1."
        )
    return data


def _hdf5(path: str, dataset: str | None) -> Any:
    with needs("formats", "An HDF5 file"):
        import h5py
    content = h5py.File(path, "r")
    found = {name: item for name, item in hdf5_datasets(content) if len(item.shape or ()) == 3}
    data = _chosen(found, dataset, path)
    if data.external or data.is_virtual:
        raise UserError(f"source.array: {path} refers to another file, which is not read.")
    return data


def _zarr(path: str, dataset: str | None) -> Any:
    with needs("formats", "A Zarr array"):
        import zarr
    content: Any = zarr.open(path, mode="r")
    if isinstance(content, zarr.Array):
        return content
    found: dict[str, Any] = {name: item for name, item in content.arrays() if len(item.shape) == 3}
    if dataset and "/" in dataset:
        found[dataset] = content[dataset]
    return _chosen(found, dataset, path)


def _chosen(found: Mapping[str, Any], dataset: str | None, path: str) -> Any:
    if dataset is None and len(found) == 1:
        return next(iter(found.values()))
    name = (dataset or "").strip("/")
    if name not in found:
        listed = ", ".join(sorted(found)) or "none"
        raise UserError(
            f"source.dataset={dataset} is not an array of three axes in {path} (there: {listed})."
            + (did_you_mean(name, found) if name and found else "")
        )
    return found[name]


SOURCE = ArraysSource
