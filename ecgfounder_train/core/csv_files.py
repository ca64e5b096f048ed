"""CSV files: those a person writes (vocabularies, label maps), and ours, safe to open in Excel.

A cell that begins with =, +, - or @ is a formula to spreadsheet programs, which can run commands.
Texts of strangers (labels, sites, file names) therefore get an apostrophe before such a beginning;
numbers stay numbers.

Source: OWASP, CSV Injection.
"""

import csv
import re
from pathlib import Path
from typing import IO

import polars as pl

from ecgfounder_train.core.errors import UserError


def read_csv(path: Path, kind: str) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return a file's column names and its rows, cells without surrounding blanks.

    A missing cell reads as the empty string; cells beyond the header are left out.

    Args:
        path: a CSV file in UTF-8, with or without a byte order mark.
        kind: what the file is, for the messages.

    Raises:
        UserError: there is no such file, or it is not a CSV file in UTF-8.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, restval="")
            columns = tuple(reader.fieldnames or ())
            rows = [
                {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
                for row in reader
            ]
    except FileNotFoundError:
        raise UserError(f"There is no {kind} {path}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    return columns, rows


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


def escape_formula(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula; `unescape_formula` is its inverse."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape_formula(text: str) -> str:
    """Return the text that `escape_formula` was given."""
    return text[1:] if _ESCAPED.match(text) else text


def write_frame(frame: pl.DataFrame, handle: IO[bytes], include_header: bool = True) -> None:
    """Write a table as CSV; texts and column names are escaped."""
    texts = [name for name, kind in frame.schema.items() if kind == pl.String]
    escaped = frame.with_columns(
        pl.when(pl.col(name).str.contains(f"^{_FORMULA.pattern}"))
        .then(pl.lit("'") + pl.col(name))
        .otherwise(name)
        .alias(name)
        for name in texts
    )
    escaped.columns = [escape_formula(name) for name in frame.columns]
    escaped.write_csv(handle, include_header=include_header)
