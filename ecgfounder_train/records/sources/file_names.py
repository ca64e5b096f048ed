"""File names of HEEDB's tables: where a record lies, its year, and a hash of its stem to join on.

Tables name a record `/S0001/1988/04/de_...`, `./S0001/1988/04/de_....hea` with a newline, or
`WFDB/2010/MUSE_...`; what they share is the stem. As text the stems of two tables take more than a
gigabyte, as two 64-bit hashes a third of it: tables join on the first, the second checks the match.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import TextColumn, compiled, text_column, text_series

_CHUNK_ROWS = 1_000_000
_BLANKS = np.frombuffer(b" \t\n\v\f\r", np.uint8)
_EXTENSIONS = np.frombuffer(b".hea.dat.mat", np.uint8).reshape(3, 4)
_SLASH, _DOT = ord("/"), ord(".")
_FOLDERS_LEFT_OUT = tuple(np.frombuffer(name, np.uint8) for name in (b"ECG/", b"WFDB/"))


@dataclass(frozen=True)
class FileNames:
    """One row per file name; all null where the cell holds none."""

    hashes: pl.DataFrame
    """`stem` and `stem_check`: two hashes of the stem (uint64)."""
    places: pl.DataFrame | None
    """`record_path` below the root, and `year`: that of the folder."""


def parse_file_names(names: pl.Series, prefix: str | None) -> FileNames:
    """Return the hashes of each name's stem and, with a `prefix`, the path that begins with it.

    Leading `./`, `/`, `ECG/` and `WFDB/` are left out (the prefix puts them where they belong), and
    so is the extension of a header or signal file. The year is the first folder that looks like
    one, 1900 to 2099.
    """
    parts = [
        _parse_chunk(names.slice(start, _CHUNK_ROWS), prefix)
        for start in range(0, max(len(names), 1), _CHUNK_ROWS)
    ]
    places = [part.places for part in parts if part.places is not None]
    return FileNames(
        pl.concat([part.hashes for part in parts]), pl.concat(places) if places else None
    )


def _parse_chunk(names: pl.Series, prefix: str | None) -> FileNames:
    column = text_column(names)
    number = len(names)
    before = np.frombuffer((prefix or "").encode(), np.uint8)
    size = int(column.offsets[-1] - column.offsets[0]) + number * len(before)
    paths = np.empty(size if prefix is not None else 0, np.uint8)
    ends = np.zeros(number + 1, np.int64)
    hashes = np.zeros((number, 2), np.uint64)
    years = np.zeros(number, np.int32)
    is_blank = np.zeros(number, np.bool_)
    ecg, wfdb = _FOLDERS_LEFT_OUT
    data, offsets, _ = column
    used = _parse(
        data, offsets, before, prefix is not None, paths, ends, hashes, years, is_blank, ecg, wfdb
    )

    def known(values: NDArray[np.generic], unknown: NDArray[np.bool_]) -> pl.Series:
        series = pl.Series(values)
        return series if not unknown.any() else series.set(pl.Series(unknown), None)

    hashed = pl.DataFrame(
        {"stem": known(hashes[:, 0].copy(), is_blank), "stem_check": hashes[:, 1].copy()}
    )
    if prefix is None:
        return FileNames(hashed, None)
    return FileNames(
        hashed,
        pl.DataFrame(
            {
                "record_path": text_series("", TextColumn(paths[:used], ends, is_blank)),
                "year": known(years, years == 0),
            }
        ),
    )


@compiled
def _parse(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    prefix: NDArray[np.uint8],
    with_paths: bool,
    paths: NDArray[np.uint8],
    ends: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    years: NDArray[np.int32],
    is_blank: NDArray[np.bool_],
    ecg: NDArray[np.uint8],
    wfdb: NDArray[np.uint8],
) -> int:
    """Fill paths, hashes and years; return how many bytes the paths have."""
    used = 0
    for row in range(len(offsets) - 1):
        start, end = offsets[row], offsets[row + 1]
        while start < end and data[start] in _BLANKS:
            start += 1
        while end > start and data[end - 1] in _BLANKS:
            end -= 1
        if end - start > 4:
            for extension in range(3):
                same = True
                for place in range(4):
                    letter = data[end - 4 + place]
                    if 65 <= letter <= 90:
                        letter += 32
                    same &= letter == _EXTENSIONS[extension, place]
                if same:
                    end -= 4
                    break
            while end > start and data[end - 1] in _BLANKS:
                end -= 1
        while start < end and (
            data[start] == _SLASH
            or (data[start] == _DOT and start + 1 < end and data[start + 1] == _SLASH)
        ):
            start += 1
        for folder in (ecg, wfdb):
            if end - start > len(folder) and np.all(data[start : start + len(folder)] == folder):
                start += len(folder)
        stem = end
        while stem > start and data[stem - 1] != _SLASH:
            stem -= 1
        if stem == end:
            is_blank[row] = True
            ends[row + 1] = used
            continue
        one, other = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15)
        for place in range(stem, end):
            letter = np.uint64(data[place])
            one = (one ^ letter) * np.uint64(0x100000001B3)
            other = (other + letter + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
            other ^= other >> np.uint64(29)
        hashes[row, 0], hashes[row, 1] = one, other
        digits, value = 0, 0
        for place in range(start, stem):
            letter = data[place]
            if letter == _SLASH:
                if digits == 4 and 1900 <= value < 2100:
                    years[row] = value
                    break
                digits, value = 0, 0
            elif 48 <= letter <= 57 and digits >= 0:
                digits, value = digits + 1, value * 10 + (letter - 48)
            else:
                digits = -100
        if with_paths:
            for letter in prefix:
                paths[used] = letter
                used += 1
            for place in range(start, end):
                paths[used] = data[place]
                used += 1
        ends[row + 1] = used
    return used
