"""CODE-15 % (Ribeiro et al. 2021, doi:10.5281/zenodo.4916206): 345,779 exams of 233,770 patients.

`exams.csv` has one row per exam with six findings, `exams_part*.hdf5` the tracings: 4,096 samples
at 400 Hz, of which a recording of 7 s fills 2,800. The zeros around it are not signal and are left
out. Order of the leads and unit are found as for CODE-test, or given.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.records.record import EcgRecord
from ecgfounder_train.records.sources.code_test import FINDINGS, FS, CodeTestSource, open_hdf5
from ecgfounder_train.records.sources.rows import gather_rows
from ecgfounder_train.records.sources.table import (
    STAND_IN_PATIENT,
    SourceTable,
    clean,
    clean_id,
    clean_number,
    collect,
    find_column,
    scan_strings,
)
from ecgfounder_train.records.storage import is_remote, join, list_files, reading


@dataclass(frozen=True)
class Code15Source(CodeTestSource):
    """The folder as Zenodo unpacks it: `exams.csv` beside `exams_part0.hdf5` and so on."""

    annotations: str = "exams.csv"

    def read(self) -> SourceTable:
        """Return one row per exam; `record_path` is the HDF5 file and the exam's number.

        Raises:
            UserError: The table or a column is missing, or none of the HDF5 files is there.
        """
        path = self._table(self.annotations)
        frame, columns = scan_strings(path)
        truth = clean_id(find_column(columns, ["is_male"], path)).str.to_lowercase()
        answers = {
            name: clean_id(find_column(columns, [name], path)).str.to_lowercase()
            for name in FINDINGS
        }
        said = pl.concat_list(
            pl.when(answer.is_in(["true", "1"])).then(pl.lit(name))
            for name, answer in answers.items()
        ).list.drop_nulls()
        # An answer that is neither yes nor no is unobserved, not negative.
        answered = pl.all_horizontal(
            answer.is_in(["true", "1", "false", "0"]).fill_null(False)
            for answer in answers.values()
        )
        file = clean(find_column(columns, ["trace_file"], path))
        exam = clean_id(find_column(columns, ["exam_id"], path))
        table = collect(
            frame.select(
                exam.alias("record_id"),
                (file + "/" + exam).alias("record_path"),
                clean_id(find_column(columns, ["patient_id"], path)).alias("patient_id"),
                clean_number(find_column(columns, ["age"], path)).alias("age_years"),
                truth.replace_strict(
                    {"true": "M", "1": "M", "false": "F", "0": "F"},
                    default=None,
                    return_dtype=pl.String,
                ).alias("sex"),
                pl.when(answered).then(said).otherwise(None).alias("statements"),
                file.alias("file"),
                pl.lit("code15").alias("site"),
                pl.lit(FS).alias("fs"),
            ),
            path,
        )
        counts = Counter({"rows": table.height})
        table = gather_rows(table, "record_id", counts)
        absent = ~pl.col("file").is_in(self._files)
        missing = table.filter(absent | pl.col("file").is_null()).height
        if missing == table.height:
            raise UserError(f"None of the HDF5 files that {path} names is in {self.root}.")
        _ = self._lead_names, self._millivolt  # a wrong setting is reported before the first record
        unknown = pl.col("patient_id").is_null()
        counts["exams_in_files_not_there"] = missing
        counts["patient_unknown_record_stands_in"] = table.filter(unknown).height
        former = pl.col("reject_reason") if "reject_reason" in table.columns else pl.lit(None)
        records = table.lazy().with_columns(
            pl.when(absent.fill_null(True))
            .then(pl.lit(RejectReason.MISSING_SIGNAL_FILE.value))
            .otherwise(former)
            .alias("reject_reason"),
            pl.when(unknown)
            .then(pl.lit(STAND_IN_PATIENT) + pl.col("record_id"))
            .otherwise("patient_id")
            .alias("patient_id"),
        )
        return self._source_table(records, counts)

    @cached_property
    def _files(self) -> list[str]:
        with reading(self.root):
            return sorted(list_files(self.root, (".hdf5",), self.storage_options))

    def _first_tracings(self, number: int) -> NDArray[np.float64]:
        if not self._files:
            raise UserError(f"{self.root} holds no HDF5 file.")
        return np.asarray(self._open(self._files[0])[0][:number], np.float64)

    def _open(self, file: str) -> tuple[Any, dict[int, int]]:
        return _open(join(self.root, file), json.dumps(dict(self.storage_options)))

    def read_ecg(self, record_path: str) -> EcgRecord:
        """Return one exam without the zeros that fill it up to 4,096 samples.

        Raises:
            RejectedRecordError: Its file or row is absent or damaged, or it is all zeros.
            UserError: It is at a URL that does not answer.
            OSError: The same, after the file was opened. Nothing is known about the exam then.
        """
        file, _, exam = record_path.rpartition("/")
        try:
            tracings, rows = self._open(file)
            if rows[int(exam)] < 0:
                raise RejectedRecordError(
                    RejectReason.DUPLICATE_RECORD, "its file holds several tracings of the exam"
                )
            tracing = np.asarray(tracings[rows[int(exam)]], np.float32).T
        except KeyError:
            raise RejectedRecordError(
                RejectReason.MISSING_SIGNAL_FILE, "the exam is not in its file"
            ) from None
        except (UserError, OSError, ValueError) as error:
            if is_remote(self.root):
                raise
            raise RejectedRecordError(
                RejectReason.UNREADABLE_SIGNAL, f"HDF5: {type(error).__name__}"
            ) from None
        return self._record(tracing)


@lru_cache(maxsize=32)
def _open(path_or_url: str, storage_options: str) -> tuple[Any, dict[int, int]]:
    """Return the tracings of a file, not read yet, and the row of each exam."""
    content = open_hdf5(path_or_url, json.loads(storage_options))
    try:
        exams = content["exam_id"][:].ravel().tolist()
        seen = Counter(exams)
        # Which tracing of an exam listed twice is meant is not known.
        rows = {int(exam): -1 if seen[exam] > 1 else row for row, exam in enumerate(exams)}
        return content["tracings"], rows
    except (OSError, KeyError) as error:
        raise UserError(f"{path_or_url} holds no 'tracings' and 'exam_id'.") from error


SOURCE = Code15Source
