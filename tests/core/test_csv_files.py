"""CSV files of ours hold no formulas, and texts come back as they were."""

import csv
import io
from pathlib import Path

import polars as pl
import pytest

from ecgfounder_train.core.csv_files import (
    escape_formula,
    unescape_formula,
    write_frame,
)

FORMULAS = ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "''-x"]
TEXTS = ["NORM", "", "'quoted'", "a=b", "1 - 2", "'"]


@pytest.mark.parametrize("text", FORMULAS + TEXTS)
def test_text_comes_back(text: str) -> None:
    assert unescape_formula(escape_formula(text)) == text
    assert escape_formula(text)[:1] not in tuple("=+-@\t\r")
    assert (escape_formula(text) == text) == (text in TEXTS)


def test_texts_of_a_table_are_escaped_and_numbers_stay_numbers() -> None:
    frame = pl.DataFrame({"=name": [*FORMULAS, *TEXTS], "value": [-1.5] * 14, "-n": range(14)})
    written = io.BytesIO()
    write_frame(frame, written)
    table = list(csv.reader(io.StringIO(written.getvalue().decode(), newline="")))
    assert table[0] == ["'=name", "value", "'-n"]
    assert {row[1] for row in table[1:]} == {"-1.5"}
    assert [unescape_formula(row[0]) for row in table[1:]] == frame["=name"].to_list()


def test_frame_without_text_is_written(tmp_path: Path) -> None:
    with open(tmp_path / "numbers.csv", "wb") as handle:
        write_frame(pl.DataFrame({"a": [-1, 2]}), handle)
    assert (tmp_path / "numbers.csv").read_text() == "a\n-1\n2\n"
