"""Table of a task: records, patients, splits and answers; every row is accounted for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ecgfounder_train.catalog.patients import patient_hashes
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.finetuning.icd9 import check_profiles, with_icd10
from ecgfounder_train.finetuning.task import Task
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.packing import unpack
from ecgfounder_train.records.sources.table import (
    STAND_IN_PATIENT,
    clean,
    clean_id,
    collect,
    find_column,
    scan_strings,
)
from ecgfounder_train.splits.patient_split import PatientSplit

YES = ("1", "1.0", "true", "yes", "y")
NO = ("0", "0.0", "false", "no", "n")


@dataclass(frozen=True)
class TaskTable:
    """The rows that name a record, each once.

    Shape:
        values: (N, K) float64; NaN where the answer is missing.

    Attributes:
        frame: `record` (path below `root`, no extension), `patient` and `part` of each row.
        root: Folder of the records.
        labels: Names of the columns of `values`.
        counts: Rows of the file that are not here, by reason, and what else was noticed.
    """

    frame: pl.DataFrame
    root: Path
    labels: tuple[str, ...]
    values: npt.NDArray[np.float64]
    counts: dict[str, int] = field(default_factory=dict)


def read_table(task: Task) -> TaskTable:
    """Return a task's table with a part for each row.

    Raises:
        UserError: No such file or column, an answer that cannot be read, one record with two
            different answers, or a patient in two parts; names the rows, never a patient.
    """
    if not task.table:
        raise UserError("task.table is missing: give the CSV that holds the answers.")
    if "://" in str(task.table):
        raise UserError(
            f"task.table={task.table} is a URL. Copy the table to this machine; its records are "
            "read from a folder too (task.records)."
        )
    path = Path(task.table).expanduser()
    if not path.is_file():
        raise UserError(f"task.table={path}: there is no such file.")
    root = Path(task.records).expanduser() if task.records else path.parent
    if not root.is_dir():
        raise UserError(f"task.records={root}: there is no such folder.")
    lazy, columns = scan_strings(path)
    rows = collect(lazy, path)
    counts = {"rows": rows.height}
    rows = rows.with_columns(
        clean(find_column(columns, [task.record_column], path)).alias("__record")
    )
    counts["without_record"] = rows["__record"].null_count()
    # Numbered as an editor shows them: the header is line 1.
    rows = rows.with_row_index("__line", 2).drop_nulls("__record")
    patient = (
        clean_id(find_column(columns, [task.patient_column], path))
        if task.patient_column
        else pl.lit(None, pl.String)
    )
    part = (
        clean_id(find_column(columns, [task.split_column], path))
        if task.split_column
        else pl.lit(None, pl.String)
    )
    record = [_record_path(text, root) for text in rows["__record"]]
    frame = rows.select(
        pl.Series("record", record, dtype=pl.String),
        patient.alias("patient"),
        part.alias("part"),
        pl.col("__line").alias("line"),
    )
    labels, values = _answers(task, rows, columns, path)
    frame, values = _each_once(frame, values, counts, path)
    values = _within(task, values, counts)
    counts["records_of_unknown_patients_(each_stands_for_one)"] = frame["patient"].null_count()
    frame = frame.with_columns(
        pl.coalesce("patient", pl.lit(STAND_IN_PATIENT) + pl.col("record")).alias("patient")
    )
    frame = frame.with_columns(_parts(task, frame, path))
    if task.transform == "log":
        values = _logarithm(values, frame["line"].to_numpy(), labels)
        labels = tuple(f"ln {label}" for label in labels)
    return TaskTable(frame.drop("line"), root, labels, values, counts)


def _record_path(text: str, root: Path) -> str:
    path = PurePosixPath(text)
    if path.suffix.lower() in (".hea", ".dat", ".mat"):
        path = path.with_suffix("")
    if path.is_absolute():
        try:
            path = path.relative_to(root.resolve().as_posix())
        except ValueError:
            raise UserError(
                f"The table names records outside {root}. Set task.records to the folder that "
                "holds them all."
            ) from None
    return str(path)


def _answers(
    task: Task, rows: pl.DataFrame, columns: Sequence[str], path: Path
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    if task.codes_column is not None:
        return _from_codes(task, rows, find_column(columns, [task.codes_column], path))
    found = [find_column(columns, [name], path) for name in task.targets]
    answers = [_column(task, rows, name) for name in found]
    return tuple(task.targets), np.stack(answers, axis=1)


def _column(task: Task, rows: pl.DataFrame, name: str) -> npt.NDArray[np.float64]:
    text = rows.select(clean(name).str.to_lowercase().alias("text"))["text"]
    number = text.cast(pl.Float64, strict=False)
    cuts = task.positive_above is not None or task.positive_below is not None
    if not task.is_regression and not cuts:
        number = text.replace_strict(
            {**dict.fromkeys(YES, 1.0), **dict.fromkeys(NO, 0.0)},
            default=None,
            return_dtype=pl.Float64,
        )
    wrong = (text.is_not_null() & (number.is_null() | ~number.is_finite())).to_numpy()
    if wrong.any():
        lines = rows["__line"].to_numpy()[wrong]
        what = "a number" if task.is_regression or cuts else "yes or no (1, 0, true, false)"
        raise UserError(
            f"Column {name!r} holds {wrong.sum():,} values that are not {what}; first in line "
            f"{lines[0]} of {task.table}. Correct them, or leave the cell empty: an empty cell is "
            "a missing answer."
        )
    values = number.to_numpy().astype(np.float64)
    if not task.is_regression and cuts:
        above = np.inf if task.positive_above is None else task.positive_above
        below = -np.inf if task.positive_below is None else task.positive_below
        values = np.where(np.isnan(values), np.nan, (values > above) | (values < below))
    return values


def _from_codes(
    task: Task, rows: pl.DataFrame, column: str
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    cell = clean(column)
    if task.codes_pattern is None:
        codes = cell.str.split(task.codes_separator)
    else:
        try:
            groups = re.compile(task.codes_pattern).groups
        except re.error as error:
            raise UserError(f"task.codes_pattern is not a regular expression: {error}.") from error
        if groups != 1:
            raise UserError("task.codes_pattern must have one group, in parentheses: the code.")
        codes = cell.str.extract_all(task.codes_pattern).list.eval(
            pl.element().str.extract(task.codes_pattern, 1)
        )
    spoken = rows.select(codes.list.eval(pl.element().str.strip_chars()).alias("codes"))["codes"]
    if task.vocabulary:
        vocabulary = Vocabulary.load(task.vocabulary)
        encoded = vocabulary.encode_many(spoken)
        values, observed = (
            unpack(packed, vocabulary.num_labels) for packed in (encoded.values, encoded.observed)
        )
        if not values.any():
            raise UserError(
                f"No code of column {column!r} is in the vocabulary {task.vocabulary}. Check "
                "task.codes_separator or task.codes_pattern."
            )
        return vocabulary.labels, np.where(observed == 1, values, np.nan).astype(np.float64)
    labels = tuple(str(name) for name in task.profiles)
    flags = np.full((rows.height, len(labels)), np.nan)
    prefixes = [tuple(_plain_code(p) for p in task.profiles[name]) for name in labels]
    if empty := [name for name, parts in zip(labels, prefixes, strict=True) if not all(parts)]:
        raise UserError(
            f"task.profiles.{empty[0]} has an empty prefix, which every code begins by."
        )
    cells = spoken.to_list()
    stated = (_plain_code(code) for cell in cells for code in cell or () if code)
    check_profiles(dict(zip(labels, prefixes, strict=True)), stated)
    for row, cell_codes in enumerate(cells):
        # An empty cell is a missing answer; a patient without any of the codes has others.
        if cell_codes is not None:
            plain = [c for code in cell_codes if code for c in with_icd10(_plain_code(code))]
            flags[row] = [any(code.startswith(parts) for code in plain) for parts in prefixes]
    return labels, flags


def _plain_code(code: str) -> str:
    return str(code).strip().upper().replace(".", "")


def _each_once(
    frame: pl.DataFrame, values: npt.NDArray[np.float64], counts: dict[str, int], path: Path
) -> tuple[pl.DataFrame, npt.NDArray[np.float64]]:
    first: dict[str, int] = {}
    keep = []
    # Without the line number: the same row twice is harmless, two answers for one record are not.
    rows = list(frame.select("record", "patient", "part").iter_rows())
    for number, row in enumerate(rows):
        earlier = first.setdefault(row[0], number)
        if earlier == number:
            keep.append(number)
        elif row != rows[earlier] or not np.array_equal(
            values[number], values[earlier], equal_nan=True
        ):
            lines = frame["line"][earlier], frame["line"][number]
            raise UserError(
                f"Lines {lines[0]} and {lines[1]} of {path} are of one record and differ. Keep one "
                "row per record."
            )
    counts["repeated_rows"] = len(rows) - len(keep)
    return frame[keep], values[keep]


def _parts(task: Task, frame: pl.DataFrame, path: Path) -> pl.Series:
    if task.split_column is None:
        rule = PatientSplit(
            seed=task.split_seed, val_fraction=task.val_fraction, test_fraction=task.test_fraction
        )
        drawn = rule.draw(patient_hashes(frame["patient"]).to_numpy())
        return pl.Series("part", np.array(SPLITS)[drawn])
    part = frame["part"]
    if task.folds:
        named = {str(value): name for name, values in task.folds.items() for value in values}
        if absent := sorted(set(named) - set(part.drop_nulls())):
            raise UserError(
                f"task.folds names {absent[0]!r}, which column {task.split_column!r} of {path} "
                f"does not hold. It holds: {', '.join(sorted(set(part.drop_nulls()))[:20])}."
            )
        part = part.replace_strict(named, default="train", return_dtype=pl.String)
    if part.null_count() or (unexpected := sorted(set(part) - set(SPLITS))):
        what = "empty cells" if part.null_count() else repr(unexpected[0])
        raise UserError(
            f"Column {task.split_column!r} of {path} holds {what}; it must say train, val or test, "
            "or task.folds={val: [...], test: [...]} must name its values."
        )
    by_patient = (
        frame.with_columns(part.alias("part")).group_by("patient").agg(pl.col("part").n_unique())
    )
    torn = int((by_patient["part"] > 1).sum())
    if torn:
        raise UserError(
            f"Column {task.split_column!r} of {path} puts {torn:,} patients into two parts: the "
            "test would ask about patients the network was trained on. Correct the column, or "
            "leave task.split_column out and parts are drawn by patient."
        )
    return part.alias("part")


def _within(
    task: Task, values: npt.NDArray[np.float64], counts: dict[str, int]
) -> npt.NDArray[np.float64]:
    low = -np.inf if task.minimum is None else task.minimum
    high = np.inf if task.maximum is None else task.maximum
    outside = (values < low) | (values > high)
    if outside.any():
        counts["answers_outside_the_range"] = int(outside.sum())
    return np.where(outside, np.nan, values)


def _logarithm(
    values: npt.NDArray[np.float64], lines: npt.NDArray[Any], labels: Sequence[str]
) -> npt.NDArray[np.float64]:
    wrong = values <= 0
    if wrong.any():
        row, column = (int(index[0]) for index in np.nonzero(wrong))
        raise UserError(
            f"task.transform=log, but {wrong.sum():,} values are not above 0; first in line "
            f"{lines[row]}, column {labels[column]!r}. Correct them or use task.transform=identity."
        )
    return np.log(values)


def chosen_labels(table: TaskTable, min_positives: int) -> TaskTable:
    """Return the table without labels that too few training patients have; counted.

    Raises:
        UserError: None is left, or a label has no negatives.
    """
    train = (table.frame["part"] == "train").to_numpy()
    patients = table.frame["patient"].to_numpy()[train]
    values = table.values[train]
    enough = [
        len(set(patients[values[:, column] == 1])) >= min_positives
        for column in range(len(table.labels))
    ]
    names = [label for label, kept in zip(table.labels, enough, strict=True) if not kept]
    if not any(enough):
        raise UserError(
            f"No label has {min_positives} positive training patients (of {len(table.labels)}). "
            "Check the target columns, or lower task.min_positives."
        )
    if names and min_positives <= 1:
        raise UserError(
            f"No training patient is positive for {', '.join(names[:5])}. Leave "
            f"{'it' if len(names) == 1 else 'them'} out of the task, or set task.min_positives to "
            "have rare labels left out."
        )
    if all_positive := [
        label
        for label, column in zip(table.labels, values.T, strict=True)
        if (column == 1).any() and not (column == 0).any()
    ]:
        raise UserError(f"No training record is negative for {', '.join(all_positive[:5])}.")
    columns = np.flatnonzero(enough)
    counts = {**table.counts, **({"labels_too_rare": len(names)} if names else {})}
    return replace(
        table,
        labels=tuple(table.labels[c] for c in columns),
        values=table.values[:, columns],
        counts=counts,
    )
