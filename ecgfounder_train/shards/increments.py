"""The plan of a folder of shards over its releases: what is in shards stays there.

The first build plans every record. A next release, or a new site, finds that plan in the private
folder: records in it keep their shard, others are planned into new shards behind the old
ones. So a release costs only what it adds, and no patient changes split.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import canonical_json
from ecgfounder_train.shards.plan import PLAN_COLUMNS, PlannedShard, SortedCatalog, plan_shards

PLAN_NAME = "plan.parquet"
GONE_NAME = "gone_upstream.csv"
_KEY = "ecgfounder_train.plan"
_ROWS_AT_A_TIME = 100_000
_UNREADABLE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,  # not an Exception: polars' own on some damaged files
    OSError,
    ValueError,
    KeyError,
    TypeError,
)
_FACTS = tuple(name for name in PLAN_COLUMNS if name not in ("record_path", "record_key"))


@dataclass(frozen=True)
class StoredPlan:
    """Every record that was ever planned, with its shard. Holds paths: private."""

    rows: pl.DataFrame
    """`PLAN_COLUMNS`, `shard` (number) and `gone` (no longer in the tables), in file order."""
    shards: tuple[tuple[str, str, int], ...]
    """Name, split and increment of each shard."""
    sites: tuple[str, ...]

    @property
    def num_increments(self) -> int:
        """How often records were added, the first build included."""
        return 1 + max((increment for _, _, increment in self.shards), default=0)

    @property
    def missing_upstream(self) -> pl.DataFrame:
        """Records in shards that the archive's tables list no more."""
        return self.rows.filter("gone").select("record_path", "record_key")

    def planned(self) -> tuple[PlannedShard, ...]:
        """Return the shards to be made, in order."""
        parts = self.rows.drop("gone").partition_by("shard", as_dict=True, include_key=False)
        nothing = self.rows.select(PLAN_COLUMNS).clear()
        return tuple(
            PlannedShard(number, name, split, parts.get((number,), nothing))
            for number, (name, split, _) in enumerate(self.shards)
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: Parquet itself does not notice a changed value."""
        head = [[list(entry) for entry in self.shards], list(self.sites)]
        digest = hashlib.sha256(canonical_json(head).encode())
        binary = [name for name, kind in self.rows.schema.items() if kind == pl.Binary]
        for piece in self.rows.iter_slices(_ROWS_AT_A_TIME):
            text = piece.with_columns(pl.col(binary).bin.encode("hex")).write_csv()
            digest.update(text.encode())
        return digest.hexdigest()

    def write(self, private: Path) -> None:
        """Write the plan so that it is whole or absent."""
        header = {
            "shards": [list(entry) for entry in self.shards],
            "sites": list(self.sites),
            "digest": self.digest,
        }
        with atomic_file(private / PLAN_NAME) as handle:
            self.rows.write_parquet(handle, metadata={_KEY: canonical_json(header)})


def read_plan(private: Path) -> StoredPlan | None:
    """Return the plan in the private folder, None if there is none.

    Raises:
        UserError: It is damaged.
    """
    path = private / PLAN_NAME
    if not path.exists():
        return None
    try:
        header = json.loads(pl.read_parquet_metadata(path)[_KEY])
        plan = StoredPlan(
            pl.read_parquet(path),
            tuple((str(name), str(split), int(number)) for name, split, number in header["shards"]),
            tuple(header["sites"]),
        )
        if plan.digest != header["digest"]:
            raise ValueError("its digest differs")
        return plan
    except _UNREADABLE as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}); it says which record is in which shard. "
            "Restore it from a backup, or delete it: a folder that was built in one go is planned "
            "the same again from the same tables."
        ) from error


@dataclass(frozen=True)
class Changes:
    """How the archive's tables differ from what the shards were planned from, in records."""

    new: int = 0
    gone: int = 0
    """In shards, and no longer in the tables."""
    withdrawn: int = 0
    """In shards, and now rejected, excluded or without a label."""
    facts: Mapping[str, int] = field(default_factory=dict)
    """In shards with another value than now, by column."""

    @property
    def any_in_shards(self) -> bool:
        """Whether rebuilding the shards would give other bytes."""
        return bool(self.withdrawn or self.facts)

    def summary(self) -> str:
        """Return what changed, in one line."""
        parts = [
            f"{self.new:,} records are new" if self.new else "",
            f"{self.gone:,} that are in shards are no longer in the tables" if self.gone else "",
            f"{self.withdrawn:,} that are in shards are now rejected, excluded or unlabelled"
            if self.withdrawn
            else "",
            *(
                f"{count:,} that are in shards have another {name}"
                for name, count in self.facts.items()
            ),
        ]
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class ShardingParams:
    """Parameters of sharding: the arguments of `plan_shards`."""

    seed: int
    records_per_shard: int
    shards_per_pool: int


def first_plan(sorted_catalog: SortedCatalog, sharding: ShardingParams) -> StoredPlan:
    """Return the plan of an empty folder."""
    return _extended(
        StoredPlan(
            _with_place(sorted_catalog.writable.select(PLAN_COLUMNS).clear(), 0),
            (),
            sorted_catalog.sites,
        ),
        sorted_catalog.writable,
        sharding,
        increment=0,
    )


def next_plan(
    former: StoredPlan,
    sorted_catalog: SortedCatalog,
    catalog_keys: pl.Series,
    *,
    sharding: ShardingParams,
    increment: bool,
    changed_records: str,
    folder: Path,
) -> tuple[StoredPlan, Changes]:
    """Return the plan that the tables of today ask for, and how they differ from the former ones.

    Args:
        former: The plan of the shards that are there.
        sorted_catalog: The current catalog, by what becomes of each record.
        catalog_keys: All its record keys.
        sharding: How new records are assigned to shards.
        increment: Whether records may be added or be missing upstream.
        changed_records: What becomes of records in shards whose facts changed: `refuse`; `keep`
            them as they are; `rewrite` the shards they are in.
        folder: For messages.

    Raises:
        UserError: The tables differ in a way these settings do not allow.
    """
    now = sorted_catalog.writable
    rows = former.rows.join(
        _splits(former.shards), on="shard", how="left", maintain_order="left"
    ).join(now, on="record_key", how="left", suffix="_now", maintain_order="left")
    listed = pl.col("record_key").is_in(catalog_keys.implode())
    writable = pl.col("record_path_now").is_not_null()
    rows = rows.with_columns(
        listed.alias("listed"),
        writable.alias("writable"),
        # Compared as they are in a shard: an age that is null in the tables is not a change.
        *(
            (writable & pl.col(name).ne_missing(pl.col(f"{name}_now"))).alias(f"{name}_changed")
            for name in (*_FACTS, "split")
        ),
    )
    facts = {name: int(rows[f"{name}_changed"].sum()) for name in ("split", *_FACTS)}
    new = now.join(former.rows.select("record_key"), on="record_key", how="anti")
    changes = Changes(
        new=len(new),
        gone=int((~rows["listed"] & ~rows["gone"]).sum()),
        withdrawn=int((rows["listed"] & ~rows["writable"]).sum()),
        facts={name: count for name, count in facts.items() if count},
    )
    _check_allowed(changes, increment, changed_records, folder)

    renamed = rows.filter("patient_key_changed").select("patient_key", "patient_key_now").unique()
    rows = rows.with_columns(
        (~pl.col("listed")).alias("gone"),
        # Folders may be renamed between releases; a record is known by its key.
        pl.coalesce("record_path_now", "record_path").alias("record_path"),
    )
    if changed_records == "rewrite" and changes.any_in_shards:
        moved = rows.filter("split_changed")["record_key"]
        new = pl.concat([new, now.filter(pl.col("record_key").is_in(moved.implode()))])
        rows = rows.filter(
            ~pl.col("split_changed") & (pl.col("writable") | ~pl.col("listed"))
        ).with_columns(
            pl.when("writable").then(f"{name}_now").otherwise(name).alias(name) for name in _FACTS
        )
    kept = StoredPlan(
        rows.select(former.rows.columns),
        former.shards,
        (*former.sites, *sorted(set(sorted_catalog.sites) - set(former.sites))),
    )
    plan = _extended(kept, new, sharding, former.num_increments)
    if plan.shards != former.shards:
        _check_parts(plan, renamed, folder)
    return plan, changes


def _check_allowed(changes: Changes, increment: bool, policy: str, folder: Path) -> None:
    elsewhere = f"or build into another shards= folder than {folder}"
    start = f"{folder} was built from another catalog than the tables give today"
    if changes.any_in_shards and policy == "refuse":
        raise UserError(
            f"{start}: {changes.summary()}. That would alter shards that exist. "
            "build.changed_records=keep leaves these records as they are, "
            "build.changed_records=rewrite rebuilds the shards they are in (runs and predictions "
            f"of the former shards no longer match them); {elsewhere}."
        )
    if changes.facts.get("split") and policy == "keep":
        raise UserError(
            f"{start}: {changes.summary()}. Records whose split changed (patients "
            "were merged, or folds were edited) cannot be kept: a patient would be in two parts. "
            f"Use build.changed_records=rewrite, {elsewhere}."
        )
    if (changes.new or changes.gone) and not increment:
        raise UserError(
            f"{start}: {changes.summary()}. build.increment=true adds what is new in shards of "
            "its own and keeps those that exist (records no longer listed stay in them); "
            f"{elsewhere}."
        )


def _check_parts(plan: StoredPlan, renamed: pl.DataFrame, folder: Path) -> None:
    """Raise if an increment would put a patient into a second split."""
    named = plan.rows.select("patient_key", "shard", "gone")
    # The tables no longer give the patient of such a record; its other records do.
    merged = named.filter("gone").join(renamed, on="patient_key")
    parts = (
        pl.concat(
            [
                named.select("patient_key", "shard"),
                merged.select(pl.col("patient_key_now").alias("patient_key"), "shard"),
            ]
        )
        .filter(pl.col("patient_key").is_not_null())
        .join(_splits(plan.shards), on="shard")
        .select("patient_key", "split")
    )
    twice = parts.unique().group_by("patient_key").len().filter(pl.col("len") > 1).height
    if twice:
        raise UserError(
            f"{twice:,} patients whose records are in shards of {folder} have new records in "
            "another split. Use the split that the shards were built with, or use "
            "build.changed_records=rewrite with tables in which a patient has one part."
        )


def _extended(
    plan: StoredPlan, new: pl.DataFrame, sharding: ShardingParams, increment: int
) -> StoredPlan:
    there = [split for _, split, _ in plan.shards]
    added = plan_shards(
        new, sharding.seed, sharding.records_per_shard, sharding.shards_per_pool, there
    )
    if not added:
        return plan
    return replace(
        plan,
        rows=pl.concat([plan.rows, *(_with_place(s.records, s.number) for s in added)]),
        shards=(*plan.shards, *((shard.name, shard.split, increment) for shard in added)),
    )


def _splits(shards: tuple[tuple[str, str, int], ...]) -> pl.DataFrame:
    return pl.DataFrame(
        {"shard": range(len(shards)), "split": [split for _, split, _ in shards]},
        schema={"shard": pl.Int64, "split": pl.String},
    )


def _with_place(records: pl.DataFrame, number: int) -> pl.DataFrame:
    return records.with_columns(
        pl.lit(number, pl.Int64).alias("shard"), pl.lit(False).alias("gone")
    )
