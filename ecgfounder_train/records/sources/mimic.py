"""MIMIC-IV-ECG 1.0 (Gow et al. 2023, doi:10.13026/4nqg-sb35): 800,035 studies, reports of the cart.

`record_list.csv` names the records, `machine_measurements.csv` holds what the cart wrote, one
sentence in each of `report_0` ... `report_17`. Each sentence is a statement; use
``labels.match=words``, which reads doubt and denial. A study without a row, or with an empty one,
has no interpretation. Dates are shifted per patient, so there is no year. The files have aVF before
aVL: leads go by name (`records/leads.py`), as everywhere.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources.rows import gather_rows
from ecgfounder_train.records.sources.table import (
    SourceTable,
    clean,
    clean_id,
    collect,
    complete,
    find_column,
    scan_strings,
)

NUM_REPORTS = 18
FS = 500.0


@dataclass(frozen=True)
class MimicSource:
    """The folder as PhysioNet unpacks it: two tables beside `files/`."""

    REMOTE_FILES: ClassVar = ("*.csv",)
    root: Path
    record_list: str = "record_list.csv"
    reports: str = "machine_measurements.csv"

    def read(self) -> SourceTable:
        """Return one row per line of the list of records.

        Raises:
            UserError: A table or a column is missing.
        """
        counts: Counter[str] = Counter()
        studies = self._studies()
        counts["rows"] = studies.height
        studies = gather_rows(studies, "record_id", counts)
        reports = self._reports(counts)
        counts["patient_id_blank"] = studies["patient_id"].null_count()
        counts["label_rows_without_record"] = reports.join(
            studies, on="record_id", how="anti"
        ).height
        joined = studies.join(reports, on="record_id", how="left", maintain_order="left")
        counts["records_without_label_row"] = joined["has_row"].null_count()
        counts["without_statement"] = joined["statements"].null_count()
        return SourceTable(complete(joined.lazy()), self.root, None, dict(counts))

    def _table(self, name: str) -> tuple[pl.LazyFrame, tuple[str, ...], Path]:
        path = self.root / name
        if not path.is_file():
            raise UserError(
                f"{path} does not exist. source.root must be the folder of MIMIC-IV-ECG with "
                f"{self.record_list} and {self.reports}; for another use source=wfdb_folder."
            )
        return *scan_strings(path), path

    def _studies(self) -> pl.DataFrame:
        frame, columns, path = self._table(self.record_list)
        study, subject, place = (
            find_column(columns, [name], path) for name in ("study_id", "subject_id", "path")
        )
        return collect(
            frame.select(
                clean_id(study).alias("record_id"),
                clean_id(subject).alias("patient_id"),
                clean(place).str.replace(r"(?i)\.(hea|dat)$", "").alias("record_path"),
                pl.lit("mimic").alias("site"),
                pl.lit(FS).alias("fs"),
            ),
            path,
        )

    def _reports(self, counts: Counter[str]) -> pl.DataFrame:
        frame, columns, path = self._table(self.reports)
        study = find_column(columns, ["study_id"], path)
        present = [name for name in (f"report_{n}" for n in range(NUM_REPORTS)) if name in columns]
        if not present:
            raise UserError(f"{path} has no columns report_0 ... report_{NUM_REPORTS - 1}.")
        spoken = pl.concat_list(clean(name) for name in present).list.drop_nulls()
        table = collect(
            frame.select(
                clean_id(study).alias("record_id"),
                pl.when(spoken.list.len() > 0).then(spoken).otherwise(None).alias("statements"),
                pl.lit(True).alias("has_row"),
            ),
            path,
        )
        counts["label_rows"] = table.height
        counts["label_rows_empty"] = table["statements"].null_count()
        return gather_rows(table, "record_id", counts)


SOURCE = MimicSource
