"""The index: one fixed-width row per sample, memory-mapped, so that any sample is one read away.

Rows are in the order of the shards and, within a shard, of its samples. Fields are ordered by
size, so that each is naturally aligned.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.pseudonyms import KEY_LENGTH
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.labels.packing import pack
from ecgfounder_train.shards.sample import Sample

INDEX_NAME = "index.npy"
SEXES = ("", "F", "M")
"""Code in the index -> sex; 0 is unknown."""

_PROBE_BYTES = 1 << 16
_NPY_START_BYTES = 10  # magic, version, length of the header's text


@lru_cache(maxsize=16)
def index_dtype(num_labels: int) -> np.dtype[np.void]:
    """Return the dtype of an index row.

    Fields: ``shard`` (number in the manifest's list), ``offset`` (bytes, of the sample's block in
    its shard), ``window``, ``split`` (into `SPLITS`), ``sex`` (into `SEXES`), ``site`` (into the
    manifest's sites), ``age_years`` (NaN unknown), ``native_fs`` (Hz), ``valid_start`` and
    ``valid_num_samples`` (the part that is not padding), ``leads_present`` (bit i = lead i),
    ``xxh3`` (of ecg and stats data), keys, ``labels`` and ``observed`` (packed bits, big-endian).
    """
    packed = -(-num_labels // 8)
    fields: list[tuple[str, str]] = [
        ("offset", "<u8"),
        ("xxh3", "<u8"),
        ("shard", "<u4"),
        ("age_years", "<f4"),
        ("native_fs", "<f4"),
        ("valid_start", "<u4"),
        ("valid_num_samples", "<u4"),
        ("window", "<u2"),
        ("site", "<u2"),
        ("leads_present", "<u2"),
        ("split", "|u1"),
        ("sex", "|u1"),
        ("record_key", f"|S{KEY_LENGTH}"),
        ("patient_key", f"|S{KEY_LENGTH}"),
        ("labels", f"({packed},)|u1"),
        ("observed", f"({packed},)|u1"),
    ]
    plain = np.dtype(fields)
    spare = -plain.itemsize % 8
    return np.dtype([*fields, ("spare", f"({spare},)|u1")]) if spare else plain


def index_row(
    sample: Sample, shard: int, offset: int, split: str, sites: Sequence[str]
) -> NDArray[np.void]:
    """Return the one row of a sample, derived from the sample and its position alone.

    Shape: (1,) of `index_dtype`.
    """
    facts = sample.facts
    age = facts["age_years"]
    row = np.zeros(1, index_dtype(sample.labels.shape[1]))
    row["offset"] = offset
    row["xxh3"] = sample.xxh3
    row["shard"] = shard
    row["age_years"] = np.nan if age is None else age
    row["native_fs"] = facts["native_fs"]
    row["valid_start"] = facts["valid_start"]
    row["valid_num_samples"] = facts["valid_num_samples"]
    row["window"] = sample.window
    row["site"] = sites.index(facts["site"])
    row["leads_present"] = facts["leads_present"]
    row["split"] = SPLITS.index(split)
    row["sex"] = SEXES.index(facts["sex"] or "")
    row["record_key"] = sample.record_key
    row["patient_key"] = facts["patient_key"]
    row["labels"], row["observed"] = pack(sample.labels)
    return row


def write_index(path: Path, num_labels: int, pieces: Iterable[NDArray[np.void]], rows: int) -> str:
    """Write the index piece by piece and return its SHA-256.

    Args:
        path: The file, replaced atomically.
        num_labels: K of the vocabulary.
        pieces: Rows of each shard, in order; only one piece is in memory at a time.
        rows: How many rows the pieces hold together.
    """
    dtype = index_dtype(num_labels)
    digest = hashlib.sha256()
    written = 0
    with atomic_file(path) as handle:
        header = _npy_header(dtype, rows)
        handle.write(header)
        digest.update(header)
        for piece in pieces:
            assert piece.dtype == dtype
            data = piece.tobytes()
            handle.write(data)
            digest.update(data)
            written += len(piece)
        assert written == rows, f"{written} index rows instead of {rows}"
    return digest.hexdigest()


def index_bytes(num_labels: int, rows: int) -> int:
    """Return the size of an index file of so many rows."""
    dtype = index_dtype(num_labels)
    return len(_npy_header(dtype, rows)) + rows * dtype.itemsize


def _npy_header(dtype: np.dtype[np.void], rows: int) -> bytes:
    header = BytesIO()
    content = {"descr": dtype.descr, "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def probe_index(path: Path) -> int:
    """Return a checksum of the first and last 64 KiB: a fast check of which shards it is of."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as handle:
        digest.update(handle.read(_PROBE_BYTES))
        size = handle.seek(0, 2)
        handle.seek(max(0, size - _PROBE_BYTES))
        digest.update(handle.read(_PROBE_BYTES))
    return digest.intdigest()


def open_index(path: Path, num_labels: int, mmap: bool = True) -> NDArray[np.void]:
    """Return the rows, memory-mapped read-only.

    Raises:
        UserError: The file is missing, truncated or not an index of `num_labels` labels.
    """
    remedy = "Run prepare again with the same arguments: it restores the index from its records."
    dtype = index_dtype(num_labels)
    try:
        with open(path, "rb") as handle:
            start = handle.read(_NPY_START_BYTES)
            size = os.fstat(handle.fileno()).st_size
            offset = _NPY_START_BYTES + int.from_bytes(start[8:], "little")
            start += handle.read(offset - _NPY_START_BYTES)
    except FileNotFoundError:
        raise UserError(f"The index {path} is missing. {remedy}") from None
    except OSError as error:
        raise UserError(f"The index {path} cannot be read ({error.strerror}). {remedy}") from error
    # NumPy would evaluate the header's text; ours can only be one, so it is compared.
    count, rest = divmod(size - offset, dtype.itemsize)
    if rest or count < 0 or start != _npy_header(dtype, count):
        raise UserError(
            f"The index {path} is truncated or damaged, or not an index of the {num_labels} labels "
            f"of the manifest in its folder. {remedy}"
        )
    if not count:
        return np.empty(0, dtype)
    rows: NDArray[np.void] = np.memmap(path, dtype, "r", offset, (count,))
    return rows if mmap else np.array(rows)
