"""A CSV that describes records: which of its columns are patient, age, sex, fold and statements."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources.table import (
    RECORD_COLUMNS,
    clean,
    clean_id,
    clean_number,
    clean_sex,
    find_column,
)


class ColumnSettings(Protocol):
    """The settings that name a table's columns; null where it lacks one."""

    @property
    def patient_column(self) -> str | None: ...
    @property
    def statement_columns(self) -> Sequence[str]: ...
    @property
    def statement_separator(self) -> str: ...
    @property
    def statement_pattern(self) -> str | None: ...
    @property
    def age_column(self) -> str | None: ...
    @property
    def sex_column(self) -> str | None: ...
    @property
    def site_column(self) -> str | None: ...
    @property
    def split_column(self) -> str | None: ...


def label_columns(settings: ColumnSettings, columns: Iterable[str], path: Path) -> list[pl.Expr]:
    """Return the columns of `RECORD_COLUMNS` that a table has, statements included.

    Raises:
        UserError: A column is missing, or the pattern is wrong.
    """
    columns = tuple(columns)
    wanted = {
        "patient_id": (settings.patient_column, clean_id),
        "age_years": (settings.age_column, clean_number),
        "sex": (settings.sex_column, clean_sex),
        "site": (settings.site_column, clean),
        "split": (settings.split_column, clean_id),
        "fold": (settings.split_column, _fold_number),
    }
    chosen = [
        pl.lit(None, dtype=RECORD_COLUMNS[name]).alias(name)
        if column is None
        else cleaned(find_column(columns, [column], path)).alias(name)
        for name, (column, cleaned) in wanted.items()
    ]
    names = settings.statement_columns
    cells = [
        _split(settings, clean(find_column(columns, [name], path)))
        for name in ([names] if isinstance(names, str) else names)
    ]
    spoken: pl.Expr = pl.lit(None, dtype=pl.List(pl.String))
    if cells:
        lists = [cell.list.eval(pl.element().str.strip_chars()).fill_null([]) for cell in cells]
        spoken = pl.concat_list(lists).list.filter(pl.element() != "")
        spoken = pl.when(spoken.list.len() > 0).then(spoken).otherwise(None)
    return [*chosen, spoken.alias("statements")]


def _fold_number(column: str) -> pl.Expr:
    return clean_id(column).cast(pl.Int16, strict=False)


def _split(settings: ColumnSettings, cell: pl.Expr) -> pl.Expr:
    given = settings.statement_pattern
    if given is None:
        return cell.str.split(settings.statement_separator)
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise UserError(
            f"source.statement_pattern={given} is not a regular expression: {error}."
        ) from error
    if pattern.groups != 1:
        raise UserError(
            f"source.statement_pattern={given} must have one group, in parentheses: what it "
            "holds is the statement."
        )
    return cell.str.extract_all(given).list.eval(pl.element().str.extract(given, 1))


def require_utf8(table: pl.DataFrame, path: Path) -> None:
    """Raise if texts were lost: a statement in none of the labels would count as negative.

    Raises:
        UserError: Rows hold bytes that are not UTF-8.
    """
    lost = pl.any_horizontal(
        pl.col(pl.String).str.contains("\ufffd", literal=True).fill_null(False),
        pl.col("statements").list.join("").str.contains("\ufffd", literal=True).fill_null(False),
    )
    if rows := table.filter(lost).height:
        raise UserError(
            f"{path} is not in UTF-8: {rows:,} of {table.height:,} rows hold other characters "
            "(Latin-1, Windows-1252?). Save it as UTF-8, such as with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.csv"
        )
