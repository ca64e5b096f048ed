"""Shard plan: which record goes to which shard, fixed before anything is written."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.splits import SPLITS

_COLUMN_TYPES = (
    ("record_path", pl.String()),
    ("record_key", pl.String()),
    ("patient_key", pl.String()),
    ("site", pl.String()),
    ("age_years", pl.Float32()),
    ("sex", pl.String()),
    ("labels", pl.Binary()),
    ("observed", pl.Binary()),
)
PLAN_COLUMNS = tuple(name for name, _ in _COLUMN_TYPES)
REJECT_COLUMNS = ("record_path", "record_key", "reason", "detail")
UNKNOWN_SITE = "unknown"


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be made: its records in the order in which they are read and written."""

    number: int
    name: str
    split: str
    records: pl.DataFrame

    @cached_property
    def digest(self) -> str:
        """Changes with anything of the catalog that shows in the shard, the order included.

        Not with the paths: a next release may have moved its folders.
        """
        text = self.records.drop("record_path").with_columns(
            pl.col("labels", "observed").bin.encode("hex")
        )
        start = f"{self.number} {self.name} {self.split}\n"
        return hashlib.sha256(start.encode() + text.write_csv().encode()).hexdigest()


@dataclass(frozen=True)
class SortedCatalog:
    """The catalog divided by what becomes of each record; the parts add up to it."""

    writable: pl.DataFrame
    rejects: pl.DataFrame
    """Columns `REJECT_COLUMNS`, in path order."""
    unlabelled: int
    sites: tuple[str, ...]


def sort_catalog(catalog: pl.DataFrame) -> SortedCatalog:
    """Return what is to be written, what the catalog rejects, and how many have no label.

    A record counts once: rejected, else unlabelled, else in no split.

    Raises:
        UserError: Two rows have the same record key, or a split has an unknown name.
    """
    catalog = catalog.with_columns(pl.col("site").fill_null(UNKNOWN_SITE))
    if catalog["record_key"].n_unique() != len(catalog):
        raise UserError(
            "The catalog holds two rows of one record: its source lists a record twice. Remove "
            "the second one, or give the sources different names."
        )
    named = set(catalog["split"].drop_nulls().unique())
    if unexpected := sorted(named - set(SPLITS)):
        raise UserError(f"Split {unexpected[0]!r} is not one of {', '.join(SPLITS)}; rename it.")
    widths = catalog["observed"].bin.size().drop_nulls().unique()
    assert len(widths) <= 1, "packed labels of different lengths in one catalog"
    nothing = bytes(widths[0] if len(widths) else 0)

    good = catalog.filter(pl.col("reject_reason").is_null())
    seen = pl.col("observed").is_not_null() & (pl.col("observed") != nothing)
    labelled = good.filter(seen)
    homeless = pl.col("split").is_null()
    rejects = pl.concat(
        [
            catalog.filter(pl.col("reject_reason").is_not_null()).select(
                "record_path",
                "record_key",
                pl.col("reject_reason").alias("reason"),
                pl.lit("found when the catalog was built").alias("detail"),
            ),
            labelled.filter(homeless).select(
                "record_path",
                "record_key",
                pl.lit(RejectReason.NO_SPLIT.value).alias("reason"),
                pl.lit("the split gives its patient no part").alias("detail"),
            ),
        ],
        how="vertical_relaxed",
    ).sort("record_path", "record_key")
    return SortedCatalog(
        writable=labelled.filter(~homeless).select(
            *(pl.col(name).cast(kind) for name, kind in _COLUMN_TYPES), "split"
        ),
        rejects=rejects,
        unlabelled=len(good) - len(labelled),
        sites=tuple(sorted(catalog["site"].unique())),
    )


def plan_shards(
    writable: pl.DataFrame,
    seed: int,
    records_per_shard: int,
    shards_per_pool: int,
    there: Sequence[str] = (),
) -> tuple[PlannedShard, ...]:
    """Return the shards of every split, independent of the order of the records.

    The records, in path order, are cut into pools of so many shards. Within its pool and split each
    is drawn to a shard by a hash of its key and the seed, so that a shard is a fair sample of its
    pool; within a shard, records are in path order. An archive of one pool is mixed throughout. A
    larger one is not: at HEEDB's size each shard would open two files in each of a thousand
    folders, all over the archive, and find no folder or inode in the cache that an earlier shard
    had read. Shards of a split differ by a few records in size.

    Args:
        writable: The records, `sort_catalog(...).writable` or a part of it.
        seed: Draws records to shards.
        records_per_shard: At most so many in one.
        shards_per_pool: About so many, of all splits together, in one pool.
        there: Splits of the shards that exist; numbers and names continue after them.
    """
    shards: list[PlannedShard] = []
    num_pools = -(-len(writable) // (records_per_shard * shards_per_pool))
    for split in SPLITS:
        before = sum(other == split for other in there)
        part = writable.filter(pl.col("split") == split).select(PLAN_COLUMNS)
        # Places, not rows: a sorted copy of ten million rows would take gigabytes.
        by_path = part.select(pl.arg_sort_by("record_path", "record_key")).to_series().to_numpy()
        for pool in _pieces(by_path, min(num_pools, -(-len(part) // records_per_shard))):
            keys = part["record_key"][pool]
            order = np.lexsort((keys.to_numpy(), _draw(keys, seed)))
            for drawn in _pieces(order, -(-len(pool) // records_per_shard)):
                records = part[pool[np.sort(drawn)]]  # in path order, as the pool
                number, name = len(there) + len(shards), f"{split}-{before:06d}.tar"
                shards.append(PlannedShard(number, name, split, records))
                before += 1
    return tuple(shards)


def _pieces(items: NDArray[Any], number: int) -> Iterator[NDArray[Any]]:
    """Yield so many consecutive pieces, whose sizes differ by at most one."""
    for piece in range(number):
        yield items[piece * len(items) // number : (piece + 1) * len(items) // number]


def _draw(record_keys: pl.Series, seed: int) -> NDArray[np.uint64]:
    """Return one pseudo-random number per record: SplitMix64 of 60 bits of the key and the seed.

    Written out because NumPy's generators may change their streams between versions.
    """
    keys = record_keys.str.slice(0, 15).str.to_integer(base=16, dtype=pl.Int64).to_numpy()
    mask = (1 << 64) - 1
    value = keys.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) & mask)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return value ^ (value >> np.uint64(31))
