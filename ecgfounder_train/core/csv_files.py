"""Small CSV files that a person writes: vocabularies, label maps."""

import csv
from pathlib import Path

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
