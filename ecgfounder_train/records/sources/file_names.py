"""File names of HEEDB's tables: path of a record, its year, and a hash of its stem to join on.

Tables name a record `/S0001/1988/04/de_...`, `./S0001/1988/04/de_....hea` with a newline, or
`WFDB/2010/MUSE_...`; what they share is the stem. As text the stems of two tables take more than a
gigabyte, as two 64-bit hashes a third of it: tables join on the first, the second checks the match.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled, hash_bytes
from ecgfounder_train.core.text_columns import TextColumn, text_column, text_series

_CHUNK_ROWS = 500_000
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
    starts = range(0, max(len(names), 1), _CHUNK_ROWS)
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        parts = list(
            pool.map(lambda at: _parse_chunk(names.slice(at, _CHUNK_ROWS), prefix), starts)
        )
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


def match_rows(keys: pl.DataFrame, table: pl.DataFrame) -> tuple[NDArray[np.int32], int, int]:
    """Return for each key the first row of the table with its stem, or -1.

    Both frames have the columns of `FileNames.hashes`. The second and third number say how many
    rows of the table repeat a stem, and how many are the first of theirs and belong to a key. A
    null stem belongs to none. Stems are the same if both hashes are, 128 bits in all.
    """

    def hashes(frame: pl.DataFrame) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        check = frame["stem_check"].fill_null(0).to_numpy()
        return frame["stem"].fill_null(0).to_numpy(), np.where(frame["stem"].is_null(), 0, check)

    rows = np.empty(keys.height, np.int32)
    slots = np.full(1 << max(4, (3 * max(table.height, 1)).bit_length() - 1), -1, np.int32)
    is_used = np.zeros(table.height, np.bool_)
    seen_before = _match(*hashes(keys), *hashes(table), slots, rows, is_used)
    return rows, seen_before, int(is_used.sum())


@compiled
def _match(
    keys: NDArray[np.uint64],
    key_checks: NDArray[np.uint64],
    stems: NDArray[np.uint64],
    checks: NDArray[np.uint64],
    slots: NDArray[np.int32],
    rows: NDArray[np.int32],
    is_used: NDArray[np.bool_],
) -> int:
    """Fill `rows` through a table of open addresses; return how many stems came again."""
    mask = np.uint64(len(slots) - 1)
    seen_before = 0
    for row in range(len(stems)):
        if stems[row] == 0 and checks[row] == 0:
            continue
        slot = (stems[row] ^ (stems[row] >> np.uint64(31))) & mask
        is_new = True
        while slots[slot] >= 0:
            other = slots[slot]
            if stems[other] == stems[row] and checks[other] == checks[row]:
                is_new = False
                break
            slot = (slot + np.uint64(1)) & mask
        if is_new:
            slots[slot] = row
        else:
            seen_before += 1
    for key in range(len(keys)):
        rows[key] = -1
        if keys[key] == 0 and key_checks[key] == 0:
            continue
        slot = (keys[key] ^ (keys[key] >> np.uint64(31))) & mask
        while slots[slot] >= 0:
            row = slots[slot]
            if stems[row] == keys[key] and checks[row] == key_checks[key]:
                rows[key] = row
                is_used[row] = True
                break
            slot = (slot + np.uint64(1)) & mask
    return seen_before


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
            if end - start <= len(folder):
                continue
            same = True
            for place in range(len(folder)):
                same &= data[start + place] == folder[place]
            if same:
                start += len(folder)
        stem = end
        while stem > start and data[stem - 1] != _SLASH:
            stem -= 1
        if stem == end:
            is_blank[row] = True
            ends[row + 1] = used
            continue
        hashes[row, 0], hashes[row, 1] = hash_bytes(data, stem, end)
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
