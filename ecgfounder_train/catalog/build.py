"""The catalog: every recording of a source, with its keys, labels, part, or why it is left out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ecgfounder_train.catalog.patients import canonical_patients, patient_hashes
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import EncodedLabels, Vocabulary
from ecgfounder_train.records.sources import SourceTable

OLDEST_YEARS = 89.0
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

_CHUNK_RECORDS = 500_000


class Split(Protocol):
    """What the catalog needs of a `splits.PatientSplit`, which is downstream of it."""

    @property
    def fingerprint(self) -> str: ...

    def assign(self, records: pl.DataFrame, other_ids: pl.DataFrame | None = None) -> Any: ...


@dataclass(frozen=True, eq=False)
class Catalog:
    """The table, and what a manifest says about it."""

    frame: pl.DataFrame
    labels: tuple[str, ...]
    fingerprints: Mapping[str, str]
    summary: Mapping[str, Any]
    """Counts only; records: found = with_label + unlabelled + the sum of rejected."""
    warnings: tuple[str, ...] = ()
    """What the user should know before going on."""
    unknown_statements: pl.DataFrame | None = field(default=None, compare=False)
    """Statements no label knows, with their counts (private: may be free text)."""
    joined_patients: pl.DataFrame | None = field(default=None, compare=False)
    """Patients whose ids fell into several parts (private)."""


def build_catalog(
    source_table: SourceTable,
    vocabulary: Vocabulary,
    secret: Secret,
    split: Split,
    *,
    source_name: str,
) -> Catalog:
    """Return the catalog of a source: one row per record, sorted by path, rejected ones included.

    Raises:
        UserError: The source has no recordings, none of its statements is in the vocabulary, or no
            record is left that could be written.
    """
    vocabulary = vocabulary.with_texts(source_table.texts)
    records = source_table.records
    table = records.drop("statements").collect()
    if table.is_empty():
        raise UserError(
            f"The source {source_name} lists no recordings. Check source.root and its tables."
        )
    encoded = _encode(records.select("statements"), table.height, vocabulary)
    unknown = _unknown_statements(encoded, vocabulary, source_name)

    patients, other_ids = _patients(table, source_table.merges, secret, source_name)
    table = table.with_columns(patients)
    assignment = split.assign(
        table.select(
            pl.col("own_hash").alias("patient_hash"),
            pl.col("patient_hash").alias("canonical_hash"),
            "split",
        ),
        other_ids,
    )
    table = table.with_columns(
        assignment.parts.alias("split"),
        pl.Series(
            "record_key", [secret.record_key(source_name, name) for name in table["record_id"]]
        ),
        pl.lit(source_name).alias("source"),
        pl.when(pl.col("age_years") > OLDEST_YEARS)
        .then(90.0)
        .otherwise(pl.col("age_years"))
        .alias("age_years"),
        _binary("labels", encoded.values),
        _binary("observed", encoded.observed),
        pl.Series("has_label", encoded.observed.any(axis=1)),
    ).with_columns(_reject_reason())
    table = table.sort("record_path", "record_key", maintain_order=True)
    summary = _summary(table, source_table.counts, assignment.joined, encoded, unknown, vocabulary)
    if not summary["with_label"]:
        raise UserError(
            f"No record of source {source_name} has an observed label and a patient: of "
            f"{summary['found']:,} found {summary['unlabelled']:,} are unlabelled and "
            f"{sum(summary['rejected'].values()):,} rejected {summary['rejected']}. Check the "
            "labels table (source.*) and the vocabulary (labels=)."
        )
    return Catalog(
        table.select(pl.col(name).cast(kind).alias(name) for name, kind in CATALOG_COLUMNS.items()),
        vocabulary.labels,
        {
            "vocabulary": vocabulary.fingerprint,
            "statement_texts": fingerprint(dict(vocabulary.texts)),
            "split": split.fingerprint,
            "secret": secret.fingerprint,
        },
        summary,
        _warnings(summary),
        unknown,
        assignment.joined,
    )


def _encode(statements: pl.LazyFrame, height: int, vocabulary: Vocabulary) -> EncodedLabels:
    # In slices: the lists of ten million records would take several gigabytes at once.
    parts = [
        vocabulary.encode_many(statements.slice(start, _CHUNK_RECORDS).collect()["statements"])
        for start in range(0, height, _CHUNK_RECORDS)
    ]
    counts: dict[str, int] = {}
    for part in parts:
        for statement, count in part.statement_counts.items():
            counts[statement] = counts.get(statement, 0) + count
    return EncodedLabels(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.observed for part in parts]),
        counts,
    )


def _unknown_statements(
    encoded: EncodedLabels, vocabulary: Vocabulary, source_name: str
) -> pl.DataFrame:
    counts = encoded.statement_counts
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
    table: pl.DataFrame, merges: pl.DataFrame | None, secret: Secret, source_name: str
) -> tuple[list[pl.Series], pl.DataFrame | None]:
    canonical = canonical_patients(merges)
    own = table["patient_id"]
    merged = own if not canonical else own.replace(canonical)
    everyone = pl.concat([own, merged]).drop_nulls().unique(maintain_order=True)
    hash_of = pl.DataFrame({"id": everyone, "hash": patient_hashes(everyone)})
    of_merged = merged.drop_nulls().unique(maintain_order=True)
    key_of = pl.DataFrame(
        {"id": of_merged, "key": [secret.patient_key(source_name, name) for name in of_merged]},
        schema={"id": pl.String, "key": pl.String},
    )
    columns = [
        _look_up(own, hash_of).alias("own_hash"),
        _look_up(merged, hash_of).alias("patient_hash"),
        _look_up(merged, key_of).alias("patient_key"),
    ]
    if not canonical:
        return columns, None
    others = pl.DataFrame(
        {
            "patient_hash": patient_hashes(canonical),
            "canonical_hash": patient_hashes(canonical.values()),
        }
    )
    return columns, others


def _look_up(ids: pl.Series, table: pl.DataFrame) -> pl.Series:
    return (
        ids.rename("id")
        .to_frame()
        .join(table, on="id", how="left", maintain_order="left")[table.columns[1]]
    )


def _binary(name: str, packed: npt.NDArray[np.uint8]) -> pl.Series:
    # Through Arrow: ten million Python bytes objects would take a gigabyte on the way.
    kind = pa.binary(packed.shape[1])
    data = pa.py_buffer(np.ascontiguousarray(packed))
    cells = pa.Array.from_buffers(kind, len(packed), [None, data])
    return pl.Series(name, cells).cast(pl.Binary)


def _reject_reason() -> pl.Expr:
    path = pl.col("record_path")
    outside = path.is_null() | path.str.starts_with("/") | path.str.contains(r"(^|/)\.\.(/|$)")
    return (
        pl.when(pl.col("reject_reason").is_not_null())
        .then(pl.col("reject_reason"))
        .when(~pl.col("record_id").is_first_distinct())
        .then(pl.lit(RejectReason.DUPLICATE_RECORD.value))
        .when(outside)  # a table that points outside the root is not followed
        .then(pl.lit(RejectReason.MISSING_HEADER.value))
        .when(pl.col("patient_hash").is_null())
        .then(pl.lit(RejectReason.BLANK_PATIENT_ID.value))
        .when(pl.col("split").is_null())
        .then(pl.lit(RejectReason.NO_SPLIT.value))
        .otherwise(None)
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
            f"The patient of {stand_ins:,} records is not known, and each stands for one: if "
            "patients have several records, they may fall into different parts."
        )
    return tuple(warnings)


def _summary(
    table: pl.DataFrame,
    quirks: Mapping[str, int],
    joined: pl.DataFrame,
    encoded: EncodedLabels,
    unknown: pl.DataFrame,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    kept = table.filter(pl.col("reject_reason").is_null())
    usable = kept.filter("has_label")
    rejected = table["reject_reason"].drop_nulls().value_counts().sort("reject_reason")
    parts = {
        str(name): {"records": part.height, "patients": part["patient_key"].n_unique()}
        for (name,), part in usable.group_by("split", maintain_order=True)
    }
    return {
        "found": table.height,
        "with_label": usable.height,
        "unlabelled": kept.height - usable.height,
        "rejected": dict(rejected.iter_rows()),
        "patients": usable["patient_key"].n_unique(),
        "splits": {name: parts[name] for name in sorted(parts)},
        "patients_joined_across_parts": joined.height,
        "statements": {
            "read": sum(encoded.statement_counts.values()),
            "in_no_label": int(unknown["count"].sum()),
            "different": len(encoded.statement_counts),
            "different_in_no_label": unknown.height,
        },
        "source": dict(quirks),
        "vocabulary": vocabulary.name,
    }
