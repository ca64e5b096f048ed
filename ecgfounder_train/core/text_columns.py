"""Text columns as the plain arrays that compiled loops read."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled, hash_bytes


class TextColumn(NamedTuple):
    """A column of UTF-8 text: row i is ``data[offsets[i]:offsets[i + 1]]``; empty where null."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    is_null: NDArray[np.bool_]


def text_column(texts: pl.Series) -> TextColumn:
    """Return the texts of a string column as arrays."""
    array = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    array = array.cast(pa.large_string())
    _, offsets, data = array.buffers()
    first = array.offset
    return TextColumn(
        np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8),
        np.frombuffer(offsets, np.int64)[first : first + len(array) + 1]
        if offsets is not None
        else np.zeros(1, np.int64),
        texts.is_null().to_numpy(),
    )


def text_series(name: str, column: TextColumn) -> pl.Series:
    """Return a string column made of arrays; the bytes must be UTF-8."""
    missing = int(column.is_null.sum())
    mask = pa.py_buffer(np.packbits(~column.is_null, bitorder="little")) if missing else None
    array = pa.LargeStringArray.from_buffers(
        len(column.is_null),
        pa.py_buffer(np.ascontiguousarray(column.offsets)),
        pa.py_buffer(np.ascontiguousarray(column.data)),
        mask,
        missing,
    )
    return pl.Series(name, array, dtype=pl.String)


def text_hashes(texts: pl.Series) -> NDArray[np.uint64]:
    """Return two 64-bit hashes of each text, the same in every version; zeros where null.

    Shape: (rows, 2). The first looks random enough to draw by (FNV-1a, then SplitMix64's mixing).
    """
    data, offsets, is_null = text_column(texts)
    hashes = np.zeros((len(texts), 2), np.uint64)
    _hash(data, offsets, hashes)
    hashes[is_null] = 0
    return hashes


@compiled
def _hash(data: NDArray[np.uint8], offsets: NDArray[np.int64], hashes: NDArray[np.uint64]) -> None:
    for row in range(len(hashes)):
        one, other = hash_bytes(data, offsets[row], offsets[row + 1])
        one = (one ^ (one >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        one = (one ^ (one >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes[row, 0], hashes[row, 1] = one ^ (one >> np.uint64(31)), other
