"""Patient-level split: a pure function of each patient's hash, the seed and the rule.

| `kind` | test | validation |
|---|---|---|
| `patient_hash` | a share of the patients, drawn | a share of the others, drawn |
| `official` | the fold that the data set came with | likewise |
| `site` | patients of `test_sites` | a share of the others, drawn |
| `year` | patients with a record from `test_from_year` on | drawn, or from `val_from_year` on |
| `list` | what a CSV of patients says | likewise |

A patient's split does not depend on other patients, so a next release moves no patient. A
merge history may join ids whose hashes fall into different parts; then test wins over val and val
over train, so that no held-out patient is ever trained on. (Such patients are counted. Being
one of several draws, they are held out a little more often than the fraction says.) The same rule
holds for a patient of two sites or with records on both sides of a year: wholly to test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ecgfounder_train.catalog.patients import patient_hashes
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.splits import SPLITS

KINDS: dict[str, tuple[str, ...]] = {
    "patient_hash": ("seed", "test_fraction", "val_fraction"),
    "official": ("val_folds", "test_folds"),
    "site": ("seed", "val_fraction", "test_sites", "train_sites"),
    "year": ("seed", "val_fraction", "test_from_year", "val_from_year"),
    "list": ("file", "unlisted"),
}
"""The settings each kind reads."""
_FIRST_YEAR, _LAST_YEAR = 1900, 2100


@dataclass(frozen=True)
class Assignment:
    """The part of each record, and what was noticed on the way."""

    parts: pl.Series
    """`train`, `val`, `test` (an enum), or null where the rule gives a record no part."""
    joined: pl.DataFrame
    """Patients whose ids or records fell into several parts: `canonical_hash`, `parts`, `part`."""


@dataclass(frozen=True)
class PatientSplit:
    """A rule that gives every patient one part."""

    kind: str = "patient_hash"
    seed: int = 0
    test_fraction: float = 0.10
    val_fraction: float = 0.05
    """Share of the patients outside the test part."""
    name: str = "patient_hash"
    test_sites: Sequence[str] = ()
    train_sites: Sequence[str] = ()
    """Sites to train on; empty: all that are not test sites. Other sites are in no split."""
    val_folds: Sequence[int] = ()
    """Numbers of the source's folds to validate on; empty: those of the source."""
    test_folds: Sequence[int] = ()
    """Numbers of the folds to test on. Folds in neither list are for training."""
    test_from_year: int | None = None
    val_from_year: int | None = None
    file: str | None = None
    """CSV with the columns `patient` and `split`."""
    unlisted: str = "none"
    """Part of patients that the file does not name; `none` leaves them out."""
    listed: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False)
    """Part by patient hash, read from `file`."""

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
        if type(self.seed) is not int:
            raise UserError(f"split.seed={self.seed} must be a whole number.")
        for key in ("test_sites", "train_sites"):
            sites = getattr(self, key)
            is_list = isinstance(sites, Sequence) and not isinstance(sites, str)
            if not is_list or not all(isinstance(site, str) for site in sites):
                raise UserError(f"split.{key}={sites} must be a list of sites, such as [I0006].")
        for key in ("val_folds", "test_folds"):
            folds = getattr(self, key)
            is_list = isinstance(folds, Sequence) and not isinstance(folds, str)
            if not is_list or not all(type(fold) is int for fold in folds):
                raise UserError(f"split.{key}={folds} must be a list of fold numbers, such as [9].")
        if both := sorted(set(self.val_folds) & set(self.test_folds)):
            raise UserError(f"split.val_folds and split.test_folds both name {both[0]}.")
        if self.kind == "patient_hash":
            train = (1 - self.test_fraction) * (1 - self.val_fraction)
            if train < 0.5:
                raise UserError(
                    f"split.test_fraction={self.test_fraction} and split.val_fraction="
                    f"{self.val_fraction} leave {train:.0%} of the patients for training; at least "
                    "half is expected. Are they fractions, not percentages?"
                )
        elif self.kind == "site":
            if not self.test_sites:
                raise UserError("split.test_sites is empty: name the sites to hold out.")
            if twice := sorted(set(self.test_sites) & set(self.train_sites)):
                raise UserError(f"split.test_sites and split.train_sites both name {twice[0]}.")
        elif self.kind == "year":
            first_test = _year("test_from_year", self.test_from_year)
            first_val = self.val_from_year
            if first_val is not None and _year("val_from_year", first_val) >= first_test:
                raise UserError(
                    f"split.val_from_year={first_val} must be before "
                    f"split.test_from_year={first_test}."
                )
        elif self.kind == "list":
            if self.unlisted not in ("none", *SPLITS):
                raise UserError(
                    f"split.unlisted={self.unlisted} must be one of none, {', '.join(SPLITS)}."
                )
            if not self.listed:
                object.__setattr__(self, "listed", _read_list(self.file))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "PatientSplit":
        """Return the split of a `configs/split` group.

        Raises:
            UserError: Unknown key or kind, a value out of range, or a list that cannot be read.
        """
        kind = str(config.get("kind", "patient_hash"))
        if kind not in KINDS:
            raise UserError(f"split.kind={kind} is not a kind.{did_you_mean(kind, KINDS)}")
        valid = ("kind", "name", *KINDS[kind])
        for key in config:
            if key not in valid:
                raise UserError(
                    f"split.{key} is not a setting of split.kind={kind}."
                    f"{did_you_mean(str(key), valid)}"
                )
        settings = dict(config)
        settings.setdefault("name", kind)
        return cls(**settings)

    @property
    def fingerprint(self) -> str:
        """Changes with anything that could move a patient; not with the name."""
        return fingerprint({"kind": self.kind, **self._rule()})

    def _rule(self) -> dict[str, Any]:
        """Return the settings that decide; of a list its content, hashed, not its place."""
        rule: dict[str, Any] = {}
        for key in KINDS[self.kind]:
            value = getattr(self, key)
            if key.endswith("_fraction"):
                value = float(value)
            elif key.endswith("_sites"):
                value = sorted(value)
            elif key.endswith("_folds"):
                if not value:  # as before there was a choice
                    continue
                value = sorted(value)
            elif key == "file":
                continue
            rule[key] = value
        if self.kind == "list":
            rule["listed"] = fingerprint(sorted([str(k), part] for k, part in self.listed.items()))
            rule["num_listed"] = len(self.listed)
        return rule

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        shown = {"name": self.name, "kind": self.kind, **self._rule()}
        shown.pop("listed", None)  # a hash of few ids could be tried out; the fingerprint is mixed
        return shown | {"fingerprint": self.fingerprint}

    def draw(self, patient_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        """Return the part of each hash, as a position in `SPLITS`.

        Test and validation are drawn independently, so another `val_fraction` leaves the test
        part as it was, and a smaller fraction gives a part of the larger one's patients.
        """
        test = _uniform(patient_hash, self.seed, stream=0) < self.test_fraction
        val = _uniform(patient_hash, self.seed, stream=1) < self.val_fraction
        return np.where(test, 2, np.where(val, 1, 0)).astype(np.uint8)

    def _own_parts(self, records: pl.DataFrame, other_ids: pl.DataFrame | None) -> pl.DataFrame:
        """Return `canonical_hash` and `part` of everything that speaks for a patient's part."""
        if self.kind == "official":
            return self._by_fold(records)
        if self.kind in ("site", "year"):
            self._check_present(records)
            rule = self._by_site() if self.kind == "site" else self._by_year()
            part = rule.cast(pl.UInt8).alias("part")
            stated = records.select("canonical_hash", part).drop_nulls().unique()
            train = stated.filter(pl.col("part") == 0)
            if self.val_fraction and self.val_from_year is None:
                drawn = self._drawn(records, other_ids).join(train, on="canonical_hash", how="semi")
                stated = pl.concat([stated, drawn.filter(pl.col("part") == 1)])
            return stated
        ids = _all_ids(records, other_ids)
        if self.kind == "list":
            numbers = [SPLITS.index(part) for part in self.listed.values()]
            listed = pl.DataFrame(
                {"patient_hash": list(self.listed), "part": numbers},
                schema={"patient_hash": pl.UInt64, "part": pl.UInt8},
            )
            found = ids.join(listed, on="patient_hash", how="inner")
            if found.is_empty():
                raise UserError(
                    f"split.file={self.file} names none of the patients of this source. Ids must "
                    "be written as in the source's tables."
                )
            stated = found.select("canonical_hash", "part")
            if self.unlisted != "none":
                others = ids.select("canonical_hash").join(stated, on="canonical_hash", how="anti")
                number = pl.lit(SPLITS.index(self.unlisted), dtype=pl.UInt8)
                stated = pl.concat([stated, others.with_columns(number.alias("part"))])
            return stated
        return self._drawn(records, other_ids)

    def _drawn(self, records: pl.DataFrame, other_ids: pl.DataFrame | None) -> pl.DataFrame:
        ids = _all_ids(records, other_ids)
        part = pl.Series("part", self.draw(ids["patient_hash"].to_numpy()), dtype=pl.UInt8)
        if self.kind != "patient_hash":  # only the validation part is drawn
            val = _uniform(ids["patient_hash"].to_numpy(), self.seed, stream=1) < self.val_fraction
            part = pl.Series("part", val, dtype=pl.Boolean).cast(pl.UInt8)
        return ids.select("canonical_hash").with_columns(part)

    def _by_fold(self, records: pl.DataFrame) -> pl.DataFrame:
        if len(records) and records["split"].null_count() == len(records):
            raise UserError(
                "split.kind=official, but the source has no folds of its own. "
                "Use split=patient_hash, or name the column that holds them "
                "(source.split_column of source=wfdb_folder)."
            )
        if self.val_folds or self.test_folds:
            records = self._by_fold_number(records)
        wrong = set(records["split"].drop_nulls().unique()) - set(SPLITS)
        if wrong:
            raise UserError(
                f"The source's folds are named {', '.join(sorted(wrong)[:12])}; splits are named "
                f"{', '.join(SPLITS)}. Of numbered folds name those to validate and test on: "
                "split.val_folds=[9] split.test_folds=[10]."
            )
        part = pl.col("split").cast(pl.Enum(SPLITS)).to_physical().cast(pl.UInt8).alias("part")
        return records.select("canonical_hash", part).unique()

    def _by_fold_number(self, records: pl.DataFrame) -> pl.DataFrame:
        """Return the records with `split` by the chosen folds; others as the source has them."""
        fold = pl.col("fold")
        present = sorted(records["fold"].drop_nulls().unique()) if "fold" in records.columns else []
        if not present:
            raise UserError(
                "split.val_folds and split.test_folds need numbered folds, which this source does "
                "not have (source=ptbxl does, and source.split_column of a table with numbers)."
            )
        for number in (*self.val_folds, *self.test_folds):
            if number not in present:
                raise UserError(
                    f"There is no fold {number} in this source (its folds: "
                    f"{', '.join(map(str, present[:20]))})."
                )
        own = pl.col("split")
        # Without a choice for a part, the source's own stays, unless its name is a number.
        keep_val = (own == "val") if not self.val_folds else pl.lit(False)
        keep_test = (own == "test") if not self.test_folds else pl.lit(False)
        chosen = (
            pl.when(fold.is_in(list(self.test_folds)))
            .then(pl.lit("test"))
            .when(fold.is_in(list(self.val_folds)))
            .then(pl.lit("val"))
            .when(keep_test)
            .then(pl.lit("test"))
            .when(keep_val)
            .then(pl.lit("val"))
            .when(fold.is_not_null())
            .then(pl.lit("train"))
        )
        return records.with_columns(chosen.alias("split"))

    def _check_present(self, records: pl.DataFrame) -> None:
        if self.kind == "year":
            if len(records) and records["year"].null_count() == len(records):
                raise UserError(
                    "split.kind=year, but the source knows no years. Use split=patient_hash."
                )
            return
        present = set(records["site"].drop_nulls().unique())
        for site in (*self.test_sites, *self.train_sites):
            if site not in present:
                raise UserError(
                    f"There is no site {site} in this source.{did_you_mean(site, present)}"
                )

    def _by_site(self) -> pl.Expr:
        site = pl.col("site")
        train = site.is_in(list(self.train_sites)) if self.train_sites else site.is_not_null()
        return pl.when(site.is_in(list(self.test_sites))).then(2).when(train).then(0)

    def _by_year(self) -> pl.Expr:
        year = pl.col("year")
        first_val = self.test_from_year if self.val_from_year is None else self.val_from_year
        return (
            pl.when(year >= self.test_from_year)
            .then(2)
            .when(year >= first_val)
            .then(1)
            .when(year.is_not_null())
            .then(0)
        )

    def assign(self, records: pl.DataFrame, other_ids: pl.DataFrame | None = None) -> Assignment:
        """Return the part of each record; records of one canonical patient have the same.

        Args:
            records: One row per record: `patient_hash` of the id it came with, `canonical_hash` of
                the patient behind it (uint64; null = no patient), and what the kind goes by:
                `split` (the source's own), `site`, or `year`.
            other_ids: `patient_hash` and `canonical_hash` of merged ids that may have no record
                any more: had they been drawn for test in an earlier release, they still count.

        Raises:
            UserError: The source lacks what the kind goes by: folds, sites, years, the patients.
        """
        own = self._own_parts(records, other_ids).drop_nulls()
        by_patient = own.group_by("canonical_hash").agg(
            pl.col("part").max(), pl.col("part").min().alias("least")
        )
        several = by_patient.filter(pl.col("part") > pl.col("least"))
        present = records.select("canonical_hash")
        joined = (
            own.join(several, on="canonical_hash", how="semi")
            .join(present, on="canonical_hash", how="semi")
            .group_by("canonical_hash")
            .agg(pl.col("part").unique().sort().alias("parts"), pl.col("part").max())
            .sort("canonical_hash")
            .select("canonical_hash", _named("parts", many=True), _named("part"))
        )
        # No text, and no column but the two: ten million rows of others are half a gigabyte.
        parts = present.join(
            by_patient.select("canonical_hash", "part"),
            on="canonical_hash",
            how="left",
            maintain_order="left",
        )["part"]
        names = parts.replace_strict(dict(enumerate(SPLITS)), return_dtype=pl.Enum(SPLITS))
        return Assignment(names.alias("split"), joined)


def _year(key: str, value: int | None) -> int:
    if not isinstance(value, int) or not _FIRST_YEAR <= value <= _LAST_YEAR:
        raise UserError(f"split.{key}={value} must be a year such as 2018.")
    return value


def _read_list(file: str | None) -> dict[int, str]:
    """Return the part of each patient of a CSV, by the hash of the id."""
    if not file:
        raise UserError("split.file is missing: a CSV with the columns patient and split.")
    path = Path(file).expanduser()
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"split.file={file} cannot be read as a CSV file: {error}.") from error
    for column in ("patient", "split"):
        if column not in table.columns:
            raise UserError(
                f"split.file={file} has no column {column!r} (found: {', '.join(table.columns)})."
            )
    table = table.select(pl.col("patient", "split").str.strip_chars()).drop_nulls("patient")
    wrong = set(table["split"].unique()) - set(SPLITS)
    if wrong:
        raise UserError(
            f"split.file={file} names the part {min(map(str, wrong))!r}; parts are "
            f"{', '.join(SPLITS)}."
        )
    pairs = table.unique()
    twice = pairs.height - pairs["patient"].n_unique()
    if twice:
        raise UserError(f"split.file={file} gives {twice:,} patients more than one part.")
    return dict(zip(patient_hashes(pairs["patient"]).to_list(), pairs["split"], strict=True))


def _all_ids(records: pl.DataFrame, other_ids: pl.DataFrame | None) -> pl.DataFrame:
    """Return each id's hash beside its patient's, those without a record included."""
    ids = records.select("patient_hash", "canonical_hash").unique()
    if other_ids is not None:
        ids = pl.concat([ids, other_ids.select(ids.columns)]).unique()
    return ids.drop_nulls()


def _named(column: str, many: bool = False) -> pl.Expr:
    names = dict(enumerate(SPLITS))
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
