"""Exclusion lists of bad or withdrawn records and patients: never written, always counted."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ecgfounder_train.catalog.patients import canonical_patients
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.records.sources.selection import clean_record_names

_CHUNK_RECORDS = 500_000


@dataclass(frozen=True)
class Exclusions:
    """Two lists. A record is named by its path, file name or id; a patient by any of the ids.

    A path may begin at a folder below the root, as the tables of HEEDB have it.

    Files hold one entry a line; lines that begin with `#` are comments.
    """

    records: frozenset[str] = field(default_factory=frozenset, repr=False)
    patients: frozenset[str] = field(default_factory=frozenset, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> "Exclusions":
        """Return the lists of a config's `exclude`, each the path of a file or null.

        Raises:
            UserError: Unknown key, or a file that cannot be read.
        """
        lists = {}
        for key, file in _section(config, "exclude").items():
            if key not in ("records", "patients"):
                raise UserError(
                    f"exclude.{key} is not a setting.{did_you_mean(key, ('records', 'patients'))}"
                )
            if file:
                lists[key] = _read(str(file), f"exclude.{key}", as_path=key == "records")
        return cls(**lists)

    def fingerprint(self, secret: Secret) -> str:
        """Changes with any entry. Made of keys: a hash of a short list of ids could be reversed."""
        return fingerprint(
            [
                sorted(secret.record_keys("exclude", _series(self.records))),
                sorted(secret.patient_keys("exclude", _series(self.patients))),
            ]
        )

    def everyone(self, merges: pl.DataFrame | None) -> frozenset[str]:
        """Return the canonical ids of the patients: a withdrawal holds for all ids of one."""
        canonical = canonical_patients(merges)
        return frozenset(canonical.get(patient, patient) for patient in self.patients)


@dataclass(frozen=True)
class Selection:
    """What a user leaves out of a catalog: the config's `exclude` and `catalog`."""

    exclusions: Exclusions = field(default_factory=Exclusions)
    max_records_per_patient: int | None = None
    """Of a patient with more usable records so many are kept: those whose ids have the smallest
    hash. That is a fair draw which no date, secret or order of the tables decides, and a next
    release changes it for patients with new records only."""

    def __post_init__(self) -> None:
        limit = self.max_records_per_patient
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise UserError(f"catalog.max_records_per_patient={limit} must be a number, or null.")
        if limit is not None and limit < 1:
            raise UserError(
                f"catalog.max_records_per_patient={limit} must be at least 1; null keeps them all."
            )

    @classmethod
    def from_config(
        cls, exclude: Mapping[str, Any] | None, catalog: Mapping[str, Any] | None
    ) -> "Selection":
        """Return the selection of the two sections of a config.

        Raises:
            UserError: Unknown key, a value out of range, or a list that cannot be read.
        """
        valid = ("max_records_per_patient",)
        settings = _section(catalog, "catalog")
        for key in settings:
            if key not in valid:
                raise UserError(f"catalog.{key} is not a setting.{did_you_mean(key, valid)}")
        return cls(Exclusions.from_config(exclude), **settings)


def _section(config: object, key: str) -> Mapping[str, Any]:
    if config is not None and not isinstance(config, Mapping):
        raise UserError(f"{key}={config} must be left out or hold settings, as {key}.KEY=VALUE.")
    return config or {}


def named_by_end(paths: pl.Series, entries: Collection[str]) -> tuple[list[int], set[str]]:
    """Return the rows whose path ends with the folders and name of an entry, and those entries."""
    ends: dict[str, list[str]] = {}
    for entry in entries:
        ends.setdefault(entry.rpartition("/")[2], []).append(entry)
    stems = pl.Series(list(ends)).implode()
    rows: list[int] = []
    found: set[str] = set()
    for start in range(0, len(paths), _CHUNK_RECORDS):
        part = paths.slice(start, _CHUNK_RECORDS)
        for place in part.str.split("/").list.last().is_in(stems).arg_true().to_list():
            path = part[place]
            if fits := {e for e in ends[path.rpartition("/")[2]] if path.endswith(f"/{e}")}:
                rows.append(start + place)
                found |= fits
    return rows, found


def points_outside(path: pl.Expr) -> pl.Expr:
    """Return which paths lead out of the root; records of such paths are rejected."""
    return path.str.starts_with("/") | path.str.contains(r"(^|/)\.\.(/|$)")


def _series(entries: frozenset[str]) -> pl.Series:
    return pl.Series(list(entries), dtype=pl.String)


def _read(file: str, key: str, as_path: bool) -> frozenset[str]:
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={file} cannot be read: {error}.") from error
    entries = pl.Series([line for line in lines if not line.startswith("#")], dtype=pl.String)
    if as_path:
        found = frozenset(clean_record_names(entries))
    else:
        entries = entries.str.strip_chars().str.strip_chars('"').str.replace(r"^(\d+)\.0+$", "$1")
        found = frozenset(entries.filter(entries != "").to_list())
    if not found:
        raise UserError(f"{key}={file} holds no entry. Leave it out, or name the right file.")
    return found
