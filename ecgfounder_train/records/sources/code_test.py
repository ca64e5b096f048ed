"""CODE-test (Ribeiro et al., Nature Communications 2020, doi:10.1038/s41467-020-15432-4).

827 recordings of as many patients in one HDF5 file, six findings annotated by cardiologists. Not
WFDB: the source reads its own recordings (`read_ecg`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.extras import needs
from ecgfounder_train.records.record import EcgRecord
from ecgfounder_train.records.sources.table import (
    SourceTable,
    clean_number,
    clean_sex,
    collect,
    complete,
    find_column,
    scan_strings,
)
from ecgfounder_train.records.storage import (
    Options,
    is_remote,
    join,
    local_copy,
    open_remote,
    reading,
)

FINDINGS = ("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST")
FS = 400.0
_UNITS_MV = (1.0, 0.1)
"""Its description says 1e-4 V and, by the factor it gives for volts, mV."""
_USUAL_SWING = 10**0.5
"""Of a lead within a second, median: about 1 mV in any set of ECGs, so 1 or 10 in stored units."""
_LIMB, _CHEST = ("I", "II", "III"), ("V1", "V2", "V3", "V4", "V5", "V6")
_AUGMENTED = {"aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
"""Goldberger's leads as sums of I and II."""
_NUM_TRACINGS_LOOKED_AT = 20
_CLEARLY = 0.5
"""The best order must leave less than this of the unexplained signal of the second best."""


@dataclass(frozen=True)
class CodeTestSource:
    """The folder as Zenodo unpacks it: `ecg_tracings.hdf5`, `attributes.csv`, `annotations/`."""

    root: Path | str
    annotations: str = "annotations/gold_standard.csv"
    leads: Sequence[str] | None = None
    """Names of the 12 columns; None: derived from the recordings."""
    unit_mv: float | None = None
    """Size of a stored unit in mV; None: derived from the recordings."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """What fsspec needs to open a root that is a URL."""

    def read(self) -> SourceTable:
        """Return one row per tracing; `record_path` is its number in the HDF5 file.

        Raises:
            UserError: A file or column is missing, or the files have different lengths.
        """
        path, attributes = (self._table(name) for name in (self.annotations, "attributes.csv"))
        frame, columns = scan_strings(path)
        findings = [find_column(columns, [name], path) for name in FINDINGS]
        table = collect(
            frame.select(
                pl.when(pl.all_horizontal(clean_number(name).is_not_null() for name in findings))
                .then(
                    pl.concat_list(
                        pl.when(clean_number(column) > 0).then(pl.lit(name))
                        for name, column in zip(FINDINGS, findings, strict=True)
                    ).list.drop_nulls()
                )
                .otherwise(None)  # a blank is unobserved, not negative
                .alias("statements")
            ),
            path,
        ).with_row_index("record_path")
        frame, columns = scan_strings(attributes)
        people = collect(
            frame.select(
                clean_number(find_column(columns, ["age"], attributes)).alias("age_years"),
                clean_sex(find_column(columns, ["sex"], attributes)).alias("sex"),
            ),
            attributes,
        )
        if not len(self._tracings) == table.height == people.height:
            raise UserError(
                f"{self.root}: {len(self._tracings)} tracings, {table.height} annotations and "
                f"{people.height} attributes differ in number."
            )
        _ = self._lead_names, self._millivolt  # a wrong setting is reported before the first record
        number = pl.col("record_path").cast(pl.String)
        records = table.hstack(people).with_columns(
            number,
            number.alias("record_id"),
            number.alias("patient_id"),  # "from different patients": the data set's own words
            pl.lit("code_test").alias("site"),
            pl.lit(FS).alias("fs"),
        )
        counts = {"rows": table.height}
        return self._source_table(records.lazy(), counts)

    def _table(self, name: str) -> Path:
        path = local_copy(self.root, name, self.storage_options)
        if not path.is_file():
            raise UserError(
                f"{join(self.root, name)} does not exist. source.root must be the folder or URL "
                "that holds it, as Zenodo unpacks it."
            )
        return path

    def _source_table(self, records: pl.LazyFrame, counts: Mapping[str, int]) -> SourceTable:
        return SourceTable(
            complete(records),
            self.root,
            None,
            counts,
            storage_options=self.storage_options,
            read_ecg=self.read_ecg,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers open the file themselves; an open one cannot be sent to them.
        settings = (self.root, self.annotations, self.leads, self.unit_mv, self.storage_options)
        return type(self), settings

    @cached_property
    def _tracings(self) -> Any:
        path = join(self.root, "ecg_tracings.hdf5")
        try:
            return open_hdf5(path, self.storage_options)["tracings"]
        except KeyError as error:
            raise UserError(f"{path} holds no data set 'tracings'.") from error

    @cached_property
    def _some_tracings(self) -> NDArray[np.float64]:
        return self._first_tracings(_NUM_TRACINGS_LOOKED_AT)

    def _first_tracings(self, number: int) -> NDArray[np.float64]:
        return np.asarray(self._tracings[:number], np.float64)

    @cached_property
    def _millivolt(self) -> float:
        """Return the size of a stored unit in mV.

        Source: https://github.com/antonior92/ecg-age-prediction/issues/1 and 5,
            https://github.com/antonior92/automatic-ecg-diagnosis/issues/3 and 10.
        """
        if self.unit_mv is not None:
            if not self.unit_mv > 0:
                raise UserError(f"source.unit_mv={self.unit_mv} must be above 0, such as 1 or 0.1.")
            return float(self.unit_mv)
        second = int(FS)
        tracings = self._some_tracings
        whole = tracings.shape[1] // second * second
        seconds = tracings[:, :whole].reshape(len(tracings), -1, second, tracings.shape[2])
        swings = np.ptp(seconds, axis=2)
        swings = swings[swings > 0]  # what fills a short recording up does not count
        in_millivolt = not len(swings) or np.median(swings) < _USUAL_SWING
        return _UNITS_MV[0] if in_millivolt else _UNITS_MV[1]

    @cached_property
    def _lead_names(self) -> tuple[str, ...]:
        """Return the names of the columns.

        The data set's own description gave the order of the augmented leads as aVL, aVF, aVR, and
        in other versions as aVR, aVL, aVF. They follow from I and II, so the recordings decide.
        """
        if self.leads is not None:
            names = tuple(str(name) for name in self.leads)
            if sorted(names) != sorted((*_LIMB, *_AUGMENTED, *_CHEST)):
                raise UserError(
                    f"source.leads={', '.join(names)} must name the 12 standard leads in the order "
                    "of the columns."
                )
            return names
        tracings = self._some_tracings
        one, two = tracings[..., 0], tracings[..., 1]
        unexplained = {
            order: sum(
                np.abs(tracings[..., 3 + column] - a * one - b * two).sum()
                for column, (a, b) in enumerate(_AUGMENTED[name] for name in order)
            )
            for order in permutations(_AUGMENTED)
        }
        first, second = sorted(unexplained, key=unexplained.__getitem__)[:2]
        if not unexplained[first] < _CLEARLY * unexplained[second]:
            raise UserError(
                f"{self.root}: the recordings do not determine the order of their augmented leads "
                "(published as aVR, aVL, aVF and as aVL, aVF, aVR). Name the 12 columns with "
                "source.leads=[I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6]."
            )
        return (*_LIMB, *first, *_CHEST)

    def read_ecg(self, record_path: str) -> EcgRecord:
        """Return one recording without the zeros that fill it up to 4,096 samples.

        Raises:
            RejectedRecordError: It holds nothing but zeros.
        """
        return self._record(np.asarray(self._tracings[int(record_path)], np.float32).T)

    def _record(self, tracing: NDArray[np.float32]) -> EcgRecord:
        filled = np.flatnonzero(tracing.any(axis=0))
        if not len(filled):
            raise RejectedRecordError(RejectReason.ALL_ZERO, "nothing but zeros")
        signal = tracing[:, filled[0] : filled[-1] + 1] * np.float32(self._millivolt)
        return EcgRecord(signal, self._lead_names, FS, None, ())


def open_hdf5(path_or_url: str, storage_options: Options | None = None) -> Any:
    """Return an HDF5 file, of which only what is asked for will be read.

    Raises:
        UserError: It is absent or no HDF5 file, or its storage does not answer.
    """
    with needs("formats", "An HDF5 file"):
        import h5py

    with reading(path_or_url):
        if is_remote(path_or_url):
            return h5py.File(open_remote(path_or_url, storage_options), "r")
        return h5py.File(path_or_url, "r")


SOURCE = CodeTestSource
