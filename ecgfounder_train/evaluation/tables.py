"""Numbers per label and over labels, with the reason wherever there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.small_cells import MIN_CELL, is_small
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.metrics import Macro, macro, ranking_metrics
from ecgfounder_train.metrics.predictions import Predictions

MIN_POSITIVES = 10
"""Below this many positives an AUROC is mostly chance: its standard error exceeds 0.05."""

NEEDS_PREVIOUS_ECG = "needs a previous ECG: cannot be seen in one trace"


def label_table(
    predictions: Predictions,
    notes: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return one row per label, in the vocabulary's order.

    Columns: `label, num_positives, num_observed, prevalence, auroc, auprc, undefined_reason, group,
    note`.
    `auroc` and `auprc` are NaN where undefined, and `undefined_reason` then says why (else null).

    Args:
        predictions: Rows are windows: a record of several windows counts as often.
        notes: What to know about a label before its number is believed; see `label_notes`.
        groups: The vocabulary's group of each label.

    Raises:
        UserError: A counted logit is NaN.
    """
    result = ranking_metrics(
        predictions.logits, predictions.targets, predictions.observed, predictions.labels
    )
    positives, observed = pl.col("num_positives"), pl.col("num_observed")
    notes, groups = notes or {}, groups or {}
    return pl.DataFrame(
        {
            "label": list(predictions.labels),
            "num_positives": result.num_positives,
            "num_observed": result.num_observed,
            "auroc": result.auroc,
            "auprc": result.average_precision,
            "group": [groups.get(label) or None for label in predictions.labels],
            "note": [notes.get(label) for label in predictions.labels],
        },
        schema_overrides={"group": pl.String, "note": pl.String},
    ).select(
        "label",
        "num_positives",
        "num_observed",
        (positives / observed).alias("prevalence"),
        "auroc",
        "auprc",
        pl.when(observed == 0)
        .then(pl.lit("never observed"))
        .when(positives == 0)
        .then(pl.lit("no positives"))
        .when(positives == observed)
        .then(pl.lit("no negatives"))
        .alias("undefined_reason"),
        "group",
        "note",
    )


def label_notes(vocabulary: Vocabulary) -> dict[str, str]:
    """Return what a vocabulary says of its labels that bears on their numbers.

    Read from the columns `description`, `needs_previous_ecg`, `fragment` and `parents`; a
    vocabulary without them has no notes.
    """
    notes = {}
    for entry in vocabulary.entries:
        parts = [entry.notes.get("description") or ""]
        if entry.notes.get("needs_previous_ecg") == "yes":
            parts.append(NEEDS_PREVIOUS_ECG)
        if entry.notes.get("fragment") == "yes":
            parts.append("fragment of a statement")
        if entry.parents:
            parts.append(f"contained in {', '.join(entry.parents)}")
        if any(parts):
            notes[entry.name] = "; ".join(filter(None, parts))
    return notes


@dataclass(frozen=True)
class Summary:
    """The numbers a report begins with."""

    auroc: Macro
    auroc_enough: Macro
    auprc: Macro
    auprc_enough: Macro
    num_labels: int

    def to_dict(self) -> dict[str, float | int]:
        """Return plain numbers under the names metrics files use."""
        return {
            "macro_auroc": self.auroc.value,
            "macro_auroc_num_labels": self.auroc.num_labels,
            f"macro_auroc_min{MIN_POSITIVES}": self.auroc_enough.value,
            f"macro_auroc_min{MIN_POSITIVES}_num_labels": self.auroc_enough.num_labels,
            "macro_auprc": self.auprc.value,
            f"macro_auprc_min{MIN_POSITIVES}": self.auprc_enough.value,
            "num_labels": self.num_labels,
        }


def summarise(table: pl.DataFrame) -> Summary:
    """Return the macro means of a `label_table`: over the defined labels, and over those of them
    with at least `MIN_POSITIVES` positives."""
    positives = table["num_positives"].to_numpy()
    area, precision = table["auroc"].to_numpy(), table["auprc"].to_numpy()
    return Summary(
        auroc=macro(area, positives),
        auroc_enough=macro(area, positives, MIN_POSITIVES),
        auprc=macro(precision, positives),
        auprc_enough=macro(precision, positives, MIN_POSITIVES),
        num_labels=table.height,
    )


def write_label_csv(path: Path | str, table: pl.DataFrame) -> Path:
    """Write a `label_table` as CSV and return its path.

    Every digit is written, except for labels with small counts: see `without_small_cells`.
    """
    path = Path(path)
    with atomic_file(path) as handle:
        write_frame(without_small_cells(table), handle)
    return path


def without_small_cells(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table as it may be shared.

    Of labels with 1 to 9 positives or negatives, the counts and what is computed at a threshold are
    null, and areas have three decimals: more would give the number of positives away.
    """
    positives = pl.col("num_positives")
    small = positives.is_between(1, MIN_CELL - 1)
    if "num_observed" in table.columns:
        small |= (pl.col("num_observed") - positives).is_between(1, MIN_CELL - 1)
    areas = [name for name in table.columns if name.startswith(("auroc", "auprc"))]
    kept = {"label", "num_observed", *areas}
    hidden = [name for name, kind in table.schema.items() if kind.is_numeric() and name not in kept]
    if "num_positive_patients" in table.columns:
        few = pl.col("num_positive_patients").is_between(1, MIN_CELL - 1)
        table = table.with_columns(
            pl.when(few)
            .then(None)
            .otherwise("num_positive_patients")
            .alias("num_positive_patients")
        )
    return table.with_columns(
        *(pl.when(small).then(None).otherwise(name).alias(name) for name in hidden),
        *(pl.when(small).then(pl.col(name).round(3)).otherwise(name).alias(name) for name in areas),
    )


def has_small_cell(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `label_table` has 1 to 9 positives or negatives."""
    positives = int(row["num_positives"])
    return is_small(positives) or is_small(int(row["num_observed"]) - positives)
