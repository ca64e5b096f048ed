"""The split: a pure function of each patient's hash, the seed and the fractions.

A patient's part does not depend on who else is in the archive, so a next release moves nobody. A
merge history may join ids whose hashes fall into different parts; then test wins over val and val
over train, so that nobody who was held out is ever trained on. (Such patients are counted. Being
one of several draws, they are held out a little more often than the fraction says.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint

PARTS = ("train", "val", "test")
"""In the order of who wins where a merge joins them: the last."""

KINDS = ("patient_hash", "official")


@dataclass(frozen=True)
class Assignment:
    """The part of each record, and what was noticed on the way."""

    parts: pl.Series
    """`train`, `val`, `test`, or null where the rule gives a record no part."""
    joined: pl.DataFrame
    """Patients whose ids or records fell into several parts: `canonical_hash`, `parts`, `part`."""


@dataclass(frozen=True)
class PatientSplit:
    """A rule that gives every patient one part.

    `kind=patient_hash` draws; `kind=official` takes the folds that the data set came with.
    """

    kind: str = "patient_hash"
    seed: int = 0
    test_fraction: float = 0.10
    val_fraction: float = 0.05
    """Share of the patients outside the test part."""
    name: str = "patient_hash"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f"split.kind={self.kind} is not a kind.{did_you_mean(self.kind, KINDS)}"
            )
        for key in ("test_fraction", "val_fraction"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(
                    f"split.{key}={value} must be at least 0 and below 1: 0.1 means one patient "
                    "in ten."
                )
        if self.kind == "patient_hash":
            train = (1 - self.test_fraction) * (1 - self.val_fraction)
            if train < 0.5:
                raise UserError(
                    f"split.test_fraction={self.test_fraction} and split.val_fraction="
                    f"{self.val_fraction} leave {train:.0%} of the patients for training; at least "
                    "half is expected. Are they fractions, not percentages?"
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "PatientSplit":
        """Return the split of a `configs/split` group.

        Raises:
            UserError: Unknown key or kind, or fractions out of range.
        """
        valid = ("kind", "name", "seed", "test_fraction", "val_fraction")
        for key in config:
            if key not in valid:
                raise UserError(f"split.{key} is not a setting.{did_you_mean(str(key), valid)}")
        settings = dict(config)
        settings.setdefault("name", settings.get("kind", "patient_hash"))
        return cls(**settings)

    @property
    def fingerprint(self) -> str:
        """Changes with anything that could move a patient; not with the name."""
        rule: dict[str, Any] = {"kind": self.kind}
        if self.kind == "patient_hash":
            rule |= {
                "seed": self.seed,
                "test_fraction": float(self.test_fraction),
                "val_fraction": float(self.val_fraction),
            }
        return fingerprint(rule)

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        shown: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "patient_hash":
            shown |= {
                "seed": self.seed,
                "test_fraction": self.test_fraction,
                "val_fraction": self.val_fraction,
            }
        return shown | {"fingerprint": self.fingerprint}

    def draw(self, patient_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """Return the part of each hash, as a position in `PARTS`.

        Test and validation are drawn independently, so another `val_fraction` leaves the test
        part as it was, and a smaller fraction gives a part of the larger one's patients.
        """
        test = _uniform(patient_hash, self.seed, stream=0) < self.test_fraction
        val = _uniform(patient_hash, self.seed, stream=1) < self.val_fraction
        return np.where(test, 2, np.where(val, 1, 0)).astype(np.uint8)

    def assign(self, records: pl.DataFrame, other_ids: pl.DataFrame | None = None) -> Assignment:
        """Return the part of each record; records of one canonical patient have the same.

        Args:
            records: One row per record: `patient_hash` of the id it came with, `canonical_hash` of
                the patient behind it (uint64; null = no patient) and `split`, the source's own.
            other_ids: `patient_hash` and `canonical_hash` of merged ids that may have no record
                any more: had they been drawn for test in an earlier release, they still count.

        Raises:
            UserError: `kind=official` and the source has no folds.
        """
        if self.kind == "official":
            if len(records) and records["split"].null_count() == len(records):
                raise UserError(
                    "split.kind=official, but the source brings no folds of its own. "
                    "Use split=patient_hash, or name the column that holds them "
                    "(source.split_column of source=wfdb_folder)."
                )
            known = pl.Enum(PARTS)
            wrong = set(records["split"].drop_nulls().unique()) - set(PARTS)
            if wrong:
                raise UserError(
                    f"The source's folds are named {', '.join(sorted(wrong))}; splits are named "
                    f"{', '.join(PARTS)}."
                )
            own = records.select(
                "canonical_hash",
                pl.col("split").cast(known).to_physical().cast(pl.UInt8).alias("part"),
            )
        else:
            ids = records.select("patient_hash", "canonical_hash")
            if other_ids is not None:
                ids = pl.concat([ids, other_ids.select(ids.columns)])
            ids = ids.drop_nulls().unique(maintain_order=True)
            part = pl.Series("part", self.draw(ids["patient_hash"].to_numpy()), dtype=pl.UInt8)
            own = ids.select("canonical_hash").with_columns(part)
        by_patient = (
            own.drop_nulls()
            .group_by("canonical_hash")
            .agg(pl.col("part").max(), pl.col("part").unique().sort().alias("parts"))
        )
        present = records.select(pl.col("canonical_hash").unique())
        joined = (
            by_patient.filter(pl.col("parts").list.len() > 1)
            .join(present, on="canonical_hash", how="semi")
            .sort("canonical_hash")
            .select("canonical_hash", _named("parts", many=True), _named("part"))
        )
        parts = records.join(
            by_patient.select("canonical_hash", "part"),
            on="canonical_hash",
            how="left",
            maintain_order="left",
        ).select(_named("part").alias("split"))["split"]
        return Assignment(parts, joined)


def _named(column: str, many: bool = False) -> pl.Expr:
    names = dict(enumerate(PARTS))
    if many:
        return (
            pl.col(column)
            .list.eval(pl.element().replace_strict(names, return_dtype=pl.String))
            .list.join("+")
        )
    return pl.col(column).replace_strict(names, return_dtype=pl.String)


def _uniform(hashes: npt.NDArray[np.uint64], seed: int, stream: int) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) that look random and depend on nothing but the arguments.

    Source: SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
    """
    step = np.uint64((0x9E3779B97F4A7C15 * (2 * (seed % 2**32) + stream + 1)) % 2**64)
    x = hashes + step  # wraps around, as meant
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
