"""Counts of a catalog for the data report, in a file that names no record or patient.

Small cells are not hidden here: the file stays in the private folder, and a report that leaves the
machine must suppress them.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.cells import Statements
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.kernels import NOT_COUNTED, count_agreement, count_labels

FACTS_NAME = "catalog_facts.json"
AGE_BANDS = (0, 1, 5, 12, 18, 30, 40, 50, 60, 70, 80, 90)
"""Years at which a band begins; the last one holds the capped ages."""
_CHUNK_RECORDS = 500_000


@dataclass(frozen=True)
class CatalogFacts:
    """Counts of records. `usable` ones have a part, a patient and an observed label.

    Attributes:
        counts: By dimension (site, year, age_band, sex, fs) and value: found, usable, and usable in
            each part; the value of what is not known is "unknown".
        labels: Names, in the order of everything below.
        label_source: The reading that the labels come from.
        prevalence: By reading and part: positive and observed records of each label, among the
            records that are not rejected.
        agreement: By pair of readings ("physician|software"): of each label the records where both
            say it, only the first, only the second, neither; and Cohen's kappa (null: undefined).
        together: How often two labels are positive in one usable record; the diagonal is how often
            each is.
        quirks: What is odd about the tables: site, name, found, published.
        unknown_statements: The most frequent statements that no label knows, with their counts.
        summary: The catalog's own totals, with what lists and limits left out.
    """

    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    labels: tuple[str, ...]
    label_source: str
    prevalence: Mapping[str, Mapping[str, Mapping[str, list[int]]]]
    agreement: Mapping[str, Mapping[str, list[Any]]]
    together: list[list[int]]
    quirks: list[dict[str, Any]] = field(default_factory=list)
    unknown_statements: list[tuple[str, int]] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return asdict(self)


def write_facts(folder: Path | str, facts: CatalogFacts) -> Path:
    """Write the facts into a private folder so that they are whole or absent; return the path."""
    path = Path(folder) / FACTS_NAME
    with atomic_file(path, "w") as handle:
        handle.write(json.dumps(facts.to_dict(), allow_nan=False) + "\n")
    return path


def read_facts(folder: Path | str) -> CatalogFacts:
    """Return the facts in a private folder.

    Raises:
        UserError: There are none, or they are damaged.
    """
    path = Path(folder) / FACTS_NAME
    try:
        content = json.loads(path.read_text())
        content["labels"] = tuple(content["labels"])
        content["unknown_statements"] = [(name, n) for name, n in content["unknown_statements"]]
        return CatalogFacts(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is missing or damaged ({type(error).__name__}). Run prepare again."
        ) from error


@dataclass(frozen=True, eq=False)
class Readings:
    """Packed labels of one reading and what was counted of all of them."""

    values: NDArray[np.uint8]
    observed: NDArray[np.uint8]
    statement_counts: dict[str, int]
    prevalence: dict[str, dict[str, dict[str, list[int]]]]
    agreement: dict[str, dict[str, list[Any]]]


def encode_readings(
    readings: Mapping[str, Statements],
    chosen: str,
    vocabulary: Vocabulary,
    parts: NDArray[np.uint8],
) -> Readings:
    """Return the labels of the chosen reading, and prevalences and agreement of all readings.

    In slices, so that only the chosen labels are ever there for all records.

    Args:
        parts: Place in `SPLITS` of each record, `NOT_COUNTED` for those that do not count.
    """
    number = len(parts)
    width = (vocabulary.num_labels + 7) // 8
    values = np.zeros((number, width), np.uint8)
    observed = np.zeros((number, width), np.uint8)
    encoders = {name: vocabulary.encoder(said.names) for name, said in readings.items()}
    names = readings[chosen].names
    totals = np.zeros(len(names), np.int64)
    counters = {name: _Counter(width) for name in readings}
    pairs = {
        (one, other): np.zeros((8 * width, 4), np.int64)
        for place, one in enumerate(readings)
        for other in list(readings)[place + 1 :]
        if "_else_" not in one + other  # it agrees with what it is made of
    }

    def encode(part: slice) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        encoded, counted = {}, []
        said_by_chosen = np.zeros(0, np.int64)
        for name, said in readings.items():
            numbers, ends = _slice(said.numbers, part)
            encoded[name] = encoders[name].encode(numbers, ends, np.diff(ends) > 0)
            counter = _Counter(width)
            counter.add(*encoded[name], parts[part])
            counted += [counter.positives, counter.seen]
            if name == chosen:
                values[part], observed[part] = encoded[name]
                said_by_chosen = np.bincount(numbers, minlength=len(names))
        for one, other in pairs:
            table = np.zeros((8 * width, 4), np.int64)
            count_agreement(*encoded[one], *encoded[other], parts[part], table)
            counted.append(table)
        return said_by_chosen, counted

    for encoder in encoders.values():  # the cache of an encoder is filled before threads share it
        encoder.encode(np.zeros(0, np.uint16), np.zeros(2, np.int64), np.zeros(1, np.bool_))
    starts = range(0, number, _CHUNK_RECORDS)
    slices = (slice(start, min(start + _CHUNK_RECORDS, number)) for start in starts)
    sums = [table for one in counters.values() for table in (one.positives, one.seen)]
    sums += pairs.values()
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        for statements, counted in pool.map(encode, slices):
            totals += statements
            for table, more in zip(sums, counted, strict=True):
                table += more
    labels = vocabulary.labels
    return Readings(
        values,
        observed,
        {name: int(count) for name, count in zip(names, totals, strict=True) if count},
        {name: counter.by_part(labels) for name, counter in counters.items()},
        {f"{one}|{other}": _agreement(table, labels) for (one, other), table in pairs.items()},
    )


def _slice(numbers: pl.Series, part: slice) -> tuple[NDArray[Any], NDArray[np.int64]]:
    array = numbers.slice(part.start, part.stop - part.start).rechunk().to_arrow()
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    flat = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return flat, offsets - offsets[0]


class _Counter:
    """Positive and observed records of each label by part."""

    def __init__(self, width: int) -> None:
        self.positives = np.zeros((len(SPLITS), 8 * width), np.int64)
        self.seen = np.zeros((len(SPLITS), 8 * width), np.int64)

    def add(
        self, values: NDArray[np.uint8], observed: NDArray[np.uint8], parts: NDArray[np.uint8]
    ) -> None:
        nothing = np.zeros((0, 0), np.int64)
        count_labels(values, observed, parts, self.positives, self.seen, nothing)

    def by_part(self, labels: tuple[str, ...]) -> dict[str, dict[str, list[int]]]:
        return {
            part: {
                "positive": self.positives[number, : len(labels)].tolist(),
                "observed": self.seen[number, : len(labels)].tolist(),
            }
            for number, part in enumerate(SPLITS)
        }


def count_prevalence(
    values: NDArray[np.uint8],
    observed: NDArray[np.uint8],
    parts: NDArray[np.uint8],
    labels: tuple[str, ...],
) -> dict[str, dict[str, list[int]]]:
    """Return positive and observed records of each label by part."""
    counter = _Counter(values.shape[1])
    counter.add(values, observed, parts)
    return counter.by_part(labels)


def count_together(
    values: NDArray[np.uint8],
    observed: NDArray[np.uint8],
    parts: NDArray[np.uint8],
    num_labels: int,
) -> list[list[int]]:
    """Return how often two labels are positive in the same record."""
    counter = _Counter(values.shape[1])
    table = np.zeros((8 * values.shape[1],) * 2, np.int64)
    count_labels(values, observed, parts, counter.positives, counter.seen, table)
    together: list[list[int]] = table[:num_labels, :num_labels].tolist()
    return together


def _agreement(table: NDArray[np.int64], labels: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return the four counts and kappa of each label.

    Source: Cohen 1960, doi:10.1177/001316446002000104.
    """
    both, first, second, neither = (table[: len(labels), place].tolist() for place in range(4))
    kappas: list[float | None] = []
    for a, b, c, d in zip(both, first, second, neither, strict=True):
        total = a + b + c + d
        expected = ((a + b) * (a + c) + (c + d) * (b + d)) / total**2 if total else 1.0
        # Undefined where both readings have the same value throughout.
        kappas.append(None if expected == 1.0 else ((a + d) / total - expected) / (1 - expected))
    return {"both": both, "first": first, "second": second, "neither": neither, "kappa": kappas}


def count_dimensions(
    frame: pl.DataFrame, parts: NDArray[np.uint8]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return found and usable records by site, year, age band, sex and sampling rate.

    Args:
        frame: Columns site, year, age_years, sex, fs.
        parts: Place in `SPLITS` of each usable record, `NOT_COUNTED` for the others.
    """
    bands = [f"{low}-{high - 1}" for low, high in pairwise(AGE_BANDS)] + [f"{AGE_BANDS[-1]}+"]
    age = pl.col("age_years")
    reached = pl.sum_horizontal((age >= edge).cast(pl.UInt8) for edge in AGE_BANDS[1:])
    as_text = pl.col("value").cast(pl.String)
    # Counted value and shown text: texts of ten million rows are never made.
    dimensions = {
        "site": (pl.col("site"), as_text),
        "year": (pl.col("year"), as_text),
        "age_band": (
            pl.when(age.is_not_null()).then(reached),
            pl.col("value").replace_strict(dict(enumerate(bands)), return_dtype=pl.String),
        ),
        "sex": (pl.col("sex"), as_text),
        "fs": (pl.col("fs"), as_text.str.strip_suffix(".0")),
    }
    part = pl.Series("part", parts)
    counts = {}
    for name, (value, shown) in dimensions.items():
        counted = (
            frame.lazy()
            .select(value.alias("value"), pl.lit(part).alias("part"))
            .group_by("value", "part")
            .len()
            .with_columns(shown.fill_null("unknown"))
            .collect()
            .sort("value", "part")
        )
        rows: dict[str, dict[str, int]] = {}
        for key, number, count in counted.iter_rows():
            row = rows.setdefault(key, {"found": 0, "usable": 0, **dict.fromkeys(SPLITS, 0)})
            row["found"] += count
            if number != NOT_COUNTED:
                row["usable"] += count
                row[SPLITS[number]] += count
        counts[name] = rows
    return counts
