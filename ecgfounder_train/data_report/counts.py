"""What the report counts, from the catalog, the index and the facts; never from a signal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.catalog.facts import CatalogFacts, count_dimensions
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.data_report.disclosure import CountSystem, Name
from ecgfounder_train.labels.kernels import NOT_COUNTED
from ecgfounder_train.shards import SEXES, ShardSet

DIMENSIONS = ("site", "year", "age_band", "sex", "fs")
COLUMNS = (*SPLITS, "unlabelled", "rejected")
SHOWN = ("written", "unlabelled", "rejected", "found")
"""The columns by dimension. Parts are left out: they would make most cells of a small set small."""
UNKNOWN = "unknown"
GONE = "no longer listed"
_CHUNK_ROWS = 1_000_000

Counts = dict[str, dict[str, int]]
"""By value of a dimension, by column."""


@dataclass(frozen=True)
class RecordCounts:
    """Every record found, by where it went and by each dimension; all dimensions add up alike."""

    dimensions: Mapping[str, Counts]
    totals: Mapping[str, int]
    """By column of `COLUMNS`."""
    reasons: Mapping[str, int]
    windows: int


def count_records(
    catalog: pl.DataFrame, rejected_keys: pl.Series, shards: ShardSet
) -> RecordCounts:
    """Return where every record went, by site, directory year, age, sex and sampling rate.

    Written records are counted in the index, which knows what only their headers said; the
    directory year and the records that were not written stand in the catalog.
    """
    manifest = shards.manifest
    rejected = catalog["record_key"].is_in(rejected_keys.implode())
    width = (len(manifest.labels) + 7) // 8
    labelled = catalog.select(pl.col("observed") != pl.lit(bytes(width)))["observed"]
    written = labelled & ~rejected & catalog["reject_reason"].is_null()
    totals = manifest.totals
    if int(written.sum()) != totals.written or manifest.gone_upstream:
        # The tables have changed since some shards were made: only the index knows.
        keys = pl.Series(np.unique(shards.index["record_key"])).cast(pl.String)
        written = catalog["record_key"].is_in(keys.implode())
        rejected &= ~written
    of_index, by_part = _count_index(shards)
    of_catalog = {
        "unlabelled": _by_value(catalog.filter(~written & ~rejected)),
        "rejected": _by_value(catalog.filter(rejected)),
    }
    listed = catalog.select("year", "split", *_BLANK).filter(written)
    of_index["year"] = {
        value: {part: row[part] for part in SPLITS}
        for value, row in count_dimensions(listed, _numbers(listed["split"]))["year"].items()
    }
    missing = {
        part: by_part[part] - sum(row[part] for row in of_index["year"].values()) for part in SPLITS
    }
    if any(missing.values()):
        of_index["year"][GONE] = missing
    dimensions = {}
    for dimension in DIMENSIONS:
        rows: Counts = {}
        for value, counts in of_index[dimension].items():
            rows.setdefault(value, dict.fromkeys(COLUMNS, 0)).update(counts)
        for column, counted in of_catalog.items():
            for value, count in counted[dimension].items():
                rows.setdefault(value, dict.fromkeys(COLUMNS, 0))[column] += count
        dimensions[dimension] = rows
    return RecordCounts(
        dimensions,
        {
            **by_part,
            "unlabelled": totals.unlabelled,
            "rejected": sum(totals.rejected.values()),
        },
        dict(totals.rejected),
        totals.windows,
    )


_BLANK = (
    pl.lit(None, pl.String).alias("site"),
    pl.lit(None, pl.Float32).alias("age_years"),
    pl.lit(None, pl.String).alias("sex"),
    pl.lit(None, pl.Float32).alias("fs"),
)


def _numbers(parts: pl.Series) -> NDArray[np.uint8]:
    numbers = {part: number for number, part in enumerate(SPLITS)}
    return parts.replace_strict(numbers, default=NOT_COUNTED, return_dtype=pl.UInt8).to_numpy()


def _by_value(records: pl.DataFrame) -> dict[str, dict[str, int]]:
    nobody = np.full(len(records), NOT_COUNTED, np.uint8)
    counted = count_dimensions(records, nobody)
    return {
        dimension: {value: row["found"] for value, row in rows.items()}
        for dimension, rows in counted.items()
    }


def _count_index(shards: ShardSet) -> tuple[dict[str, Counts], dict[str, int]]:
    """Return written records by dimension and part, and by part alone."""
    dimensions: dict[str, Counts] = {name: {} for name in DIMENSIONS}
    by_part = dict.fromkeys(SPLITS, 0)
    for rows in _records(shards.index):
        frame = pl.DataFrame(
            {
                "site": np.array(shards.manifest.sites)[rows["site"]],
                "year": pl.Series([None], dtype=pl.Int32).new_from_index(0, len(rows)),
                "age_years": pl.Series(rows["age_years"].copy()).fill_nan(None),
                "sex": pl.Series(np.array(SEXES)[rows["sex"]]).replace({"": None}),
                "fs": pl.Series(rows["native_fs"].copy()),
            }
        )
        for dimension, values in count_dimensions(frame, rows["split"].copy()).items():
            for value, row in values.items():
                into = dimensions[dimension].setdefault(value, dict.fromkeys(SPLITS, 0))
                for part in SPLITS:
                    into[part] += row[part]
        for number, part in enumerate(SPLITS):
            by_part[part] += int((rows["split"] == number).sum())
    return dimensions, by_part


def _records(index: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    """Yield the index in slices with the first window of each record only."""
    for start in range(0, len(index), _CHUNK_ROWS):
        keys = index["record_key"][max(start - 1, 0) : start + _CHUNK_ROWS]
        new = np.ones(len(keys), np.bool_)
        new[1:] = keys[1:] != keys[:-1]
        yield index[start : start + _CHUNK_ROWS][new[1:] if start else new]


def record_system(records: RecordCounts, min_cell: int) -> CountSystem:
    """Return all counts of records as one system, small ones covered.

    Names: ``column`` for totals (`COLUMNS`, "found" and "written"), ``("reason", reason)``, and
    ``(dimension, value, column)`` with the columns `SHOWN`, where a dimension has several values.
    """
    system = CountSystem(min_cell)
    for column in COLUMNS:
        system.add(column, records.totals[column])
    written = sum(records.totals[part] for part in SPLITS)
    system.add("written", written)
    system.add("found", sum(records.totals.values()))
    system.add_sum("written", SPLITS)
    system.add_sum("found", ("written", "unlabelled", "rejected"))
    reasons: list[Name] = [
        system.add(("reason", reason), count) for reason, count in records.reasons.items()
    ]
    system.add_sum("rejected", reasons)
    for dimension, rows in records.dimensions.items():
        if len(rows) < 2:
            continue  # the totals once more
        for value, counts in rows.items():
            numbers = {
                "written": sum(counts[part] for part in SPLITS),
                "unlabelled": counts["unlabelled"],
                "rejected": counts["rejected"],
            }
            names = [system.add((dimension, value, name), n) for name, n in numbers.items()]
            system.add_sum(system.add((dimension, value, "found"), sum(numbers.values())), names)
        for column in SHOWN:
            system.add_sum(column, [(dimension, value, column) for value in rows])
    system.kept, system.kept_longest = {*SHOWN, *SPLITS}, {"found"}
    system.protect()
    return system


def label_systems(facts: CatalogFacts, reading: str, min_cell: int) -> list[CountSystem]:
    """Return one system per label: positive, observed (and negative) records by part.

    Names: ``(part, "positive")``, ``(part, "observed")`` with the parts of `SPLITS` and "all". The
    negative ones are on no page, but observed less positive gives them.
    """
    said = facts.prevalence[reading]
    systems = []
    for label in range(len(facts.labels)):
        system = CountSystem(min_cell)
        counts = {
            part: (said[part]["positive"][label], said[part]["observed"][label]) for part in SPLITS
        }
        counts["all"] = (
            sum(positive for positive, _ in counts.values()),
            sum(observed for _, observed in counts.values()),
        )
        for part, (positive, observed) in counts.items():
            system.add((part, "positive"), positive)
            system.add((part, "negative"), observed - positive, published=False)
            system.add((part, "observed"), observed)
            system.add_sum((part, "observed"), [(part, "positive"), (part, "negative")])
        for kind in ("positive", "negative", "observed"):
            system.add_sum(("all", kind), [(part, kind) for part in SPLITS])
        system.protect()
        systems.append(system)
    return systems


@dataclass(frozen=True)
class Agreement:
    """Two readings of one label, where nothing that follows from the counts is small."""

    both: int
    first_only: int
    second_only: int
    neither: int
    kappa: float | None


def agreements(facts: CatalogFacts, pair: str, min_cell: int) -> list[Agreement | None]:
    """Return the agreement on each label; None where a count, or a difference, is small.

    The prevalence of each reading is printed too. What it has beyond the records that both read
    must not be small either.
    """
    table = facts.agreement[pair]
    totals = []
    for reading in pair.split("|"):
        said = facts.prevalence[reading]
        totals.append(
            [
                [
                    sum(said[part][kind][label] for part in SPLITS)
                    for label in range(len(facts.labels))
                ]
                for kind in ("positive", "observed")
            ]
        )
    found: list[Agreement | None] = []
    for label in range(len(facts.labels)):
        both, first, second, neither = (
            table[kind][label] for kind in ("both", "first", "second", "neither")
        )
        read = both + first + second + neither
        follow = (
            totals[0][0][label] - both - first,
            totals[1][0][label] - both - second,
            totals[0][1][label] - read,
            totals[1][1][label] - read,
        )
        small = any(0 < count < min_cell for count in (both, first, second, neither, *follow))
        kappa = table["kappa"][label]
        found.append(None if small else Agreement(both, first, second, neither, kappa))
    return found


def shares_together(
    facts: CatalogFacts, labels: NDArray[np.intp], min_cell: int
) -> NDArray[np.float64]:
    """Return which share of a row's positive records is positive for the column's label too.

    NaN where one of the four counts of a pair (both, either alone, neither) is small.

    Shape: (len(labels), len(labels)).
    """
    together = np.array(facts.together, np.int64)[np.ix_(labels, labels)]
    each = np.diag(together)
    total = int(facts.summary["with_label"])
    only = each[:, None] - together
    neither = total - each[:, None] - each[None, :] + together
    small = np.zeros(together.shape, np.bool_)
    for counts in (together, only, only.T, neither):
        small |= (counts > 0) & (counts < min_cell)
    shares = together / np.maximum(each[:, None], 1)
    shares[small | (each[:, None] == 0)] = np.nan
    return shares
