"""The catalog: every recording of a source with keys, labels and split, or its reject reason."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ecgfounder_train.catalog.exclusions import (
    Exclusions,
    Selection,
    named_by_end,
    points_outside,
)
from ecgfounder_train.catalog.facts import (
    CatalogFacts,
    Readings,
    count_dimensions,
    count_prevalence,
    count_together,
    encode_readings,
)
from ecgfounder_train.catalog.patients import canonical_patients, patient_hashes
from ecgfounder_train.core.ages import CAPPED_YEARS, OLDEST_YEARS
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.core.text_columns import text_hashes
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.kernels import NOT_COUNTED
from ecgfounder_train.records.sources import SourceTable
from ecgfounder_train.records.sources.rows import CONTRADICTION, IDENTITY
from ecgfounder_train.records.sources.selection import record_names

CATALOG_COLUMNS: dict[str, pl.DataType] = {
    "record_path": pl.String(),
    "record_key": pl.String(),
    "patient_key": pl.String(),
    "patient_hash": pl.UInt64(),
    "source": pl.String(),
    "site": pl.String(),
    "year": pl.Int32(),
    "age_years": pl.Float32(),
    "sex": pl.String(),
    "fs": pl.Float32(),
    "split": pl.String(),
    "labels": pl.Binary(),
    "observed": pl.Binary(),
    "reject_reason": pl.String(),
}
"""`patient_hash` is that of the canonical patient, before any secret: the catalog stays private."""

_FEW_WORDS = ("site", "sex", "split", "reject_reason")
"""Columns of few different texts: sixteen bytes a row as text, as categories four."""
_CHUNK_RECORDS = 500_000
_NUM_UNKNOWN = 100
_NUM_REASONS = 6
LEFT_OUT_NAME = "files_left_out.csv"


class Split(Protocol):
    """The part of `splits.PatientSplit` that the catalog needs; that package is downstream."""

    @property
    def fingerprint(self) -> str: ...

    def assign(self, records: pl.DataFrame, other_ids: pl.DataFrame | None = None) -> Any: ...


@dataclass(frozen=True, eq=False)
class Catalog:
    """The table of all recordings, its fingerprints and its counts."""

    frame: pl.DataFrame
    labels: tuple[str, ...]
    fingerprints: Mapping[str, str]
    summary: Mapping[str, Any]
    """Counts only; records: found = with_label + unlabelled + the sum of rejected."""
    warnings: tuple[str, ...] = ()
    """Conditions that the user should check."""
    unknown_statements: pl.DataFrame | None = field(default=None, compare=False)
    """Statements in no label, with their counts (private: may be free text)."""
    joined_patients: pl.DataFrame | None = field(default=None, compare=False)
    """Patients whose ids or records fell into several splits (private)."""
    facts: CatalogFacts | None = field(default=None, compare=False)
    """Counts for the data report (private until small cells are suppressed)."""
    files_left_out: pl.DataFrame | None = field(default=None, compare=False)
    """Files of the source that belong to no record, with the reason (private: paths)."""

    @property
    def description(self) -> str:
        """Return the counts of records and irregularities, beside published ones."""
        lines = [f"Catalog: {self.summary['found']:,} records found."]
        for quirk in self.facts.quirks if self.facts else ():
            if quirk["published"] is not None:
                name = quirk["name"].replace("_", " ")
                lines.append(
                    f"  {quirk['site']} {name}: {quirk['found']:,} (published "
                    f"{quirk['published']:,})"
                )
        for reason, count in self.summary["rejected"].items():
            lines.append(f"  rejected: {reason}: {count:,}")
        lines += self._left_out()
        statements = self.summary["statements"]
        lines.append(
            f"  {statements['in_no_label']:,} of {statements['read']:,} statements bear on no "
            f"label ({statements['different_in_no_label']:,} different ones)"
        )
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _left_out(self) -> list[str]:
        """Return how many files belong to no record, by reason."""
        if self.files_left_out is None or self.files_left_out.is_empty():
            return []
        reasons = Counter(self.files_left_out["reason"])
        frequent = reasons.most_common(_NUM_REASONS)
        listed = [f"{count:,} {reason}" for reason, count in frequent]
        if others := reasons.total() - sum(count for _, count in frequent):
            listed.append(f"{others:,} other")
        number = self.files_left_out.height
        return [
            f"  {number:,} files belong to no record and are listed in {LEFT_OUT_NAME} beside the "
            f"catalog: {'; '.join(listed)}"
        ]


def build_catalog(
    source_table: SourceTable,
    vocabulary: Vocabulary,
    secret: Secret,
    split: Split,
    *,
    source_name: str,
    selection: Selection | None = None,
) -> Catalog:
    """Return the catalog of a source: one row per record, sorted by path, rejected ones included.

    Args:
        selection: Records and patients that must not be written, and how many of one patient.

    Raises:
        UserError: The source has no recordings, none of its statements is in the vocabulary, or no
            record is left that could be written.
    """
    vocabulary = vocabulary.with_texts(source_table.texts)
    selection = selection or Selection()
    exclusions, max_records_per_patient = selection.exclusions, selection.max_records_per_patient
    ids = _read_ids(source_table.records, secret, source_name, exclusions)
    table = ids.frame
    if table.is_empty():
        raise UserError(
            f"The source {source_name} lists no recordings. Check source.root and its tables."
        )
    patients, other_ids = _patients(
        table["patient_id"], source_table.merges, secret, source_name, exclusions
    )
    table = table.drop("patient_id").hstack(patients)
    del patients
    assignment = split.assign(
        table.select(
            pl.col("own_hash").alias("patient_hash"),
            pl.col("patient_hash").alias("canonical_hash"),
            *("split", "fold", "site", "year"),
        ),
        other_ids,
    )
    table = table.drop("own_hash")
    parts = assignment.parts.cast(pl.Enum(SPLITS))
    table = table.with_columns(parts.alias("split")).with_columns(
        _reject_reason(ids.is_repeated, ids.is_excluded)
    )
    read = _encode(source_table, vocabulary, _numbers_of_parts(table))
    unknown = _unknown_statements(read.statement_counts, vocabulary, source_name)
    table = table.with_columns(pl.Series("has_label", read.observed.any(axis=1)))
    if max_records_per_patient is not None:
        table = table.with_columns(_over_limit(table, ids.hashes, max_records_per_patient))
    summary = _summary(
        table, source_table.counts, assignment.joined, read.statement_counts, unknown, vocabulary
    )
    summary["excluded"] = _count_exclusions(table, ids, exclusions, source_table.merges)
    if not summary["with_label"]:
        raise UserError(
            f"No record of source {source_name} has an observed label and a patient: of "
            f"{summary['found']:,} found {summary['unlabelled']:,} are unlabelled and "
            f"{sum(summary['rejected'].values()):,} rejected {summary['rejected']}. Check the "
            "labels table (source.*) and the vocabulary (labels=)."
        )
    facts = _facts(table, read, source_table, vocabulary, unknown, summary)
    fingerprints = {
        "vocabulary": vocabulary.fingerprint,
        "statement_texts": fingerprint(dict(vocabulary.texts)),
        "split": split.fingerprint,
        "secret": secret.fingerprint,
        "exclusions": exclusions.fingerprint(secret),
        "max_records_per_patient": fingerprint(max_records_per_patient),
    }
    table = table.drop("has_label", "is_excluded_patient").with_columns(
        pl.when(pl.col("age_years") > OLDEST_YEARS)
        .then(CAPPED_YEARS)
        .otherwise(pl.col("age_years"))
        .alias("age_years"),
    )
    packed = {"labels": read.values, "observed": read.observed}
    del read, ids
    return Catalog(
        _sorted(table, packed, source_name),
        vocabulary.labels,
        fingerprints,
        summary,
        _warnings(summary),
        unknown,
        assignment.joined,
        facts,
        source_table.files_left_out,
    )


@dataclass(frozen=True, eq=False)
class _Ids:
    """Everything of a source but the statements; ids of records only as keys and hashes."""

    frame: pl.DataFrame
    hashes: NDArray[np.uint64]
    is_repeated: pl.Series
    is_excluded: pl.Series
    found_entries: frozenset[str]
    """Entries of the list of excluded records that fit a record."""


def _read_ids(
    records: pl.LazyFrame, secret: Secret, source_name: str, exclusions: Exclusions
) -> _Ids:
    # In slices: the ids of ten million records would take a gigabyte, and are needed only while
    # keys are made of them.
    records = records.drop("statements")
    height = int(records.select(pl.len()).collect().item())
    entries = pl.Series("entry", sorted(exclusions.records), dtype=pl.String).implode()
    found: set[str] = set()
    none = pl.Series([False])

    def read_slice(start: int) -> tuple[pl.DataFrame, NDArray[np.uint64], pl.Series]:
        part = records.slice(start, _CHUNK_RECORDS).collect()
        names = part["record_id"]
        keys = secret.record_keys(source_name, names.fill_null(""))
        excluded = none.new_from_index(0, part.height)
        if exclusions.records:
            listed = record_names(part)
            hits = [listed[name].is_in(entries) for name in listed.columns]
            for name, hit in zip(listed.columns, hits, strict=True):
                found.update(listed[name].filter(hit).to_list())
            excluded = (hits[0] | hits[1] | hits[2]).fill_null(False)
        narrow = part.drop("record_id").with_columns(
            keys.alias("record_key"), pl.col(_FEW_WORDS).cast(pl.Categorical)
        )
        return narrow, text_hashes(names), excluded

    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        done = list(pool.map(read_slice, range(0, max(height, 1), _CHUNK_RECORDS)))
    frame = pl.concat([part for part, _, _ in done])
    both = np.concatenate([hashes for _, hashes, _ in done])
    is_excluded = pl.concat([excluded for _, _, excluded in done])
    del done
    if by_end := {entry for entry in exclusions.records - found if "/" in entry}:
        # As HEEDB's tables name a record: below a folder of the root (S0001/1988/04/de_...).
        places, entries_found = named_by_end(frame["record_path"], by_end)
        is_excluded = is_excluded.scatter(places, True)
        found |= entries_found
    is_repeated = _repeated(both)
    if is_repeated.any():
        # The second row of a record is rejected, but has a key of its own: rows never share one.
        rows = np.flatnonzero(is_repeated.to_numpy())
        again = [
            f"{key}\0{number}"
            for number, key in enumerate(frame["record_key"].gather(rows).to_list())
        ]
        new = secret.record_keys(source_name, pl.Series(again, dtype=pl.String))
        renamed = frame["record_key"].scatter(rows, new)
        frame = frame.with_columns(renamed.alias("record_key"))
    return _Ids(frame, both[:, 0], is_repeated, is_excluded, frozenset(found))


def _repeated(hashes: NDArray[np.uint64]) -> pl.Series:
    """Return which rows have an id that came before; both hashes together decide."""
    first = pl.Series("first", hashes[:, 0])
    suspect = np.flatnonzero(first.is_duplicated().to_numpy())
    pairs = pl.DataFrame({"first": hashes[suspect, 0], "second": hashes[suspect, 1]})
    repeated = np.zeros(len(hashes), np.bool_)
    repeated[suspect] = (
        ~pairs.select(pl.struct("first", "second").is_first_distinct()).to_series().to_numpy()
    )
    return pl.Series("is_repeated", repeated)


def _numbers_of_parts(table: pl.DataFrame, usable: bool = False) -> NDArray[np.uint8]:
    """Return the place in `SPLITS` of each record that is not rejected (and labelled)."""
    counts = pl.col("reject_reason").is_null()
    if usable:
        counts &= pl.col("has_label")
    place = pl.col("split").to_physical().cast(pl.UInt8)
    part = pl.when(counts).then(place).fill_null(NOT_COUNTED)
    return table.select(part.cast(pl.UInt8).alias("part"))["part"].to_numpy()


def _over_limit(table: pl.DataFrame, hashes: NDArray[np.uint64], limit: int) -> pl.Expr:
    usable = table.select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        pl.col("patient_hash"),
        pl.Series("draw", hashes),
        (pl.col("reject_reason").is_null() & pl.col("has_label")).alias("usable"),
    ).filter("usable")
    usable = usable.filter(pl.len().over("patient_hash") > limit)
    beyond = usable.filter(pl.col("draw").rank("ordinal").over("patient_hash") > limit)[
        "row"
    ].to_numpy()
    mask = np.zeros(table.height, np.bool_)
    mask[beyond] = True
    return (
        pl.when(pl.Series(mask))
        .then(pl.lit(RejectReason.PATIENT_LIMIT.value))
        .otherwise(pl.col("reject_reason").cast(pl.String))
        .cast(pl.Categorical)
        .alias("reject_reason")
    )


def _encode(
    source_table: SourceTable, vocabulary: Vocabulary, parts: NDArray[np.uint8]
) -> Readings:
    chosen = source_table.label_source
    if chosen in source_table.readings:
        return encode_readings(source_table.readings, chosen, vocabulary, parts)
    # In slices: the lists of ten million records would take several gigabytes at once.
    statements = source_table.records.select("statements")
    encoded = [
        vocabulary.encode_many(statements.slice(start, _CHUNK_RECORDS).collect()["statements"])
        for start in range(0, len(parts), _CHUNK_RECORDS)
    ]
    counts: dict[str, int] = {}
    for part in encoded:
        for statement, count in part.statement_counts.items():
            counts[statement] = counts.get(statement, 0) + count
    values = np.concatenate([part.values for part in encoded])
    observed = np.concatenate([part.observed for part in encoded])
    said = count_prevalence(values, observed, parts, vocabulary.labels)
    return Readings(values, observed, counts, {chosen or "source": said}, {})


def _facts(
    table: pl.DataFrame,
    read: Readings,
    source_table: SourceTable,
    vocabulary: Vocabulary,
    unknown: pl.DataFrame,
    summary: Mapping[str, Any],
) -> CatalogFacts:
    parts = _numbers_of_parts(table, usable=True)
    return CatalogFacts(
        counts=count_dimensions(table, parts),
        labels=vocabulary.labels,
        label_source=source_table.label_source or "source",
        prevalence=read.prevalence,
        agreement=read.agreement,
        together=count_together(read.values, read.observed, parts, vocabulary.num_labels),
        quirks=[quirk._asdict() for quirk in source_table.quirks],
        unknown_statements=unknown.head(_NUM_UNKNOWN).rows(),
        summary=summary,
    )


def _count_exclusions(
    table: pl.DataFrame, ids: _Ids, exclusions: Exclusions, merges: pl.DataFrame | None
) -> dict[str, int]:
    """Return how many entries were listed and found, without naming them."""
    counts = {
        "records_listed": len(exclusions.records),
        "records_unknown": len(exclusions.records - ids.found_entries),
        "patients_listed": len(exclusions.patients),
        "patients_unknown": 0,
    }
    if exclusions.patients:
        hit = table.filter("is_excluded_patient")
        present = set(hit["patient_hash"].to_list())
        canonical = canonical_patients(merges)
        listed = [canonical.get(patient, patient) for patient in sorted(exclusions.patients)]
        counts["patients_unknown"] = sum(
            hashed not in present for hashed in patient_hashes(listed).to_list()
        )
    return counts


def _sorted(
    table: pl.DataFrame, packed: dict[str, NDArray[np.uint8]], source_name: str
) -> pl.DataFrame:
    """Return the catalog in path order; each column is removed from the table when it is made."""
    path = table["record_path"]
    order = None
    if path.null_count() or not path.is_sorted():
        order = path.arg_sort()
        path = path.gather(order)
    # Neighbours now: a hash set of ten million paths takes a gigabyte.
    same = path.eq_missing(path.shift(1)).fill_null(False).to_numpy().copy()
    same[:1] = False
    alike = same | np.append(same[1:], False)
    if alike.any():  # rejected rows only; their keys decide
        rows = order.to_numpy().copy() if order is not None else np.arange(len(path))
        places = np.flatnonzero(alike)
        chosen = table.select("record_path", "record_key")[rows[places]]
        rows[places] = rows[places][
            chosen.with_row_index("place").sort("record_path", "record_key")["place"].to_numpy()
        ]
        order = pl.Series(rows)
    del path
    height = table.height
    columns = {}
    for name, kind in CATALOG_COLUMNS.items():
        if name == "source":
            columns[name] = pl.Series([source_name], dtype=kind).new_from_index(0, height)
        elif name in packed:
            cells = _binary(name, packed.pop(name))
            columns[name] = cells if order is None else cells.gather(order)
            del cells
        else:
            column = table.drop_in_place(name)
            columns[name] = (column if order is None else column.gather(order)).cast(kind)
    return pl.DataFrame(columns)


def _unknown_statements(
    counts: Mapping[str, int], vocabulary: Vocabulary, source_name: str
) -> pl.DataFrame:
    unknown = {name: count for name, count in counts.items() if not vocabulary.knows(name)}
    if counts and len(unknown) == len(counts):
        examples = ", ".join(repr(name) for name in list(counts)[:5])
        raise UserError(
            f"None of the {len(counts):,} different statements of source {source_name} (such as "
            f"{examples}) is in the vocabulary {vocabulary.name}: every label would be negative. "
            "Choose the labels= that belong to the source, or labels.match=substring for texts."
        )
    return pl.DataFrame(
        {"statement": list(unknown), "count": list(unknown.values())},
        schema={"statement": pl.String, "count": pl.Int64},
    ).sort("count", "statement", descending=[True, False])


def _patients(
    own: pl.Series,
    merges: pl.DataFrame | None,
    secret: Secret,
    source_name: str,
    exclusions: Exclusions,
) -> tuple[list[pl.Series], pl.DataFrame | None]:
    """Return hashes, keys and exclusion of each record's patient; and the hashes of merged ids."""
    canonical = canonical_patients(merges)
    people = own.drop_nulls().unique(maintain_order=True)
    merged = people.replace(list(canonical), list(canonical.values())) if canonical else people
    excluded = pl.Series(sorted(exclusions.everyone(merges)), dtype=pl.String)
    of_people = pl.DataFrame(
        {
            "id": people,
            "own_hash": patient_hashes(people),
            "patient_hash": patient_hashes(merged),
            "patient_key": secret.patient_keys(source_name, merged),
            "is_excluded_patient": merged.is_in(excluded.implode()),
        }
    )
    place = (
        own.rename("id")
        .to_frame()
        .join(
            of_people.select("id").with_row_index("place"),
            on="id",
            how="left",
            maintain_order="left",
        )["place"]
    )
    columns = [of_people[name].gather(place) for name in of_people.columns[1:]]
    columns[-1] = columns[-1].fill_null(False)
    if not canonical:
        return columns, None
    others = pl.DataFrame(
        {
            "patient_hash": patient_hashes(canonical),
            "canonical_hash": patient_hashes(canonical.values()),
        }
    )
    return columns, others


def _binary(name: str, packed: NDArray[np.uint8]) -> pl.Series:
    # Through Arrow: ten million Python bytes objects would take a gigabyte on the way.
    kind = pa.binary(packed.shape[1])
    data = pa.py_buffer(np.ascontiguousarray(packed))
    cells = pa.Array.from_buffers(kind, len(packed), [None, data])
    return pl.Series(name, cells).cast(pl.Binary)


def _reject_reason(is_repeated: pl.Series, is_excluded: pl.Series) -> pl.Expr:
    path = pl.col("record_path")
    outside = path.is_null() | points_outside(path)
    return (
        pl.when(pl.lit(is_excluded) | pl.col("is_excluded_patient"))
        .then(pl.lit(RejectReason.EXCLUDED.value))
        .when(pl.col("reject_reason").is_not_null())
        .then(pl.col("reject_reason").cast(pl.String))
        .when(pl.lit(is_repeated))
        .then(pl.lit(RejectReason.DUPLICATE_RECORD.value))
        .when(outside)
        .then(pl.lit(RejectReason.MISSING_HEADER.value))
        .when(pl.col("patient_hash").is_null())
        .then(pl.lit(RejectReason.BLANK_PATIENT_ID.value))
        .when(pl.col("split").is_null())
        .then(pl.lit(RejectReason.NO_SPLIT.value))
        .otherwise(None)
        .cast(pl.Categorical)
        .alias("reject_reason")
    )


def _warnings(summary: Mapping[str, Any]) -> tuple[str, ...]:
    warnings = [
        f"The split leaves no record for {part}; "
        + ("training needs some: take other fractions or another split.seed."
           if part != "test" else "nothing is held out.")
        for part in ("train", "val", "test")
        if part not in summary["splits"]
    ]  # fmt: skip
    stand_ins = summary["source"].get("patient_unknown_record_stands_in", 0)
    if stand_ins:
        warnings.append(
            f"The patient of {stand_ins:,} records is unknown, and each is its own patient: "
            "records of one patient may be in different splits."
        )
    counts = summary["source"]
    repeated = counts.get("rows_of_a_record_seen_before", 0)
    repeated += counts.get("label_rows_of_a_stem_seen_before", 0)
    if repeated:
        warnings.append(
            f"{repeated:,} table rows are further rows of a record: the statements of all rows of "
            "a record are united."
        )
    for name, number in counts.items():
        if name.startswith(CONTRADICTION) and number:
            column = name.removeprefix(CONTRADICTION)
            outcome = (
                "they are rejected as contradictory_rows" if column in IDENTITY else "it is unknown"
            )
            warnings.append(f"{number:,} records have rows that differ in {column}: {outcome}.")
    if unknown := counts.get("selected_entries_unknown", 0):
        warnings.append(f"{unknown:,} entries of source.records fit nothing in this source.")
    for what in ("records", "patients"):
        unknown = summary["excluded"][f"{what}_unknown"]
        if unknown:
            warnings.append(
                f"{unknown:,} of {summary['excluded'][f'{what}_listed']:,} entries of "
                f"exclude.{what} fit nothing in this source."
            )
    return tuple(warnings)


def _summary(
    table: pl.DataFrame,
    quirks: Mapping[str, int],
    joined: pl.DataFrame,
    statement_counts: Mapping[str, int],
    unknown: pl.DataFrame,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    kept = table.select("reject_reason", "has_label", "split", "patient_hash").filter(
        pl.col("reject_reason").is_null()
    )
    usable = kept.filter("has_label")
    rejected = (
        table["reject_reason"]
        .drop_nulls()
        .value_counts()
        .cast({"reject_reason": pl.String})
        .sort("reject_reason")
    )
    parts = {
        str(name): {"records": records, "patients": patients}
        for name, records, patients in usable.group_by("split")
        .agg(pl.len(), pl.col("patient_hash").n_unique())
        .iter_rows()
    }
    return {
        "found": table.height,
        "with_label": usable.height,
        "unlabelled": kept.height - usable.height,
        "rejected": dict(rejected.iter_rows()),
        "patients": usable["patient_hash"].n_unique(),
        "splits": {name: parts[name] for name in sorted(parts)},
        "patients_joined_across_parts": joined.height,
        "statements": {
            "read": sum(statement_counts.values()),
            "in_no_label": int(unknown["count"].sum()),
            "different": len(statement_counts),
            "different_in_no_label": unknown.height,
        },
        "source": dict(quirks),
        "vocabulary": vocabulary.name,
    }
