"""PTB-XL (Wagner et al., Scientific Data 2020, doi:10.1038/s41597-020-0495-6).

A statement counts as present if it is a key of `scp_codes`, whatever its likelihood: 0.0 means that
the likelihood is not known. The column `heart_axis`, where filled, is one more statement, such as
`heart_axis=LAD`. The ten folds are disjoint in patients; the benchmark trains on 1-8, selects on 9
and tests on 10 (Strodthoff et al. 2020, doi:10.1109/JBHI.2020.3022989).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources.rows import gather_rows
from ecgfounder_train.records.sources.table import (
    STAND_IN_PATIENT,
    SourceTable,
    check_choice,
    clean,
    clean_id,
    clean_number,
    collect,
    complete,
    find_column,
    scan_strings,
)

_FILE_COLUMNS = {100: "filename_lr", 500: "filename_hr"}


@dataclass(frozen=True)
class PtbxlSource:
    """PTB-XL as PhysioNet unpacks it: `ptbxl_database.csv` beside `records100`/`records500`."""

    REMOTE_FILES: ClassVar = ("*.csv",)
    root: Path
    rate: int = 100
    folds: Sequence[int] = ()
    """Folds to prepare; none named: all ten."""

    def read(self) -> SourceTable:
        """Return one row per line of `ptbxl_database.csv`.

        Raises:
            UserError: No table, a column of it missing, or no recordings at this rate.
        """
        check_choice("rate", self.rate, _FILE_COLUMNS)
        for fold in self.folds:
            check_choice("folds", fold, range(1, 11))
        path = self.root / "ptbxl_database.csv"
        if not path.is_file():
            raise UserError(
                f"No labels table: {path} does not exist. source.root must be the folder of PTB-XL "
                "that holds ptbxl_database.csv; for a folder without it use source=wfdb_folder."
            )
        if not (self.root / f"records{self.rate}").is_dir():
            raise UserError(
                f"{self.root} has no folder records{self.rate}. Unpack the recordings at "
                f"{self.rate} Hz, or set source.rate to {600 - self.rate}."
            )
        frame, columns = scan_strings(path)
        file_column = _FILE_COLUMNS[self.rate]
        for name in ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", file_column):
            find_column(columns, [name], path)
        table = collect(
            frame.select(
                clean(file_column).alias("record_path"),
                clean_id("ecg_id").alias("record_id"),
                clean_id("patient_id").alias("patient_id"),
                pl.lit("ptbxl").alias("site"),
                clean_number("age").alias("age_years"),
                clean("sex").replace_strict({"0": "M", "1": "F"}, default=None).alias("sex"),
                pl.lit(self.rate).alias("fs"),
                # Keys of the dictionary as Python prints it: {'NORM': 100.0, 'LAO/LAE': 0.0}.
                pl.col("scp_codes").str.extract_all(r"['\"][^'\"]+['\"]\s*:").alias("statements"),
                clean_number("strat_fold").cast(pl.Int16, strict=False).alias("fold"),
                clean("heart_axis").alias("axis")
                if "heart_axis" in columns
                else pl.lit(None, pl.String).alias("axis"),
                clean("recording_date").str.slice(0, 4).cast(pl.Int32, strict=False).alias("year")
                if "recording_date" in columns
                else pl.lit(None).alias("year"),
            ),
            path,
        )
        unknown_patient = pl.col("patient_id").is_null()
        counts = Counter({"rows": table.height})
        table = gather_rows(table, "record_id", counts)
        if self.folds:
            height = table.height
            table = table.filter(pl.col("fold").is_in(list(self.folds)))
            counts["records_not_selected"] = height - table.height
        counts["patient_unknown_record_stands_in"] = table.filter(unknown_patient).height
        counts["without_statement"] = table.filter(pl.col("statements").list.len() == 0).height
        records = table.lazy().with_columns(
            pl.when(unknown_patient)
            .then(pl.lit(STAND_IN_PATIENT) + pl.col("record_id"))
            .otherwise(pl.col("patient_id"))
            .alias("patient_id"),
            pl.when(pl.col("statements").list.len() > 0)
            .then(
                pl.concat_list(
                    pl.col("statements").list.eval(pl.element().str.strip_chars("'\": ")),
                    pl.concat_list(pl.lit("heart_axis=") + pl.col("axis")).list.drop_nulls(),
                )
            )
            .otherwise(None)
            .alias("statements"),
            pl.when(pl.col("fold").is_between(1, 8))
            .then(pl.lit("train"))
            .when(pl.col("fold") == 9)
            .then(pl.lit("val"))
            .when(pl.col("fold") == 10)
            .then(pl.lit("test"))
            .otherwise(None)
            .alias("split"),
        )
        return SourceTable(complete(records), self.root, None, counts, self._texts())

    def _texts(self) -> dict[str, str]:
        path = self.root / "scp_statements.csv"
        if not path.is_file():
            return {}
        frame, columns = scan_strings(path)
        if "description" not in columns:
            return {}
        table = collect(frame.select(columns[0], "description"), path).drop_nulls()
        return dict(table.iter_rows())


SOURCE = PtbxlSource
