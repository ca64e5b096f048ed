"""Rows of one record, gathered: a table may have one row per (record, statement).

Public tables differ: one row per exam (PTB-XL), one per diagnosis (MIMIC's `diagnoses_icd.csv`),
one per reader. Taking the first row of a record would turn the statements of its other rows into
observed negatives.
"""

from collections import Counter

import polars as pl

from ecgfounder_train.core.errors import RejectReason

IDENTITY = ("record_path", "patient_id", "split", "fold")
"""Columns of which two values make a record unusable: it is rejected."""
CONTRADICTION = "records_with_contradictory_"
"""Begins the count of records whose rows differ in a column."""


def gather_rows(table: pl.DataFrame, key: str, counts: Counter[str]) -> pl.DataFrame:
    """Return one row per value of `key`: the statements of its rows united.

    Statements are null where all rows are. Any other column holds the value that the rows agree on;
    where they do not, it becomes null and the record is counted under `CONTRADICTION`. A record
    with two patients, paths or folds is rejected as `contradictory_rows`.

    Args:
        table: Columns as in `RECORD_COLUMNS`, some or all. Rows without a key stay as they are.
        key: Column that names the record.
        counts: `rows_of_a_record_seen_before` and the contradictions are added.
    """
    seen_before = pl.col(key).is_not_null() & ~pl.col(key).is_first_distinct()
    repeated = table.select(seen_before.sum()).item()
    counts["rows_of_a_record_seen_before"] += repeated
    if not repeated:
        return table
    table = table.with_row_index("row")
    several = pl.col(key).is_not_null() & pl.col(key).is_duplicated()
    others = [name for name in table.columns if name not in ("row", key, "statements")]
    once, many = table.filter(~several), table.filter(several)
    has_statements = "statements" in table.columns
    said = pl.col("statements").explode().drop_nulls().unique(maintain_order=True)
    gathered = many.group_by(key, maintain_order=True).agg(
        pl.col("row").first(),
        *([said, pl.col("statements").is_null().all().alias("silent")] if has_statements else []),
        *(pl.col(name).drop_nulls().first() for name in others),
        *(pl.col(name).drop_nulls().n_unique().alias(f"different {name}") for name in others),
    )
    if has_statements:
        gathered = gathered.with_columns(pl.when(~pl.col("silent")).then("statements"))
    wrong = pl.lit(False)
    for name in others:
        differs = pl.col(f"different {name}") > 1
        if not (number := gathered.select(differs.sum()).item()):
            continue
        counts[f"{CONTRADICTION}{name}"] += number
        if name in IDENTITY:
            wrong = wrong | differs
        else:
            value = pl.when(~differs).then(pl.col(name))
            gathered = gathered.with_columns(value.alias(name))
    columns = [name for name in table.columns if name != "row"]
    if gathered.select(wrong.any()).item():
        former = pl.col("reject_reason") if "reject_reason" in columns else pl.lit(None)
        reason = pl.when(wrong).then(pl.lit(RejectReason.CONTRADICTORY_ROWS.value))
        gathered = gathered.with_columns(reason.otherwise(former).alias("reject_reason"))
        if "reject_reason" not in columns:
            columns.append("reject_reason")
            once = once.with_columns(pl.lit(None, dtype=pl.String).alias("reject_reason"))
    wanted = ["row", *columns]
    return pl.concat([once.select(wanted), gathered.select(wanted)]).sort("row").select(columns)
